"""The event and span handlers in query engines, chat engines and workflows: each ranking hears of its own answer.

The fake model reads its prompt: it repeats the passage whose name stands in the question, as a real one would.
"""

from __future__ import annotations

import asyncio
import random
import re
import threading
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core import VectorStoreIndex, get_response_synthesizer
from llama_index.core.agent.workflow import ReActAgent
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.types import CompletionResponse, LLMMetadata
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine
from llama_index.core.instrumentation import root_dispatcher
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.query_engine import CitationQueryEngine, CustomQueryEngine, RetrieverQueryEngine
from llama_index.core.query_engine.citation_query_engine import CITATION_QA_TEMPLATE
from llama_index.core.schema import TextNode
from llama_index.core.tools import QueryEngineTool
from llama_index.core.workflow import StartEvent, StopEvent, Workflow, step

from neuralcache_plugins import InvalidInputError, Reranker, StoreSettings, open_store
from neuralcache_plugins.contracts import FeedbackGiven
from neuralcache_plugins.llamaindex import NeuralCacheInstrumentor, NeuralCachePostprocessor
from neuralcache_plugins.testing import HashingEncoder

FACTS = {
    "amber": "Amber forms from the resin of ancient pines over forty million years",
    "basalt": "Basalt columns crack into hexagons while lava cools slowly",
    "coral": "Coral reefs bleach whenever the surrounding seawater stays too warm",
    "delta": "A delta grows from sediment that slows down near the sea",
    "fjord": "A fjord was carved by glaciers and later flooded by the ocean",
    "heath": "The heath stays open because sheep graze the young birch trees",
}
NAMES = list(FACTS)


class HashedWords(BaseEmbedding):
    def _get_query_embedding(self, query: str) -> list[float]:
        return [float(x) for x in HashingEncoder().embed_query(query)]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_query_embedding(text)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        await asyncio.sleep(0.002 * random.random())
        return self._get_query_embedding(query)


