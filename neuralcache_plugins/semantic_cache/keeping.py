"""Answers on their way into the cache: how long they live, and what they are bound to."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from neuralcache_plugins.contracts import AnswerBounds, CachedAnswer
from neuralcache_plugins.errors import EncoderError, InvalidInputError, MissingExtraError
from neuralcache_plugins.semantic_cache import values
from neuralcache_plugins.semantic_cache.calibrating import Prepared
from neuralcache_plugins.semantic_cache.counts import Counts
from neuralcache_plugins.semantic_cache.exact import ExactTier
from neuralcache_plugins.semantic_cache.keys import Asked
from neuralcache_plugins.semantic_cache.records import Line
from neuralcache_plugins.semantic_cache.semantic import SemanticTier
from neuralcache_plugins.semantic_cache.values import Payload
from neuralcache_plugins.settings import CacheSettings

_BULK = 500


class KeepStage:
    """Puts answers into the cache."""

    def __init__(self, namespace: str, exact: ExactTier, semantic: SemanticTier, counts: Counts,
                 settings: CacheSettings, clock: Callable[[], float]) -> None:
        self._namespace = namespace
        self._exact = exact
        self._semantic = semantic
        self._counts = counts
        self._settings = settings
        self._clock = clock

    def put(self, asked: Asked, answer: Any, *, mark: int | None, ttl: float | timedelta | None,
            cost: float | None, seconds: float) -> tuple[str | None, bool]:
        """Return the entry's id if the answer is kept, and whether it came too late."""
        now, lifetime, payload = self._clock(), self._lifetime(answer, ttl), values.encode(answer)
        if lifetime == 0:
            return None, False
        encoder, vector = self._vector(asked.question)
        entry = self._entry(asked, payload, entry_id=os.urandom(16).hex(), now=now, lifetime=lifetime, encoder=encoder,
                            vector=vector, cost=cost, seconds=seconds)
        kept = self._exact.put(entry, bounds=self._bounds(now), mark=mark)
        self._counts.add("stored" if kept else "refused")
        return (entry.entry_id, False) if kept else (None, entry.size <= self._settings.max_bytes)

    def put_all(self, lines: Sequence[Line], prepared: Prepared, ttl: float | timedelta | None) -> int:
        """Put the latest answer to each question of a log, and return how many were kept."""
        now = self._clock()
        places = {line.asked.key: place for place, line in enumerate(prepared.lines)}
        entries = []
        for key, line in {line.asked.key: line for line in lines}.items():
            lifetime, place = self._lifetime(line.answer, ttl), places.get(key)
            if lifetime == 0 or place is None:
                continue
            entries.append(self._entry(
                line.asked, line.payload, entry_id=prepared.entries[place], now=now, lifetime=lifetime,
                encoder=prepared.encoder, vector=prepared.vectors[place].astype(np.float16), cost=None, seconds=0.0))
        kept = sum(self._exact.put_all(entries[start:start + _BULK], bounds=self._bounds(now))
                   for start in range(0, len(entries), _BULK))
        self._counts.add("stored", kept)
        self._counts.add("refused", len(entries) - kept)
        return kept

    def _entry(self, asked: Asked, payload: Payload, *, entry_id: str, now: float, lifetime: float | None, encoder: str,
               vector: npt.NDArray[np.float16] | None, cost: float | None, seconds: float) -> CachedAnswer:
        return CachedAnswer(
            entry_id=entry_id, namespace=self._namespace, scope=asked.scope, question_key=asked.key[1],
            question=asked.question, kind=payload[0], payload=payload[1], created_at=now,
            expires_at=None if lifetime is None else now + lifetime, documents=asked.documents, encoder=encoder,
            vector=vector, cost=self._settings.cost_per_answer if cost is None else cost, seconds=seconds,
        )

    def _bounds(self, now: float) -> AnswerBounds:
        return AnswerBounds(self._settings.max_entries, self._settings.max_bytes,
                            expired_before=now - self._settings.stale_seconds)

    def _lifetime(self, answer: Any, ttl: float | timedelta | None) -> float | None:
        if ttl is not None:
            return checked_ttl(ttl)
        return self._settings.negative_ttl_seconds if values.is_nothing(answer) else self._settings.ttl_seconds

    def _vector(self, question: str) -> tuple[str, npt.NDArray[np.float16] | None]:
        try:
            encoder, row = self._semantic.vector(question)
        except (EncoderError, MissingExtraError) as error:
            self._counts.without("encoder", error)
            return "", None
        return encoder, None if row is None else row.astype(np.float16)


def checked_ttl(ttl: float | timedelta) -> float:
    """Return a time to live in seconds; ``InvalidInputError`` if it is none."""
    try:
        seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else float(ttl)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"ttl must be seconds or a timedelta, got {ttl!r}") from error
    if not seconds > 0:
        raise InvalidInputError(f"ttl must be above 0 seconds, got {seconds}")
    return seconds
