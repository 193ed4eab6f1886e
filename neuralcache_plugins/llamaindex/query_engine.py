"""Any query engine behind the cache of answers."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.response.schema import (
    RESPONSE_TYPE,
    AsyncStreamingResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.prompts.mixin import PromptMixinType
from llama_index.core.schema import NodeWithScore, QueryBundle, QueryType
from llama_index.core.types import TokenAsyncGen, TokenGen

from neuralcache_plugins.errors import InvalidInputError, StoreClosedError, StoreError
from neuralcache_plugins.llamaindex.responses import nodes_of, to_value
from neuralcache_plugins.semantic_cache import CalibrationReport, SemanticCache, Sourced
from neuralcache_plugins.semantic_cache.judges import Judge, as_judge
from neuralcache_plugins.semantic_cache.keys import Scope

_LOG = logging.getLogger(__name__)


class NeuralCacheQueryEngine(BaseQueryEngine):
    """Asks ``query_engine`` only for what ``cache`` cannot answer. The cache stays its owner's to close.

    ::

        engine = NeuralCacheQueryEngine(index.as_query_engine(), cache, scope={"index": "help", "version": 7})
        engine.query("How do I reset my password?")

    ``scope`` names what has to be equal beside the question: the index, the model, the prompts' version. Without it the
    answers are this object's alone, because nothing tells one engine from another across processes. The prompts of
    the engine, custom embedding strings and pictures of a query always have to be equal.

    An answer is bound to its source nodes and the documents they are from (``node_versions``), and comes back with
    them. Streamed answers are replayed token by token; a stream that is not read to its end is not kept. Structured
    (pydantic) responses are passed on and not kept.

    ``judge(cached, fresh) -> bool`` compares the texts of two answers for the certificate of the semantic tier; None
    wants the same words. Streams are not compared.

    ``put`` and ``calibrate`` take queries and responses that are known already, ``scope_for`` tells in which scope of
    the cache answers to a query are.
    """

    def __init__(self, query_engine: BaseQueryEngine, cache: SemanticCache, *, scope: Scope | None = None,
                 judge: Callable[[Any, Any], bool] | None = None) -> None:
        super().__init__(callback_manager=query_engine.callback_manager)
        self.query_engine = query_engine
        self.cache = cache
        self._judge = _on_texts(judge)
        self._own_scope = {"object": os.urandom(16).hex()} if scope is None else scope

    def retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """Retrieve, uncached."""
        return self.query_engine.retrieve(query_bundle)

    def synthesize(self, query_bundle: QueryBundle, nodes: list[NodeWithScore],
                   additional_source_nodes: Sequence[NodeWithScore] | None = None) -> RESPONSE_TYPE:
        """Synthesize, uncached."""
        return self.query_engine.synthesize(query_bundle, nodes, additional_source_nodes)

    async def asynthesize(self, query_bundle: QueryBundle, nodes: list[NodeWithScore],
                          additional_source_nodes: Sequence[NodeWithScore] | None = None) -> RESPONSE_TYPE:
        """Synthesize, uncached."""
        return await self.query_engine.asynthesize(query_bundle, nodes, additional_source_nodes)

    def scope_for(self, query: QueryType) -> dict[str, Any]:
        """Return the scope in which answers to this query are kept, as the cache's own methods take it.

        It holds all that has to be equal beside the text of the query: ``cache.explain(question, scope)`` and
        ``cache.invalidate(scope=...)`` want it.
        """
        return self._scope(_bundle(query))

    def put(self, query: QueryType, response: RESPONSE_TYPE | str, *,
            ttl: float | timedelta | None = None) -> str | None:
        """Keep a response to a query as if the engine had given it; return as ``SemanticCache.put`` does.

        Raises ``InvalidInputError`` for a response that would not come back equal, else what ``SemanticCache.put``
        raises.
        """
        return self.cache.put(**self._record(query, response), ttl=ttl, judge=self._judge)

    async def aput(self, query: QueryType, response: RESPONSE_TYPE | str, *,
                   ttl: float | timedelta | None = None) -> str | None:
        """Do what ``put`` does, without blocking the event loop."""
        return await self.cache.aput(**self._record(query, response), ttl=ttl, judge=self._judge)

    def calibrate(self, log: Iterable[tuple[QueryType, RESPONSE_TYPE | str]], *, put: bool = True,
                  ttl: float | timedelta | None = None,
                  progress: Callable[[int, int], object] | None = None) -> CalibrationReport:
        """Do what ``SemanticCache.calibrate`` does with a log of (query, response) pairs, oldest first, in the scopes
        and with the judge of this engine; the responses are kept as by ``put``.

        Raises ``InvalidInputError`` for a response that would not come back equal, else what
        ``SemanticCache.calibrate`` raises.
        """
        records = (self._record(query, response) for query, response in log)
        return self.cache.calibrate(records, put=put, judge=self._judge, ttl=ttl, progress=progress)

    async def acalibrate(self, log: Iterable[tuple[QueryType, RESPONSE_TYPE | str]], *, put: bool = True,
                         ttl: float | timedelta | None = None,
                         progress: Callable[[int, int], object] | None = None) -> CalibrationReport:
        """Do what ``calibrate`` does, without blocking the event loop."""
        records = (self._record(query, response) for query, response in log)
        return await self.cache.acalibrate(records, put=put, judge=self._judge, ttl=ttl, progress=progress)

    def _query(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        scope = self._scope(query_bundle)

        def compute() -> Sourced:
            since = self.cache.moment()
            return _kept(self.query_engine.query(query_bundle), since)

        try:
            value = self.cache.get_or_compute(query_bundle.query_str, compute, scope=scope, judge=self._judge)
        except _Passed as passed:
            since, response = passed.take() or (self.cache.moment(), self.query_engine.query(query_bundle))
            if isinstance(response, StreamingResponse):
                response.response_gen = self._recorded(response, response.response_gen, query_bundle.query_str,
                                                       scope=scope, since=since)
            return response
        if value["tokens"] is None:
            return Response(value["text"], nodes_of(value), value["metadata"])
        return StreamingResponse((token for token in value["tokens"]), nodes_of(value), value["metadata"])

    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        scope = self._scope(query_bundle)

        async def compute() -> Sourced:
            since = self.cache.moment()
            return _kept(await self.query_engine.aquery(query_bundle), since)

        try:
            value = await self.cache.aget_or_compute(query_bundle.query_str, compute, scope=scope, judge=self._judge)
        except _Passed as passed:
            since, response = passed.take() or (self.cache.moment(), await self.query_engine.aquery(query_bundle))
            if isinstance(response, AsyncStreamingResponse):
                response.response_gen = self._arecorded(response, response.response_gen, query_bundle.query_str,
                                                        scope=scope, since=since)
            return response
        if value["tokens"] is None:
            return Response(value["text"], nodes_of(value), value["metadata"])
        return AsyncStreamingResponse(_replayed(value["tokens"]), nodes_of(value), value["metadata"])

    def _get_prompt_modules(self) -> PromptMixinType:
        return {"query_engine": self.query_engine}

    def _record(self, query: QueryType, response: RESPONSE_TYPE | str) -> dict[str, Any]:
        whole = Response(response) if isinstance(response, str) else response
        sourced = to_value(whole, whole.response) if isinstance(whole, Response) else None
        if sourced is None:
            raise InvalidInputError(f"a {type(response).__name__} that would not come back equal cannot be cached")
        bundle = _bundle(query)
        return {"question": bundle.query_str, "answer": sourced.value, "scope": self._scope(bundle),
                "documents": sourced.documents}

    def _scope(self, query: QueryBundle) -> dict[str, Any]:
        prompts = {name: str(prompt) for name, prompt in self.query_engine.get_prompts().items()}
        return {
            "kind": "llamaindex query engine", "scope": self._own_scope, "prompts": prompts,
            "custom_embedding_strs": query.custom_embedding_strs, "image": query.image_path,
        }

    def _recorded(self, response: StreamingResponse, stream: TokenGen, question: str, *, scope: Scope,
                  since: int | None) -> TokenGen:
        tokens = []
        for token in stream:
            tokens.append(token)
            yield token
        sourced = to_value(response, "".join(tokens), tokens)
        if sourced is not None:
            try:
                self.cache.put(question, sourced.value, scope=scope, documents=sourced.documents, since=since,
                               judge=self._judge)
            except StoreError as error:
                _not_kept(error)

    async def _arecorded(self, response: AsyncStreamingResponse, stream: TokenAsyncGen, question: str, *,
                         scope: Scope, since: int | None) -> TokenAsyncGen:
        tokens = []
        async for token in stream:
            tokens.append(token)
            yield token
        sourced = to_value(response, "".join(tokens), tokens)
        if sourced is not None:
            try:
                await self.cache.aput(question, sourced.value, scope=scope, documents=sourced.documents, since=since,
                                      judge=self._judge)
            except StoreError as error:
                _not_kept(error)


def _bundle(query: QueryType) -> QueryBundle:
    return QueryBundle(query) if isinstance(query, str) else query


class _Passed(Exception):
    """Carries a response that cannot be cached as it is past the cache; a stream can be read by one caller only."""

    def __init__(self, response: RESPONSE_TYPE, since: int | None) -> None:
        super().__init__("this response is passed on")
        self._lock = threading.Lock()
        self._response: tuple[int | None, RESPONSE_TYPE] | None = (since, response)

    def take(self) -> tuple[int | None, RESPONSE_TYPE] | None:
        """Return the response, and the moment when it was begun, to the first who asks."""
        with self._lock:
            response, self._response = self._response, None
            return response


def _kept(response: RESPONSE_TYPE, since: int | None) -> Sourced:
    sourced = to_value(response, response.response) if isinstance(response, Response) else None
    if sourced is None:
        raise _Passed(response, since)
    return sourced


def _on_texts(judge: Callable[[Any, Any], bool] | None) -> Judge:
    """Return a judge of answers as the cache keeps them; scores and nodes differ from question to question."""
    judged = as_judge(judge)
    return replace(judged, agrees=lambda cached, fresh: judged(cached["text"], fresh["text"]))


async def _replayed(tokens: Sequence[str]) -> TokenAsyncGen:
    for token in tokens:
        yield token


def _not_kept(error: StoreError) -> None:
    if isinstance(error, StoreClosedError):
        raise error
    _LOG.warning("an answer could not be cached: %s", error)
