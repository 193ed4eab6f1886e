"""The LangChain compressor inside what people build with it: retrievers, pipelines, chains, graphs, tracers."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import TypedDict
from uuid import UUID, uuid4

import numpy as np
import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import DocumentCompressorPipeline
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.documents import BaseDocumentTransformer, Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda, RunnableParallel, RunnablePassthrough
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from pydantic import Field

from neuralcache_plugins import InvalidInputError
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


class Listed(BaseRetriever):
    """Finds the same documents for every question."""

    texts: list[str] = TEXTS

    def _get_relevant_documents(self, query, *, run_manager):
        return [Document(page_content=text, id=f"d{i}") for i, text in enumerate(self.texts)]


@pytest.fixture
def compressor(spy):
    return NeuralCacheCompressor.from_reranker(spy)


@pytest.fixture
def retriever(compressor):
    return ContextualCompressionRetriever(base_compressor=compressor, base_retriever=Listed())


def expected(compressor, question=QUESTION):
    return [d.id for d in compressor.compress_documents(Listed().invoke(""), question)]


# ---- ContextualCompressionRetriever ----


async def test_a_contextual_compression_retriever_returns_reranked_documents(call, compressor, retriever):
    """``invoke`` and ``ainvoke`` give what the compressor gives."""
    found = await call(retriever, "invoke", QUESTION)

    assert [d.id for d in found] == expected(compressor)
    assert all(isinstance(d.metadata["relevance_score"], float) for d in found)


async def test_a_batch_gives_each_question_its_own_answer(call, compressor, retriever):
    """``batch`` runs one instance in four threads, ``abatch`` in as many tasks."""
    questions = [QUESTION, "debit card", "exchange rates", "opening hours"] * 5

    answers = await call(retriever, "batch", questions)

    assert [[d.id for d in a] for a in answers] == [expected(compressor, q) for q in questions]


async def test_an_empty_retrieval_stays_empty(call, compressor):
    """Nothing found, nothing ranked."""
    retriever = ContextualCompressionRetriever(base_compressor=compressor, base_retriever=Listed(texts=[]))

    assert await call(retriever, "invoke", QUESTION) == []


async def test_metadata_of_the_run_reaches_the_compressor(call, spy, retriever):
    """The retriever's arguments never do (they go to the base retriever), so options travel in the metadata."""
    config = {"metadata": {"session_id": "s1", "namespace": "acme", "top_n": 1, "user_id": "u"}}

    found = await call(retriever, "invoke", QUESTION, config=config)

    assert len(found) == 1
    assert (spy.asked[-1]["session"], spy.asked[-1]["namespace"]) == ("s1", "acme")


async def test_learning_shows_in_the_retriever(call, compressor, retriever):
    """Feedback by question, and the retriever's next answer starts with the helpful document."""
    last = [d.id for d in compressor.model_copy(update={"top_n": None}).compress_documents(
        Listed().invoke(""), QUESTION)][-1]
    wide = compressor.model_copy(update={"top_n": None})
    for _ in range(12):
        wide.compress_documents(Listed().invoke(""), QUESTION)
        await call(compressor, "feedback", query=QUESTION, helpful=[last])

    assert (await call(retriever, "invoke", QUESTION))[0].id == last


# ---- DocumentCompressorPipeline ----


class StatefulDocument(Document):
    state: dict = Field(default_factory=dict)


class EmbeddingFilter(BaseDocumentTransformer):
    """As LangChain's ``EmbeddingsRedundantFilter``: drops ids, leaves the vectors in ``state``, drops twins."""

    def transform_documents(self, documents, **kwargs):
        kept = {}
        for document in documents:
            known = getattr(document, "state", {})
            vector = known.get("embedded_doc", HashingEncoder().embed_query(document.page_content))
            kept.setdefault(document.page_content, StatefulDocument(
                page_content=document.page_content, metadata=dict(document.metadata), state={"embedded_doc": vector}))
        return list(kept.values())

    async def atransform_documents(self, documents, **kwargs):
        return self.transform_documents(documents)