class Repeats(CustomLLM):
    """Says the fact that the last "about <name>" of its prompt asks for, if it is in the prompt."""

    pause: float = 0.0
    fails: bool = False
    cites: bool = False
    stuck: Any = None
    """An ``asyncio.Event`` to set on being asked, and then never to answer."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata()

    def _say(self, prompt: str) -> str:
        if self.fails:
            raise RuntimeError("the model is down")
        name = re.findall(r"about (\w+)", prompt)[-1]
        if self.cites:
            number = re.findall(rf"Source (\d+):\n{FACTS[name][:12]}", prompt)[0]
            return f"As told there [{number}]."
        if FACTS.get(name, "?") not in prompt:
            return "I'm sorry, I don't know."
        return f"{FACTS[name]}."

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        time.sleep(self.pause * random.random())
        return CompletionResponse(text=self._say(prompt))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        if self.stuck is not None:
            self.stuck.set()
            await asyncio.Event().wait()
        await asyncio.sleep(self.pause * random.random())
        return CompletionResponse(text=self._say(prompt))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any):
        said = self._say(prompt)

        def words():
            text = ""
            for word in re.findall(r"\S+\s*", said):
                text += word
                yield CompletionResponse(text=text, delta=word)

        return words()


@pytest.fixture
def reranker():
    with Reranker(HashingEncoder(), store="memory://", store_settings=StoreSettings(store_text=True)) as made:
        yield made


@pytest.fixture
def ours(reranker):
    return NeuralCachePostprocessor.from_reranker(reranker, top_n=None)


@pytest.fixture
def instrumentor(ours):
    with NeuralCacheInstrumentor(ours) as made:
        yield made
    assert made.stats().failed == 0


INDEX = VectorStoreIndex([TextNode(id_=name, text=text) for name, text in FACTS.items()], embed_model=HashedWords())


def retriever():
    return INDEX.as_retriever(similarity_top_k=len(FACTS))


def query_engine(ours, llm=None, **options):
    llm = llm or Repeats()
    return RetrieverQueryEngine(
        retriever(), response_synthesizer=get_response_synthesizer(llm=llm, response_mode="compact", **options),
        node_postprocessors=[ours],
    )


def chat_engine(kind, ours, llm=None):
    return kind.from_defaults(retriever=retriever(), llm=llm or Repeats(), node_postprocessors=[ours],
                              memory=ChatMemoryBuffer.from_defaults(llm=Repeats()))


def told(instrumentor, reranker) -> list[tuple[str, tuple[str, ...], str]]:
    """Return (name asked for, documents rewarded, source) of every feedback."""
    assert instrumentor.flush(10)
    events = [recorded.event for recorded in reranker.store.read(limit=10_000)]
    return sorted(
        (event.ranking.query_text.split()[-1], tuple(name for name, _ in event.rewards), event.source)
        for event in events if isinstance(event, FeedbackGiven)
    )


def own(*names: str) -> list[tuple[str, tuple[str, ...], str]]:
    return sorted((name, (name,), "context_use") for name in names)


async def test_a_query_engine_tells_the_ranking_what_the_answer_used(call, ours, instrumentor, reranker):
    response = await call(query_engine(ours), "query", "tell me about coral")

    assert str(response) == f"{FACTS['coral']}."
    assert told(instrumentor, reranker) == own("coral")


async def test_a_streamed_answer_counts_when_it_was_read(ours, instrumentor, reranker):
    response = query_engine(ours, streaming=True).query("tell me about delta")
    assert told(instrumentor, reranker) == []
    assert "".join(response.response_gen) == f"{FACTS['delta']}."
    assert told(instrumentor, reranker) == own("delta")

    aresponse = await query_engine(ours, streaming=True, use_async=True).aquery("tell me about fjord")
    assert [token async for token in aresponse.response_gen]
    assert told(instrumentor, reranker) == own("delta", "fjord")


def second_pair():
    other = NeuralCachePostprocessor.from_reranker(
        Reranker(HashingEncoder(), store="memory://", store_settings=StoreSettings(store_text=True)), top_n=None)
    return other, NeuralCacheInstrumentor(other)


async def test_two_instrumentors_follow_a_stream_each(ours, instrumentor, reranker):
    other, theirs = second_pair()
    with other.reranker, theirs:
        for postprocessor in (ours, other):
            engine = query_engine(postprocessor, streaming=True)
            assert "".join(engine.query("tell me about coral").response_gen) == f"{FACTS['coral']}."
            answer = await engine.aquery("tell me about delta")
            assert "".join([token async for token in answer.async_response_gen()]) == f"{FACTS['delta']}."
        assert told(instrumentor, reranker) == told(theirs, other.reranker) == own("coral", "delta")


def test_a_stream_may_be_any_iterable(ours, instrumentor, reranker):
    """As an engine of one's own may hand out; without an instrumentor LlamaIndex reads it too."""

    class Listed(CustomQueryEngine):
        def custom_query(self, query_str: str) -> StreamingResponse:
            nodes = ours.postprocess_nodes(retriever().retrieve(query_str), query_str=query_str)
            asked = "\n".join([node.get_content() for node in nodes] + [query_str])
            words = re.findall(r"\S+\s*", Repeats().complete(asked).text)
            return StreamingResponse(response_gen=words, source_nodes=nodes)

    assert str(Listed().query("tell me about coral")) == f"{FACTS['coral']}."
    assert told(instrumentor, reranker) == own("coral")


async def test_leaving_a_stream_closes_what_it_was_wrapped_around(ours, instrumentor):
    """A model's connection is free as soon as the reader goes, not when the garbage collector comes by."""
    closed, alive = [], []  # somebody else may hold it as well

    def words():
        try:
            yield from ("Amber ", "forms")
        finally:
            closed.append("sync")

    async def awords():
        try:
            for word in ("Amber ", "forms"):
                yield word
        finally:
            closed.append("async")

    class Streams(CustomQueryEngine):
        def custom_query(self, query_str: str) -> StreamingResponse:
            ours.postprocess_nodes(retriever().retrieve(query_str), query_str=query_str)
            alive.append(words())
            return StreamingResponse(response_gen=alive[-1])

        async def acustom_query(self, query_str: str) -> AsyncStreamingResponse:
            await ours.apostprocess_nodes(await retriever().aretrieve(query_str), query_str=query_str)
            alive.append(awords())
            return AsyncStreamingResponse(response_gen=alive[-1])

    stream = Streams().query("tell me about amber").response_gen
    next(stream)
    stream.close()
    astream = (await Streams().aquery("tell me about amber")).response_gen
    await anext(astream)
    await astream.aclose()

    assert closed == ["sync", "async"]


