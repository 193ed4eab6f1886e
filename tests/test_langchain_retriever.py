"""The LangChain retriever: LangChain's own standard suite, and what it adds to a plain compressing retriever."""

from __future__ import annotations

import copy

import pytest
from langchain_core.documents import Document
from langchain_core.load import dumps
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import ConfigurableField, RunnableLambda, RunnablePassthrough
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from langchain_tests.integration_tests import RetrieversIntegrationTests
from pydantic import ValidationError

from neuralcache_plugins import InvalidInputError
from neuralcache_plugins.langchain import NeuralCacheCompressor, NeuralCacheRetriever
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


class Listed(BaseRetriever):
    """Finds the same documents for every question, up to a limit that ``invoke`` may set."""

    def _get_relevant_documents(self, query, *, run_manager, limit=6):
        return [Document(page_content=text, id=f"d{i}") for i, text in enumerate(TEXTS)][:limit]

    async def _aget_relevant_documents(self, query, *, run_manager, limit=6):
        return self._get_relevant_documents(query, run_manager=run_manager.get_sync(), limit=limit)


@pytest.fixture
def compressor(spy):
    return NeuralCacheCompressor.from_reranker(spy)


@pytest.fixture
def retriever(compressor):
    return NeuralCacheRetriever(base_retriever=Listed(), compressor=compressor)


class TestLangChainsOwnSuite(RetrieversIntegrationTests):
    """The standard tests for retrievers, unchanged."""

    @pytest.fixture(autouse=True)
    def _core(self):
        with Reranker(HashingEncoder(), store="memory://") as core:
            self.compressor = NeuralCacheCompressor.from_reranker(core)
            yield

    @property
    def retriever_constructor(self):
        return NeuralCacheRetriever

    @property
    def retriever_constructor_params(self):
        return {"base_retriever": Listed(), "compressor": self.compressor}

    @property
    def retriever_query_example(self):
        return QUESTION


async def test_it_returns_what_the_compressor_returns(call, compressor, retriever):
    """Alone and in batches."""
    expected = [d.id for d in compressor.compress_documents(Listed().invoke(""), QUESTION)]

    assert [d.id for d in await call(retriever, "invoke", QUESTION)] == expected
    assert [[d.id for d in a] for a in await call(retriever, "batch", [QUESTION] * 8)] == [expected] * 8


@pytest.mark.parametrize(
    ("field", "config", "arguments", "expected"),
    [
        (None, {}, {}, 3),
        (5, {}, {}, 5),
        (5, {"metadata": {"top_n": 4}}, {}, 4),
        (5, {"configurable": {"top_n": 4}}, {}, 4),
        (5, {"metadata": {"top_n": 4}}, {"k": 2}, 2),
        (None, {}, {"k": 100}, 6),
    ],
)
async def test_k_comes_from_the_call_its_configuration_or_the_field(
        call, compressor, field, config, arguments, expected):
    """The nearest one counts; without any the compressor's ``top_n`` does."""
    retriever = NeuralCacheRetriever(base_retriever=Listed(), compressor=compressor, k=field)

    assert len(await call(retriever, "invoke", QUESTION, config=config, **arguments)) == expected


@pytest.mark.parametrize("k", [0, -1, "3", 1.5])
async def test_a_k_that_is_no_count_is_refused(call, retriever, k):
    """In the call and in the constructor."""
    with pytest.raises(InvalidInputError, match=r"^k must be an integer of at least 1, got "):
        await call(retriever, "invoke", QUESTION, k=k)
    with pytest.raises(ValidationError):
        NeuralCacheRetriever(base_retriever=Listed(), k=0)


async def test_other_arguments_go_to_the_base_retriever(call, spy, retriever):
    """As with LangChain's own compressing retriever; ``k`` does not, so that there is something to choose from."""
    found = await call(retriever, "invoke", QUESTION, limit=4, k=2)

    assert len(spy.asked[0]["texts"]) == 4
    assert len(found) == 2


