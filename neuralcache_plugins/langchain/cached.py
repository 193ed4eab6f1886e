"""Any runnable behind the cache of answers."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeAlias

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.documents import Document
from langchain_core.load import dumps
from langchain_core.messages import BaseMessage, BaseMessageChunk, message_chunk_to_message
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.base import RunnableLike, coerce_to_runnable
from langchain_core.runnables.config import ensure_config, patch_config
from langchain_core.runnables.utils import AddableDict

from neuralcache_plugins.errors import InvalidInputError, StoreClosedError, StoreError
from neuralcache_plugins.langchain.prompts import last_human_text
from neuralcache_plugins.langchain.serialisation import from_text, to_text
from neuralcache_plugins.semantic_cache import CalibrationReport, SemanticCache, Sourced
from neuralcache_plugins.semantic_cache.judges import Judge, as_judge
from neuralcache_plugins.semantic_cache.keys import Documents, Scope, checked_documents

_LOG = logging.getLogger(__name__)

QuestionOf: TypeAlias = str | Callable[[Any], str] | None
ScopeOf: TypeAlias = Scope | Callable[[Any], Scope]
DocumentsOf: TypeAlias = Callable[[Any], Documents] | None
JudgeOf: TypeAlias = Callable[[Any, Any], bool] | None

QUESTION_KEYS = ("question", "input", "query")
"""Where a mapping's question is looked for, unless ``question`` says it."""

ANSWER_KEYS = ("answer", "output", "result")
"""Where a mapping's answer is looked for when two are compared, unless ``judge`` says whether they agree."""


def cached(runnable: RunnableLike[Any, Any], cache: SemanticCache, *, scope: ScopeOf, question: QuestionOf = None,
           documents: DocumentsOf = None, judge: JudgeOf = None) -> CachedRunnable:
    """Return a runnable that asks ``runnable`` only for what ``cache`` cannot answer.

    ::

        chain = cached(rag_chain, cache, scope={"chain": "help", "version": 7})
        chain.invoke({"question": "How do I reset my password?", "language": "en"})

    ``question`` is a key of the input or a function of it. None: a text is the question; a mapping has it under one of
    ``QUESTION_KEYS``; of messages it is the last human turn. **Everything else in the input has to be equal**, and
    so has ``configurable`` in the config. With a function as ``question`` the whole input has to be equal, unless
    ``scope`` is a function of the input as well: then that alone says what has to be.

    ``documents`` is a function of the input that gives (id, content hash) pairs, where they are known before. Otherwise
    an answer is bound to all ``Document`` objects in the output.

    ``judge(cached, fresh) -> bool`` compares two outputs for the certificate of the semantic tier. None compares what
    they say: the text of a message, of a mapping what is under one of ``ANSWER_KEYS``. Streams are not compared.

    ``put`` and ``calibrate`` of what is returned take inputs and outputs that are known already, ``scope_for`` tells in
    which scope of the cache answers to an input are.

    Messages, documents, texts and JSON values are cached; any other output is passed on and not kept. Streams are
    replayed chunk by chunk; a stream that is not read to its end is not kept.
    """
    return CachedRunnable(coerce_to_runnable(runnable), cache, scope=scope, question=question, documents=documents,
                          judge=judge)