async def test_a_ranking_by_hand_is_heard_too(call, ours, instrumentor, reranker):
    class ByHand(CustomQueryEngine):
        def custom_query(self, query_str: str) -> str:
            nodes = retriever().retrieve(query_str)
            shown = [nodes[place].node.get_content() for place in ours.rank(nodes, query_str).positions]
            return Repeats().complete("\n".join([*shown, query_str])).text

        async def acustom_query(self, query_str: str) -> str:
            nodes = await retriever().aretrieve(query_str)
            shown = [nodes[place].node.get_content() for place in (await ours.arank(nodes, query_str)).positions]
            return (await Repeats().acomplete("\n".join([*shown, query_str]))).text

    await call(ByHand(), "query", "tell me about coral")

    assert told(instrumentor, reranker) == own("coral")


def test_a_reranker_that_is_closed_first_loses_no_feedback():
    store = open_store("memory://")
    with Reranker(HashingEncoder(), store=store, store_settings=StoreSettings(store_text=True)) as reranker:
        postprocessor = NeuralCachePostprocessor.from_reranker(reranker, top_n=None)
        made = NeuralCacheInstrumentor(postprocessor, on_attribution=lambda _: time.sleep(0.05))
        made.instrument()
        for name in ("amber", "coral"):
            query_engine(postprocessor).query(f"tell me about {name}")
    made.close()
    assert (made.stats().feedback, made.stats().failed) == (2, 0)
    assert sum(isinstance(one.event, FeedbackGiven) for one in store.read()) == 2


def test_a_stream_that_is_left_half_read_teaches_nothing(ours, instrumentor, reranker):
    response = query_engine(ours, streaming=True).query("tell me about delta")
    next(response.response_gen)
    response.response_gen.close()
    del response

    query_engine(ours).query("tell me about amber")

    assert told(instrumentor, reranker) == own("amber")


@pytest.mark.parametrize("kind", [ContextChatEngine, CondensePlusContextChatEngine])
async def test_chat_engines_tell_the_ranking_of_each_turn(call, kind, ours, instrumentor, reranker):
    """The second turn's question is rewritten by the model first, where the engine does so."""
    engine = chat_engine(kind, ours)

    await call(engine, "chat", "tell me about basalt")

    assert told(instrumentor, reranker) == own("basalt")


@pytest.mark.parametrize("kind", [ContextChatEngine, CondensePlusContextChatEngine])
async def test_streaming_chat_engines_too(kind, ours, instrumentor, reranker):
    response = chat_engine(kind, ours).stream_chat("tell me about basalt")
    assert "".join(response.response_gen) == f"{FACTS['basalt']}."
    aresponse = await chat_engine(kind, ours).astream_chat("tell me about heath")
    assert [token async for token in aresponse.async_response_gen()]

    assert told(instrumentor, reranker) == own("basalt", "heath")


@pytest.mark.parametrize("streaming", [False, True])
async def test_the_citations_of_a_citation_query_engine_count(call, streaming, ours, instrumentor, reranker):
    """Its sources are parts of nodes, which it numbers itself: two or more a node, so numbers are not ranks."""
    engine = CitationQueryEngine.from_args(
        INDEX, llm=Repeats(cites=True), retriever=retriever(), node_postprocessors=[ours], citation_chunk_size=8,
        citation_chunk_overlap=0, response_synthesizer=get_response_synthesizer(
            llm=Repeats(cites=True), response_mode="compact", text_qa_template=CITATION_QA_TEMPLATE,
            streaming=streaming))

    # the words of another fact come first, and with them its parts
    response = await call(engine, "query", f"{FACTS['coral']}, tell me about heath")
    if streaming:
        gen = response.response_gen
        said = [token async for token in gen] if hasattr(gen, "__anext__") else list(gen)
        assert said
    assert told(instrumentor, reranker) == [("heath", ("heath",), "citation")]


class Asks(Workflow):
    """Retrieves in one step by hand, and asks the model in another."""

    def __init__(self, ours, llm) -> None:
        super().__init__(timeout=20)
        self.ours, self.llm = ours, llm

    @step
    async def answer(self, event: StartEvent) -> StopEvent:
        nodes = await retriever().aretrieve(event.question)
        nodes = await self.ours.apostprocess_nodes(nodes, query_str=event.question)
        context = "\n".join(node.text for node in nodes)
        return StopEvent(result=str(await self.llm.acomplete(f"{context}\n{event.question}")))


async def test_a_workflow_is_one_run(ours, instrumentor, reranker):
    assert await Asks(ours, Repeats()).run(question="tell me about amber") == f"{FACTS['amber']}."

    assert told(instrumentor, reranker) == own("amber")


