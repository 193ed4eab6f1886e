"""A callback handler that sees which shown documents an answer used, and tells the rankings so."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import LLMResult
from pydantic import BaseModel

from neuralcache_plugins.attribution.runs import Answered, Forest, Shown
from neuralcache_plugins.contracts import Attribution
from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.langchain.compressor import NeuralCacheCompressor
from neuralcache_plugins.langchain.retriever import NeuralCacheRetriever
from neuralcache_plugins.langchain.run_tree import EVENT_NAME
from neuralcache_plugins.reranker import Reranker
from neuralcache_plugins.reranker.background import Background

ANSWER_KEYS = ("answer", "final_answer", "output", "result", "response", "generation", "text", "content", "output_text")
"""Where the answer stands in a chain's output, the likeliest first; then ``messages``."""

Learner = NeuralCacheCompressor | NeuralCacheRetriever | Reranker
"""What gets the feedback."""


@dataclass(frozen=True, slots=True)
class CallbackStats:
    """What a handler did: answers looked at, feedback given, answers without use; jobs that failed or found no room."""

    answers: int
    feedback: int
    failed: int
    dropped: int


class NeuralCacheCallbackHandler(BaseCallbackHandler):
    """Ties every answer to the rankings that it was made from and gives them feedback, with nobody asked.

    ::

        handler = NeuralCacheCallbackHandler(compressor)
        chain.invoke(question, config={"callbacks": [handler]})      # or once: chain.with_config(callbacks=[handler])

    It follows the run tree: rankings anywhere in a run, by a retriever, a compressor or by hand in a
    ``RunnableLambda``, belong to the answer of the innermost chain around them in which a model is asked afterwards.
    Parallel runs, batches, streams and agents that retrieve several times each keep their own; runs that fail, are
    cancelled or whose stream is not read to its end teach nothing. A chain's answer is its text, message or state
    (``ANSWER_KEYS``).

    One handler serves synchronous and asynchronous chains, and any number of them. The answer waits for none of this:
    it is looked at in a thread, at most ``capacity`` answers wait. ``flush()`` waits for them, ``close()`` ends it;
    what waits when the reranker is closed, or at the interpreter's exit, is done. ``on_attribution`` is called with
    each result, in that thread. A run tells when its outermost run has ended; of runs under way the last ``capacity``
    are followed, and of one that never ends the last ``MOST_RUNS`` of its parts.
    """

    run_inline = True
    """Asynchronous managers call it in the order of events, not in a pool of threads."""

    def __init__(self, *learners: Learner, capacity: int = 1_000, on_attribution: Any = None) -> None:
        super().__init__()
        if not learners:
            raise InvalidInputError("NeuralCacheCallbackHandler needs the compressor, retriever or reranker to tell")
        self._learners = learners
        self._forest = Forest(answer_in, capacity=capacity)
        self._background = Background("neuralcache-answers", capacity=capacity)
        self._on_attribution = on_attribution
        self._answers = 0
        self._feedback = 0
        _ALIVE.add(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> NeuralCacheCallbackHandler:
        # tracers copy configurations; a second handler would see only half of a run
        return self

    def stats(self) -> CallbackStats:
        """Return what was done so far."""
        return CallbackStats(self._answers, self._feedback, self._background.failed, self._background.dropped)

    def flush(self, timeout_seconds: float | None = None) -> bool:
        """Wait until every answer given so far has been looked at; returns whether that is so."""
        return self._background.flush(timeout_seconds)

    def close(self, timeout_seconds: float | None = None) -> bool:
        """Do what waits, then take no more answers; closing twice is fine."""
        return self._background.close(timeout_seconds)

    # what LangChain calls, in the order of a run

    def on_chain_start(self, serialized: Any, inputs: Any, *, run_id: UUID, parent_run_id: UUID | None = None,
                       **kwargs: Any) -> None:
        """Note a run."""
        self._forest.started(run_id, parent_run_id)

    def on_tool_start(self, serialized: Any, input_str: str, *, run_id: UUID, parent_run_id: UUID | None = None,
                      **kwargs: Any) -> None:
        """Note a run."""
        self._forest.started(run_id, parent_run_id)

    def on_retriever_start(self, serialized: Any, query: str, *, run_id: UUID, parent_run_id: UUID | None = None,
                           **kwargs: Any) -> None:
        """Note a run."""
        self._forest.started(run_id, parent_run_id)

    def on_custom_event(self, name: str, data: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Note a ranking, which the compressor announces within its own run."""
        if name == EVENT_NAME:
            self._forest.ranked(run_id, (data["namespace"], data["ranking_id"]))

    def on_chat_model_start(self, serialized: Any, messages: list[list[BaseMessage]], *, run_id: UUID,
                            parent_run_id: UUID | None = None, **kwargs: Any) -> None:
        """Note that a model is asked."""
        self._forest.asked(run_id, parent_run_id, messages)

    def on_llm_start(self, serialized: Any, prompts: list[str], *, run_id: UUID, parent_run_id: UUID | None = None,
                     **kwargs: Any) -> None:
        """Note that a model is asked."""
        self._forest.asked(run_id, parent_run_id, prompts)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """Note what a model replied."""
        self._ended(run_id, response)

    def on_retriever_end(self, documents: Sequence[Document], *, run_id: UUID, **kwargs: Any) -> None:
        """Note the end of a run."""
        self._ended(run_id, documents)

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Note the end of a run."""
        self._ended(run_id, output)

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Note the end of a run; the end of a whole tree hands its answers to the thread."""
        self._ended(run_id, outputs)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Note a failure."""
        self._forest.failed(run_id)

    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Note a failure."""
        self._forest.failed(run_id)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Note a failure."""
        self._forest.failed(run_id)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Note a failure."""
        self._forest.failed(run_id)

    def _ended(self, run_id: UUID, output: Any) -> None:
        find = self._forest.ended(run_id, output)
        if find is not None:
            for core in self._cores():
                core.read_by(self._background)
            self._background.submit(partial(self._look, find))

    def _look(self, find: Any) -> None:
        for answered in find():
            self._observe(answered)

    def _observe(self, answered: Answered) -> None:
        for core in self._cores():
            known = [shown for shown in answered.rankings if core.has_texts(shown[1], namespace=shown[0])]
            for namespace in dict.fromkeys(namespace for namespace, _ in known):
                self._tell(core, namespace, known, answered)

    def _tell(self, core: Reranker, namespace: str, known: Sequence[Shown], answered: Answered) -> None:
        rankings = [ranking_id for place, ranking_id in known if place == namespace]
        found: Attribution = core.observe_answer(
            rankings, answered.answer, prompt=prompt_text(answered.prompt), namespace=namespace
        )
        self._answers += 1
        self._feedback += len(found.feedback)
        if self._on_attribution is not None:
            self._on_attribution(found)

    def _cores(self) -> list[Reranker]:
        found = {}
        for learner in self._learners:
            compressor = learner.compressor if isinstance(learner, NeuralCacheRetriever) else learner
            core = compressor.reranker if isinstance(compressor, NeuralCacheCompressor) else compressor
            found[id(core)] = core
        return list(found.values())


def answer_in(output: Any) -> Any:
    """Return the answer in a run's output: a text, or a structure with text and sources; None if there is none."""
    if isinstance(output, LLMResult):
        last = output.generations[-1][-1] if output.generations and output.generations[-1] else None
        return answer_in(getattr(last, "message", None) or getattr(last, "text", None))
    if isinstance(output, str):
        return output if output.strip() else None
    if isinstance(output, BaseMessage):
        return _of_message(output)
    if isinstance(output, Document):
        return None
    if isinstance(output, BaseModel):
        return output.model_dump()
    if isinstance(output, Mapping):
        return _of_mapping(output)
    if isinstance(output, list | tuple) and output and all(isinstance(one, BaseMessage) for one in output):
        return _of_message(output[-1])
    return None


def prompt_text(prompt: Any) -> str:
    """Return the text of messages or prompts as a model got them."""
    if isinstance(prompt, BaseMessage):
        return str(prompt.text)
    if isinstance(prompt, str):
        return prompt
    return "\n".join(prompt_text(one) for one in prompt) if isinstance(prompt, Sequence) else ""


def _of_message(message: BaseMessage) -> Any:
    """Return what an assistant's message says, with the arguments of its calls, where sources may be named."""
    if not isinstance(message, AIMessage):
        return None
    text, calls = prompt_text(message), [call["args"] for call in message.tool_calls]
    if not calls:
        return text if text.strip() else None
    return [text, *calls]


def _of_mapping(output: Mapping[str, Any]) -> Any:
    for key in ANSWER_KEYS:
        found = answer_in(output[key]) if key in output else None
        if found is not None:
            beside = {name: value for name, value in output.items() if name != key and _names_sources(value)}
            return {**beside, key: found} if beside and isinstance(found, str) else found
    if isinstance(output.get("messages"), Sequence):
        return answer_in(list(output["messages"]))
    return None


def _names_sources(value: Any) -> bool:
    """Return whether a field may hold ids of sources: not the documents themselves, nor another text."""
    return isinstance(value, list | tuple) and bool(value) and not any(
        isinstance(one, Document | BaseMessage) for one in value
    )


_ALIVE: weakref.WeakSet[NeuralCacheCallbackHandler] = weakref.WeakSet()


def _restart_after_fork() -> None:
    for handler in list(_ALIVE):
        handler._forest.restart_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restart_after_fork)
