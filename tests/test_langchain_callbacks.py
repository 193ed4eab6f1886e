"""The callback handler in chains, batches, streams, agents and graphs: each ranking hears of its own answer, and only
of that.

The fake model reads its prompt: it repeats the document whose name stands in the question, as a real one would.
"""

from __future__ import annotations

import asyncio
import random
import re
import threading
import time
from typing import Any, TypedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.callbacks import adispatch_custom_event
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda, RunnableParallel, RunnablePassthrough
from langchain_core.tools import create_retriever_tool, tool
from langgraph.graph import END, START, StateGraph

from neuralcache_plugins import InvalidInputError, Reranker, RerankSettings, StoreSettings, open_store
from neuralcache_plugins.attribution.runs import Forest
from neuralcache_plugins.contracts import FeedbackGiven
from neuralcache_plugins.langchain import NeuralCacheCallbackHandler, NeuralCacheCompressor, NeuralCacheRetriever
from neuralcache_plugins.langchain.callbacks import CallbackStats
from neuralcache_plugins.reranker import background
from neuralcache_plugins.testing import HashingEncoder

FACTS = {
    "amber": "Amber forms from the resin of ancient pines over forty million years",
    "basalt": "Basalt columns crack into hexagons while lava cools slowly",
    "coral": "Coral reefs bleach whenever the surrounding seawater stays too warm",
    "delta": "River deltas grow from sediment that slows down near the sea",
    "ember": "Glowing embers keep heat longer than flames because they lack airflow",
    "fjord": "Fjords were carved by glaciers and later flooded by the ocean",
    "geyser": "Geysers erupt when trapped groundwater boils beneath narrow vents",
    "heath": "Heathland stays open because sheep graze the young birch trees",
    "islet": "Small islets vanish as storms move their sand from year to year",
    "jasper": "Jasper owes its red colour to tiny grains of iron oxide",
}
NAMES = list(FACTS)


def passages() -> list[Document]:
    return [Document(page_content=text, id=name) for name, text in FACTS.items()]


class Shelf(BaseRetriever):
    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return passages()

    async def _aget_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        await asyncio.sleep(random.random() * 0.003)
        return passages()


class Repeats(BaseChatModel):
    """Says the fact that the last "tell me about" of its prompt asks for, if it is in the prompt."""

    pause: float = 0.0
    fails: bool = False
    stuck: Any = None
    """An ``asyncio.Event`` to set on being asked, and then never to answer."""

    @property
    def _llm_type(self) -> str:
        return "repeats"

    def _say(self, messages: list[BaseMessage]) -> str:
        if self.fails:
            raise RuntimeError("the model is down")
        prompt = "\n".join(str(message.content) for message in messages)
        asked = re.findall(r"tell me about (\w+)", prompt)
        if not asked or FACTS.get(asked[-1], "?") not in prompt:
            return "I'm sorry, I don't know."
        return f"{FACTS[asked[-1]]}."

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        time.sleep(self.pause * random.random())
        return ChatResult(generations=[ChatGeneration(message=AIMessage(self._say(messages)))])

    async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
        if self.stuck is not None:
            self.stuck.set()
            await asyncio.Event().wait()
        await asyncio.sleep(self.pause * random.random())
        return ChatResult(generations=[ChatGeneration(message=AIMessage(self._say(messages)))])

    def _stream(self, messages, stop=None, run_manager=None, **kwargs):
        for word in re.findall(r"\S+\s*", self._say(messages)):
            yield ChatGenerationChunk(message=AIMessageChunk(word))

    async def _astream(self, messages, stop=None, run_manager=None, **kwargs):
        for word in re.findall(r"\S+\s*", self._say(messages)):
            await asyncio.sleep(0)
            yield ChatGenerationChunk(message=AIMessageChunk(word))


@pytest.fixture
def reranker():
    with Reranker(HashingEncoder(), store="memory://", store_settings=StoreSettings(store_text=True)) as made:
        yield made


@pytest.fixture
def compressor(reranker):
    return NeuralCacheCompressor.from_reranker(reranker, top_n=None)


