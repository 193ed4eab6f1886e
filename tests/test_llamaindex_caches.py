"""LlamaIndex query engines and embedding models behind the cache, on the real framework, sync and async."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Document, MockEmbedding, SummaryIndex, VectorStoreIndex
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import (
    AsyncStreamingResponse,
    PydanticResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.embeddings import BaseEmbedding
from llama_index.core.llms import MockLLM
from llama_index.core.schema import NodeRelationship, NodeWithScore, QueryBundle, RelatedNodeInfo, TextNode
from pydantic import BaseModel, PrivateAttr

from neuralcache_plugins import CacheSettings, Reranker, SemanticCache, open_store
from neuralcache_plugins.contracts import AnswerJudged
from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.llamaindex import (
    NeuralCacheEmbedding,
    NeuralCachePostprocessor,
    NeuralCacheQueryEngine,
    node_versions,
)
from neuralcache_plugins.stores.memory import MemoryStore
from neuralcache_plugins.testing import FailingStore, HashingEncoder

SOURCE = RelatedNodeInfo(node_id="document", hash="h1")


class Engine(BaseQueryEngine):
    """A query engine that counts its calls; ``mode`` says what kind of response it gives."""

    def __init__(self, mode: str = "plain") -> None:
        super().__init__(callback_manager=None)
        self.mode, self.calls = mode, 0

    def _nodes(self) -> list[NodeWithScore]:
        node = TextNode(id_="node", text="text", metadata={"page": 3}, embedding=[1.0] * 3,
                        relationships={NodeRelationship.SOURCE: SOURCE})
        return [NodeWithScore(node=node, score=0.5), NodeWithScore(node=TextNode(id_="bare", text="other"))]

    def _query(self, query_bundle: QueryBundle) -> Any:
        self.calls += 1
        text = f"answer {self.calls}"
        if self.mode == "stream":
            return StreamingResponse((token for token in text.split(" ")), self._nodes(), {"k": "v"})
        if self.mode == "pydantic":
            return PydanticResponse(Structured(), self._nodes())
        return Response(text, self._nodes(), {"k": object()} if self.mode == "odd" else {"node": {"page": 3}})

    async def _aquery(self, query_bundle: QueryBundle) -> Any:
        if self.mode != "stream":
            await asyncio.sleep(0.01)
            return self._query(query_bundle)

        async def tokens() -> Any:
            for token in f"answer {self.calls}".split(" "):
                yield token

        self.calls += 1
        return AsyncStreamingResponse(tokens(), self._nodes(), {"k": "v"})

    def _get_prompt_modules(self) -> dict[str, Any]:
        return {}


class Structured(BaseModel):
    field: int = 1


@pytest.fixture
def answers() -> Iterator[SemanticCache]:
    with SemanticCache(HashingEncoder(), store="memory://") as cache:
        yield cache


async def ask(engine: BaseQueryEngine, asynchronous: bool, question: Any = "how?") -> Any:
    return await engine.aquery(question) if asynchronous else engine.query(question)


both = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


@both
async def test_an_engine_is_asked_once_and_its_sources_come_back(answers: SemanticCache, asynchronous: bool) -> None:
    engine = NeuralCacheQueryEngine(inner := Engine(), answers, scope="help")
    first, again = [await ask(engine, asynchronous) for _ in range(2)]

    assert (again.response, again.metadata, inner.calls) == ("answer 1", {"node": {"page": 3}}, 1)
    for one, other in zip(first.source_nodes, again.source_nodes, strict=True):
        assert (one.score, one.node.node_id, one.node.hash, one.node.metadata) == (
            other.score, other.node.node_id, other.node.hash, other.node.metadata)
        assert one.node.ref_doc_id == other.node.ref_doc_id
    assert (await ask(engine, asynchronous, "why?")).response == "answer 2"


@pytest.mark.parametrize("changed", [["node"], ["bare"], ["document"], [("document", "h2")]], ids=repr)
def test_an_answer_is_bound_to_nodes_and_their_documents(answers: SemanticCache, changed: Any) -> None:
    engine = NeuralCacheQueryEngine(Engine(), answers, scope="help")
    engine.query("how?")
    assert answers.invalidate(documents=[("document", "h1"), *node_versions(Engine()._nodes())]) == 0
    assert answers.invalidate(documents=changed) == 1

    assert engine.query("how?").response == "answer 2"


def test_a_rankings_id_on_the_nodes_is_no_change_of_the_documents(answers: SemanticCache) -> None:
    """Else every question would invalidate the answers to all others that were made from the same nodes."""
    with Reranker(HashingEncoder(), store="memory://") as reranker:
        ranked = NeuralCachePostprocessor.from_reranker(reranker, top_n=None, ranking_id_key="ranking")

        class Ranked(Engine):
            def _nodes(self) -> list[NodeWithScore]:
                return ranked.postprocess_nodes(super()._nodes(), query_str="how?")

        engine = NeuralCacheQueryEngine(inner := Ranked(), answers, scope="help")
        said = [engine.query(question).response for question in ("how?", "why?", "how?", "why?")]

        assert said == ["answer 1", "answer 2", "answer 1", "answer 2"]
        assert inner.calls == 2
        nodes = Engine()._nodes()
        assert node_versions(ranked.postprocess_nodes(nodes, query_str="how?")) == node_versions(nodes)


def test_a_stream_is_replayed(answers: SemanticCache) -> None:
    engine = NeuralCacheQueryEngine(inner := Engine("stream"), answers, scope="help")
    first = engine.query("how?")
    assert isinstance(first, StreamingResponse)
    assert list(first.response_gen) == ["answer", "1"]
    again = engine.query("how?")

    assert isinstance(again, StreamingResponse)
    assert list(again.response_gen) == ["answer", "1"]
    assert [each.node.node_id for each in again.source_nodes] == ["node", "bare"]
    assert (again.metadata, inner.calls) == ({"k": "v"}, 1)


async def test_a_stream_is_replayed_to_coroutines(answers: SemanticCache) -> None:
    engine = NeuralCacheQueryEngine(inner := Engine("stream"), answers, scope="help")
    for _ in range(2):
        response = await engine.aquery("how?")
        assert isinstance(response, AsyncStreamingResponse)
        assert [token async for token in response.async_response_gen()] == ["answer", "1"]
    assert inner.calls == 1


def test_a_stream_that_breaks_off_is_not_kept(answers: SemanticCache) -> None:
    engine = NeuralCacheQueryEngine(Engine("stream"), answers, scope="help")
    next(iter(engine.query("how?").response_gen))

    assert list(engine.query("how?").response_gen) == ["answer", "2"]


async def test_those_who_wait_for_a_stream_get_one_each(answers: SemanticCache) -> None:
    """A stream can be read once: it is not shared among those who asked meanwhile."""
    engine = NeuralCacheQueryEngine(Engine("stream"), answers, scope="help")
    responses = await asyncio.gather(*(engine.aquery("how?") for _ in range(5)))

    read = [" ".join([token async for token in each.async_response_gen()]) for each in responses]
    assert len(read) == 5
    assert all(text.startswith("answer ") for text in read)


def test_a_stream_of_a_document_that_changed_meanwhile_is_not_kept(answers: SemanticCache) -> None:
    engine = NeuralCacheQueryEngine(Engine("stream"), answers, scope="help")
    stream = engine.query("how?").response_gen
    next(stream)
    answers.invalidate(documents=["document"])
    list(stream)

    assert list(engine.query("how?").response_gen) == ["answer", "2"]


@both
@pytest.mark.parametrize("mode", ["pydantic", "odd"])
async def test_what_cannot_be_restored_is_passed_on(answers: SemanticCache, mode: str, asynchronous: bool) -> None:
    engine = NeuralCacheQueryEngine(inner := Engine(mode), answers, scope="help")
    for number in (1, 2):
        assert type(await ask(engine, asynchronous)) is (PydanticResponse if mode == "pydantic" else Response)
        assert inner.calls == number
    assert answers.stats().stored == 0


def test_without_a_scope_nothing_is_shared(answers: SemanticCache) -> None:
    one, other = (NeuralCacheQueryEngine(Engine(), answers) for _ in range(2))
    one.query("how?")

    assert one.query("how?").response == "answer 1"
    assert other.query_engine.calls == 0
    other.query("how?")
    assert other.query_engine.calls == 1


def test_a_rewritten_query_is_another_one(answers: SemanticCache) -> None:
    engine = NeuralCacheQueryEngine(Engine(), answers, scope="help")
    engine.query("how?")

    assert engine.query(QueryBundle("how?", custom_embedding_strs=["else"])).response == "answer 2"


@both
async def test_a_real_index(answers: SemanticCache, asynchronous: bool) -> None:
    """Retriever, synthesizer and their prompts are the framework's own; other prompts are another scope."""
    index = SummaryIndex.from_documents([Document(id_="doc", text="To reset it, open the settings.")])
    engine = NeuralCacheQueryEngine(index.as_query_engine(llm=MockLLM()), answers, scope="help")
    first, again = [await ask(engine, asynchronous) for _ in range(2)]

    assert str(first) == str(again)
    assert again.source_nodes[0].node.ref_doc_id == "doc"
    assert (answers.stats().computed, answers.stats().exact_hits) == (1, 1)
    refined = index.as_query_engine(llm=MockLLM(), response_mode="tree_summarize")
    await ask(NeuralCacheQueryEngine(refined, answers, scope="help"), asynchronous)
    assert answers.stats().computed == 2


