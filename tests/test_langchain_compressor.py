"""The LangChain compressor on the real framework, by its synchronous and its asynchronous method."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import numpy as np
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.embeddings import Embeddings
from langchain_core.load import dumpd, dumps
from langchain_core.runnables import RunnableLambda
from pydantic import Field, SecretStr, ValidationError

from neuralcache_plugins import InvalidInputError, RerankSettings
from neuralcache_plugins.langchain import NeuralCacheCompressor
from neuralcache_plugins.reranker import Reranker
from neuralcache_plugins.testing import HashingEncoder

QUESTION = "how do I reset my password"
TEXTS = [
    "opening hours of the branch office",
    "order a new debit card",
    "reset a forgotten password in the settings",
    "exchange rates for foreign currency",
    "change the address of an account",
    "password rules and how often to change them",
]


@pytest.fixture
def make():
    """Make compressors with an encoder for tests and a store in memory, and close them."""
    made = []

    def build(**fields):
        made.append(NeuralCacheCompressor(**{"embeddings": HashingEncoder(), "store": "memory://", **fields}))
        return made[-1]

    yield build
    for compressor in made:
        compressor.close()


def documents(texts=TEXTS, **metadata):
    return [Document(page_content=text, id=f"d{i}", metadata={"at": i, **metadata}) for i, text in enumerate(texts)]


def scores(found, key="relevance_score"):
    return [document.metadata[key] for document in found]


async def test_scores_are_python_floats_that_fall_along_the_order(call, make):
    """Each returned document carries a float in [0, 1]; sorting by it reproduces the order."""
    found = await call(make(top_n=None), "compress_documents", documents(), QUESTION)

    assert len(found) == len(TEXTS)
    assert {type(score) for score in scores(found)} == {float}
    assert all(0 <= score <= 1 for score in scores(found))
    assert [d.id for d in sorted(found, key=lambda d: -d.metadata["relevance_score"])] == [d.id for d in found]
    assert json.loads(json.dumps(scores(found))) == scores(found)


async def test_it_is_a_document_compressor_that_puts_the_answer_in_front(call, make):
    """The framework's own base class; the document about the question comes up."""
    compressor = make()

    found = await call(compressor, "compress_documents", documents(), QUESTION)

    assert isinstance(compressor, BaseDocumentCompressor)
    assert "d2" in [d.id for d in found]


@pytest.mark.parametrize(("top_n", "expected"), [(1, 1), (3, 3), (100, 6), (None, 6)])
async def test_top_n_is_honoured_and_none_means_all(call, make, top_n, expected):
    """``top_n`` bounds the answer."""
    assert len(await call(make(top_n=top_n), "compress_documents", documents(), QUESTION)) == expected


async def test_three_documents_are_returned_by_default(call, make):
    """As LangChain's rerankers do."""
    assert len(await call(make(), "compress_documents", documents(), QUESTION)) == 3


async def test_no_documents_give_no_documents(call):
    """Not even the store is opened for them."""
    compressor = NeuralCacheCompressor(embeddings=HashingEncoder(), store="nonsense://")

    assert await call(compressor, "compress_documents", [], QUESTION) == []


async def test_the_callers_documents_stay_as_they_were(call, make):
    """Neither the documents nor their metadata change, and the copies' metadata is their own."""
    given = documents(nested={"deep": [1]})
    before = copy.deepcopy(given)

    found = await call(make(), "compress_documents", given, QUESTION)
    for document in found:
        document.metadata["at"] = "changed"

    assert given == before


async def test_ids_and_metadata_survive_by_default_with_one_key_added(call, make):
    """Only ``relevance_score`` is added: prompts that show metadata stay the same from call to call."""
    found = await call(make(top_n=None), "compress_documents", documents(source="faq"), QUESTION)

    assert {d.id: set(d.metadata) for d in found} == {f"d{i}": {"at", "source", "relevance_score"} for i in range(6)}
    assert all(TEXTS[d.metadata["at"]] == d.page_content for d in found)