@pytest.fixture
def handler(compressor):
    made = NeuralCacheCallbackHandler(compressor)
    yield made
    made.close()
    assert made.stats().failed == 0


PROMPT = ChatPromptTemplate.from_messages([("system", "Use this:\n{context}"), ("human", "tell me about {question}")])


def listed(documents: list[Document]) -> str:
    return "\n".join(document.page_content for document in documents)


def found_by(place: str, compressor: NeuralCacheCompressor) -> Any:
    """Return something that takes the question and returns documents, with the compressor at another place in it."""
    if place == "ContextualCompressionRetriever":
        return ContextualCompressionRetriever(base_compressor=compressor, base_retriever=Shelf())
    if place == "NeuralCacheRetriever":
        return NeuralCacheRetriever(base_retriever=Shelf(), compressor=compressor)
    if place == "as_runnable":
        return RunnableParallel(documents=Shelf(), query=RunnablePassthrough()) | compressor.as_runnable()

    def by_rank(question):
        return [passages()[place] for place in compressor.rank(passages(), question).positions]

    async def aby_rank(question):
        return [passages()[place] for place in (await compressor.arank(passages(), question)).positions]

    if place == "by rank()":
        return RunnableLambda(by_rank, afunc=aby_rank)

    def by_hand(question):
        return compressor.compress_documents(passages(), question)

    async def aby_hand(question):
        return await compressor.acompress_documents(passages(), question)

    return RunnableLambda(by_hand, afunc=aby_hand)


def rag(compressor, *, model=None, place="ContextualCompressionRetriever"):
    retrieve = found_by(place, compressor) | RunnableLambda(listed)
    return {"context": retrieve, "question": RunnablePassthrough()} | PROMPT | (model or Repeats()) | StrOutputParser()


def told(handler, reranker) -> list[tuple[str, tuple[str, ...], str]]:
    """Return (question, documents rewarded, source) of every feedback, in order of the questions."""
    assert handler.flush(10)
    events = [recorded.event for recorded in reranker.store.read(limit=10_000)]
    return sorted(
        (event.ranking.query_text, tuple(name for name, _ in event.rewards), event.source)
        for event in events if isinstance(event, FeedbackGiven)
    )


def own(*names: str) -> list[tuple[str, tuple[str, ...], str]]:
    return sorted((name, (name,), "context_use") for name in names)


PLACES = ["ContextualCompressionRetriever", "NeuralCacheRetriever", "as_runnable", "by hand", "by rank()"]


@pytest.mark.parametrize("place", PLACES)
async def test_the_ranking_hears_which_document_the_answer_used(call, place, compressor, handler, reranker):
    answer = await call(rag(compressor, place=place), "invoke", "coral", config={"callbacks": [handler]})

    assert answer == f"{FACTS['coral']}."
    assert told(handler, reranker) == own("coral")


async def test_bound_once_it_hears_every_call(call, compressor, handler, reranker):
    chain = rag(compressor).with_config(callbacks=[handler])

    for name in ("amber", "delta"):
        await call(chain, "invoke", name)

    assert told(handler, reranker) == own("amber", "delta")


@pytest.mark.parametrize("place", PLACES)
async def test_twenty_parallel_chains_of_a_batch_each_get_their_own(call, place, compressor, handler, reranker):
    chain = rag(compressor, model=Repeats(pause=0.01), place=place)

    await call(chain, "batch", NAMES * 2, config={"callbacks": [handler], "max_concurrency": 8})

    assert told(handler, reranker) == own(*NAMES, *NAMES)


async def test_a_mapped_chain_keeps_its_inputs_apart(call, compressor, handler, reranker):
    """``map()`` runs all inputs under one root, whose output is a list."""
    await call(rag(compressor).map(), "invoke", NAMES[:5], config={"callbacks": [handler]})

    assert told(handler, reranker) == own(*NAMES[:5])


