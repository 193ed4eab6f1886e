"""LangChain's cache of model calls and ``cached`` chains, on the real framework, sync and async."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import count
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel, FakeListLLM
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.outputs import ChatGeneration, Generation
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableConfig, RunnableLambda, RunnableParallel, RunnablePassthrough
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from langchain_tests.integration_tests import AsyncCacheTestSuite, SyncCacheTestSuite

from neuralcache_plugins import CacheSettings, SemanticCache
from neuralcache_plugins.contracts import AnswerJudged
from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.langchain import NeuralCacheLLMCache, cached, document_versions
from neuralcache_plugins.langchain.prompts import split_prompt
from neuralcache_plugins.semantic_cache import Judge
from neuralcache_plugins.stores.memory import MemoryStore
from neuralcache_plugins.testing import FailingStore, HashingEncoder


@pytest.fixture
def answers() -> Iterator[SemanticCache]:
    with SemanticCache(HashingEncoder(), store="memory://") as cache:
        yield cache


class TestSyncLLMCache(SyncCacheTestSuite):
    @pytest.fixture
    def cache(self, answers: SemanticCache) -> NeuralCacheLLMCache:
        return NeuralCacheLLMCache(answers)


class TestAsyncLLMCache(AsyncCacheTestSuite):
    @pytest.fixture
    async def cache(self, answers: SemanticCache) -> NeuralCacheLLMCache:
        return NeuralCacheLLMCache(answers)


# model calls


def chat(answers: SemanticCache, *responses: str, **options: Any) -> FakeListChatModel:
    return FakeListChatModel(responses=list(responses or ("one", "two", "three")), cache=NeuralCacheLLMCache(answers),
                             **options)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_a_chat_model_is_asked_once(answers: SemanticCache, asynchronous: bool) -> None:
    model = chat(answers)

    async def ask(messages: Any) -> Any:
        return (await model.ainvoke(messages) if asynchronous else model.invoke(messages)).content

    conversation = [SystemMessage("Be brief."), HumanMessage("hi"), AIMessage("hello"), HumanMessage("how are you?")]
    first = await ask(conversation)
    assert await ask(conversation) == first
    assert await ask([SystemMessage("Be long."), *conversation[1:]]) != first
    assert await ask([*conversation[:-1], HumanMessage("where are you?")]) != first
    assert answers.stats().exact_hits == 1


def test_a_plain_model_is_asked_once(answers: SemanticCache) -> None:
    model = FakeListLLM(responses=["one", "two"], cache=NeuralCacheLLMCache(answers))

    assert [model.invoke("how?"), model.invoke("how?"), model.invoke("why?")] == ["one", "one", "two"]


def test_other_parameters_are_another_scope(answers: SemanticCache) -> None:
    one, other = chat(answers, "one"), chat(answers, "two")

    assert (one.invoke("how?").content, other.invoke("how?").content) == ("one", "two")


def test_only_the_last_human_turn_is_the_question(answers: SemanticCache) -> None:
    """Not the JSON around it: that would make every two prompts alike."""
    model = chat(answers)
    model.invoke([SystemMessage("Be brief."), HumanMessage([{"type": "text", "text": "how do I reset it"}])])
    (event,) = answers._store.read_answer_events()
    (answer,) = answers._store.get_answers("default", [event.event.entry_id]).values()

    assert answer.question == "how do I reset it"


def test_a_prompt_with_its_context_inside_the_turn() -> None:
    """``question=`` finds the question; the context around it has to be equal."""
    def find(text: str) -> str:
        return text.rpartition("Question: ")[2]

    def rest(context: str, question: str) -> tuple[str, str]:
        return split_prompt(f"Context: {context}\nQuestion: {question}", find)

    assert rest("cards", "how?")[0] == "how?"
    assert rest("cards", "how?")[1] == rest("cards", "why?")[1] != rest("fees", "how?")[1]
    assert split_prompt("how?", lambda _: "made up") == ("made up", "how?")


@pytest.mark.parametrize("prompt", ["[", "[1]", "[]", '[{"lc": 1}]', '[{"lc": 1, "id": [], "kwargs": {}}]', "x", ""])
def test_any_text_is_a_prompt(prompt: str) -> None:
    assert split_prompt(prompt, None)[0] == prompt


def test_pictures_have_to_be_equal(answers: SemanticCache) -> None:
    model = chat(answers)

    def ask(url: str) -> Any:
        picture = {"type": "image_url", "image_url": {"url": url}}
        return model.invoke([HumanMessage([{"type": "text", "text": "what is it?"}, picture])]).content

    assert [ask("http://a"), ask("http://b"), ask("http://a")] == ["one", "two", "one"]


def test_all_generations_come_back_whole(answers: SemanticCache) -> None:
    cache = NeuralCacheLLMCache(answers)
    message = AIMessage("x", tool_calls=[{"name": "f", "args": {"a": 1}, "id": "c"}],
                        additional_kwargs={"lc": {"k": 1}},
                        usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3})
    generations = [ChatGeneration(message=message), ChatGeneration(message=AIMessage("y"))]
    cache.update("how?", "model", generations)

    assert cache.lookup("how?", "model") == generations


def test_what_is_not_plain_data_is_not_kept(answers: SemanticCache) -> None:
    """An object that LangChain cannot bring back as it was is not cached at all."""
    cache = NeuralCacheLLMCache(answers)
    cache.update("how?", "model", [Generation(text="x", generation_info={"object": object()})])

    assert cache.lookup("how?", "model") is None


def test_nothing_else_can_be_loaded(answers: SemanticCache) -> None:
    """A manipulated entry that names another class is a miss, and makes no such object."""
    cache = NeuralCacheLLMCache(answers)
    name = '["langchain", "prompts", "prompt", "PromptTemplate"]'
    evil = f'[{{"lc": 1, "type": "constructor", "id": {name}, "kwargs": {{}}}}]'
    answers.put("how?", evil, scope=cache._place("how?", "model")[1])

    assert cache.lookup("how?", "model") is None


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_a_store_in_trouble_does_not_fail_the_model(asynchronous: bool) -> None:
    store = FailingStore(MemoryStore())
    with closing(SemanticCache(HashingEncoder(), store=store)) as answers:
        model = chat(answers)
        store.fail()
        found = await model.ainvoke("how?") if asynchronous else model.invoke("how?")
        store.recover()
    assert found.content == "one"


# chains


class Chain:
    """A RAG chain that counts its calls: a retriever's documents and an answer."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input: Any) -> dict[str, Any]:
        self.calls += 1
        return {"answer": f"answer {self.calls}", "context": [Document(id="a", page_content="text of a")]}


