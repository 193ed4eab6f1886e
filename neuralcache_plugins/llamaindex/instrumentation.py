"""Event and span handlers that see which shown nodes an answer used, and tell the rankings so."""

from __future__ import annotations

import inspect
import os
import weakref
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import isasyncgen, isgenerator
from itertools import count
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, MessageRole
from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.chat_engine.types import StreamingAgentChatResponse
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.exception import ExceptionEvent
from llama_index.core.instrumentation.events.llm import (
    LLMChatEndEvent,
    LLMChatStartEvent,
    LLMCompletionEndEvent,
    LLMCompletionStartEvent,
)
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent
from llama_index.core.instrumentation.span import BaseSpan, active_span_id
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler
from llama_index.core.schema import BaseNode, NodeWithScore
from llama_index.core.types import TokenAsyncGen, TokenGen
from pydantic import BaseModel, PrivateAttr

from neuralcache_plugins.attribution.runs import STREAMED, Answered, Forest, Shown
from neuralcache_plugins.contracts import Attribution
from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.llamaindex.postprocessor import NeuralCachePostprocessor
from neuralcache_plugins.reranker import Reranker
from neuralcache_plugins.reranker.background import Background

ANSWER_KEYS = ("answer", "response", "result", "output", "text", "content")
"""Where the answer stands in a workflow's output that is a mapping, the likeliest first."""

_FOLLOWERS: weakref.WeakKeyDictionary[Any, frozenset[int]] = weakref.WeakKeyDictionary()
"""Streams that are followed, and by which instrumentors: each wants to see it once."""

_NUMBERS = count()

Learner = NeuralCachePostprocessor | Reranker
"""What gets the feedback."""


@dataclass(frozen=True, slots=True)
class InstrumentorStats:
    """What was done: answers looked at, feedback given; jobs that failed or found no room."""

    answers: int
    feedback: int
    failed: int
    dropped: int