class CachedRunnable(Runnable[Any, Any]):
    """What ``cached`` returns. Thread-safe; the cache stays its owner's to close."""

    def __init__(self, runnable: Runnable[Any, Any], cache: SemanticCache, *, scope: ScopeOf,
                 question: QuestionOf = None, documents: DocumentsOf = None, judge: JudgeOf = None) -> None:
        self.runnable = runnable
        self.cache = cache
        self.name = f"cached<{runnable.get_name()}>"
        self._scope = scope
        self._question = question
        self._documents = documents
        self._judge = _on_outputs(judge)

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Return the cached output, or the runnable's."""
        return self._call_with_config(self._invoke, input, config, **kwargs)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Do what ``invoke`` does, without blocking the event loop."""
        return await self._acall_with_config(self._ainvoke, input, config, **kwargs)

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """Yield the cached chunks, or the runnable's as they come."""
        yield from self._transform_stream_with_config(iter([input]), self._stream, config, **kwargs)

    def scope_for(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> dict[str, Any]:
        """Return the scope in which answers to this input are kept, as the cache's own methods take it.

        It holds all that has to be equal beside the question: ``cache.explain(question, scope)`` and
        ``cache.invalidate(scope=...)`` want it, and ``cache.lookup`` with the same documents.
        """
        scope: dict[str, Any] = self._place(input, ensure_config(config), kwargs)[1]["scope"]
        return scope

    def put(self, input: Any, output: Any, config: RunnableConfig | None = None, *,
            ttl: float | timedelta | None = None, **kwargs: Any) -> str | None:
        """Keep an output for an input as if the runnable had given it, under the same config; return as
        ``SemanticCache.put`` does.

        Raises ``InvalidInputError`` for an output that could not be cached, else what ``SemanticCache.put`` raises.
        """
        return self.cache.put(**self._record(input, output, config, kwargs), ttl=ttl, judge=self._judge)

    async def aput(self, input: Any, output: Any, config: RunnableConfig | None = None, *,
                   ttl: float | timedelta | None = None, **kwargs: Any) -> str | None:
        """Do what ``put`` does, without blocking the event loop."""
        return await self.cache.aput(**self._record(input, output, config, kwargs), ttl=ttl, judge=self._judge)

    def calibrate(self, log: Iterable[tuple[Any, Any]], config: RunnableConfig | None = None, *, put: bool = True,
                  ttl: float | timedelta | None = None, progress: Callable[[int, int], object] | None = None,
                  **kwargs: Any) -> CalibrationReport:
        """Do what ``SemanticCache.calibrate`` does with a log of (input, output) pairs, oldest first, in the scopes and
        with the judge of this runnable; the outputs are kept as by ``put``.

        Raises ``InvalidInputError`` for a pair that could not be cached, else what ``SemanticCache.calibrate`` raises.
        """
        return self.cache.calibrate(self._records(log, config, kwargs), put=put, judge=self._judge, ttl=ttl,
                                    progress=progress)

    async def acalibrate(self, log: Iterable[tuple[Any, Any]], config: RunnableConfig | None = None, *,
                         put: bool = True, ttl: float | timedelta | None = None,
                         progress: Callable[[int, int], object] | None = None, **kwargs: Any) -> CalibrationReport:
        """Do what ``calibrate`` does, without blocking the event loop."""
        return await self.cache.acalibrate(self._records(log, config, kwargs), put=put, judge=self._judge, ttl=ttl,
                                           progress=progress)

    async def astream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Any]:
        """Do what ``stream`` does, without blocking the event loop."""
        async def one() -> AsyncIterator[Any]:
            yield input

        async for chunk in self._atransform_stream_with_config(one(), self._astream, config, **kwargs):
            yield chunk

    def _invoke(self, input: Any, run_manager: CallbackManagerForChainRun, config: RunnableConfig,
                **kwargs: Any) -> Any:
        question, place = self._place(input, config, kwargs)

        def compute() -> Sourced:
            return _kept(self.runnable.invoke(input, _child(config, run_manager), **kwargs), place)

        try:
            found = self.cache.get_or_compute(question, compute, judge=self._judge, **place)
        except _Uncacheable as passed:
            return passed.output
        return _output(found)

    async def _ainvoke(self, input: Any, run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig,
                       **kwargs: Any) -> Any:
        question, place = self._place(input, config, kwargs)

        async def compute() -> Sourced:
            return _kept(await self.runnable.ainvoke(input, _child(config, run_manager), **kwargs), place)

        try:
            found = await self.cache.aget_or_compute(question, compute, judge=self._judge, **place)
        except _Uncacheable as passed:
            return passed.output
        return _output(found)

    def _stream(self, inputs: Iterator[Any], run_manager: CallbackManagerForChainRun, config: RunnableConfig,
                **kwargs: Any) -> Iterator[Any]:
        (input,) = inputs
        question, place = self._place(input, config, kwargs)
        hit = self.cache.lookup(question, **place)
        if hit is not None:
            yield from _chunks(hit.value)
            return
        chunks, since = [], self.cache.moment()
        for chunk in self.runnable.stream(input, _child(config, run_manager), **kwargs):
            chunks.append(chunk)
            yield chunk
        sourced = _sourced(chunks, place, streamed=True)
        if sourced is not None:
            with _tolerating():
                self.cache.put(question, since=since, judge=self._judge, **_arguments(sourced, place))

    async def _astream(self, inputs: AsyncIterator[Any], run_manager: AsyncCallbackManagerForChainRun,
                       config: RunnableConfig, **kwargs: Any) -> AsyncIterator[Any]:
        async for input in inputs:
            question, place = self._place(input, config, kwargs)
            hit = await self.cache.alookup(question, **place)
            if hit is not None:
                for chunk in _chunks(hit.value):
                    yield chunk
                return
            chunks, since = [], self.cache.moment()
            async for chunk in self.runnable.astream(input, _child(config, run_manager), **kwargs):
                chunks.append(chunk)
                yield chunk
            sourced = _sourced(chunks, place, streamed=True)
            if sourced is not None:
                with _tolerating():
                    await self.cache.aput(question, since=since, judge=self._judge, **_arguments(sourced, place))

    def _record(self, input: Any, output: Any, config: RunnableConfig | None, kwargs: Mapping[str, Any],
                ) -> dict[str, Any]:
        question, place = self._place(input, ensure_config(config), kwargs)
        sourced = _sourced([output], place, streamed=False)
        if sourced is None:
            raise InvalidInputError(f"this {type(output).__name__} cannot be cached: messages, documents, texts and "
                                    "JSON values can")
        return {"question": question, **_arguments(sourced, place)}

    def _records(self, log: Iterable[tuple[Any, Any]], config: RunnableConfig | None, kwargs: Mapping[str, Any],
                 ) -> Iterator[dict[str, Any]]:
        for input, output in log:
            yield self._record(input, output, config, kwargs)

    def _place(self, input: Any, config: RunnableConfig, kwargs: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Return the question, and scope and documents as the cache takes them."""
        question, rest = self._split(input)
        scope = self._scope(input) if callable(self._scope) else self._scope
        place: dict[str, Any] = {"kind": "langchain runnable", "scope": scope, "config": _fingerprint(_options(config)),
                                 "arguments": _fingerprint(dict(kwargs))}
        if not (callable(self._question) and callable(self._scope)):
            place["rest"] = _fingerprint(rest)
        return question, {"scope": place, "documents": self._known_documents(input)}

    def _known_documents(self, input: Any) -> tuple[tuple[str, str], ...]:
        return () if self._documents is None else checked_documents(self._documents(input))

    def _split(self, input: Any) -> tuple[str, Any]:
        if callable(self._question):
            return _text(self._question(input)), input
        if isinstance(input, Mapping):
            keys = QUESTION_KEYS if self._question is None else (self._question,)
            key = next((key for key in keys if isinstance(input.get(key), str)), None)
            if key is not None:
                return input[key], {name: value for name, value in input.items() if name != key}
        if self._question is None and isinstance(input, str):
            return input, None
        if self._question is None and isinstance(input, Sequence):
            found = last_human_text(input)
            if found is not None:
                return found
        raise InvalidInputError(f"cannot tell the question in {type(input).__name__}: name its key, or a function of "
                                "the input, as question=")


class _Uncacheable(Exception):
    """Carries an output that cannot be cached past the cache, to all who waited for it."""

    def __init__(self, output: Any) -> None:
        super().__init__("this output cannot be cached")
        self.output = output


def document_versions(documents: Iterable[Document]) -> list[tuple[str, str]]:
    """Return ids and content hashes as the cache binds answers to them; without an id, the hash is the id.

    For ``cache.invalidate(documents=document_versions(changed))`` after an ingestion.
    """
    found: dict[str, list[str]] = {}
    for document in documents:
        version = hashlib.sha256(document.page_content.encode("utf-8", "surrogatepass")).hexdigest()
        found.setdefault(document.id or version, []).append(version)
    # several chunks under one id change together
    return [(name, "+".join(sorted(set(versions)))) for name, versions in found.items()]


def _kept(output: Any, place: dict[str, Any]) -> Sourced:
    sourced = _sourced([output], place, streamed=False)
    if sourced is None:
        raise _Uncacheable(output)
    return sourced


def _sourced(chunks: list[Any], place: dict[str, Any], *, streamed: bool) -> Sourced | None:
    """Return chunks as one text, with the documents named before or found in them; None if they cannot be cached."""
    plain = [dict(chunk) if isinstance(chunk, AddableDict) else chunk for chunk in chunks]
    text = to_text({"chunks": plain, "streamed": streamed})
    return None if text is None else Sourced(text, place["documents"] or document_versions(_documents_in(plain)))


def _documents_in(value: Any) -> Iterator[Document]:
    if isinstance(value, Document):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _documents_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _documents_in(each)


def _chunks(text: str) -> list[Any]:
    stored = from_text(text)
    chunks: list[Any] = stored["chunks"]
    if not stored["streamed"]:
        return chunks
    return [AddableDict(chunk) if isinstance(chunk, dict) else chunk for chunk in chunks]


def _output(text: str) -> Any:
    """Return the whole output, also of a stream."""
    chunks = _chunks(text)
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    if isinstance(whole, AddableDict):
        return dict(whole)
    return message_chunk_to_message(whole) if isinstance(whole, BaseMessageChunk) else whole


def _on_outputs(judge: JudgeOf) -> Judge:
    """Return a judge of outputs as the cache keeps them; ids, token counts and contexts differ from call to call."""
    judged, view = as_judge(judge), _said if judge is None else _as_it_is
    return replace(judged, agrees=lambda cached, fresh: judged(view(_output(cached)), view(_output(fresh))))


def _as_it_is(output: Any) -> Any:
    return output


def _said(output: Any) -> Any:
    if isinstance(output, Mapping):
        key = next((key for key in ANSWER_KEYS if key in output), None)
        return output if key is None else _said(output[key])
    # a message that calls tools, or is empty, says more than its text
    plain = isinstance(output, BaseMessage) and output.content and not getattr(output, "tool_calls", None)
    return output.content if plain else output


def _arguments(sourced: Sourced, place: dict[str, Any]) -> dict[str, Any]:
    return {"answer": sourced.value, "scope": place["scope"], "documents": sourced.documents}


def _child(config: RunnableConfig, run_manager: Any) -> RunnableConfig:
    return patch_config(config, callbacks=run_manager.get_child())


def _options(config: RunnableConfig) -> dict[str, Any]:
    """Return what the caller configures; names with underscores are LangGraph's own, and differ from run to run."""
    given = ensure_config(config).get("configurable") or {}
    return {name: value for name, value in given.items() if not name.startswith("__")}


def _fingerprint(value: Any) -> str:
    # what cannot be serialised shows by its repr, which with an address in it equals nothing: no hit, no wrong one
    return hashlib.sha256(dumps(value, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()


def _text(question: Any) -> str:
    if not isinstance(question, str):
        raise InvalidInputError(f"question= must give a str, got {type(question).__name__}")
    return question


@contextmanager
def _tolerating() -> Iterator[None]:
    """Let an answer that was given already not fail because it cannot be kept."""
    try:
        yield
    except StoreClosedError:
        raise
    except StoreError as error:
        _LOG.warning("an answer could not be cached: %s", error)