@pytest.mark.parametrize(
    "positions", [["ours"], ["ours", "filter"], ["filter", "ours"], ["filter", "ours", "filter"],
                  ["ours", "filter", "ours"]],
    ids="-".join)
async def test_a_pipeline_takes_the_compressor_at_any_position(call, compressor, positions):
    """Filters before and behind it drop ids; texts, scores and order survive."""
    steps = {"ours": compressor, "filter": EmbeddingFilter()}
    pipeline = DocumentCompressorPipeline(transformers=[steps[name] for name in positions])
    retriever = ContextualCompressionRetriever(
        base_compressor=pipeline, base_retriever=Listed(texts=[*TEXTS, TEXTS[2]]))

    found = await call(retriever, "invoke", QUESTION)

    assert 0 < len(found) <= 3
    assert {d.page_content for d in found} <= set(TEXTS)
    assert TEXTS[2] in {d.page_content for d in found}
    scores = [d.metadata["relevance_score"] for d in found]
    assert scores == sorted(scores, reverse=True)


async def test_documents_whose_ids_were_dropped_before_it_can_be_praised(call, compressor):
    """Their text is their identity, for the filter's objects, the copies and the caller's ones without id."""
    pipeline = DocumentCompressorPipeline(transformers=[EmbeddingFilter(), compressor])

    found = await call(pipeline, "compress_documents", [Document(page_content=text) for text in TEXTS], QUESTION)

    assert all(type(d) is StatefulDocument and d.id for d in found)
    compressor.feedback(query=QUESTION, helpful=[found[0]], unhelpful=[Document(page_content=found[1].page_content)])


async def test_a_pipeline_passes_nothing_on_for_no_documents(call, compressor):
    """The pipeline does call compressors with an empty list."""
    pipeline = DocumentCompressorPipeline(transformers=[compressor, EmbeddingFilter(), compressor])

    assert await call(pipeline, "compress_documents", [], QUESTION) == []


async def test_vectors_of_a_filter_before_it_are_used_when_trusted(call, spy):
    """Nothing is embedded twice."""
    trusting = NeuralCacheCompressor.from_reranker(spy, use_document_vectors=True)
    pipeline = DocumentCompressorPipeline(transformers=[EmbeddingFilter(), trusting])

    await call(pipeline, "compress_documents", Listed().invoke(""), QUESTION)

    assert np.array_equal(spy.asked[-1]["vectors"], HashingEncoder().embed_documents(TEXTS))


# ---- LCEL ----


def answering(compressor):
    """Return a chain: retrieve, rerank, prompt, model, text."""
    prompt = ChatPromptTemplate.from_template("Use only: {documents}\n\nQuestion: {query}")
    reranked = RunnableParallel(documents=Listed(), query=RunnablePassthrough()) | compressor.as_runnable()
    return (
        {"documents": reranked, "query": RunnablePassthrough()} | prompt
        | FakeListChatModel(responses=["In the settings."]) | StrOutputParser()
    )


async def test_as_runnable_reranks_in_a_chain(call, compressor):
    """Question and documents in, reranked documents out, with ``|``."""
    chain = RunnableParallel(documents=Listed(), query=RunnablePassthrough()) | compressor.as_runnable()

    assert [d.id for d in await call(chain, "invoke", QUESTION)] == expected(compressor)
    assert [[d.id for d in a] for a in await call(chain, "batch", [QUESTION] * 3)] == [expected(compressor)] * 3


async def test_a_whole_rag_chain_answers(call, compressor, retriever):
    """With ``as_runnable`` and with a compressing retriever."""
    with_retriever = (
        {"documents": retriever, "query": RunnablePassthrough()}
        | ChatPromptTemplate.from_template("Use only: {documents}\n\nQuestion: {query}")
        | FakeListChatModel(responses=["In the settings."]) | StrOutputParser()
    )

    assert await call(answering(compressor), "invoke", QUESTION) == "In the settings."
    assert await call(with_retriever, "invoke", QUESTION) == "In the settings."