async def test_the_score_goes_under_the_key_that_is_asked_for(call, make):
    """``score_key`` replaces ``relevance_score``."""
    found = await call(make(score_key="neuralcache"), "compress_documents", documents(), QUESTION)

    assert all("relevance_score" not in d.metadata for d in found)
    assert scores(found, "neuralcache") == sorted(scores(found, "neuralcache"), reverse=True)


async def test_a_threshold_keeps_what_reaches_it_exactly(call, make):
    """``score_threshold`` is inclusive, and may leave nothing."""
    everything = scores(await call(make(top_n=None), "compress_documents", documents(), QUESTION))

    kept = await call(make(top_n=None, score_threshold=everything[1]), "compress_documents", documents(), QUESTION)
    none = await call(make(score_threshold=1.0), "compress_documents", documents(), QUESTION)

    assert scores(kept) == [score for score in everything if score >= everything[1]]
    assert none == []


async def test_a_document_without_id_gets_one_made_of_its_text(call, make):
    """The same text has the same id wherever it stands; the caller's object keeps its None."""
    compressor = make(top_n=None)
    given = [Document(page_content=text) for text in TEXTS]

    first = await call(compressor, "compress_documents", given, QUESTION)
    second = await call(compressor, "compress_documents", given[::-1], QUESTION)

    assert {d.page_content: d.id for d in first} == {d.page_content: d.id for d in second}
    assert len({d.id for d in first}) == len(TEXTS)
    assert all(d.id not in map(str, range(len(TEXTS))) for d in first)
    assert all(d.id is None for d in given)


async def test_an_empty_id_is_no_id(call, make):
    """Two documents with empty ids are two documents."""
    given = [Document(page_content=text, id="") for text in TEXTS]

    found = await call(make(top_n=None), "compress_documents", given, QUESTION)

    assert len({d.id for d in found}) == len(TEXTS)


async def test_id_key_names_a_metadata_key_or_a_function(call, make):
    """Where it finds nothing, ``Document.id`` and then the text identify the document."""
    given = [
        Document(page_content="a", id="own", metadata={"key": 7}),
        Document(page_content="b", id="own2"),
        Document(page_content="c", metadata={"key": ""}),
    ]
    by_key = make(id_key="key")
    by_function = make(id_key=lambda document: document.page_content * 2)

    assert set((await call(by_key, "rank", given, "a b c")).ids) == {"7", "own2", by_key.reranker.document_id("c")}
    assert set((await call(by_function, "rank", given, "a b c")).ids) == {"aa", "bb", "cc"}


async def test_duplicate_ids_and_texts_are_all_returned(call, make):
    """Positions, not ids, are what the core works with."""
    given = [Document(page_content="the same text", id="same", metadata={"at": i}) for i in range(4)]

    found = await call(make(top_n=None), "compress_documents", given, QUESTION)

    assert sorted(d.metadata["at"] for d in found) == [0, 1, 2, 3]
    assert {d.id for d in found} == {"same"}


async def test_metadata_may_have_keys_that_are_not_strings(call, make):
    """LangChain allows any key."""
    found = await call(make(), "compress_documents", [Document(page_content="x", metadata={1: "one", (2,): 3})], "x")

    assert set(found[0].metadata) == {1, (2,), "relevance_score"}


@pytest.mark.parametrize("count", [129, 1_000])
async def test_many_documents_are_no_trouble(call, make, count):
    """There is no limit on the number of candidates."""
    given = [Document(page_content=f"text number {i}", id=str(i)) for i in range(count)]

    found = await call(make(top_n=None), "compress_documents", given, "text number 100")

    assert sorted(d.id for d in found) == sorted(d.id for d in given)