@pytest.mark.parametrize("place", ["configurable", "metadata"])
async def test_a_direct_call_sees_session_and_namespace(call, spy, retriever, place):
    """Also in ``configurable``, which a plain retriever drops."""
    await call(retriever, "invoke", QUESTION, config={place: {"thread_id": "t", "namespace": "acme"}})

    assert (spy.asked[0]["session"], spy.asked[0]["namespace"]) == ("t", "acme")


async def test_a_direct_calls_metadata_beats_its_configurable(call, spy, retriever):
    """And the caller's config stays as it was."""
    config = {"configurable": {"session_id": "c", "top_n": 1}, "metadata": {"session_id": "m"}}

    await call(retriever, "invoke", QUESTION, config=config)

    assert (spy.asked[0]["session"], spy.asked[0]["top_n"]) == ("m", 1)
    assert config == {"configurable": {"session_id": "c", "top_n": 1}, "metadata": {"session_id": "m"}}


async def test_a_chain_passes_its_session_on(call, spy, retriever):
    """The retriever as a step of a chain."""
    chain = RunnablePassthrough() | retriever

    await call(chain, "invoke", QUESTION, config={"configurable": {"session_id": "s"}})

    assert spy.asked[0]["session"] == "s"


async def test_nothing_found_is_nothing_returned(call, compressor):
    """Any runnable from a question to documents is a base retriever."""
    retriever = NeuralCacheRetriever(base_retriever=RunnableLambda(lambda question: []), compressor=compressor)

    assert await call(retriever, "invoke", QUESTION) == []


async def test_retrieval_and_reranking_are_its_child_runs(call, retriever):
    """One tree: ours, with the base retriever and the reranking inside."""
    collector = RunCollectorCallbackHandler()

    await call(retriever, "invoke", QUESTION, config={"callbacks": [collector]})

    [root] = collector.traced_runs
    assert root.name == "NeuralCacheRetriever"
    assert [child.name for child in root.child_runs] == ["Listed", "neuralcache_rerank"]


async def test_k_can_be_a_configurable_field(call, retriever):
    """As any field of a LangChain retriever."""
    flexible = retriever.configurable_fields(k=ConfigurableField("documents"))

    assert len(await call(flexible, "invoke", QUESTION, config={"configurable": {"documents": 1}})) == 1


async def test_learning_goes_through_its_compressor(call, retriever):
    """Feedback belongs to the compressor; a deep copy of the retriever learns along."""
    last = [d.id for d in retriever.invoke(QUESTION, k=6)][-1]
    twin = copy.deepcopy(retriever)

    for _ in range(12):
        await call(retriever, "invoke", QUESTION, k=6)
        await call(retriever.compressor, "feedback", query=QUESTION, helpful=[last])

    assert (await call(twin, "invoke", QUESTION))[0].id == last


def test_a_misspelt_option_is_refused(compressor):
    """LangChain's own retrievers accept anything."""
    with pytest.raises(ValidationError, match="top_k"):
        NeuralCacheRetriever(base_retriever=Listed(), compressor=compressor, top_k=3)


def test_the_compressors_password_shows_nowhere():
    """Neither in ``repr`` nor in LangChain's serialisation."""
    inner = NeuralCacheCompressor(embeddings=HashingEncoder(), store="redis://:hunter2@example.org/0")
    retriever = NeuralCacheRetriever(base_retriever=Listed(), compressor=inner)

    assert "hunter2" not in repr(retriever) + str(retriever) + dumps(retriever) + str(retriever.to_json())


def test_the_default_compressor_is_made_without_opening_anything():
    """Two lines suffice; the store waits for the first question."""
    retriever = NeuralCacheRetriever(base_retriever=Listed())

    assert isinstance(retriever.compressor, NeuralCacheCompressor)
    assert all(field.description for name, field in NeuralCacheRetriever.model_fields.items()
               if name in ("base_retriever", "compressor", "k"))