class NeuralCacheInstrumentor:
    """Ties every answer to the rankings that it was made from and gives them feedback, with nobody asked.

    ::

        instrumentor = NeuralCacheInstrumentor(postprocessor)
        instrumentor.instrument()          # once a process; or use it as a context manager

    It adds an event handler and a span handler to LlamaIndex's root dispatcher. A ranking belongs to the answer of the
    innermost span around it in which a model is asked afterwards: a query, a chat turn, a workflow. Streamed answers
    count when they were read to the end; what fails, is cancelled or is left half-read teaches nothing. (The stream of
    a ``StreamingResponse`` is wrapped for that, token by token.)

    The answer waits for none of this: it is looked at in a thread, at most ``capacity`` answers wait. ``flush()`` waits
    for them; ``close()`` takes the handlers off and ends it; what waits when the reranker is closed, or at the
    interpreter's exit, is done. ``on_attribution`` is called with each result, in that thread. A tree of spans tells
    when its outermost one has ended; of trees under way the last ``capacity`` are followed, and of one that never ends
    the last ``MOST_RUNS`` spans.
    """

    def __init__(self, *learners: Learner, capacity: int = 1_000,
                 on_attribution: Callable[[Attribution], object] | None = None) -> None:
        if not learners:
            raise InvalidInputError("NeuralCacheInstrumentor needs the postprocessor or reranker to tell")
        self._learners = learners
        self._forest = Forest(answer_in, capacity=capacity, waits=True)
        self._background = Background("neuralcache-answers", capacity=capacity)
        self._on_attribution = on_attribution
        self._number = next(_NUMBERS)
        self._answers = 0
        self._feedback = 0
        self.event_handler = NeuralCacheEventHandler(self)
        self.span_handler = NeuralCacheSpanHandler(self)
        _ALIVE.add(self)

    def instrument(self, dispatcher: Any = None) -> None:
        """Add the handlers to a dispatcher (None: the root's, which hears everything); twice does no more than once."""
        target = get_dispatcher() if dispatcher is None else dispatcher
        if self.event_handler not in target.event_handlers:
            # new lists: the framework's default lists are shared between dispatchers
            target.event_handlers = [*target.event_handlers, self.event_handler]
            target.span_handlers = [*target.span_handlers, self.span_handler]

    def uninstrument(self, dispatcher: Any = None) -> None:
        """Take the handlers off again."""
        target = get_dispatcher() if dispatcher is None else dispatcher
        target.event_handlers = [one for one in target.event_handlers if one is not self.event_handler]
        target.span_handlers = [one for one in target.span_handlers if one is not self.span_handler]

    def stats(self) -> InstrumentorStats:
        """Return what was done so far."""
        return InstrumentorStats(self._answers, self._feedback, self._background.failed, self._background.dropped)

    def flush(self, timeout_seconds: float | None = None) -> bool:
        """Wait until every answer given so far has been looked at; returns whether that is so."""
        return self._background.flush(timeout_seconds)

    def close(self, timeout_seconds: float | None = None) -> bool:
        """Take the handlers off the root dispatcher and do what waits; closing twice is fine."""
        self.uninstrument()
        return self._background.close(timeout_seconds)

    def __enter__(self) -> NeuralCacheInstrumentor:
        self.instrument()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # what the handlers report

    def entered(self, span_id: str, parent_id: str | None) -> None:
        """Note that a span began."""
        self._forest.started(span_id, parent_id)

    def left(self, span_id: str, result: Any) -> None:
        """Note that a span ended well."""
        if isinstance(result, StreamingResponse | AsyncStreamingResponse):
            self._follow(span_id, result)
        self._finish(self._forest.ended(span_id, result))

    def dropped(self, span_id: str) -> None:
        """Note that a span failed."""
        self._forest.failed(span_id)

    def happened(self, event: BaseEvent) -> None:
        """Note rankings, and what models are asked and reply."""
        if isinstance(event, ReRankEndEvent):
            if "ranking_id" in event.tags and "namespace" in event.tags and event.span_id is not None:
                self._forest.ranked(event.span_id, (event.tags["namespace"], event.tags["ranking_id"]))
        elif isinstance(event, LLMChatStartEvent):
            self._forest.asked(("chat", event.span_id), event.span_id, event.messages)
        elif isinstance(event, LLMCompletionStartEvent):
            self._forest.asked(("completion", event.span_id), event.span_id, event.prompt)
        elif isinstance(event, LLMChatEndEvent):
            self._finish(self._forest.ended(("chat", event.span_id), event.response))
        elif isinstance(event, LLMCompletionEndEvent):
            self._finish(self._forest.ended(("completion", event.span_id), event.response))
        elif isinstance(event, ExceptionEvent):  # of a model, also of a stream that is left half-read
            for kind in ("chat", "completion"):
                self._forest.failed((kind, event.span_id))

    def restart_after_fork(self) -> None:
        """Take a new lock in a forked child."""
        self._forest.restart_after_fork()

    def _follow(self, span_id: str, response: StreamingResponse | AsyncStreamingResponse) -> None:
        """See a stream to its end: its model is often asked only when it is read, and then outside of all spans."""
        stream: Any = response.response_gen
        # others, such as lists, take no weak references, and are never what an instrumentor made
        followers = _FOLLOWERS.get(stream, frozenset()) if isgenerator(stream) or isasyncgen(stream) else frozenset()
        if self._number in followers:
            return  # by a span further in
        if not self._forest.asked(("stream", span_id), span_id, None):
            return
        if isinstance(response, StreamingResponse):
            response.response_gen = self._followed(span_id, stream)
        else:
            response.response_gen = self._afollowed(span_id, stream)
        _FOLLOWERS[response.response_gen] = followers | {self._number}

    def _followed(self, span_id: str, stream: Iterable[str]) -> TokenGen:
        said: list[str] = []
        tokens = iter(stream)
        try:
            while True:
                within = active_span_id.set(span_id)
                try:
                    token = next(tokens)
                except StopIteration:
                    break
                finally:
                    active_span_id.reset(within)
                said.append(token)
                yield token
        except BaseException:
            self._forest.failed(("stream", span_id))
            if isgenerator(stream):
                stream.close()  # whoever leaves the wrapper leaves what it wraps
            raise
        self._finish(self._forest.ended(("stream", span_id), "".join(map(str, said))))

    async def _afollowed(self, span_id: str, stream: AsyncIterable[str]) -> TokenAsyncGen:
        said: list[str] = []
        tokens = aiter(stream)
        try:
            while True:
                within = active_span_id.set(span_id)
                try:
                    token = await anext(tokens)
                except StopAsyncIteration:
                    break
                finally:
                    active_span_id.reset(within)
                said.append(token)
                yield token
        except BaseException:
            self._forest.failed(("stream", span_id))
            if isasyncgen(stream):
                await stream.aclose()  # whoever leaves the wrapper leaves what it wraps
            raise
        self._finish(self._forest.ended(("stream", span_id), "".join(map(str, said))))

    def _finish(self, find: Callable[[], list[Answered]] | None) -> None:
        if find is not None:
            for core in self._cores():
                core.read_by(self._background)
            self._background.submit(partial(self._look, find))

    def _look(self, find: Callable[[], list[Answered]]) -> None:
        for answered in find():
            for core in self._cores():
                known = [shown for shown in answered.rankings if core.has_texts(shown[1], namespace=shown[0])]
                for namespace in dict.fromkeys(namespace for namespace, _ in known):
                    self._tell(core, namespace, known, answered)

    def _tell(self, core: Reranker, namespace: str, known: Sequence[Shown], answered: Answered) -> None:
        rankings = [ranking_id for place, ranking_id in known if place == namespace]
        found = core.observe_answer(
            rankings, answered.answer, prompt=prompt_text(answered.prompt), namespace=namespace
        )
        self._answers += 1
        self._feedback += len(found.feedback)
        if self._on_attribution is not None:
            self._on_attribution(found)

    def _cores(self) -> list[Reranker]:
        cores = (one.reranker if isinstance(one, NeuralCachePostprocessor) else one for one in self._learners)
        return list({id(core): core for core in cores}.values())