async def test_prompts_stay_the_same_from_call_to_call(call, compressor):
    """Raw documents in a prompt show their metadata: an id per request would defeat every cache of the model."""
    reranked = RunnableParallel(documents=Listed(), query=RunnablePassthrough()) | compressor.as_runnable()
    prompt = RunnableParallel(documents=reranked) | ChatPromptTemplate.from_template("{documents}")

    assert await call(prompt, "invoke", QUESTION) == await call(prompt, "invoke", QUESTION)


async def test_a_chains_configuration_reaches_the_runnable(call, spy, compressor):
    """``configurable`` and metadata, through the whole chain."""
    chain = answering(compressor)

    await call(chain, "invoke", QUESTION, config={"configurable": {"session_id": "c"}})
    await call(chain, "invoke", QUESTION, config={"metadata": {"session_id": "m", "top_n": 2}})

    assert [(asked["session"], asked["top_n"]) for asked in spy.asked] == [("c", 3), ("m", 2)]


async def test_a_runnable_says_what_it_expects(call, compressor):
    """A list, or a misspelt key, is a clear error."""
    runnable = compressor.as_runnable()

    expected = re.escape('expected {"query": str, "documents": [...]}, got ')
    with pytest.raises(InvalidInputError, match=rf"^{expected}\['docs'\]$"):
        await call(runnable, "invoke", {"docs": []})
    with pytest.raises(InvalidInputError, match=rf"^{expected}list$"):
        await call(runnable, "invoke", [])


# ---- LangGraph ----


class Turn(TypedDict, total=False):
    question: str
    documents: list[Document]
    answer: str


def rag_graph(*, retrieve, asynchronous, model):
    """Return a graph with two nodes and a checkpointer."""

    def find(state):
        return {"documents": retrieve(state["question"])}

    async def afind(state):
        return {"documents": await retrieve(state["question"])}

    def answer(state):
        context = "\n".join(d.page_content for d in state["documents"])
        return {"answer": model.invoke(f"{context}\n\n{state['question']}").content}

    graph = StateGraph(Turn)
    graph.add_node("find", afind if asynchronous else find)
    graph.add_node("answer", answer)
    graph.add_edge(START, "find")
    graph.add_edge("find", "answer")
    graph.add_edge("answer", END)
    return graph.compile(checkpointer=InMemorySaver())


@pytest.mark.parametrize("by", ["retriever", "bare compressor"])
async def test_a_graphs_thread_is_the_session(request, call, spy, compressor, retriever, by):
    """Without a word in the nodes; each thread has its own."""
    asynchronous = "async" in request.node.callspec.params.values()
    ask = {
        ("retriever", False): retriever.invoke,
        ("retriever", True): retriever.ainvoke,
        ("bare compressor", False): lambda q: compressor.compress_documents(Listed().invoke(""), q),
        ("bare compressor", True): lambda q: compressor.acompress_documents(Listed().invoke(""), q),
    }[by, asynchronous]
    graph = rag_graph(retrieve=ask, asynchronous=asynchronous, model=FakeListChatModel(responses=["one", "two"]))

    answers = [
        (await call(graph, "invoke", {"question": QUESTION}, config={"configurable": {"thread_id": thread}}))["answer"]
        for thread in ("alice", "bob")
    ]

    assert answers == ["one", "two"]
    assert [asked["session"] for asked in spy.asked] == ["alice", "bob"]


async def test_a_graphs_session_id_beats_its_thread(call, spy, retriever, request):
    """LangGraph copies the thread into the metadata; an explicit session still counts."""
    asynchronous = "async" in request.node.callspec.params.values()
    graph = rag_graph(retrieve=retriever.ainvoke if asynchronous else retriever.invoke, asynchronous=asynchronous,
                      model=FakeListChatModel(responses=["yes"]))

    await call(graph, "invoke", {"question": QUESTION},
               config={"configurable": {"thread_id": "t", "session_id": "s", "namespace": "acme"}})

    assert (spy.asked[0]["session"], spy.asked[0]["namespace"]) == ("s", "acme")


# ---- the run tree ----


def tree(run):
    return {run.name: [tree(child) for child in run.child_runs]}