async def test_a_stream_counts_when_it_was_read_to_its_end(compressor, handler, reranker):
    chain, config = rag(compressor), {"callbacks": [handler]}

    assert len(list(chain.stream("fjord", config=config))) > 5
    assert [part async for part in chain.astream("geyser", config=config)]

    assert told(handler, reranker) == own("fjord", "geyser")


async def test_a_stream_that_is_given_up_teaches_nothing(compressor, handler, reranker):
    chain, config = rag(compressor), {"callbacks": [handler]}

    stream = chain.stream("fjord", config=config)
    for _ in range(len(FACTS["fjord"].split()) - 1):  # enough to tell which document it is from
        next(stream)
    stream.close()
    astream = chain.astream("geyser", config=config)
    for _ in range(len(FACTS["geyser"].split()) - 1):
        await anext(astream)
    await astream.aclose()

    assert told(handler, reranker) == []


async def test_a_failing_model_teaches_nothing_and_its_fallback_does(call, compressor, handler, reranker):
    broken = rag(compressor, model=Repeats(fails=True))
    with pytest.raises(RuntimeError, match="the model is down"):
        await call(broken, "invoke", "amber", config={"callbacks": [handler]})
    assert told(handler, reranker) == []

    spared = rag(compressor, model=Repeats(fails=True).with_fallbacks([Repeats()]))
    await call(spared, "invoke", "basalt", config={"callbacks": [handler]})
    assert told(handler, reranker) == own("basalt")