# the framework's own look at its class
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_an_agent_that_asks_a_query_engine_teaches_by_the_engines_answer(ours, instrumentor, reranker):
    class Thinks(Repeats):
        def _say(self, prompt: str) -> str:
            if "Observation:" in prompt.rpartition("Current Conversation")[2] + prompt[-400:]:
                return "Thought: I can answer without using any more tools.\nAnswer: It is as the tool says."
            return 'Thought: I need a tool.\nAction: facts\nAction Input: {"input": "tell me about fjord"}'

    tool = QueryEngineTool.from_defaults(query_engine(ours), name="facts", description="knows facts")
    agent = ReActAgent(tools=[tool], llm=Thinks(), streaming=False)

    await agent.run(user_msg="go")

    assert told(instrumentor, reranker) == own("fjord")


async def test_a_failing_model_teaches_nothing(call, ours, instrumentor, reranker):
    with pytest.raises(RuntimeError, match="the model is down"):
        await call(query_engine(ours, Repeats(fails=True)), "query", "tell me about amber")
    await call(query_engine(ours), "query", "tell me about basalt")

    assert told(instrumentor, reranker) == own("basalt")


async def test_a_cancelled_query_teaches_nothing(ours, instrumentor, reranker):
    asked = asyncio.Event()
    task = asyncio.create_task(query_engine(ours, Repeats(stuck=asked)).aquery("tell me about amber"))
    await asyncio.wait_for(asked.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert told(instrumentor, reranker) == []


async def test_an_answer_without_an_answer_gives_no_feedback(call, ours, instrumentor, reranker):
    await call(query_engine(ours), "query", "tell me about granite")

    assert told(instrumentor, reranker) == []
    assert instrumentor.stats().answers == 1


def test_the_answer_does_not_wait_for_its_feedback(ours, reranker):
    go = threading.Event()
    with NeuralCacheInstrumentor(ours, on_attribution=lambda _: go.wait(30)) as instrumentor:
        query_engine(ours).query("tell me about amber")
        assert not instrumentor.flush(0.05)
        go.set()
        assert told(instrumentor, reranker) == own("amber")


def test_taken_off_it_hears_nothing(ours, reranker):
    before = root_dispatcher.event_handlers, root_dispatcher.span_handlers
    instrumentor = NeuralCacheInstrumentor(ours)
    instrumentor.instrument()
    instrumentor.instrument()
    assert len(root_dispatcher.event_handlers) == len(before[0]) + 1

    instrumentor.close()
    query_engine(ours).query("tell me about amber")

    assert (root_dispatcher.event_handlers, root_dispatcher.span_handlers) == before
    assert told(instrumentor, reranker) == []


def test_an_instrumentor_for_nobody_is_refused():
    with pytest.raises(InvalidInputError, match="needs the postprocessor or reranker"):
        NeuralCacheInstrumentor()


KINDS = ["query", "streamed query", "chat", "streamed chat", "workflow", "fails"]


@settings(max_examples=12)
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(KINDS)), min_size=2, max_size=8),
       st.integers(0, 2**31))
def test_however_runs_interleave_every_ranking_hears_of_its_own_answer(runs, seed):
    random.seed(seed)
    with Reranker(HashingEncoder(), store="memory://", store_settings=StoreSettings(store_text=True)) as reranker:
        ours = NeuralCachePostprocessor.from_reranker(reranker, top_n=None)

        async def one(name: str, kind: str) -> None:
            question = f"tell me about {name}"
            await asyncio.sleep(0.003 * random.random())
            if kind == "query":
                await query_engine(ours, Repeats(pause=0.003)).aquery(question)
            elif kind == "fails":
                with pytest.raises(RuntimeError):
                    await query_engine(ours, Repeats(fails=True)).aquery(question)
            elif kind == "streamed query":
                response = await query_engine(ours, streaming=True, use_async=True).aquery(question)
                async for _ in response.response_gen:
                    await asyncio.sleep(0.001 * random.random())
            elif kind == "chat":
                await chat_engine(ContextChatEngine, ours).achat(question)
            elif kind == "streamed chat":
                stream = await chat_engine(ContextChatEngine, ours).astream_chat(question)
                async for _ in stream.async_response_gen():
                    await asyncio.sleep(0.001 * random.random())
            else:
                await Asks(ours, Repeats(pause=0.002)).run(question=question)

        async def together() -> None:
            await asyncio.gather(*(one(*run) for run in runs))

        with NeuralCacheInstrumentor(ours) as instrumentor:
            asyncio.run(together())
            assert told(instrumentor, reranker) == own(*(name for name, kind in runs if kind != "fails"))