async def test_the_reranking_is_a_run_of_its_own_beside_the_retrieval(call, retriever):
    """Question in, documents out; named after us, not after the retriever around it."""
    collector = RunCollectorCallbackHandler()

    found = await call(retriever, "invoke", QUESTION, config={"callbacks": [collector]})

    [root] = collector.traced_runs
    assert tree(root) == {"ContextualCompressionRetriever": [{"Listed": []}, {"neuralcache_rerank": []}]}
    ours = root.child_runs[1]
    assert ours.run_type == "retriever"
    assert ours.inputs == {"query": QUESTION}
    assert [d.id for d in ours.outputs["documents"]] == [d.id for d in found]
    assert ours.error is None
    assert ours.end_time is not None
    assert ours.extra["metadata"]["ls_retriever_name"] == "neuralcache"


async def test_the_reranking_hangs_in_a_chains_tree_too(call, compressor):
    """``as_runnable`` opens its own run, ours is inside it."""
    collector = RunCollectorCallbackHandler()
    chain = RunnableParallel(documents=Listed(), query=RunnablePassthrough()) | compressor.as_runnable()

    await call(chain, "invoke", QUESTION, config={"callbacks": [collector]})

    assert {"neuralcache_rerank": [{"neuralcache_rerank": []}]} in tree(collector.traced_runs[0])["RunnableSequence"]


def test_a_bare_call_inside_a_chain_is_seen_by_the_chains_tracer(compressor):
    """Without callbacks the ambient ones apply, as for LangChain's own components."""
    collector = RunCollectorCallbackHandler()
    step = RunnableLambda(lambda q: compressor.compress_documents(Listed().invoke(""), q)).with_config(run_name="step")

    step.invoke(QUESTION, config={"callbacks": [collector]})

    assert tree(collector.traced_runs[0]) == {"step": [{"Listed": []}, {"neuralcache_rerank": []}]}


async def test_a_list_of_handlers_makes_a_root_run(call, compressor):
    """A direct call with callbacks is traced by itself."""
    collector = RunCollectorCallbackHandler()

    await call(compressor, "compress_documents", Listed().invoke(""), QUESTION, callbacks=[collector])

    assert tree(collector.traced_runs[0]) == {"neuralcache_rerank": []}


async def test_the_ids_of_the_runs_are_recorded_with_the_ranking(call, spy, retriever):
    """Run, parent and root, so that the log can be joined with a tracer's."""
    collector = RunCollectorCallbackHandler()
    chosen = uuid4()

    await call(retriever, "invoke", QUESTION, config={"callbacks": [collector]}, run_id=chosen)
    await call(retriever, "invoke", QUESTION, run_id=chosen)

    ours = collector.traced_runs[0].child_runs[1]
    assert spy.asked[0]["trace"] == {"run_id": str(ours.id), "parent_run_id": str(chosen), "trace_id": str(chosen)}
    assert spy.asked[1]["trace"]["parent_run_id"] == str(chosen)
    assert "run_id" not in spy.asked[1]["trace"]


async def test_the_root_of_a_chain_is_the_trace(call, spy, retriever):
    """Deep in a chain the trace is the root's, the parent the retriever's."""
    collector = RunCollectorCallbackHandler()
    chain = RunnablePassthrough() | RunnableParallel(documents=retriever)

    await call(chain, "invoke", QUESTION, config={"callbacks": [collector]})

    trace = spy.asked[0]["trace"]
    assert trace["trace_id"] == str(collector.traced_runs[0].id)
    assert len({UUID(value) for value in trace.values()}) == 3


async def test_a_failure_is_reported_to_the_tracer_and_raised(call, retriever, spy, monkeypatch):
    """The run ends with the error."""
    collector = RunCollectorCallbackHandler()

    class Failure(RuntimeError):
        pass

    def fail(*args, **kwargs):
        raise Failure("on purpose")

    monkeypatch.setattr(Reranker, "rerank", fail)
    monkeypatch.setattr(Reranker, "arerank", fail)
    with pytest.raises(Failure):
        await call(retriever, "invoke", QUESTION, config={"callbacks": [collector]})

    ours = collector.traced_runs[0].child_runs[1]
    assert ours.name == "neuralcache_rerank"
    assert "on purpose" in ours.error


