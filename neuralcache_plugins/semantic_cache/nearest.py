"""The nearest cached questions of a scope: an exact matrix product over vectors that are caught up with the store.

The index is a hint. Whatever it finds is read from the store before it is served, so an entry that went does no harm.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from neuralcache_plugins.contracts import AnswerStore, Array, CachedQuestion, Matrix, Vector

NEIGHBOURS = 8
"""How many of the nearest are looked at."""

_BATCH = 5_000
_LOOKED_PAST = 512


@dataclass(frozen=True, slots=True)
class Near:
    """A cached question and its cosine to the one asked."""

    cached: CachedQuestion
    similarity: float


class NearestQuestions:
    """The questions of one namespace by scope and encoder. About 4 d bytes for each."""

    def __init__(self, store: AnswerStore, namespace: str, *, most: int) -> None:
        self._store = store
        self._namespace = namespace
        self._most = most
        self._lock = threading.Lock()
        self._begin()

    def catch_up(self) -> list[CachedQuestion]:
        """Take in what was stored since the last time, and return it, oldest first. One look at the mark."""
        with self._lock:
            return self._catch_up()

    def find(self, vector: Vector, *, scope: str, encoder: str, count: int = NEIGHBOURS, made_after: float = -math.inf,
             now: float = -math.inf, usable: Callable[[CachedQuestion], bool] | None = None) -> list[Near]:
        """Return the nearest questions taken in, nearest first. O(entries of the scope * d).

        Only those that were made after ``made_after``, have not expired by ``now`` and are ``usable``: others would
        crowd out what may be served. Of what is not usable the nearest 512 are looked past.
        """
        with self._lock:
            shelf = self._shelves.get((scope, encoder))
            return [] if shelf is None else shelf.nearest(vector, count, made_after, now, usable)

    def forget(self, gone: Collection[str]) -> None:
        """Leave out entries that the store no longer has."""
        if not gone:
            return
        with self._lock:
            for shelf in self._shelves.values():
                shelf.drop(gone)

    def restart(self) -> None:
        """Begin anew: everything is read again."""
        with self._lock:
            self._begin()

    def restart_after_fork(self) -> None:
        """Begin anew in a forked child."""
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._mark = -1
        self._last = 0
        self._rows = 0
        self._shelves: dict[tuple[str, str], _Shelf] = {}

    def _catch_up(self) -> list[CachedQuestion]:
        mark = self._store.answers_mark()
        if mark == self._mark:
            return []
        if self._rows > 2 * self._most:
            self._last, self._rows, self._shelves = 0, 0, {}  # mostly entries that went
        taken: list[CachedQuestion] = []
        while found := self._store.read_questions(self._namespace, after=self._last, limit=_BATCH):
            for cached in found:
                self._shelves.setdefault((cached.scope, cached.encoder), _Shelf()).add(cached)
            self._last = found[-1].number
            self._rows += len(found)
            taken += found
        self._mark = mark
        return taken


@dataclass(slots=True)
class _Shelf:
    """Rows of one scope and encoder, and when each was made and ends; there is room for more than there are."""

    cached: list[CachedQuestion] = field(default_factory=list)
    rows: Matrix = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    times: Array = field(default_factory=lambda: np.zeros((0, 2)))

    def add(self, cached: CachedQuestion) -> None:
        count = len(self.cached)
        if count == len(self.rows):
            room = max(16, 2 * count)
            rows, times = np.zeros((room, len(cached.vector)), np.float32), np.zeros((room, 2))
            if count:
                rows[:count], times[:count] = self.rows[:count], self.times[:count]
            self.rows, self.times = rows, times
        self.rows[count] = cached.vector
        self.times[count] = cached.created_at, math.inf if cached.expires_at is None else cached.expires_at
        self.cached.append(cached)

    def drop(self, gone: Collection[str]) -> None:
        kept = [at for at, cached in enumerate(self.cached) if cached.entry_id not in gone]
        if len(kept) < len(self.cached):
            self.rows, self.times, self.cached = self.rows[kept], self.times[kept], [self.cached[at] for at in kept]

    def nearest(self, vector: Vector, count: int, made_after: float, now: float,
                usable: Callable[[CachedQuestion], bool] | None) -> list[Near]:
        size, reach = len(self.cached), count
        times = self.times[:size]
        similarity = np.where((times[:, 0] > made_after) & (times[:, 1] > now), self.rows[:size] @ vector, -np.inf)
        while True:
            best: Sequence[int] = range(size) if size <= reach else np.argpartition(-similarity, reach)[:reach].tolist()
            ordered = sorted((at for at in best if similarity[at] > -np.inf), key=lambda at: -similarity[at])
            found = [at for at in ordered if usable is None or usable(self.cached[at])]
            if len(found) >= count or len(ordered) < reach or reach >= _LOOKED_PAST:
                return [Near(self.cached[at], float(similarity[at])) for at in found[:count]]
            reach *= 8
