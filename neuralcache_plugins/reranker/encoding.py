"""From a request to vectors: the caller's own where they come along, the encoder's for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from neuralcache_plugins.contracts import Vector
from neuralcache_plugins.core.vectors import unit_rows, unit_vector, width_of
from neuralcache_plugins.encoders import Encoded, EncoderCache
from neuralcache_plugins.errors import DimensionMismatchError, EncoderError
from neuralcache_plugins.reranker.border import Request
from neuralcache_plugins.reranker.health import Health
from neuralcache_plugins.reranker.stages import Vectors

Outcome = tuple[Vectors | None, tuple[str, ...]]
"""The vectors of a call, None where there are none, and what went missing on the way."""


class VectorStage:
    """Finds the vectors of a call. A failing encoder costs the dense signal, never the call."""

    def __init__(self, encoders: EncoderCache, health: Health, *, timeout_seconds: float | None) -> None:
        self._encoders = encoders
        self._health = health
        self._timeout_seconds = timeout_seconds

    def vectors(self, request: Request, names: Sequence[str]) -> Outcome:
        """Return vectors and what is degraded; ``DimensionMismatchError`` when the caller's question does not fit."""
        if not request.asks or not request.texts:
            return None, ()
        try:
            question = _given_question(request)
            if question is None:
                question = self._encoders.question(request.query, namespace=request.namespace)
            if question is None:
                return None, self._health.without("encoder", EncoderError("the question's vector has no direction"))
            given, wanted = _given_rows(request, len(question))
            encoded = given
            if wanted is None or wanted:
                encoded = self._encoders.documents(
                    request.texts, ids=names, width=len(question), namespace=request.namespace, wanted=wanted
                )
        except (EncoderError, DimensionMismatchError) as error:
            return self._without(request, error)
        return self._together(question, given, encoded), ()

    async def avectors(self, request: Request, names: Sequence[str]) -> Outcome:
        """Do what ``vectors`` does, awaiting the encoder."""
        if not request.asks or not request.texts:
            return None, ()
        try:
            question = _given_question(request)
            if question is None:
                question = await self._encoders.aquestion(
                    request.query, namespace=request.namespace, timeout_seconds=self._timeout_seconds
                )
            if question is None:
                return None, self._health.without("encoder", EncoderError("the question's vector has no direction"))
            given, wanted = _given_rows(request, len(question))
            encoded = given
            if wanted is None or wanted:
                encoded = await self._encoders.adocuments(
                    request.texts,
                    ids=names,
                    width=len(question),
                    namespace=request.namespace,
                    wanted=wanted,
                    timeout_seconds=self._timeout_seconds,
                )
        except (EncoderError, DimensionMismatchError) as error:
            return self._without(request, error)
        return self._together(question, given, encoded), ()

    def warm_up(self, requests: Sequence[Request], named: Sequence[Sequence[str]]) -> None:
        """Encode all unseen texts of a batch in one call; what fails here is met again, and counted, one by one."""
        asking = [(request, names) for request, names in zip(requests, named, strict=True) if request.asks]
        if not asking:
            return
        namespace = asking[0][0].namespace
        try:
            questions = self._encoders.questions(
                [request.query for request, _ in asking if request.query_vector is None], namespace=namespace
            )
            given = [_given_question(request) for request, _ in asking]
            width = next((len(one) for one in [*questions, *given] if one is not None), None)
            bare = [(request, names) for request, names in asking if request.vectors is None]
            if bare and width is not None:
                self._encoders.documents(
                    [text for request, _ in bare for text in request.texts],
                    ids=[name for _, names in bare for name in names],
                    width=width,
                    namespace=namespace,
                )
        except (EncoderError, DimensionMismatchError):
            return

    def _together(self, question: Vector, given: Encoded | None, encoded: Encoded | None) -> Vectors:
        """Put the caller's rows and the encoder's together; rows that neither has stay zeros."""
        rows, unusable = encoded or given or Encoded(*unit_rows([], count=0, width=len(question)))
        if given is not None and encoded is not given:
            rows = rows + given.rows
            unusable = sorted(set(unusable) & set(given.unusable))
        self._health.unusable(len(unusable))
        return Vectors(self._encoders.fingerprint(len(question)), question, rows, unusable)

    def _without(self, request: Request, error: Exception) -> Outcome:
        if isinstance(error, DimensionMismatchError) and request.query_vector is not None:
            raise error  # the caller's own vector does not fit, and the caller can mend it
        return None, self._health.without("encoder", error)


def _given_question(request: Request) -> Vector | None:
    if request.query_vector is None:
        return None
    question = unit_vector(request.query_vector, name="query_vector")
    width = None if request.vectors is None else width_of(request.vectors)
    if width is not None and width != len(question) and _one_width(request.vectors):
        raise DimensionMismatchError("query_vector", got=len(question), expected=width)
    return question


def _given_rows(request: Request, width: int) -> tuple[Encoded | None, list[int] | None]:
    """Return the caller's rows and the positions that the encoder must still fill (None: all of them)."""
    if request.vectors is None:
        return None, None
    given = Encoded(*unit_rows(request.vectors, count=len(request.texts), width=width))
    return given, [position for position in given.unusable if request.vectors[position] is None]


def _one_width(vectors: Any) -> bool:
    return len({len(row) for row in vectors if row is not None}) == 1