async def test_a_text_of_a_megabyte_is_no_trouble(call, make):
    """There is no limit on the length of a text either."""
    long = "password reset " * 70_000
    given = [Document(page_content=long, id="long"), *documents()]

    found = await call(make(top_n=None), "compress_documents", given, QUESTION)

    assert {d.id: d.page_content for d in found}["long"] == long


async def test_empty_texts_and_an_empty_question_are_no_trouble(call, make):
    """An empty question leaves the order alone."""
    given = [Document(page_content="", id="empty"), *documents()]

    found = await call(make(top_n=None), "compress_documents", given, "")

    assert [d.id for d in found] == [d.id for d in given]


async def test_identical_calls_give_identical_order_and_scores(call, make):
    """Fifty calls, one answer."""
    compressor = make(top_n=None)

    answers = [await call(compressor, "compress_documents", documents(), QUESTION) for _ in range(50)]

    assert all(answer == answers[0] for answer in answers)


async def test_both_methods_and_the_bare_core_give_one_order(make):
    """The adapter adds nothing of its own to the ranking."""
    compressor = make(top_n=None)
    with Reranker(HashingEncoder(), store="memory://") as core:
        expected = core.rerank(QUESTION, TEXTS, ids=[f"d{i}" for i in range(len(TEXTS))])

    found = compressor.compress_documents(documents(), QUESTION)
    afound = await compressor.acompress_documents(documents(), QUESTION)

    assert [d.id for d in found] == [d.id for d in afound] == list(expected.ids)
    assert scores(found) == scores(afound) == list(expected.scores)


class StatefulDocument(Document):
    """As LangChain's embedding filters make them: a document with its vector in ``state``."""

    state: dict = Field(default_factory=dict)


async def test_a_document_of_a_subclass_stays_one_and_keeps_its_state(call, make):
    """Filters behind the compressor find the embeddings that filters before it left."""
    given = [StatefulDocument(page_content=t, state={"embedded_doc": [1.0, 0.0]}) for t in TEXTS]

    found = await call(make(), "compress_documents", given, QUESTION)

    assert {type(d) for d in found} == {StatefulDocument}
    assert all(d.state == {"embedded_doc": [1.0, 0.0]} for d in found)


async def test_vectors_of_documents_reach_the_core_only_when_asked(call, spy):
    """``use_document_vectors`` says that they come from the same embeddings; some may be missing."""
    vector = HashingEncoder().embed_query("x")
    given = [StatefulDocument(page_content="x", state={"embedded_doc": vector}), Document(page_content="y")]

    await call(NeuralCacheCompressor.from_reranker(spy), "compress_documents", given, "x")
    trusting = NeuralCacheCompressor.from_reranker(spy, use_document_vectors=True)
    await call(trusting, "compress_documents", given, "x")
    await call(trusting, "compress_documents", documents(), "x")

    assert spy.asked[0]["vectors"] is None
    assert spy.asked[1]["vectors"] == [vector, None]
    assert spy.asked[2]["vectors"] is None


async def test_carried_vectors_save_the_encoder_the_texts(call):
    """With a vector on every document no text is embedded."""
    embedded = []

    class Counting(HashingEncoder):
        def embed_documents(self, texts):
            embedded.extend(texts)
            return super().embed_documents(texts)

    rows = HashingEncoder().embed_documents(TEXTS)
    given = [StatefulDocument(page_content=t, state={"embedded_doc": r}) for t, r in zip(TEXTS, rows, strict=True)]
    with NeuralCacheCompressor(embeddings=Counting(), store="memory://", use_document_vectors=True) as compressor:
        await call(compressor, "compress_documents", given, QUESTION)

    assert embedded == []


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ([{}, {}], None),
        ([{"relevance_score": 0.5}, {"relevance_score": np.float32(0.25)}], [0.5, 0.25]),
        ([{"relevance_score": 1}, {}], [1.0, None]),
        ([{"relevance_score": "0.5"}, {"relevance_score": True}], None),
        ([{"relevance_score": math.nan}, {}], None),
        ([{"relevance_score": math.nan}, {"relevance_score": 10**400}], [None, math.inf]),
    ],
)
async def test_the_retrievers_score_is_taken_from_the_score_key(call, spy, metadata, expected):
    """Finite numbers count; without any the retriever's order does."""
    given = [Document(page_content="x", metadata=m) for m in metadata]

    await call(NeuralCacheCompressor.from_reranker(spy), "compress_documents", given, "x")

    assert spy.asked[0]["prior_scores"] == expected