async def test_a_cancelled_run_teaches_nothing(compressor, handler, reranker):
    asked = asyncio.Event()
    slow = rag(compressor, model=Repeats(stuck=asked))
    task = asyncio.create_task(slow.ainvoke("amber", config={"callbacks": [handler]}))
    await asyncio.wait_for(asked.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    await rag(compressor).ainvoke("basalt", config={"callbacks": [handler]})

    assert told(handler, reranker) == own("basalt")


async def test_an_answer_without_an_answer_gives_no_feedback(call, compressor, handler, reranker):
    await call(rag(compressor), "invoke", "granite", config={"callbacks": [handler]})

    assert told(handler, reranker) == []
    assert handler.stats().answers == 1


async def test_a_retrieval_that_no_model_follows_is_no_answer(call, compressor, handler, reranker):
    """A chain that only formats what was found would seem to use all of it."""
    await call(found_by(PLACES[0], compressor), "invoke", "amber", config={"callbacks": [handler]})
    await call(found_by(PLACES[0], compressor) | listed, "invoke", "amber", config={"callbacks": [handler]})

    assert told(handler, reranker) == []
    assert handler.stats().answers == 0


async def test_a_retrieval_after_the_answer_is_no_part_of_it(call, compressor, handler, reranker):
    """The answer of the first retrieval would fit the second as well."""
    inner, again = rag(compressor), found_by(PLACES[0], compressor)

    async def aoutside(question):
        answer = await inner.ainvoke(question)
        await again.ainvoke(f"again {question}")
        return answer

    def outside(question):
        answer = inner.invoke(question)
        again.invoke(f"again {question}")
        return answer

    await call(RunnableLambda(outside, afunc=aoutside), "invoke", "delta", config={"callbacks": [handler]})

    assert told(handler, reranker) == own("delta")


async def test_an_answer_within_a_run_that_fails_teaches_nothing(call, compressor, handler, reranker):
    def fail(answer):
        raise RuntimeError("too late")

    with pytest.raises(RuntimeError, match="too late"):
        await call(rag(compressor) | RunnableLambda(lambda answer: answer) | RunnableLambda(fail), "invoke", "amber",
                   config={"callbacks": [handler]})
    with pytest.raises(RuntimeError, match="too late"):
        within = RunnableLambda(rag(compressor).invoke, afunc=rag(compressor).ainvoke)
        await call(within | RunnableLambda(fail), "invoke", "basalt", config={"callbacks": [handler]})

    assert told(handler, reranker) == []


async def test_a_question_rewritten_by_a_model_before_the_retrieval_is_no_answer(call, compressor, handler, reranker):
    rewrite = RunnableLambda(lambda _: "rewrite this") | Repeats() | RunnableLambda(lambda _: "islet")

    await call(rewrite | found_by(PLACES[0], compressor), "invoke", "?", config={"callbacks": [handler]})
    assert told(handler, reranker) == []
    await call(rewrite | rag(compressor), "invoke", "?", config={"callbacks": [handler]})
    assert told(handler, reranker) == own("islet")


async def test_a_model_beside_the_retrieval_is_not_taken_for_the_answer(call, compressor, handler, reranker):
    """The branch "aside" asks a model after the ranking, in the same parallel step."""
    slow = RunnableLambda(lambda question: (time.sleep(0.02), question)[1])
    aside = slow | RunnableLambda(lambda _: f"{FACTS['jasper']}; tell me about jasper") | Repeats() | StrOutputParser()
    context = found_by(PLACES[0], compressor) | listed
    step = RunnableParallel(context=context, question=RunnablePassthrough(), aside=aside)

    await call(step | PROMPT | Repeats() | StrOutputParser(), "invoke", "heath", config={"callbacks": [handler]})

    assert told(handler, reranker) == own("heath")


OUTPUTS = {
    "answer and context": lambda said: {"context": passages(), "answer": said},
    "answer and sources": lambda said: {"answer": "As that says.", "sources": ["coral"]},
    "message": lambda said: AIMessage(said),
    "messages": lambda said: {"messages": [HumanMessage("?"), AIMessage(said)]},
    "a state without an answer": lambda said: {"done": True},
    "tool call": lambda said: AIMessage(
        "", tool_calls=[{"name": "Answer", "id": "1", "args": {"source_ids": ["coral"]}}]),
}


@pytest.mark.parametrize("shape", OUTPUTS)
async def test_the_answer_is_found_in_outputs_of_many_shapes(call, shape, compressor, handler, reranker):
    await call(rag(compressor) | RunnableLambda(OUTPUTS[shape]), "invoke", "coral", config={"callbacks": [handler]})

    ((question, documents, source),) = told(handler, reranker)
    assert (question, documents) == ("coral", ("coral",))
    assert source == ("citation" if shape in ("answer and sources", "tool call") else "context_use")


async def test_numbers_are_those_of_the_prompt(call, compressor, handler, reranker):
    """The chain numbers from 0 and backwards; the answer cites without a word of the documents."""
    numbered = RunnableLambda(lambda found: "\n".join(
        f"Source ID: {number}\nText: {document.page_content}" for number, document in enumerate(reversed(found))))
    cites = RunnableLambda(lambda prompt: re.search(r"Source ID: (\d+)\nText: Coral", prompt.to_string())[1])
    said = RunnableLambda(lambda both: f"As said there [{both['number']}].")
    model = RunnableParallel(said=Repeats(), number=cites) | said
    chain = {"context": found_by(PLACES[0], compressor) | numbered, "question": RunnablePassthrough()} | PROMPT | model

    await call(chain, "invoke", "coral", config={"callbacks": [handler]})

    assert told(handler, reranker) == [("coral", ("coral",), "citation")]


# agents


def agent(compressor, first: str, second: str, *, top_n: int | None = None):
    """Return a loop of model and tool: two retrievals, then an answer from both."""

    @tool
    def look_up(question: str) -> str:
        """Find documents."""
        return listed(found_by(PLACES[0], compressor.model_copy(update={"top_n": top_n})).invoke(question))

    def asks(name: str) -> AIMessage:
        return AIMessage("", tool_calls=[{"name": "look_up", "id": name, "args": {"question": name}}])

    class Plans(Repeats):
        def _generate(self, messages, stop=None, run_manager=None, **kwargs):
            done = sum(isinstance(message, ToolMessage) for message in messages)
            said = [asks(first), asks(second)][done] if done < 2 else AIMessage(f"{FACTS[first]}. {FACTS[second]}.")
            return ChatResult(generations=[ChatGeneration(message=said)])

        async def _agenerate(self, messages, stop=None, run_manager=None, **kwargs):
            await asyncio.sleep(0.002 * random.random())
            return self._generate(messages)

    def loop(question):
        messages = [HumanMessage(question)]
        while True:
            messages.append(Plans().invoke(messages))
            if not messages[-1].tool_calls:
                return messages[-1].content
            messages += [look_up.invoke(call) for call in messages[-1].tool_calls]

    async def aloop(question):
        messages = [HumanMessage(question)]
        while True:
            messages.append(await Plans().ainvoke(messages))
            if not messages[-1].tool_calls:
                return messages[-1].content
            messages += [await look_up.ainvoke(call) for call in messages[-1].tool_calls]

    return RunnableLambda(loop, afunc=aloop)


async def test_an_agents_answer_is_told_to_both_of_its_retrievals(call, compressor, handler, reranker):
    """Each ranking gets the documents that it showed and the answer used."""
    await call(agent(compressor, "amber", "delta", top_n=3), "invoke", "both", config={"callbacks": [handler]})

    questions = {question: documents for question, documents, _ in told(handler, reranker)}
    assert set(questions) == {"amber", "delta"}
    for question, documents in questions.items():
        assert question in documents
        assert set(documents) <= {"amber", "delta"}


class Half(Shelf):
    """Half of the facts: an agent needs two of these."""

    second: bool

    def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        return passages()[len(NAMES) // 2 :] if self.second else passages()[: len(NAMES) // 2]

    async def _aget_relevant_documents(self, query: str, *, run_manager: Any) -> list[Document]:
        await asyncio.sleep(random.random() * 0.003)
        return self._get_relevant_documents(query, run_manager=run_manager)


class CallsBoth(BaseChatModel):
    """Calls both of its retrievers at once, and answers from what each of them found."""

    @property
    def _llm_type(self) -> str:
        return "calls both"

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        return self

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        if any(isinstance(message, ToolMessage) for message in messages):
            said = AIMessage(f"{FACTS['amber']}. {FACTS['jasper']}.")
        else:
            said = AIMessage("", tool_calls=[{"name": name, "id": name, "args": {"query": name}}
                                             for name in ("minerals", "stones")])
        return ChatResult(generations=[ChatGeneration(message=said)])


async def test_langchains_agent_with_two_retrievers_tells_each_its_own(call, compressor, handler, reranker):
    """The framework's own agent: a graph, whose tools run in parallel."""
    tools = [
        create_retriever_tool(NeuralCacheRetriever(base_retriever=Half(second=second), compressor=compressor), name, "")
        for name, second in (("minerals", False), ("stones", True))
    ]
    asked = {"messages": [HumanMessage("tell me about both")]}

    await call(create_agent(CallsBoth(), tools), "invoke", asked, config={"callbacks": [handler]})

    assert told(handler, reranker) == [("minerals", ("amber",), "context_use"), ("stones", ("jasper",), "context_use")]


async def test_a_chain_that_an_agent_uses_as_a_tool_answers_for_itself(call, compressor, handler, reranker):
    inner = rag(compressor)

    def outer(question):
        return Repeats().invoke(f"{inner.invoke(question)} {FACTS['ember']} tell me about ember")

    async def aouter(question):
        return await Repeats().ainvoke(f"{await inner.ainvoke(question)} {FACTS['ember']} tell me about ember")

    await call(RunnableLambda(outer, afunc=aouter), "invoke", "basalt", config={"callbacks": [handler]})

    assert told(handler, reranker) == own("basalt")


class State(TypedDict):
    question: str
    documents: list[Document]
    generation: str


async def test_a_graph_is_one_run(call, compressor, handler, reranker):
    retriever = found_by(PLACES[0], compressor)
    graph = StateGraph(State)
    graph.add_node("retrieve", RunnableLambda(
        lambda state: {"documents": retriever.invoke(state["question"])},
        afunc=lambda state: _documents(retriever, state)))
    graph.add_node("generate", RunnableLambda(
        lambda state: {"generation": (PROMPT | Repeats() | StrOutputParser()).invoke(
            {"context": listed(state["documents"]), "question": state["question"]})}))
    graph.add_edge(START, "retrieve")
    graph.add_edge("retrieve", "generate")
    graph.add_edge("generate", END)

    await call(graph.compile(), "invoke", {"question": "jasper"}, config={"callbacks": [handler]})

    assert told(handler, reranker) == own("jasper")


async def _documents(retriever, state):
    return {"documents": await retriever.ainvoke(state["question"])}


# who is told, and how


async def test_each_core_hears_of_its_own_rankings_alone(call, compressor, handler, reranker):
    """A handler of one core does not mind the rankings of another; a handler of both tells both."""
    with Reranker(HashingEncoder(), store="memory://", store_settings=StoreSettings(store_text=True)) as other:
        theirs = NeuralCacheCompressor.from_reranker(other, top_n=None)
        await call(rag(theirs), "invoke", "amber", config={"callbacks": [handler]})
        assert told(handler, reranker) == told(handler, other) == []

        both = NeuralCacheCallbackHandler(other, NeuralCacheRetriever(base_retriever=Shelf(), compressor=compressor))
        for each, name in ((theirs, "basalt"), (compressor, "coral")):
            await call(rag(each), "invoke", name, config={"callbacks": [both]})
        assert (told(both, reranker), told(both, other)) == (own("coral"), own("basalt"))


async def test_feedback_stays_in_the_namespace_of_the_call(call, compressor, handler, reranker):
    config = {"callbacks": [handler], "metadata": {"namespace": "acme"}}

    await call(rag(compressor), "invoke", "amber", config=config)

    assert told(handler, reranker) == own("amber")
    assert (reranker.stats(namespace="acme").namespace.feedback, reranker.stats().namespace.feedback) == (1, 0)


async def test_two_handlers_count_an_answer_once(call, compressor, handler, reranker):
    second = NeuralCacheCallbackHandler(compressor)

    await call(rag(compressor), "invoke", "amber", config={"callbacks": [handler, second]})

    assert second.flush(10)
    assert told(handler, reranker) == own("amber")


def test_the_answer_does_not_wait_for_its_feedback(compressor, reranker):
    """The thread is held up; the chain returns all the same, and what finds no room is dropped and counted."""
    go = threading.Event()
    handler = NeuralCacheCallbackHandler(compressor, capacity=2, on_attribution=lambda _: go.wait(30))

    for name in ("amber", "basalt", "coral", "delta", "ember"):
        rag(compressor).invoke(name, config={"callbacks": [handler]})
        while name == "amber" and handler.stats().answers == 0:  # the first one is being looked at
            time.sleep(0.001)
    assert not handler.flush(0.01)
    go.set()

    assert told(handler, reranker) == own("amber", "basalt", "coral")
    assert handler.stats().dropped == 2


def test_closed_it_does_what_waits_and_takes_no_more(compressor, handler, reranker):
    rag(compressor).invoke("amber", config={"callbacks": [handler]})
    assert handler.close(10)
    rag(compressor).invoke("basalt", config={"callbacks": [handler]})

    assert told(handler, reranker) == own("amber")


@pytest.mark.parametrize("error", [ValueError, SystemExit])
def test_whatever_a_callback_raises_ends_neither_the_thread_nor_the_feedback(error, compressor, reranker, caplog):
    def fails(attribution):
        raise error("on purpose")

    handler = NeuralCacheCallbackHandler(compressor, on_attribution=fails)
    for name in ("amber", "basalt"):
        rag(compressor).invoke(name, {"callbacks": [handler]})
        assert handler.flush(10)
    assert told(handler, reranker) == own("amber", "basalt")
    assert handler.stats().failed == 2
    assert [record.getMessage() for record in caplog.records] == ["neuralcache-answers: a job failed"] * 2


def test_a_handler_made_for_one_call_leaves_no_thread_behind(compressor, reranker, monkeypatch):
    monkeypatch.setattr(background, "IDLE_SECONDS", 0.01)
    handler, threads = NeuralCacheCallbackHandler(compressor), set()
    for name in ("amber", "basalt"):  # the second begins another
        rag(compressor).invoke(name, {"callbacks": [handler]})
        threads |= {thread for thread in threading.enumerate() if thread.name == "neuralcache-answers"}
        assert handler.flush(10)
        for thread in threads:
            thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert told(handler, reranker) == own("amber", "basalt")


@pytest.mark.parametrize("closed_by_hand", [True, False])
def test_a_reranker_that_is_closed_first_loses_no_feedback(closed_by_hand):
    """Whatever the order in which handler and reranker end."""
    go, handler = threading.Event(), None
    store = open_store("memory://")
    with Reranker(HashingEncoder(), store=store, store_settings=StoreSettings(store_text=True)) as reranker:
        compressor = NeuralCacheCompressor.from_reranker(reranker, top_n=None)
        handler = NeuralCacheCallbackHandler(compressor, on_attribution=lambda _: go.wait(30))
        for name in ("amber", "basalt", "coral"):
            rag(compressor).invoke(name, config={"callbacks": [handler]})
        threading.Timer(0.05, go.set).start()
        if closed_by_hand:
            handler.close()
    assert handler.stats() == CallbackStats(answers=3, feedback=3, failed=0, dropped=0)
    assert sum(isinstance(one.event, FeedbackGiven) for one in store.read()) == 3


def test_a_judgement_waits_for_the_answer_that_is_being_looked_at(compressor, reranker):
    """Somebody thanks before the thread has come to the answer."""
    go = threading.Event()
    handler = NeuralCacheCallbackHandler(compressor, on_attribution=lambda _: go.wait(30))
    for name in ("amber", "jasper"):
        rag(compressor).invoke(name, config={"callbacks": [handler]})
    threading.Timer(0.05, go.set).start()
    reranker.feedback(query="jasper", value=1.0, source="thumbs")

    (event,) = [one.event for one in reranker.store.read()
                if isinstance(one.event, FeedbackGiven) and one.event.source == "thumbs"]
    assert max(event.rewards, key=lambda pair: pair[1])[0] == "jasper"
    handler.close()


def test_texts_that_memory_has_no_room_for_cost_the_feedback_not_the_answer():
    settings = RerankSettings(shown_characters=10)
    with Reranker(HashingEncoder(), store="memory://", settings=settings) as reranker:
        compressor = NeuralCacheCompressor.from_reranker(reranker, top_n=None)
        handler = NeuralCacheCallbackHandler(compressor)

        assert rag(compressor).invoke("amber", config={"callbacks": [handler]}) == f"{FACTS['amber']}."
        assert told(handler, reranker) == []
        assert handler.stats().failed == 0


def test_a_handler_for_nobody_is_refused():
    with pytest.raises(InvalidInputError, match="needs the compressor, retriever or reranker"):
        NeuralCacheCallbackHandler()


async def test_events_of_others_mean_nothing(compressor, handler, reranker):
    async def noisy(question):
        await adispatch_custom_event("progress", {"ranking_id": "x", "namespace": "y"})
        return question

    await (RunnableLambda(noisy) | rag(compressor)).ainvoke("amber", config={"callbacks": [handler]})

    assert told(handler, reranker) == own("amber")


@settings(max_examples=12)
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(["chain", "stream", "given up", "fails", "agent"])),
                min_size=2, max_size=10), st.integers(0, 2**31))