def test_a_chain_is_asked_once_and_bound_to_its_documents(answers: SemanticCache) -> None:
    chain = Chain()
    runnable = cached(RunnableLambda(chain), answers, scope="help")

    first = runnable.invoke({"question": "how?", "language": "en"})
    assert runnable.invoke({"question": "how?", "language": "en"}) == first
    assert isinstance(first["context"][0], Document)
    assert runnable.invoke({"question": "how?", "language": "de"})["answer"] == "answer 2"
    assert answers.invalidate(documents=document_versions([Document(id="a", page_content="changed")])) == 2
    assert runnable.invoke({"question": "how?", "language": "en"})["answer"] == "answer 3"


async def test_a_chain_is_asked_once_by_coroutines(answers: SemanticCache) -> None:
    async def slowly(question: str) -> str:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.02)
        return f"answer {calls}"

    calls = 0
    runnable = cached(RunnableLambda(slowly), answers, scope="help")
    assert await asyncio.gather(*(runnable.ainvoke("how?") for _ in range(20))) == ["answer 1"] * 20
    assert await runnable.abatch(["how?", "why?"]) == ["answer 1", "answer 2"]


def test_a_batch_is_asked_once(answers: SemanticCache) -> None:
    chain = Chain()
    runnable = cached(RunnableLambda(chain), answers, scope="help")
    found = runnable.batch([{"question": "how?"}] * 10, config={"max_concurrency": 5})

    assert {each["answer"] for each in found} == {"answer 1"}
    assert chain.calls == 1


def model_chain(answers: SemanticCache, **options: Any) -> Any:
    prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{question}")])
    return cached(prompt | FakeListChatModel(responses=["first answer", "second"]), answers, scope="help", **options)