class NeuralCacheEventHandler(BaseEventHandler):
    """Hands events to a ``NeuralCacheInstrumentor``, which makes it."""

    _owner: NeuralCacheInstrumentor = PrivateAttr()

    def __init__(self, owner: NeuralCacheInstrumentor) -> None:
        super().__init__()
        self._owner = owner

    @classmethod
    def class_name(cls) -> str:
        """Return the name that serialised components carry."""
        return "NeuralCacheEventHandler"

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        """Note an event; microseconds."""
        self._owner.happened(event)


class NeuralCacheSpanHandler(BaseSpanHandler[BaseSpan]):
    """Hands spans to a ``NeuralCacheInstrumentor``, which makes it. Keeps none itself."""

    _owner: NeuralCacheInstrumentor = PrivateAttr()

    def __init__(self, owner: NeuralCacheInstrumentor) -> None:
        super().__init__()
        self._owner = owner

    @classmethod
    def class_name(cls) -> str:
        """Return the name that serialised components carry."""
        return "NeuralCacheSpanHandler"

    def new_span(self, id_: str, bound_args: inspect.BoundArguments, instance: Any | None = None,
                 parent_span_id: str | None = None, tags: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Note that a span began."""
        self._owner.entered(id_, parent_span_id)

    def prepare_to_exit_span(self, id_: str, bound_args: inspect.BoundArguments, instance: Any | None = None,
                             result: Any | None = None, **kwargs: Any) -> None:
        """Note that a span ended well."""
        self._owner.left(id_, result)

    def prepare_to_drop_span(self, id_: str, bound_args: inspect.BoundArguments, instance: Any | None = None,
                             err: BaseException | None = None, **kwargs: Any) -> None:
        """Note that a span failed."""
        self._owner.dropped(id_)


def answer_in(output: Any) -> Any:
    """Return the answer in a span's result: a text, or a structure; None if none, ``STREAMED`` if it is to come."""
    if isinstance(output, str):
        return output if output.strip() else None
    if isinstance(output, StreamingResponse | AsyncStreamingResponse | StreamingAgentChatResponse):
        return STREAMED
    if isinstance(output, ChatMessage):
        return answer_in(output.content) if output.role == MessageRole.ASSISTANT else None
    if isinstance(output, ChatResponse):
        return answer_in(output.message)
    if isinstance(output, CompletionResponse):
        return answer_in(output.text)
    if isinstance(output, BaseNode | NodeWithScore):
        return None
    for name in ("response", "result"):  # of responses, agents' outputs and stop events
        if not isinstance(output, Mapping) and hasattr(output, name):
            return answer_in(getattr(output, name))
    if isinstance(output, Mapping):
        found = (answer_in(output[key]) for key in ANSWER_KEYS if key in output)
        return next((one for one in found if one is not None), None)
    return output.model_dump() if isinstance(output, BaseModel) else None


def prompt_text(prompt: Any) -> str:
    """Return the text of messages or of a prompt as a model got it."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(str(message.content or "") for message in prompt) if isinstance(prompt, Sequence) else ""


_ALIVE: weakref.WeakSet[NeuralCacheInstrumentor] = weakref.WeakSet()


def _restart_after_fork() -> None:
    for instrumentor in list(_ALIVE):
        instrumentor.restart_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restart_after_fork)