async def test_a_cancelled_reranking_ends_its_run():
    """Cancelling the task closes the run as an error."""
    collector = RunCollectorCallbackHandler()
    started = asyncio.Event()

    class Endless(HashingEncoder):
        async def aembed_query(self, text):
            started.set()
            await asyncio.sleep(60)

        async def aembed_documents(self, texts):
            started.set()
            await asyncio.sleep(60)

    with NeuralCacheCompressor(embeddings=Endless(), store="memory://") as compressor:
        task = asyncio.create_task(
            compressor.acompress_documents(Listed().invoke(""), QUESTION, callbacks=[collector]))
        await asyncio.wait_for(started.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    assert "CancelledError" in collector.traced_runs[0].error


class Events(BaseCallbackHandler):
    def __init__(self):
        self.seen = []

    def on_custom_event(self, name, data, *, run_id, **kwargs):
        self.seen.append((name, data, run_id))


class AsyncEvents(AsyncCallbackHandler):
    def __init__(self):
        self.seen = []

    async def on_custom_event(self, name, data, *, run_id, **kwargs):
        await asyncio.sleep(0)
        self.seen.append((name, data, run_id))


async def test_a_custom_event_tells_the_rankings_id(call, compressor, retriever):
    """Feedback can name the ranking although nothing was added to the documents' metadata."""
    handler = Events()

    found = await call(retriever, "invoke", QUESTION, config={"callbacks": [handler]})

    [(name, data, run_id)] = handler.seen
    assert name == "neuralcache_ranking"
    assert isinstance(run_id, UUID)
    assert json.loads(json.dumps(data)) == data
    assert compressor.feedback(data["ranking_id"], helpful=[found[0]])


async def test_asynchronous_handlers_are_awaited(retriever):
    """Also beside synchronous ones."""
    handlers = [AsyncEvents(), Events()]

    await retriever.ainvoke(QUESTION, config={"callbacks": handlers})

    assert handlers[0].seen == handlers[1].seen
    assert len(handlers[0].seen) == 1


async def test_the_synchronous_method_takes_an_asynchronous_callback_manager(compressor):
    """LangChain's default asynchronous path hands one to synchronous methods in other threads."""
    collector = RunCollectorCallbackHandler()

    class Old(BaseRetriever):
        def _get_relevant_documents(self, query, *, run_manager):
            return compressor.compress_documents(
                Listed().invoke(""), query, callbacks=run_manager.get_child())

        async def _aget_relevant_documents(self, query, *, run_manager):
            return await asyncio.to_thread(
                compressor.compress_documents, Listed().invoke(""), query, run_manager.get_child())

    assert len(await Old().ainvoke(QUESTION, config={"callbacks": [collector]})) == 3
    assert tree(collector.traced_runs[0]) == {"Old": [{"neuralcache_rerank": []}]}


async def test_streamed_events_show_start_end_and_the_ranking(retriever):
    """As ``astream_events`` reports them."""
    seen = [(e["event"], e["name"]) async for e in retriever.astream_events(QUESTION, version="v2")]

    assert ("on_retriever_start", "neuralcache_rerank") in seen
    assert ("on_custom_event", "neuralcache_ranking") in seen
    assert ("on_retriever_end", "neuralcache_rerank") in seen


async def test_without_listeners_no_run_is_opened(call, compressor, monkeypatch):
    """A bare call pays nothing for the run tree."""
    given = Listed().invoke("")

    def never(*args, **kwargs):
        raise AssertionError("opened a run for nobody")

    monkeypatch.setattr("neuralcache_plugins.langchain.run_tree.CallbackManager.configure", never)
    monkeypatch.setattr("neuralcache_plugins.langchain.run_tree.AsyncCallbackManager.configure", never)

    assert len(await call(compressor, "compress_documents", given, QUESTION)) == 3


def test_langchain_community_is_not_needed():
    """It is being sunset; nothing here may have imported it."""
    assert "langchain_community" not in sys.modules