def test_however_runs_interleave_every_ranking_hears_of_its_own_answer(runs, seed):
    """Chains, streams and agents at once on one loop, one handler; some fail, some streams are left half-read."""
    random.seed(seed)
    with Reranker(HashingEncoder(), store="memory://", store_settings=StoreSettings(store_text=True)) as reranker:
        compressor = NeuralCacheCompressor.from_reranker(reranker, top_n=None)
        handler = NeuralCacheCallbackHandler(compressor)
        config = {"callbacks": [handler]}

        async def one(name: str, kind: str) -> None:
            await asyncio.sleep(0.005 * random.random())
            if kind == "agent":
                await agent(compressor, name, name).ainvoke(name, config=config)
            elif kind == "fails":
                with pytest.raises(RuntimeError):
                    await rag(compressor, model=Repeats(fails=True)).ainvoke(name, config=config)
            elif kind == "chain":
                await rag(compressor, model=Repeats(pause=0.004)).ainvoke(name, config=config)
            else:
                stream = rag(compressor).astream(name, config=config)
                async for _ in stream:
                    await asyncio.sleep(0.001 * random.random())
                    if kind == "given up":
                        break
                await stream.aclose()

        async def together() -> None:
            await asyncio.gather(*(one(*run) for run in runs))

        asyncio.run(together())
        times = {"chain": 1, "stream": 1, "agent": 2, "given up": 0, "fails": 0}  # an agent asks twice
        assert told(handler, reranker) == own(*(name for name, kind in runs for _ in range(times[kind])))
        handler.close()


