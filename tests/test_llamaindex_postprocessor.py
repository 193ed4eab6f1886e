"""The LlamaIndex postprocessor by itself: contract, feedback, copies, threads. Pipelines have a file of their own."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from llama_index.core import Settings
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.instrumentation.events.rerank import ReRankStartEvent
from llama_index.core.schema import (
    Document,
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeWithScore,
    QueryBundle,
    TextNode,
)
from pydantic import Field, ValidationError

from neuralcache_plugins import (
    MissingExtraError,
    Reranker,
    RerankSettings,
    StoreClosedError,
    UnknownDocumentError,
    open_store,
)
from neuralcache_plugins.contracts import FeedbackGiven, Ranking
from neuralcache_plugins.llamaindex import NeuralCachePostprocessor
from neuralcache_plugins.llamaindex.encoder import EmbedModelEncoder
from neuralcache_plugins.testing import HashingEncoder

QUESTION = "how do I reset my password"
TEXTS = {
    "fees": "Fees for transfers abroad are listed in the price table",
    "card": "A lost card is blocked at once when you call us",
    "reset": "Reset the password on the login page",
    "rates": "Interest rates changed in spring",
    "limit": "The daily limit of a card can be raised",
    "login": "The login page asks for a password and a code",
}


class HashedWords(BaseEmbedding):
    """A real ``BaseEmbedding`` that counts its calls."""

    model_name: str = "hashed-words"
    calls: list[str] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "HashedWords"

    def _get_query_embedding(self, query: str) -> list[float]:
        self.calls.append("query")
        return [float(x) for x in HashingEncoder().embed_query(query)]

    def _get_text_embedding(self, text: str) -> list[float]:
        self.calls.append("text")
        return [float(x) for x in HashingEncoder().embed_documents([text])[0]]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        self.calls.append("aquery")
        return [float(x) for x in HashingEncoder().embed_query(query)]


class HashedWordsAsync(HashedWords):
    async def _aget_text_embedding(self, text: str) -> list[float]:
        self.calls.append("atext")
        return [float(x) for x in HashingEncoder().embed_documents([text])[0]]


def scored(texts: dict[str, str] = TEXTS, scores: list[float | None] | None = None) -> list[NodeWithScore]:
    given = scores or [0.5] * len(texts)
    return [
        NodeWithScore(node=TextNode(id_=id_, text=text, metadata={"src": "kb"}), score=score)
        for (id_, text), score in zip(texts.items(), given, strict=True)
    ]


def ids(nodes: list[NodeWithScore]) -> list[str]:
    return [node.node_id for node in nodes]


@pytest.fixture
def make():
    made: list[NeuralCachePostprocessor] = []

    def build(**fields) -> NeuralCachePostprocessor:
        made.append(NeuralCachePostprocessor(**{"embed_model": HashingEncoder(), "store": "memory://"} | fields))
        return made[-1]

    yield build
    for postprocessor in made:
        postprocessor.reranker.close()


# the contract of a node postprocessor


def test_returns_new_scored_nodes_and_leaves_the_given_ones_untouched(make):
    nodes = scored()
    before = [(node.to_json(), node.node.hash) for node in nodes]
    returned = make(top_n=4).postprocess_nodes(nodes, query_str=QUESTION)
    assert len(returned) == 4
    assert returned[0].node_id in {"reset", "login"}
    assert all(type(node.score) is float and 0 <= node.score <= 1 for node in returned)
    assert [node.score for node in returned] == sorted((node.score for node in returned), reverse=True)
    assert [(node.to_json(), node.node.hash) for node in nodes] == before
    given = {id(node) for node in nodes}
    assert not any(id(node) in given for node in returned)
    by_id = {node.node_id: node.node for node in nodes}
    assert all(node.node is by_id[node.node_id] for node in returned)
    ReRankStartEvent(nodes=returned, query=QUESTION, top_n=4, model_name="a reranker after ours")


def test_identical_calls_give_identical_answers(make):
    postprocessor = make(top_n=None)
    answers = [postprocessor.postprocess_nodes(scored(), query_str=QUESTION) for _ in range(20)]
    assert len({tuple((node.node_id, node.score) for node in answer) for answer in answers}) == 1


@pytest.mark.parametrize("top_n, expected", [(1, 1), (3, 3), (100, 6), (None, 6)])
def test_top_n(make, top_n, expected):
    assert len(make(top_n=top_n).postprocess_nodes(scored(), query_str=QUESTION)) == expected


def test_the_default_top_n_is_three(make):
    assert len(make().postprocess_nodes(scored(), query_str=QUESTION)) == 3


def test_score_threshold_keeps_scores_that_are_equal_to_it(make):
    all_of_them = make(top_n=None).postprocess_nodes(scored(), query_str=QUESTION)
    cut = all_of_them[2].score
    kept = make(top_n=None, score_threshold=cut).postprocess_nodes(scored(), query_str=QUESTION)
    assert ids(kept) == [node.node_id for node in all_of_them if node.score >= cut]
    assert kept[-1].score == cut


def test_threshold_of_one_may_leave_nothing(make):
    assert make(score_threshold=1.0).postprocess_nodes(scored(), query_str=QUESTION) == []


async def test_sync_and_async_agree(make):
    sync = make(top_n=None).postprocess_nodes(scored(), query_str=QUESTION)
    later = await make(top_n=None).apostprocess_nodes(scored(), query_str=QUESTION)
    assert [(node.node_id, node.score) for node in later] == [(node.node_id, node.score) for node in sync]


async def test_a_missing_query_is_refused_before_anything_else(make):
    postprocessor = make()
    for nodes in ([], scored()):
        with pytest.raises(ValueError, match=r"^Missing query bundle in extra info\.$"):
            postprocessor.postprocess_nodes(nodes)
        with pytest.raises(ValueError, match=r"^Missing query bundle in extra info\.$"):
            await postprocessor.apostprocess_nodes(nodes)


async def test_no_nodes_give_no_nodes(make):
    postprocessor = make()
    assert postprocessor.postprocess_nodes([], query_str=QUESTION) == []
    assert await postprocessor.apostprocess_nodes([], query_str=QUESTION) == []


def test_both_forms_of_the_query_are_refused(make):
    with pytest.raises(ValueError, match="Cannot specify both query_str and query_bundle"):
        make().postprocess_nodes(scored(), query_bundle=QueryBundle("a"), query_str="b")


def test_an_empty_query_keeps_the_retrievers_order(make):
    nodes = scored(scores=[0.1, 0.6, 0.2, 0.5, 0.3, 0.4])
    assert ids(make(top_n=None).postprocess_nodes(nodes, query_str="")) == [
        "card", "rates", "login", "limit", "reset", "fees"
    ]


@pytest.mark.parametrize("count", [129, 1000])
def test_many_nodes(make, count):
    nodes = [NodeWithScore(node=TextNode(id_=str(i), text=f"text number {i}")) for i in range(count)]
    assert sorted(ids(make(top_n=None).postprocess_nodes(nodes, query_str="number 7")), key=int) == [
        str(i) for i in range(count)
    ]


def test_long_texts_and_odd_metadata(make):
    nodes = [
        NodeWithScore(node=TextNode(id_="long", text="password " * 5000, metadata={"page": 1, "nested": {"a": [1]}})),
        NodeWithScore(node=TextNode(id_="empty", text="")),
        NodeWithScore(node=TextNode(id_="odd", text="\ud7ff \u0000 e\u0301 密码")),
    ]
    nodes[0].node.metadata[7] = "an int key"  # type: ignore[index]
    assert set(ids(make().postprocess_nodes(nodes, query_str=QUESTION))) == {"long", "empty", "odd"}
    assert nodes[0].node.metadata[7] == "an int key"  # type: ignore[index]


def test_every_kind_of_node(make):
    nodes = [
        NodeWithScore(node=TextNode(id_="text", text="weather")),
        NodeWithScore(node=ImageNode(id_="image", text="a picture", image_url="http://localhost/a.png")),
        NodeWithScore(node=Node(id_="node", text_resource=MediaResource(text="reset the password"))),
        NodeWithScore(node=Node(id_="no text", image_resource=MediaResource(data=b"abc"))),
        NodeWithScore(node=IndexNode(id_="index", text="an index", index_id="i")),
        NodeWithScore(node=Document(id_="document", text="a document")),
    ]
    returned = make(top_n=None).postprocess_nodes(nodes, query_str=QUESTION)
    assert set(ids(returned)) == {node.node_id for node in nodes}
    assert ids(returned).index("node") < ids(returned).index("no text")


def test_metadata_mode_chooses_the_text(make):
    nodes = [
        NodeWithScore(node=TextNode(id_="plain", text="an article", metadata={"title": "weather"}), score=0.5),
        NodeWithScore(node=TextNode(id_="titled", text="an article", metadata={"title": "password reset"}), score=0.5),
    ]
    assert ids(make().postprocess_nodes(nodes, query_str="password reset")) == ["plain", "titled"]
    assert ids(make(metadata_mode=MetadataMode.EMBED).postprocess_nodes(nodes, query_str="password reset")) == [
        "titled", "plain"
    ]


def test_scores_may_be_missing_in_part_or_altogether(make):
    none = make(top_n=None).postprocess_nodes(scored(scores=[None] * 6), query_str=QUESTION)
    some = make(top_n=None).postprocess_nodes(scored(scores=[0.1, None, 0.2, None, 0.3, 0.4]), query_str=QUESTION)
    assert sorted(ids(none)) == sorted(ids(some)) == sorted(TEXTS)


def test_numpy_scores_never_leak(make):
    nodes = scored()
    for rank, node in enumerate(nodes):
        node.score = np.float32(0.9 - 0.1 * rank)  # type: ignore[assignment]
    returned = make().postprocess_nodes(nodes, query_str=QUESTION)
    assert all(json.loads(node.to_json())["score"] == node.score for node in returned)


def test_duplicate_nodes_are_all_returned(make):
    node = TextNode(id_="same", text="reset the password")
    nodes = [NodeWithScore(node=node, score=0.9), *scored(), NodeWithScore(node=node, score=0.8)]
    assert ids(make(top_n=None).postprocess_nodes(nodes, query_str=QUESTION)).count("same") == 2


# fields


def test_unknown_options_are_refused():
    with pytest.raises(ValidationError, match="stores") as refused:
        NeuralCachePostprocessor(stores="redis://:s3cret@h")
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    "field", [{"top_n": 0}, {"namespace": ""}, {"score_threshold": 1.5}, {"score_threshold": float("nan")},
              {"store": 5}, {"embed_model": "text-embedding-3-small"}, {"metadata_mode": "some"}]
)
def test_impossible_values_are_refused(field):
    with pytest.raises(ValidationError, match=next(iter(field))):
        NeuralCachePostprocessor(**field)


def test_every_field_says_what_it_is():
    fields = set(NeuralCachePostprocessor.model_fields) - {"callback_manager"}
    assert fields == {"embed_model", "store", "namespace", "top_n", "score_threshold", "metadata_mode",
                      "use_document_vectors", "session", "ranking_id_key", "settings"}
    assert all(NeuralCachePostprocessor.model_fields[name].description for name in fields)
    assert NeuralCachePostprocessor.class_name() == "NeuralCachePostprocessor"


def test_construction_opens_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEURALCACHE_STORE_URL", f"sqlite:///{tmp_path.as_posix()}/data/t.db")
    NeuralCachePostprocessor()
    assert list(tmp_path.iterdir()) == []


def test_the_frameworks_global_embedding_model_is_never_touched(make, monkeypatch):
    def refuse(_):
        raise AssertionError("Settings.embed_model was read")

    monkeypatch.setattr(type(Settings), "embed_model", property(refuse))
    assert make().postprocess_nodes(scored(), query_str=QUESTION)


def test_settings_arrive(make):
    cold = make(settings=RerankSettings(lexical_weight=0, dense_weight=0), top_n=None)
    assert ids(cold.postprocess_nodes(scored(), query_str=QUESTION)) == list(TEXTS)


# embedding models


def test_an_embedding_model_of_the_framework_is_used_in_batches(make):
    model = HashedWords(calls=[])
    postprocessor = make(embed_model=model)
    first = postprocessor.postprocess_nodes(scored(), query_str=QUESTION)
    assert model.calls.count("text") == len(TEXTS)
    assert model.calls.count("query") == 1
    assert postprocessor.postprocess_nodes(scored(), query_str=QUESTION) == first
    assert model.calls.count("text") == len(TEXTS)


async def test_async_uses_the_models_async_methods(make):
    model = HashedWordsAsync(calls=[])
    await make(embed_model=model).apostprocess_nodes(scored(), query_str=QUESTION)
    assert sorted(set(model.calls)) == ["aquery", "atext"]


async def test_a_model_without_async_batches_does_not_run_on_the_event_loop():
    class Where(HashedWords):
        def _get_text_embedding(self, text: str) -> list[float]:
            self.calls.append(threading.current_thread().name)
            return [1.0, 0.0]

    model = Where(calls=[])
    assert await EmbedModelEncoder(model).aembed_documents(["a", "b"]) == [[1.0, 0.0]] * 2
    assert threading.current_thread().name not in model.calls


def test_the_fingerprint_is_class_and_model_name():
    assert EmbedModelEncoder(HashedWords()).fingerprint == "HashedWords/hashed-words"
    assert EmbedModelEncoder(HashedWords(model_name="other")).fingerprint == "HashedWords/other"
    assert repr(EmbedModelEncoder(HashedWords())) == "EmbedModelEncoder('HashedWords/hashed-words')"


async def test_vectors_of_nodes_and_query_spare_the_model(make):
    encoder = HashedWords(calls=[])
    nodes = scored()
    for node in nodes:
        node.node.embedding = encoder._get_text_embedding(node.node.get_content())
    bundle = QueryBundle(QUESTION, embedding=encoder._get_query_embedding(QUESTION))
    plain = make(embed_model=encoder, top_n=None).postprocess_nodes(nodes, query_bundle=QueryBundle(QUESTION))
    encoder.calls.clear()
    with_vectors = make(embed_model=encoder, top_n=None, use_document_vectors=True)
    returned = with_vectors.postprocess_nodes(nodes, query_bundle=bundle)
    assert encoder.calls == []
    assert ids(returned) == ids(plain)
    assert ids(await with_vectors.apostprocess_nodes(nodes, query_bundle=bundle)) == ids(plain)
    assert encoder.calls == []
    nodes[3].node.embedding = None
    assert ids(with_vectors.postprocess_nodes(nodes, query_bundle=bundle)) == ids(plain)
    assert encoder.calls == ["text"]


def test_the_embedding_of_a_rewritten_query_is_not_the_questions(make):
    encoder = HashedWords(calls=[])
    bundle = QueryBundle(QUESTION, custom_embedding_strs=["an invented answer"], embedding=[1.0] * 3)
    returned = make(embed_model=encoder, use_document_vectors=True).postprocess_nodes(scored(), query_bundle=bundle)
    assert ids(returned) == ids(make().postprocess_nodes(scored(), query_str=QUESTION))
    assert "query" in encoder.calls


def test_without_the_field_vectors_are_ignored(make):
    nodes = scored()
    for node in nodes:
        node.node.embedding = [1.0, 2.0]
    bundle = QueryBundle(QUESTION, embedding=[1.0, 2.0])
    assert ids(make().postprocess_nodes(nodes, query_bundle=bundle)) == ids(
        make().postprocess_nodes(scored(), query_str=QUESTION)
    )


# feedback


def test_rank_explains(make):
    ranking = make().rank(scored(), QUESTION)
    assert isinstance(ranking, Ranking)
    assert "lexical" in ranking.explain()
    assert set(ranking.ids) <= set(TEXTS)


async def test_arank_agrees_with_rank(make):
    postprocessor = make()
    wanted = postprocessor.rank(scored(), QUESTION)
    assert (await postprocessor.arank(scored(), QueryBundle(QUESTION))).ids == wanted.ids


def by_id(ranking):
    return {"helpful": ["rates"]}


def by_position(ranking):
    return {"helpful": [3]}


def by_scored_node(ranking):
    return {"helpful": [scored()[3]]}


def by_lone_node(ranking):
    return {"helpful": scored()[3].node}


def by_lone_id(ranking):
    return {"helpful": "rates"}


def by_rewards(ranking):
    return {"rewards": {"rates": 1.0}}


def by_pairs(ranking):
    return {"rewards": [(scored()[3], 1.0), (scored()[3].node, 1.0)]}


@pytest.mark.parametrize(
    "name", [by_id, by_position, by_scored_node, by_lone_node, by_lone_id, by_rewards, by_pairs]
)
@pytest.mark.parametrize("named_by", ["ranking", "id", "query"])
async def test_feedback_moves_that_node_and_no_other(make, name, named_by):
    postprocessor = make(top_n=None)
    before = ids(postprocessor.postprocess_nodes(scored(), query_str=QUESTION))
    assert before[0] != "rates"
    for turn in range(12):
        ranking = postprocessor.rank(scored(), QUESTION)
        which = {"ranking": (ranking, None), "id": (ranking.ranking_id, None), "query": (None, QUESTION)}[named_by]
        if turn % 2:
            assert postprocessor.feedback(which[0], query=which[1], **name(ranking))
        else:
            assert await postprocessor.afeedback(which[0], query=which[1], **name(ranking))
    after = ids(postprocessor.postprocess_nodes(scored(), query_str=QUESTION))
    assert after[0] == "rates"
    assert [one for one in after if one != "rates"] == [one for one in before if one != "rates"]
    unrelated = "which fees are in the price table for transfers abroad"
    assert ids(postprocessor.postprocess_nodes(scored(), query_str=unrelated)) == ids(
        make(top_n=None).postprocess_nodes(scored(), query_str=unrelated)
    )


def test_helpful_unhelpful_and_rewards_reach_the_log(make):
    store = open_store("memory://")
    postprocessor = make(store=store, top_n=None)
    ranking = postprocessor.rank(scored(), QUESTION)
    nodes = scored()
    postprocessor.feedback(ranking, helpful=[nodes[0]], unhelpful=[nodes[1].node, "reset"], rewards=[(nodes[3], 0.25)])
    (told,) = [one.event for one in store.read() if isinstance(one.event, FeedbackGiven)]
    assert dict(told.rewards) == {"fees": 1.0, "card": -1.0, "reset": -1.0, "rates": 0.25}


def test_feedback_for_a_node_that_was_not_shown_is_refused(make):
    postprocessor = make(top_n=2)
    ranking = postprocessor.rank(scored(), QUESTION)
    hidden = next(node for node in scored() if node.node_id not in ranking.ids)
    with pytest.raises(UnknownDocumentError):
        postprocessor.feedback(ranking, helpful=[hidden])


def test_contradicting_rewards_are_refused(make):
    postprocessor = make()
    ranking = postprocessor.rank(scored(), QUESTION)
    node = next(node for node in scored() if node.node_id == ranking.ids[0])
    with pytest.raises(ValueError, match=rf"^rewards has two values for '{node.node_id}': 1\.0 and 0\.5$"):
        postprocessor.feedback(ranking, rewards=[(node, 1.0), (node.node, 0.5)])


def test_a_node_without_an_id_is_known_by_its_content(make):
    postprocessor = make(top_n=None)
    nodes = [NodeWithScore(node=TextNode(id_="", text=text)) for text in TEXTS.values()]
    for _ in range(12):
        postprocessor.feedback(postprocessor.rank(nodes, QUESTION), helpful=[nodes[3]])
    assert postprocessor.postprocess_nodes(nodes, query_str=QUESTION)[0].node is nodes[3].node
    assert nodes[3].node.node_id == ""


def test_namespaces_do_not_see_each_other(make):
    ours = make(top_n=None)
    theirs = ours.model_copy(update={"namespace": "theirs"})
    before = ids(theirs.postprocess_nodes(scored(), query_str=QUESTION))
    for _ in range(12):
        ours.feedback(ours.rank(scored(), QUESTION), helpful=["rates"])
    assert ids(ours.postprocess_nodes(scored(), query_str=QUESTION))[0] == "rates"
    assert ids(theirs.postprocess_nodes(scored(), query_str=QUESTION)) == before
    assert theirs.reranker is ours.reranker


def test_feedback_finds_the_namespace_of_the_ranking(make):
    ours = make()
    theirs = ours.model_copy(update={"namespace": "theirs"})
    ranking = theirs.rank(scored(), QUESTION)
    assert ours.feedback(ranking, helpful=[ranking.ids[0]])


def test_feedback_is_idempotent_by_its_id(make):
    store = open_store("memory://")
    postprocessor = make(store=store)
    ranking = postprocessor.rank(scored(), QUESTION)
    for _ in range(2):
        assert postprocessor.feedback(ranking, helpful=[ranking.ids[0]], feedback_id="f1", source="citation") == "f1"
    told = [one.event for one in store.read() if isinstance(one.event, FeedbackGiven)]
    assert [(event.feedback_id, event.source) for event in told] == [("f1", "citation")]


def test_the_session_is_recorded(make):
    store = open_store("memory://")
    postprocessor = make(store=store, session="s1")
    ranking = postprocessor.rank(scored(), QUESTION)
    postprocessor.reranker.flush()
    assert store.ranking(ranking.ranking_id).session == "s1"


def test_feedback_lost_by_nobody_in_threads(make):
    store = open_store("memory://")
    postprocessor = make(store=store, top_n=None)
    expected = sorted(TEXTS)

    def work(thread: int) -> None:
        for turn in range(30):
            question = f"{QUESTION} {thread} {turn % 5}"
            assert sorted(ids(postprocessor.postprocess_nodes(scored(), query_str=question))) == expected
            postprocessor.feedback(query=question, helpful=["rates"], feedback_id=f"{thread}-{turn}")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    postprocessor.reranker.flush()
    told = {one.event.feedback_id for one in store.read(limit=10_000) if isinstance(one.event, FeedbackGiven)}
    assert told == {f"{thread}-{turn}" for thread in range(6) for turn in range(30)}


def test_threads_open_one_reranker(make):
    postprocessor = make()
    barrier = threading.Barrier(8)

    def first_use(_) -> int:
        barrier.wait()
        return id(postprocessor.reranker)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(first_use, range(8)))) == 1


# copies and serialisation


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda ours: ours.model_copy(), lambda ours: ours.model_copy(deep=True)]
)
def test_copies_learn_together(make, duplicate, used):
    original = make(top_n=None)
    if used:
        original.postprocess_nodes(scored(), query_str=QUESTION)
    twin = duplicate(original)
    assert twin is not original
    for _ in range(12):
        twin.feedback(twin.rank(scored(), QUESTION), helpful=["rates"])
    assert ids(original.postprocess_nodes(scored(), query_str=QUESTION))[0] == "rates"
    twin.top_n = 1
    assert original.top_n is None


def test_other_settings_make_another_reranker(make):
    original = make(top_n=None)
    other = original.model_copy(update={"settings": RerankSettings(lexical_weight=0, dense_weight=0)})
    assert ids(other.postprocess_nodes(scored(), query_str=QUESTION)) == list(TEXTS)
    assert ids(original.postprocess_nodes(scored(), query_str=QUESTION)) != list(TEXTS)
    other.reranker.close()


def test_to_dict_and_back(tmp_path):
    url = f"sqlite:///{tmp_path.as_posix()}/t.db"
    original = NeuralCachePostprocessor(
        store=url, namespace="n", top_n=None, score_threshold=0.25, metadata_mode=MetadataMode.LLM, session="s",
        use_document_vectors=True, settings=RerankSettings(diversity=0.5),
    )
    for back in (NeuralCachePostprocessor.from_dict(original.to_dict()),
                 NeuralCachePostprocessor.from_json(original.to_json())):
        for name in set(NeuralCachePostprocessor.model_fields) - {"callback_manager"}:
            assert getattr(back, name) == getattr(original, name), name
    assert original.to_dict()["class_name"] == "NeuralCachePostprocessor"


def test_an_open_store_is_written_as_its_place(tmp_path):
    url = f"sqlite:///{tmp_path.as_posix()}/t.db"
    with_store = NeuralCachePostprocessor(embed_model=HashingEncoder(), store=open_store(url), top_n=None)
    for _ in range(12):
        with_store.feedback(with_store.rank(scored(), QUESTION), helpful=["rates"])
    back = NeuralCachePostprocessor.from_dict(with_store.to_dict(), embed_model=HashingEncoder())
    assert ids(back.postprocess_nodes(scored(), query_str=QUESTION))[0] == "rates"
    there = pickle.loads(pickle.dumps(with_store))
    assert ids(there.postprocess_nodes(scored(), query_str=QUESTION))[0] == "rates"
    for postprocessor in (with_store, back, there):
        postprocessor.reranker.close()


class Keyed(HashedWords):
    api_key: str = "sk-secret"


SECRET_URLS = {
    "redis://:s3cret@h:6379/0": "redis://***@h:6379/0",
    "redis://:s3/cr@et@h/0": "redis://***@h/0",
    "postgresql://u:s3cret@h/db?sslmode=require&password=s3cret": "postgresql://***@h/db?sslmode=***&password=***",
}


@pytest.mark.parametrize("url", SECRET_URLS)
def test_secrets_are_in_no_repr_and_no_dictionary(url):
    postprocessor = NeuralCachePostprocessor(embed_model=Keyed(), store=url)
    written = f"{postprocessor!r} {postprocessor} {postprocessor.to_dict()} {postprocessor.to_json()}"
    assert "s3" not in written
    assert "sk-secret" not in written
    data = postprocessor.to_dict()
    assert data["store"] == SECRET_URLS[url]
    assert data["embed_model"] == {"class_name": "Keyed", "model_name": "hashed-words"}
    with pytest.raises(ValidationError, match=r"the URL's secret is masked: use NeuralCachePostprocessor\.from_dict"):
        NeuralCachePostprocessor.from_dict(data, embed_model=None)
    with pytest.raises(ValidationError, match="a dictionary does not hold a model"):
        NeuralCachePostprocessor.from_dict(data, store=url)
    back = NeuralCachePostprocessor.from_dict(data, store=url, embed_model=Keyed())
    assert back.store.get_secret_value() == url


def test_pickle_carries_the_fields():
    original = NeuralCachePostprocessor(
        embed_model=HashedWords(model_name="mine"), store="memory://", top_n=2, settings=RerankSettings(diversity=0.5)
    )
    original.postprocess_nodes(scored(), query_str=QUESTION)
    there = pickle.loads(pickle.dumps(original))
    assert (there.embed_model.model_name, there.store, there.top_n) == ("mine", original.store, 2)
    assert there.settings == original.settings
    assert len(there.postprocess_nodes(scored(), query_str=QUESTION)) == 2


def test_what_cannot_be_pickled_is_an_error_and_not_a_default():
    class Local(HashingEncoder):
        pass

    with pytest.raises((pickle.PicklingError, AttributeError, TypeError), match="Local"):
        pickle.dumps(NeuralCachePostprocessor(embed_model=Local()))


def test_from_reranker_shares_the_reranker():
    with Reranker(HashingEncoder(), store="memory://", namespace="mine") as reranker:
        postprocessor = NeuralCachePostprocessor.from_reranker(reranker, top_n=2)
        assert postprocessor.reranker is reranker
        assert postprocessor.namespace == "mine"
        assert copy.deepcopy(postprocessor).reranker is reranker
        assert NeuralCachePostprocessor.from_reranker(reranker, namespace="other").namespace == "other"
        assert len(postprocessor.postprocess_nodes(scored(), query_str=QUESTION)) == 2
        with pytest.raises(ValueError, match=r"^settings, store: given by the Reranker, cannot be given again$"):
            NeuralCachePostprocessor.from_reranker(reranker, store=None, settings=None)
        with pytest.raises(ValueError, match=r"made by from_reranker\(\) are those of its Reranker"):
            _ = postprocessor.model_copy(update={"store": "memory://"}).reranker
        with pytest.raises(TypeError, match=r"made by from_reranker\(\) cannot be pickled"):
            pickle.dumps(postprocessor)
        with pytest.raises(ValidationError, match="a dictionary does not hold a model"):
            NeuralCachePostprocessor.from_dict(postprocessor.to_dict())
        postprocessor.close()
        assert len(postprocessor.postprocess_nodes(scored(), query_str=QUESTION)) == 2


def test_closing_releases_the_store():
    with NeuralCachePostprocessor(embed_model=HashingEncoder(), store="memory://") as postprocessor:
        ranking = postprocessor.rank(scored(), QUESTION)
    with pytest.raises(StoreClosedError):
        postprocessor.feedback(ranking, helpful=[ranking.ids[0]])
    NeuralCachePostprocessor().close()


# a missing framework


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)


def test_a_missing_framework_is_an_import_error_that_names_the_extra():
    answer = run("""
        import sys
        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == "llama_index":
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        sys.meta_path.insert(0, Blocker())
        import neuralcache_plugins
        try:
            import neuralcache_plugins.llamaindex
        except ImportError as error:
            print(type(error).__name__, error)
    """)
    assert answer.stdout.strip() == f"MissingExtraError {MissingExtraError('llama-index-core', extra='llamaindex')}"


def test_a_broken_framework_is_not_called_missing():
    answer = run("""
        import sys
        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name == "dataclasses_json":
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        sys.meta_path.insert(0, Blocker())
        try:
            import neuralcache_plugins.llamaindex
        except ImportError as error:
            print(type(error).__name__, error)
    """)
    assert answer.stdout.strip() == "ModuleNotFoundError No module named 'dataclasses_json'"


# the ranking's id


async def test_the_rankings_id_travels_with_copies_that_no_model_reads(call, make):
    nodes = scored()
    before = [(node.to_json(), node.node.hash) for node in nodes]
    postprocessor = make(ranking_id_key="ranking")
    returned = await call(postprocessor, "postprocess_nodes", nodes, query_str=QUESTION)

    (ranking_id,) = {node.metadata["ranking"] for node in returned}
    for mode in (MetadataMode.LLM, MetadataMode.EMBED, MetadataMode.NONE):
        assert not any(ranking_id in node.get_content(mode) for node in returned)
    assert [(node.to_json(), node.node.hash) for node in nodes] == before
    postprocessor.feedback(ranking_id, helpful=[returned[0]])
    assert postprocessor.feedback(ranking_id, value=-1.0, feedback_id="thumb") == "thumb"
    assert postprocessor.reranker.stats().namespace.feedback == 2
    again = await call(postprocessor, "postprocess_nodes", returned, query_str=QUESTION)
    assert ranking_id not in {node.metadata["ranking"] for node in again}


def test_without_a_key_nodes_stay_the_callers_own(make):
    nodes = scored()
    returned = make().postprocess_nodes(nodes, query_str=QUESTION)
    assert all(node.node is next(one.node for one in nodes if one.node_id == node.node_id) for node in returned)