async def test_the_retrievers_score_can_be_kept_under_a_key_of_its_own(call, spy):
    """What lay under ``relevance_score`` moves there before it is overwritten; what is there already stays."""
    compressor = NeuralCacheCompressor.from_reranker(spy, retrieval_score_key="found_score", top_n=None)
    given = [
        Document(page_content="x", id="a", metadata={"relevance_score": np.float32(0.5)}),
        Document(page_content="x", id="b", metadata={"relevance_score": 0.4, "found_score": 0.9}),
        Document(page_content="x", id="c"),
    ]

    found = await call(compressor, "compress_documents", given, "x")
    again = await call(compressor, "compress_documents", found, "x")

    assert spy.asked[0]["prior_scores"] == [0.5, 0.9, None]
    assert {d.id: d.metadata.get("found_score") for d in found} == {"a": 0.5, "b": 0.9, "c": None}
    assert {d.id: d.metadata["found_score"] for d in again if d.id != "c"} == {"a": 0.5, "b": 0.9}
    assert all(type(d.metadata["found_score"]) is float for d in found if d.id != "c")


async def test_the_rankings_id_is_added_on_request(call, make):
    """It joins an answer to later feedback; it is off by default because it differs on every call."""
    compressor = make(ranking_id_key="ranking")

    found = await call(compressor, "compress_documents", documents(), QUESTION)

    assert len({d.metadata["ranking"] for d in found}) == 1
    assert compressor.feedback(found[0].metadata["ranking"], helpful=[found[0]])


async def test_rank_returns_positions_into_the_callers_list(call, make):
    """``rank`` shows what ``compress_documents`` does, with its reasons."""
    compressor = make()

    ranking = await call(compressor, "rank", documents(), QUESTION)
    found = await call(compressor, "compress_documents", documents(), QUESTION)

    assert [TEXTS[i] for i in ranking.positions] == [d.page_content for d in found]
    assert len(await call(compressor, "rank", [], QUESTION)) == 0


async def test_a_langchain_embeddings_object_is_an_encoder(call):
    """Asynchronous embeddings are awaited, not run in a thread."""
    used = []

    class Known(Embeddings):
        def embed_documents(self, texts):
            used.append("embed_documents")
            return [[1.0, float(len(text))] for text in texts]

        def embed_query(self, text):
            used.append("embed_query")
            return [1.0, 5.0]

        async def aembed_documents(self, texts):
            used.append("aembed_documents")
            return [[1.0, float(len(text))] for text in texts]

        async def aembed_query(self, text):
            used.append("aembed_query")
            return [1.0, 5.0]

    with NeuralCacheCompressor(embeddings=Known(), store="memory://") as compressor:
        found = await call(compressor, "compress_documents", documents(), QUESTION)

    assert len(found) == 3
    expected = ["embed_documents", "embed_query"]
    assert sorted(set(used)) in (expected, [f"a{name}" for name in expected])


async def test_a_waiting_encoder_leaves_the_event_loop_free():
    """Two calls with a slow asynchronous encoder overlap."""
    both = asyncio.Barrier(2)

    class Slow(HashingEncoder):
        async def aembed_query(self, text):
            await asyncio.wait_for(both.wait(), 5)
            return self.embed_query(text)

        async def aembed_documents(self, texts):
            return self.embed_documents(texts)

    with NeuralCacheCompressor(embeddings=Slow(), store="memory://") as compressor:
        answers = await asyncio.gather(*(compressor.acompress_documents(documents(), q) for q in ("one", "two")))

    assert [len(answer) for answer in answers] == [3, 3]


