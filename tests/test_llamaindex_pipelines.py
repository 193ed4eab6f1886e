"""The postprocessor inside LlamaIndex's own engines, and what instrumentation sees of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex, get_response_synthesizer
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine
from llama_index.core.evaluation import RetrieverEvaluator
from llama_index.core.instrumentation import root_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.query_engine import CitationQueryEngine, RetrieverQueryEngine
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.tools import RetrieverTool
from pydantic import Field

from neuralcache_plugins.llamaindex import NeuralCachePostprocessor
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
    def _get_query_embedding(self, query: str) -> list[float]:
        return [float(x) for x in HashingEncoder().embed_query(query)]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_query_embedding(text)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


class Never(HashedWords):
    async def _aget_query_embedding(self, query: str) -> list[float]:
        await asyncio.sleep(3600)
        return []


class Events(BaseEventHandler):
    seen: list[Any] = Field(default_factory=list)

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        self.seen.append(event)


class Failing(BaseEventHandler):
    calls: list[str] = Field(default_factory=list)

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        self.calls.append(event.class_name())
        raise RuntimeError("a broken handler")


class Legacy(BaseCallbackHandler):
    def __init__(self) -> None:
        super().__init__([], [])
        self.seen: list[tuple[str, CBEventType, dict[str, Any]]] = []

    def on_event_start(self, event_type, payload=None, event_id="", parent_id="", **kwargs):
        self.seen.append(("start", event_type, payload))
        return event_id

    def on_event_end(self, event_type, payload=None, event_id="", **kwargs):
        self.seen.append(("end", event_type, payload))

    def start_trace(self, trace_id=None):
        pass

    def end_trace(self, trace_id=None, trace_map=None):
        pass

    def rerankings(self) -> list[tuple[str, dict[str, Any]]]:
        return [(edge, payload) for edge, kind, payload in self.seen if kind == CBEventType.RERANKING]


@pytest.fixture
def index() -> VectorStoreIndex:
    nodes = [TextNode(id_=id_, text=text, metadata={"src": "kb"}) for id_, text in TEXTS.items()]
    return VectorStoreIndex(nodes, embed_model=HashedWords())


@pytest.fixture
def ours():
    postprocessor = NeuralCachePostprocessor(embed_model=HashedWords(), store="memory://", top_n=2)
    yield postprocessor
    postprocessor.reranker.close()


@pytest.fixture
def watched():
    """Attach an event handler and a span handler to the root dispatcher."""
    events, spans = Events(seen=[]), SimpleSpanHandler()
    handlers = root_dispatcher.event_handlers, root_dispatcher.span_handlers
    root_dispatcher.event_handlers = [*handlers[0], events]
    root_dispatcher.span_handlers = [*handlers[1], spans]
    yield events.seen, spans
    root_dispatcher.event_handlers, root_dispatcher.span_handlers = handlers


def ids(nodes: list[NodeWithScore]) -> list[str]:
    return [node.node_id for node in nodes]


def reranks(seen: list[BaseEvent]) -> list[BaseEvent]:
    return [event for event in seen if isinstance(event, (ReRankStartEvent, ReRankEndEvent))]


# engines


def query_engine(index, *postprocessors, **options) -> RetrieverQueryEngine:
    return RetrieverQueryEngine(
        index.as_retriever(similarity_top_k=6),
        response_synthesizer=get_response_synthesizer(llm=MockLLM(), response_mode="compact"),
        node_postprocessors=list(postprocessors),
        **options,
    )


async def test_retriever_query_engine_learns(index, ours):
    engine = query_engine(index, ours)
    first = engine.query(QUESTION)
    assert len(first.source_nodes) == 2
    assert ids(first.source_nodes) == ids((await engine.aquery(QUESTION)).source_nodes)
    second = first.source_nodes[1]
    for _ in range(12):
        engine.query(QUESTION)
        ours.feedback(query=QUESTION, helpful=[second])
    assert engine.query(QUESTION).source_nodes[0].node_id == second.node_id
    assert (await engine.aquery(QUESTION)).source_nodes[0].node_id == second.node_id


async def test_nothing_of_ours_reaches_the_prompt_and_the_index_is_untouched(index, ours):
    before = {id_: node.hash for id_, node in index.docstore.docs.items()}
    plain = RetrieverQueryEngine(
        index.as_retriever(similarity_top_k=2),
        response_synthesizer=get_response_synthesizer(llm=MockLLM(), response_mode="compact"),
    )
    wanted = plain.query(QUESTION)
    answer = query_engine(index, ours).query(QUESTION)
    if ids(answer.source_nodes) == ids(wanted.source_nodes):
        assert str(answer) == str(wanted)
    assert "src: kb" in str(answer)
    assert "score" not in str(answer)
    assert {id_: node.hash for id_, node in index.docstore.docs.items()} == before


async def test_as_query_engine(index, ours):
    engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=6, node_postprocessors=[ours])
    assert len(engine.query(QUESTION).source_nodes) == 2
    assert len((await engine.aquery(QUESTION)).source_nodes) == 2


async def test_streaming_query(index, ours):
    engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=6, node_postprocessors=[ours], streaming=True)
    answer = engine.query(QUESTION)
    assert "".join(answer.response_gen)
    assert len(answer.source_nodes) == 2


async def test_between_other_postprocessors(index, ours):
    engine = query_engine(index, SimilarityPostprocessor(similarity_cutoff=0.01), ours,
                          SimilarityPostprocessor(similarity_cutoff=0.0))
    assert 1 <= len(engine.query(QUESTION).source_nodes) <= 2
    assert 1 <= len((await engine.aquery(QUESTION)).source_nodes) <= 2


async def test_citation_query_engine(index, ours):
    engine = CitationQueryEngine.from_args(
        index, llm=MockLLM(), similarity_top_k=6, node_postprocessors=[ours], citation_chunk_size=512
    )
    assert engine.query(QUESTION).source_nodes
    assert (await engine.aquery(QUESTION)).source_nodes


# not the engines' default memory: it leaves an aiosqlite connection open, which warns when it is collected
def context_chat(index, ours) -> ContextChatEngine:
    return ContextChatEngine.from_defaults(
        index.as_retriever(similarity_top_k=6), llm=MockLLM(), node_postprocessors=[ours],
        memory=ChatMemoryBuffer.from_defaults(token_limit=3000),
    )


def condense_chat(index, ours) -> CondensePlusContextChatEngine:
    return CondensePlusContextChatEngine.from_defaults(
        index.as_retriever(similarity_top_k=6), llm=MockLLM(), node_postprocessors=[ours],
        memory=ChatMemoryBuffer.from_defaults(token_limit=3000),
    )


@pytest.mark.parametrize("chat", [context_chat, condense_chat])
class TestChatEngines:
    def test_chat(self, index, ours, chat):
        engine = chat(index, ours)
        for _ in range(2):
            assert len(engine.chat(QUESTION).source_nodes) == 2

    async def test_achat(self, index, ours, chat):
        engine = chat(index, ours)
        for _ in range(2):
            assert len((await engine.achat(QUESTION)).source_nodes) == 2

    def test_stream_chat(self, index, ours, chat):
        answer = chat(index, ours).stream_chat(QUESTION)
        assert "".join(answer.response_gen)
        assert len(answer.source_nodes) == 2

    async def test_astream_chat(self, index, ours, chat):
        answer = await chat(index, ours).astream_chat(QUESTION)
        assert "".join([token async for token in answer.async_response_gen()])
        assert len(answer.source_nodes) == 2


def test_a_chat_engine_end_to_end_learns(index, ours):
    engine = context_chat(index, ours)
    second = engine.chat(QUESTION).source_nodes[1]
    for _ in range(12):
        answer = engine.chat(QUESTION)
        ours.feedback(query=QUESTION, helpful=[node for node in answer.source_nodes if node.node_id == second.node_id])
    answer = engine.chat(QUESTION)
    assert answer.source_nodes[0].node_id == second.node_id
    assert second.text in str(answer.sources[0].content)


async def test_retriever_tool(index, ours):
    tool = RetrieverTool.from_defaults(index.as_retriever(similarity_top_k=6), node_postprocessors=[ours])
    assert len(tool.call(QUESTION).raw_output) == 2
    assert len((await tool.acall(QUESTION)).raw_output) == 2


async def test_retriever_evaluator(index, ours):
    evaluator = RetrieverEvaluator.from_metric_names(
        ["mrr", "hit_rate"], retriever=index.as_retriever(similarity_top_k=6), node_postprocessors=[ours]
    )
    result = await evaluator.aevaluate(QUESTION, expected_ids=["reset"])
    assert len(result.retrieved_ids) == 2
    assert result.metric_vals_dict["hit_rate"] == 1.0
    assert evaluator.node_postprocessors[0] is ours


async def test_one_postprocessor_in_two_engines(index, ours):
    first_handler, second_handler = Legacy(), Legacy()
    first = query_engine(index, ours, callback_manager=CallbackManager([first_handler]))
    second = query_engine(index, ours, callback_manager=CallbackManager([second_handler]))
    answers = await asyncio.gather(*[engine.aquery(QUESTION) for engine in (first, second) for _ in range(5)])
    assert len({tuple(ids(answer.source_nodes)) for answer in answers}) == 1
    # the framework points the postprocessor to the callback manager of the newest engine
    assert not first_handler.rerankings()
    assert len(second_handler.rerankings()) == 20


def test_the_querys_embedding_comes_for_free(index):
    class Counting(HashedWords):
        calls: list[str] = Field(default_factory=list)

        def _get_query_embedding(self, query: str) -> list[float]:
            self.calls.append(query)
            return super()._get_query_embedding(query)

    model = Counting(calls=[])
    ours = NeuralCachePostprocessor(embed_model=model, store="memory://", use_document_vectors=True)
    query_engine(index, ours).query(QUESTION)
    # only in sync: the framework's asynchronous retriever keeps the embedding to itself
    assert set(model.calls) == set(TEXTS.values())
    ours.reranker.close()


# instrumentation


def assert_on_our_span(seen, spans, method: str, parent: str) -> None:
    start, end = reranks(seen)
    assert isinstance(start, ReRankStartEvent)
    assert isinstance(end, ReRankEndEvent)
    assert start.span_id == end.span_id
    assert start.span_id.startswith(f"NeuralCachePostprocessor.{method}-")
    span = next(span for span in spans.completed_spans if span.id_ == start.span_id)
    assert span.parent_id.startswith(f"RetrieverQueryEngine.{parent}-")
    assert len(start.nodes) == 6
    assert start.top_n == 2
    assert start.model_name == "neuralcache"
    assert start.query.query_str == QUESTION
    assert len(end.nodes) == 2
    assert all(type(node.score) is float for node in end.nodes)


def test_events_land_on_our_span(index, ours, watched):
    query_engine(index, ours).query(QUESTION)
    assert_on_our_span(*watched, "_postprocess_nodes", "_query")


async def test_events_land_on_our_span_in_async(index, ours, watched):
    await query_engine(index, ours).aquery(QUESTION)
    assert_on_our_span(*watched, "_apostprocess_nodes", "_aquery")


def test_the_input_scores_in_the_start_event_stay_the_retrievers(index, ours, watched):
    retrieved = index.as_retriever(similarity_top_k=6).retrieve(QUESTION)
    wanted = [node.score for node in retrieved]
    ours.postprocess_nodes(retrieved, query_str=QUESTION)
    assert [node.score for node in reranks(watched[0])[0].nodes] == wanted


async def test_the_ranking_is_joined_with_the_span(index, ours, watched):
    query_engine(index, ours).query(QUESTION)
    await query_engine(index, ours).aquery(QUESTION)
    ours.reranker.flush()
    for end in reranks(watched[0])[1::2]:
        recorded = ours.reranker.store.ranking(end.tags["ranking_id"])
        assert recorded.span_id == end.span_id
        assert list(recorded.document_ids) == ids(end.nodes)
        assert ours.feedback(end.tags["ranking_id"], helpful=end.nodes[:1])


async def test_no_events_when_there_is_nothing_to_do(ours, watched):
    assert ours.postprocess_nodes([], query_str=QUESTION) == []
    assert await ours.apostprocess_nodes([], query_str=QUESTION) == []
    node = NodeWithScore(node=TextNode(text="a"))
    with pytest.raises(ValueError, match="Missing query bundle"):
        ours.postprocess_nodes([node])
    with pytest.raises(ValueError, match="Missing query bundle"):
        await ours.apostprocess_nodes([node])
    assert reranks(watched[0]) == []


def test_top_n_none_is_the_number_of_nodes_in_the_event(index, ours, watched):
    everything = ours.model_copy(update={"top_n": None})
    assert len(query_engine(index, everything).query(QUESTION).source_nodes) == 6
    assert reranks(watched[0])[0].top_n == 6


async def test_a_start_event_is_followed_by_an_end_event_when_the_call_fails(index, ours, watched):
    legacy = Legacy()
    picky = ours.model_copy(update={"use_document_vectors": True, "callback_manager": CallbackManager([legacy])})
    nodes = index.as_retriever(similarity_top_k=6).retrieve(QUESTION)
    bundle = QueryBundle(QUESTION, embedding=[float("nan")] * 3)
    with pytest.raises(ValueError):
        picky.postprocess_nodes(nodes, query_bundle=bundle)
    with pytest.raises(ValueError):
        await picky.apostprocess_nodes(nodes, query_bundle=bundle)
    seen, spans = watched
    assert [type(event).__name__ for event in reranks(seen)] == ["ReRankStartEvent", "ReRankEndEvent"] * 2
    assert [event.nodes for event in reranks(seen)[1::2]] == [[], []]
    assert all(event.tags == {} for event in reranks(seen)[1::2])
    assert len([span for span in spans.dropped_spans if "NeuralCachePostprocessor" in span.id_]) == 2
    assert [edge for edge, _ in legacy.rerankings()] == ["start", "end"] * 2


async def test_a_cancelled_call_ends_its_event_too(index, watched):
    slow = NeuralCachePostprocessor(embed_model=Never(), store="memory://")
    nodes = index.as_retriever(similarity_top_k=6).retrieve(QUESTION)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(slow.apostprocess_nodes(nodes, query_str=QUESTION), 0.1)
    assert [type(event).__name__ for event in reranks(watched[0])] == ["ReRankStartEvent", "ReRankEndEvent"]
    slow.reranker.close()


async def test_failing_handlers_do_no_harm(index, ours, watched):
    failing = Failing(calls=[])
    root_dispatcher.event_handlers = [failing, *root_dispatcher.event_handlers]
    engine = query_engine(index, ours)
    assert len(engine.query(QUESTION).source_nodes) == 2
    assert len((await engine.aquery(QUESTION)).source_nodes) == 2
    assert failing.calls.count("ReRankStartEvent") == failing.calls.count("ReRankEndEvent") == 2
    assert len(reranks(watched[0])) == 4


async def test_legacy_callbacks(index, ours):
    legacy = Legacy()
    engine = query_engine(index, ours, callback_manager=CallbackManager([legacy]))
    engine.query(QUESTION)
    answer = await engine.aquery(QUESTION)
    assert [edge for edge, _ in legacy.rerankings()] == ["start", "end"] * 2
    start, end = (payload for _, payload in legacy.rerankings()[2:])
    assert start[EventPayload.QUERY_STR] == QUESTION
    assert start[EventPayload.TOP_K] == 2
    assert start[EventPayload.MODEL_NAME] == "neuralcache"
    assert len(start[EventPayload.NODES]) == 6
    assert ids(end[EventPayload.NODES]) == ids(answer.source_nodes)