def test_a_stream_is_replayed(answers: SemanticCache) -> None:
    """Chunk by chunk as it came; ``invoke`` has the whole of it."""
    chain = model_chain(answers)
    first = list(chain.stream({"question": "how?"}))
    again = list(chain.stream({"question": "how?"}))

    assert [chunk.content for chunk in again] == [chunk.content for chunk in first]
    assert len(again) > 5
    assert all(isinstance(chunk, AIMessageChunk) for chunk in again)
    whole = chain.invoke({"question": "how?"})
    assert (whole.content, type(whole)) == ("first answer", AIMessage)
    assert answers.stats().exact_hits == 2


async def test_a_stream_is_replayed_to_coroutines(answers: SemanticCache) -> None:
    chain = model_chain(answers)
    first = [chunk.content async for chunk in chain.astream({"question": "how?"})]

    assert [chunk.content async for chunk in chain.astream({"question": "how?"})] == first
    assert "".join(first) == "first answer"
    assert (await chain.ainvoke({"question": "how?"})).content == "first answer"


def test_a_stream_of_mappings_is_replayed(answers: SemanticCache) -> None:
    parallel = RunnableParallel(answer=RunnableLambda(lambda _: "so"), question=RunnablePassthrough())
    runnable = cached(parallel, answers, scope="help")
    first = list(runnable.stream("how?"))

    assert list(runnable.stream("how?")) == first
    assert runnable.invoke("how?") == {"answer": "so", "question": "how?"}


def test_an_invoked_answer_is_streamed_as_one(answers: SemanticCache) -> None:
    chain = model_chain(answers)
    chain.invoke({"question": "how?"})

    assert [chunk.content for chunk in chain.stream({"question": "how?"})] == ["first answer"]


def test_a_stream_that_breaks_off_is_not_kept(answers: SemanticCache) -> None:
    chain = model_chain(answers)
    next(iter(chain.stream({"question": "how?"})))

    assert chain.invoke({"question": "how?"}).content == "second"


def test_a_stream_of_a_document_that_changed_meanwhile_is_not_kept(answers: SemanticCache) -> None:
    runnable = cached(RunnableLambda(chain := Chain()), answers, scope="help")
    stream = runnable.stream({"question": "how?"})
    next(stream)
    answers.invalidate(documents=["a"])
    list(stream)

    runnable.invoke({"question": "how?"})
    assert chain.calls == 2


def test_messages_are_split_at_the_last_human_turn(answers: SemanticCache) -> None:
    calls = []
    runnable = cached(RunnableLambda(lambda messages: str(len(calls.append(messages) or calls))), answers, scope="s")
    history = [SystemMessage("Be brief."), HumanMessage("hi", id="1"), AIMessage("hello", id="2")]

    assert runnable.invoke([*history, HumanMessage("how?", id="3")]) == "1"
    assert runnable.invoke([*history, HumanMessage("how?", id="4")]) == "1"
    assert runnable.invoke([*history[1:], HumanMessage("how?")]) == "2"


def test_what_is_configured_has_to_be_equal(answers: SemanticCache) -> None:
    def answer(_: str, config: RunnableConfig) -> str:
        return str(config["configurable"].get("user"))

    runnable = cached(RunnableLambda(answer), answers, scope="help")
    for user in ("one", "two", "one"):
        assert runnable.invoke("how?", config={"configurable": {"user": user}}) == user
    assert answers.stats().exact_hits == 1


def test_question_scope_and_documents_by_function(answers: SemanticCache) -> None:
    """Then they alone say what has to be equal."""
    chain = Chain()
    runnable = cached(
        RunnableLambda(chain), answers, question=lambda input: input["text"], scope=lambda input: input["tenant"],
        documents=lambda input: input["documents"])

    def ask(**changes: Any) -> str:
        asked = {"text": "how?", "tenant": "x", "documents": [("b", "1")], "noise": object(), **changes}
        return str(runnable.invoke(asked)["answer"])

    assert [ask(), ask(), ask(tenant="y")] == ["answer 1", "answer 1", "answer 2"]
    assert ask(documents=[("b", "2")]) == "answer 3"