async def test_a_failing_encoder_does_not_fail_the_retrieval(call):
    """The retriever's order is served instead, and the ranking says so."""

    class Broken(HashingEncoder):
        def embed_documents(self, texts):
            raise RuntimeError("no connection")

        def embed_query(self, text):
            raise RuntimeError("no connection")

    with NeuralCacheCompressor(embeddings=Broken(), store="memory://", top_n=None) as compressor:
        found = await call(compressor, "compress_documents", documents(), "zebra")
        ranking = await call(compressor, "rank", documents(), "zebra")

    assert [d.id for d in found] == [d.id for d in documents()]
    assert "encoder" in ranking.degraded


def test_six_threads_share_one_compressor(make):
    """Thirty calls each, no errors, one answer."""
    compressor = make()
    expected = [d.id for d in compressor.compress_documents(documents(), QUESTION)]

    def work(_):
        return [[d.id for d in compressor.compress_documents(documents(), QUESTION)] for _ in range(30)]

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(work, range(6)))

    assert all(answer == expected for thread in answers for answer in thread)


def test_threads_that_race_for_the_first_call_get_one_core(make):
    """The core is made once, so nothing taught to another one is lost."""
    compressor = make()
    start = threading.Barrier(8)

    def work(_):
        start.wait()
        return compressor.reranker

    with ThreadPoolExecutor(8) as pool:
        assert len(set(map(id, pool.map(work, range(8))))) == 1


# ---- one call's options ----


def configured(compressor, config, method="compress_documents"):
    """Call the compressor bare, inside a chain that was given a config."""
    step = RunnableLambda(lambda question: getattr(compressor, method)(documents(), question))
    return step.invoke(QUESTION, config=config)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, (None, "default", 3)),
        ({"configurable": {"session_id": "s", "namespace": "n", "top_n": 2}}, ("s", "n", 2)),
        ({"metadata": {"session_id": "s", "namespace": "n", "top_n": 2}}, ("s", "n", 2)),
        ({"configurable": {"thread_id": 7}}, ("7", "default", 3)),
        ({"configurable": {"thread_id": UUID(int=7)}}, (str(UUID(int=7)), "default", 3)),
        ({"configurable": {"thread_id": "t", "session_id": "s"}}, ("s", "default", 3)),
        ({"metadata": {"session_id": "m", "top_n": 1}, "configurable": {"session_id": "c", "top_n": 2}},
         ("m", "default", 1)),
        ({"metadata": {"thread_id": "copied"}, "configurable": {"session_id": "s"}}, ("s", "default", 3)),
        ({"metadata": {"namespace": None}}, (None, "default", 3)),
    ],
)
def test_run_metadata_and_configurable_set_session_namespace_and_top_n(spy, config, expected):
    """Run metadata beats ``configurable``, both beat the fields."""
    configured(NeuralCacheCompressor.from_reranker(spy), config)

    asked = spy.asked[0]
    assert (asked["session"], asked["namespace"], asked["top_n"]) == expected


def test_metadata_beats_configurable_also_for_a_list_of_handlers(spy):
    """Handlers without a manager carry no metadata of their own; the chain's counts."""
    compressor = NeuralCacheCompressor.from_reranker(spy)
    step = RunnableLambda(lambda q: compressor.compress_documents(documents(), q, callbacks=[BaseCallbackHandler()]))

    step.invoke(QUESTION, config={"metadata": {"session_id": "m"}, "configurable": {"session_id": "c"}})

    assert spy.asked[0]["session"] == "m"