# embeddings


class Embedding(BaseEmbedding):
    """Embeds a text as its length, the model's number and the role; counts calls and texts."""

    number: float = 1.0
    _asked: list[tuple[str, int]] = PrivateAttr(default_factory=list)

    def _get_query_embedding(self, query: str) -> list[float]:
        self._asked.append(("query", 1))
        return [len(query) / 3, self.number, 0.0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        self._asked.append(("document", len(texts)))
        return [[len(text) / 3, self.number, 1.0] for text in texts]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


@both
async def test_a_text_is_embedded_once_by_role_and_model(asynchronous: bool) -> None:
    store = open_store("memory://")
    inner = Embedding(model_name="a")
    model, other = (NeuralCacheEmbedding(each, store=store) for each in (inner, Embedding(model_name="b", number=2.0)))

    async def vectors(model: BaseEmbedding) -> Any:
        if asynchronous:
            return [await model.aget_query_embedding("text"), await model.aget_text_embedding("text")]
        return [model.get_query_embedding("text"), model.get_text_embedding("text")]

    first = await vectors(model)
    assert await vectors(model) == first
    assert inner._asked == [("query", 1), ("document", 1)]
    assert [each[1:] for each in first] == [[1.0, 0.0], [1.0, 1.0]]
    assert [each[1] for each in await vectors(other)] == [2.0, 2.0]


@both
async def test_a_batch_asks_for_what_is_missing(asynchronous: bool) -> None:
    inner = Embedding(model_name="a")
    model = NeuralCacheEmbedding(inner, store="memory://")

    async def batch(*texts: str) -> Any:
        if asynchronous:
            return await model.aget_text_embedding_batch(list(texts))
        return model.get_text_embedding_batch(list(texts))

    await batch("a", "bb")
    found = await batch("ccc", "a", "bb", "ccc", "dddd")
    assert [round(each[0] * 3) for each in found] == [3, 1, 2, 3, 4]
    assert sum(count for _, count in inner._asked) == 4
    model.close()


def test_embeddings_survive_a_restart(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'telemetry.db'}"
    for calls in ([("query", 1)], []):
        model = NeuralCacheEmbedding(inner := Embedding(model_name="a"), store=url)
        model.get_query_embedding("text")
        assert inner._asked == calls
        model.close()


def test_a_store_in_trouble_costs_a_call_of_the_model() -> None:
    store = FailingStore(MemoryStore())
    model = NeuralCacheEmbedding(inner := Embedding(model_name="a"), store=store)
    before = model.get_query_embedding("text")
    store.fail()

    assert model.get_query_embedding("text") == before
    assert len(inner._asked) == 2


def test_works_in_an_index() -> None:
    model = NeuralCacheEmbedding(MockEmbedding(embed_dim=4), store="memory://")
    index = VectorStoreIndex([TextNode(id_="a", text="text")], embed_model=model)

    assert [each.node.node_id for each in index.as_retriever().retrieve("how?")] == ["a"]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_answers_are_compared_by_their_text(answers: SemanticCache, asynchronous: bool) -> None:
    """Not by their nodes and scores, which differ from question to question."""
    class Scored(Engine):
        def _query(self, query_bundle: QueryBundle) -> Any:
            self.calls += 1
            node = NodeWithScore(node=TextNode(id_="node", text="text"), score=1.0 / self.calls)
            return Response("Open the app." if "reset" in query_bundle.query_str else "No.", [node])

    engine = NeuralCacheQueryEngine(Scored(), answers, scope="s")
    for question in ("how do I reset my card", "how do I reset my new card", "how do I cancel my new card"):
        await ask(engine, asynchronous, question)
    answers.flush()
    labels = [entry.event for entry in answers._store.read_answer_events(kinds=[AnswerJudged])]

    assert [label.correct for label in labels if isinstance(label, AnswerJudged)] == [True, False]


# what is known before


@both
async def test_a_known_response_is_put_where_the_engine_looks(answers: SemanticCache, asynchronous: bool) -> None:
    engine = NeuralCacheQueryEngine(inner := Engine(), answers, scope="help")
    known = Response("known", Engine()._nodes())
    assert await engine.aput("how?", known) if asynchronous else engine.put("how?", known)
    assert engine.put(QueryBundle("why?", custom_embedding_strs=["because"]), "so")

    found = await ask(engine, asynchronous)
    assert (found.response, found.source_nodes[0].node.ref_doc_id, inner.calls) == ("known", "document", 0)
    assert (await ask(engine, asynchronous, QueryBundle("why?", custom_embedding_strs=["because"]))).response == "so"
    assert (await ask(engine, asynchronous, "why?")).response == "answer 1"
    assert answers.invalidate(documents=[("document", "h2")]) == 2
    assert (await ask(engine, asynchronous)).response == "answer 2"


def test_the_scope_of_a_query_is_the_one_that_the_engine_uses(answers: SemanticCache) -> None:
    engine = NeuralCacheQueryEngine(Engine(), answers, scope="help")
    engine.query("how?")

    assert answers.lookup("how?", scope=engine.scope_for("why?"), documents=node_versions(Engine()._nodes()))
    rewritten = QueryBundle("how?", custom_embedding_strs=["how so?"])
    assert answers.invalidate(scope=engine.scope_for(rewritten)) == 0
    assert answers.invalidate(scope=engine.scope_for("how?")) == 1


@both
async def test_a_log_of_the_engine_certifies_it(asynchronous: bool) -> None:
    settings = CacheSettings(max_error=0.2, confidence=0.8, audit_rate=0.01)
    things = ["password", "card", "address", "limit", "account", "statement", "loan", "branch", "currency", "transfer"]
    log = [(f"how do I change my {things[at % 10]} {at}x", f"About the {things[at % 10]}.") for at in range(250)]
    with SemanticCache(HashingEncoder(), store="memory://", settings=settings, seed=0) as answers:
        engine = NeuralCacheQueryEngine(inner := Engine(), answers, scope="help")
        report = await engine.acalibrate(log) if asynchronous else engine.calibrate(log)

        assert (report.certified, report.stored, inner.calls) == (True, 250, 0)
        found = [str(engine.query(f"how do I change my {thing} {1_000 + at}x")) for at, thing in enumerate(things * 2)]
        assert inner.calls < 15
        assert sum(text.startswith("About the ") for text in found) > 5


def test_what_would_not_come_back_equal_is_refused_when_it_is_put(answers: SemanticCache) -> None:
    engine = NeuralCacheQueryEngine(Engine(), answers, scope="help")
    with pytest.raises(InvalidInputError, match=r"^a Response that would not come back equal cannot be cached$"):
        engine.put("how?", Response("text", metadata={"k": object()}))
    with pytest.raises(InvalidInputError, match=r"^a StreamingResponse that would not"):
        engine.put("how?", StreamingResponse(iter(["a"])))