# trees of runs, as plain calls


@given(st.lists(st.tuples(st.sampled_from(["run", "ranking", "model", "again", "end", "fail"]), st.integers(0, 60)),
                max_size=150))
@settings(max_examples=100)
def test_a_run_that_never_ends_remembers_a_bounded_number_of_its_parts(events):
    """Whatever happens in it, and however deep: runs, rankings, models, outputs."""
    forest, names = Forest(lambda output: output, most_runs=12), ["root"]
    forest.started("root", None)
    for number, (what, at) in enumerate(events):
        run, parent = f"run {number}", names[at % len(names)]
        if what in ("end", "fail"):
            if parent != "root":
                forest.ended(parent, f"said {number}") if what == "end" else forest.failed(parent)
            continue
        if what == "again":  # more of it in a run that has some already
            forest.ranked(parent, ("default", f"ranking {number}"))
            forest.asked(("chat", parent), parent, "prompt")
        elif what == "model":
            forest.asked(run, parent, "prompt")
        else:
            forest.started(run, parent)
            if what == "ranking":
                forest.ranked(run, ("default", f"ranking {number}"))
        names.append(run)
    tree = forest._trees["root"]
    parts = (tree.parents, tree.rankings, tree.models, tree.speaking, tree.around, tree.outputs, tree.ended, tree.known)
    assert max(map(len, parts)) <= 13
    assert set(tree.parents) == {run for run, root in forest._root_of.items() if root == "root"}