async def test_the_options_reach_the_asynchronous_method_too(spy):
    """The ambient configuration is seen across ``await``."""
    compressor = NeuralCacheCompressor.from_reranker(spy)

    async def step(question):
        return await compressor.acompress_documents(documents(), question)

    await RunnableLambda(step).ainvoke(QUESTION, config={"configurable": {"thread_id": "t", "top_n": 1}})

    assert (spy.asked[0]["session"], spy.asked[0]["top_n"]) == ("t", 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_n": 0}, "top_n must be an integer of at least 1, got 0"),
        ({"top_n": "3"}, "top_n must be an integer of at least 1, got '3'"),
        ({"top_n": True}, "top_n must be an integer of at least 1, got True"),
        ({"namespace": ""}, "namespace must be a non-empty string, an integer or a UUID, got ''"),
        ({"namespace": ["a"]}, r"namespace must be a non-empty string, an integer or a UUID, got \['a'\]"),
        ({"thread_id": 1.5}, "session_id must be a non-empty string, an integer or a UUID, got 1.5"),
    ],
)
@pytest.mark.parametrize("place", ["metadata", "configurable"])
def test_unusable_options_are_refused_rather_than_ignored(make, place, options, message):
    """A tenant that cannot be understood must not fall into everybody's namespace."""
    with pytest.raises(InvalidInputError, match=f"^{message}$"):
        configured(make(), {place: options})


def test_one_compressor_serves_many_tenants(make):
    """What one namespace was taught does not show in another."""
    compressor = make(top_n=None)
    acme, other = ({"metadata": {"namespace": name}} for name in ("acme", "other"))
    cold = [d.id for d in configured(compressor, other)]

    for _ in range(12):
        ranking = configured(compressor, acme, "rank")
        compressor.feedback(ranking, helpful=[cold[-1]])

    assert next(d.id for d in configured(compressor, acme)) == cold[-1]
    assert [d.id for d in configured(compressor, other)] == cold
    assert [d.id for d in compressor.compress_documents(documents(), QUESTION)] == cold


# ---- settings, copies, secrets, places ----


@pytest.mark.parametrize(
    "fields", [{"top_k": 3}, {"top_n": 0}, {"namespace": ""}, {"embeddings": object()}, {"store": 7}, {"settings": 1}]
)
def test_fields_that_make_no_sense_are_refused(fields):
    """A misspelt option raises instead of being ignored."""
    with pytest.raises(ValidationError, match=next(iter(fields))):
        NeuralCacheCompressor(**fields)


def test_every_field_says_what_it_is():
    """Descriptions show up in JSON schemas and editors."""
    assert all(field.description for field in NeuralCacheCompressor.model_fields.values())


SECRET = "redis://:hunter2@example.org/0"


@pytest.mark.parametrize("store", [SECRET, SecretStr(SECRET)])
def test_a_password_in_the_stores_url_shows_nowhere(store):
    """Not in ``repr``, not in LangChain's serialisation, not in pydantic's."""
    compressor = NeuralCacheCompressor(embeddings=HashingEncoder(), store=store)

    shown = [repr(compressor), str(compressor), dumps(compressor), str(dumpd(compressor)),
             compressor.model_dump_json(), str(compressor.model_dump()), str(vars(compressor))]

    assert not [text for text in shown if "hunter2" in text]


@pytest.mark.parametrize("fields", [{"stor": SECRET}, {"store": SECRET, "top_n": 0}, {"namespace": 3, "store": SECRET}])
def test_a_password_shows_in_no_validation_error(fields):
    """Errors name the field, not what was typed."""
    with pytest.raises(ValidationError) as caught:
        NeuralCacheCompressor(**fields)

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda c: c.model_copy(), lambda c: c.model_copy(deep=True),
     lambda c: copy.deepcopy({"chain": [c]})["chain"][0]],
    ids=["copy", "deepcopy", "model_copy", "model_copy-deep", "nested-deepcopy"],
)
@pytest.mark.parametrize("used", [False, True])
def test_copies_share_one_memory(make, duplicate, used):
    """A copied chain goes on learning where the original learns."""
    compressor = make()
    if used:
        compressor.compress_documents(documents(), QUESTION)

    twin = duplicate(compressor)

    assert type(twin) is NeuralCacheCompressor
    assert twin.reranker is compressor.reranker
    assert twin.compress_documents(documents(), QUESTION) == compressor.compress_documents(documents(), QUESTION)