@pytest.mark.parametrize("input", [{"text": "how?"}, 3, [AIMessage("x")], {"question": ["how?"]}], ids=repr)
def test_an_input_without_a_question_is_an_error(answers: SemanticCache, input: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^cannot tell the question in .*: name its key, or a function"):
        cached(RunnableLambda(Chain()), answers, scope="help").invoke(input)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_what_cannot_be_cached_is_passed_on(answers: SemanticCache, asynchronous: bool) -> None:
    output = object()
    runnable = cached(RunnableLambda(lambda _: output), answers, scope="help")

    assert (await runnable.ainvoke("how?") if asynchronous else runnable.invoke("how?")) is output
    assert list(runnable.stream("how?")) == [output]
    assert answers.stats().stored == 0


def test_an_error_of_the_chain_is_the_callers(answers: SemanticCache) -> None:
    def fail(_: str) -> str:
        raise KeyError("x")

    runnable = cached(RunnableLambda(fail), answers, scope="help")
    for _ in range(2):
        with pytest.raises(KeyError):
            runnable.invoke("how?")
    with ThreadPoolExecutor(4) as pool:
        failed = [pool.submit(runnable.invoke, "how?") for _ in range(4)]
        assert {type(each.exception()) for each in failed} == {KeyError}


def test_the_chain_is_a_child_in_the_run_tree(answers: SemanticCache) -> None:
    chain, collector = model_chain(answers), RunCollectorCallbackHandler()
    for _ in range(2):
        chain.invoke({"question": "how?"}, config={"callbacks": [collector], "run_name": "ask"})
    asked, answered = collector.traced_runs

    assert (asked.name, len(asked.child_runs)) == ("ask", 1)
    assert (answered.name, answered.child_runs) == ("ask", [])


def test_works_inside_a_chain(answers: SemanticCache) -> None:
    chain = RunnableLambda(lambda text: {"question": text}) | model_chain(answers) | (lambda message: message.content)

    assert [chain.invoke("how?"), chain.invoke("how?")] == ["first answer"] * 2


@pytest.mark.parametrize("form", ["message", "mapping"])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_outputs_are_compared_by_what_they_say(answers: SemanticCache, form: str, asynchronous: bool) -> None:
    """Not by their ids, token counts and contexts, which are never equal."""
    numbers = count()

    def answer(question: str) -> Any:
        said = AIMessage("Open the app." if "reset" in question else "No.", id=f"run-{next(numbers)}")
        return said if form == "message" else {"input": question, "context": [Document(question)], "answer": said}

    chain = cached(RunnableLambda(answer), answers, scope="s")
    for question in ("how do I reset my card", "how do I reset my new card", "how do I cancel my new card"):
        await (chain.ainvoke(question) if asynchronous else _later(chain.invoke, question))
    answers.flush()
    labels = [entry.event for entry in answers._store.read_answer_events(kinds=[AnswerJudged])]

    assert [label.correct for label in labels if isinstance(label, AnswerJudged)] == [True, False]


def test_a_judge_of_ones_own_gets_outputs(answers: SemanticCache) -> None:
    seen: list[Any] = []
    chain = cached(RunnableLambda(lambda _: AIMessage("So.")), answers, scope="s",
                   judge=Judge(lambda *both: bool(seen.append(both)) or True, "mine", quick=True))
    chain.invoke("how do I reset my card")
    chain.invoke("how do I reset my new card")

    assert [[type(each) for each in both] for both in seen] == [[AIMessage, AIMessage]]


def test_messages_that_call_tools_are_compared_as_a_whole(answers: SemanticCache) -> None:
    def call(question: str) -> AIMessage:
        return AIMessage("", tool_calls=[{"name": "tool", "args": {"for": question}, "id": "1"}])

    chain = cached(RunnableLambda(call), answers, scope="s")
    chain.invoke("how do I reset my card")
    chain.invoke("how do I reset my new card")
    answers.flush()
    (label,) = (entry.event for entry in answers._store.read_answer_events(kinds=[AnswerJudged]))

    assert isinstance(label, AnswerJudged)
    assert not label.correct


async def _later(function: Any, *given: Any) -> Any:
    return function(*given)


def test_model_calls_are_compared_so_that_similar_ones_can_be_answered() -> None:
    """What the cache of model calls could not answer is compared with the fresh generations."""
    with SemanticCache(HashingEncoder(), store="memory://") as cache:
        calls = NeuralCacheLLMCache(cache)
        first, second = "how do I reset my password", "how can I reset my password"
        calls.update(first, "m", [Generation(text="Open the settings.", generation_info={"id": 1})])
        assert calls.lookup(second, "m") is None
        calls.update(second, "m", [Generation(text="open the settings", generation_info={"id": 2})])
        cache.flush()
        labels = [entry.event for entry in cache._store.read_answer_events(kinds=[AnswerJudged])]

    assert [(label.source, label.correct) for label in labels] == [("miss", True)]


# what is known before


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_an_output_that_is_known_is_put_where_the_chain_looks(answers: SemanticCache, asynchronous: bool) -> None:
    runnable = cached(RunnableLambda(chain := Chain()), answers, scope="help")
    asked = {"question": "how?", "lang": "en"}
    known = {"answer": "known", "context": [Document(id="a", page_content="text of a")]}
    german: RunnableConfig = {"configurable": {"lang": "de"}}
    if asynchronous:
        assert await runnable.aput(asked, known)
        assert await runnable.aput(asked, {"answer": "bekannt"}, german)
        assert (await runnable.ainvoke(asked), chain.calls) == (known, 0)
    else:
        assert runnable.put(asked, known)
        assert runnable.put(asked, {"answer": "bekannt"}, german)
        assert (runnable.invoke(asked), list(runnable.stream(asked)), chain.calls) == (known, [known], 0)

    assert (runnable.invoke(asked, german), chain.calls) == ({"answer": "bekannt"}, 0)
    assert runnable.invoke({**asked, "lang": "fr"})["answer"] == "answer 1"
    assert answers.invalidate(documents=document_versions([Document(id="a", page_content="changed")])) == 2
    assert runnable.invoke(asked)["answer"] == "answer 2"


def test_the_scope_of_an_input_is_the_one_that_the_chain_uses(answers: SemanticCache) -> None:
    runnable = cached(RunnableLambda(lambda asked, **options: Chain()(asked)), answers, scope="help")
    asked, config = {"question": "how?", "lang": "en"}, RunnableConfig(configurable={"k": 1})
    runnable.invoke(asked, config, stop=["x"])

    scope = runnable.scope_for(asked, config, stop=["x"])
    assert answers.lookup("how?", scope=scope) is not None
    assert "how?" in str(answers.explain("how?", scope))
    others = [runnable.scope_for(asked), runnable.scope_for({**asked, "lang": "de"}, config, stop=["x"])]
    assert all(answers.lookup("how?", scope=other) is None for other in others)
    assert answers.invalidate(scope=scope) == 1


THINGS = ["password", "card", "address", "limit", "account", "statement", "loan", "branch", "currency", "transfer"]


def asked_and_answered(size: int, start: int = 0) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [({"question": f"how do I change my {THINGS[at % 10]} {at}x", "lang": "en"},
             {"answer": f"about the {THINGS[at % 10]}", "took": at}) for at in range(start, start + size)]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
async def test_a_log_of_the_chain_certifies_it(asynchronous: bool) -> None:
    settings = CacheSettings(max_error=0.2, confidence=0.8, audit_rate=0.01)
    with SemanticCache(HashingEncoder(), store="memory://", settings=settings, seed=0) as answers:
        runnable, log = cached(RunnableLambda(chain := Chain()), answers, scope="help"), asked_and_answered(250)
        report = await runnable.acalibrate(log) if asynchronous else runnable.calibrate(log)

        assert (report.certified, report.stored, chain.calls) == (True, 250, 0)
        again = asked_and_answered(20, start=1_000)
        found = [runnable.invoke(input)["answer"] == output["answer"] for input, output in again]
        assert chain.calls < 15
        assert sum(found) > 5


def test_what_cannot_be_cached_is_refused_when_it_is_put(answers: SemanticCache) -> None:
    runnable = cached(RunnableLambda(Chain()), answers, scope="help")
    with pytest.raises(InvalidInputError, match=r"^this object cannot be cached: messages, documents, texts and JSON"):
        runnable.put("how?", object())
    with pytest.raises(InvalidInputError, match=r"^this object cannot be cached"):
        runnable.calibrate([("why?", "so"), ("how?", object())])
    assert answers.stats().logged.judged == {}