@pytest.mark.parametrize("more", ["rankings", "models"])
def test_one_part_with_very_many_rankings_or_models_is_bounded_too(more):
    forest = Forest(lambda output: output, most_runs=20)
    forest.started("root", None)
    for number in range(500):
        if more == "rankings" or number == 0:
            forest.ranked("root", ("default", f"ranking {number}"))
        if more == "models" or number == 499:
            forest.asked(("chat", "root"), "root", "prompt")
            forest.ended(("chat", "root"), f"said {number}")
    tree = forest._trees["root"]
    assert max(len(tree.rankings), len(tree.models), len(tree.known)) <= 21

    (answered,) = forest.ended("root", "the answer")()
    assert answered.answer == "the answer"
    assert answered.rankings[-1] == ("default", "ranking 499" if more == "rankings" else "ranking 0")


def test_of_a_long_run_the_newest_rankings_are_told():
    forest = Forest(lambda output: output, most_runs=50)
    forest.started("root", None)
    for turn in range(1_000):
        forest.started(f"turn {turn}", "root")
        forest.started(f"found {turn}", f"turn {turn}")
        forest.ranked(f"found {turn}", ("default", f"ranking {turn}"))
        forest.ended(f"found {turn}", None)
        forest.asked(f"model {turn}", f"turn {turn}", "prompt")
        forest.ended(f"model {turn}", f"answer {turn}")
        forest.ended(f"turn {turn}", f"answer {turn}")
    found = {one.answer: one.rankings for one in forest.ended("root", None)()}

    assert 5 <= len(found) <= 50
    assert found == {f"answer {turn}": (("default", f"ranking {turn}"),) for turn in range(1_000 - len(found), 1_000)}
    assert not forest._trees
    assert not forest._root_of