def test_a_copy_with_other_settings_ranks_by_them(make):
    """What was changed decides, not what the original was made of."""
    compressor = make(top_n=None)
    before = compressor.compress_documents(documents(), QUESTION)

    changed = compressor.model_copy(
        update={"settings": RerankSettings(lexical_weight=0, dense_weight=0), "namespace": "other"})
    after = changed.compress_documents(documents(), QUESTION)
    changed.close()

    assert [d.id for d in after] == [d.id for d in documents()] != [d.id for d in before]
    assert changed.rank(documents(), QUESTION).namespace == "other"
    assert compressor.compress_documents(documents(), QUESTION) == before


def test_a_used_compressor_can_be_pickled(tmp_path):
    """The copy opens the same store anew and knows what was taught."""
    url = f"sqlite:///{tmp_path / 'telemetry.db'}"
    with NeuralCacheCompressor(embeddings=HashingEncoder(), store=url, top_n=None) as compressor:
        last = compressor.compress_documents(documents(), QUESTION)[-1].id
        for _ in range(12):
            compressor.feedback(compressor.rank(documents(), QUESTION), helpful=[last])

        with pickle.loads(pickle.dumps(compressor)) as twin:
            found = [d.id for d in twin.compress_documents(documents(), QUESTION)]

            assert twin.reranker is not compressor.reranker
            assert found == [d.id for d in compressor.compress_documents(documents(), QUESTION)]
            assert found[0] == last


def test_an_adopted_core_cannot_be_pickled_and_says_why(spy):
    """A pickle that silently lost the core's scorer or store would be worse."""
    with pytest.raises(TypeError, match=r"^a compressor made by from_reranker\(\) cannot be pickled"):
        pickle.dumps(NeuralCacheCompressor.from_reranker(spy))


def test_an_adopted_core_keeps_its_namespace_and_stays_open():
    """``close`` of the compressor leaves the owner's core alone."""
    with Reranker(HashingEncoder(), store="memory://", namespace="mine") as core:
        compressor = NeuralCacheCompressor.from_reranker(core, top_n=1)
        compressor.close()

        assert compressor.namespace == "mine"
        assert compressor.reranker is core
        assert len(compressor.compress_documents(documents(), QUESTION)) == 1
        assert compressor.feedback(query=QUESTION, helpful=[compressor.rank(documents(), QUESTION).ids[0]])
        assert copy.deepcopy(compressor).reranker is core


def test_an_adopted_core_brings_its_own_parts(spy):
    """Giving them twice, or changing them later, is an error."""
    with pytest.raises(InvalidInputError, match=r"^settings, store: given by the Reranker, cannot be given again$"):
        NeuralCacheCompressor.from_reranker(spy, store="memory://", settings=RerankSettings())

    changed = NeuralCacheCompressor.from_reranker(spy).model_copy(update={"settings": RerankSettings()})
    with pytest.raises(InvalidInputError, match=r"cannot be changed$"):
        changed.rank(documents(), QUESTION)


def test_making_one_touches_neither_disk_nor_network(tmp_path):
    """In a fresh process: no file in the working directory or at home, no model loaded, no core made."""
    script = (
        "import sys, pathlib\n"
        "from neuralcache_plugins.langchain import NeuralCacheCompressor\n"
        "c = NeuralCacheCompressor()\n"
        "c.model_copy(); repr(c); c.close()\n"
        "assert 'wordllama' not in sys.modules and 'sqlite3' not in sys.modules, 'loaded too early'\n"
        "left = [str(p) for p in pathlib.Path.cwd().rglob('*')]\n"
        "assert left == [], left\n"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data")}

    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True)
