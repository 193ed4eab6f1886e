"""The vectors of one scope and encoder, and the nearest of them: an exact product, behind an index if there is one."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from neuralcache_plugins.contracts import Array, CachedQuestion, Matrix, Vector
from neuralcache_plugins.semantic_cache.approximate import Approximate

LOOKED_PAST = 512
"""Of what is near and may not be served so many are looked past."""

_SPARE = 4
"""So many times more are asked of the index than are wanted: it errs, and some may not be served."""

_MORE = 4
"""So many more than are wanted are looked at first: mostly all that is near may be served."""

_NO_VECTOR = np.zeros(0, np.float16)

Places = npt.NDArray[np.int64]
Usable = Callable[[CachedQuestion], bool]


class Near(NamedTuple):
    """A cached question and its cosine to the one asked."""

    cached: CachedQuestion
    similarity: float


@dataclass(slots=True, eq=False)
class Shelf:
    """Rows in the order in which they came, when each was made and ends; there is room for more than there are.

    What went keeps its row, ended and empty, until half of the rows are such; then ``generation`` rises, because places
    change.
    """

    cached: list[CachedQuestion] = field(default_factory=list)
    rows: Matrix = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    times: Array = field(default_factory=lambda: np.zeros((0, 2)))
    places: dict[str, int] = field(default_factory=dict)
    gone: int = 0
    generation: int = 0
    index: Approximate | None = None

    def __len__(self) -> int:
        return len(self.cached)

    @property
    def unindexed(self) -> int:
        """How many rows no index knows."""
        return len(self) - (0 if self.index is None else self.index.size)

    def add(self, cached: CachedQuestion) -> None:
        """Take one more in."""
        count = len(self)
        if count == len(self.rows):
            room = max(16, 2 * count)
            rows, times = np.zeros((room, len(cached.vector)), np.float32), np.zeros((room, 2))
            if count:
                rows[:count], times[:count] = self.rows[:count], self.times[:count]
            self.rows, self.times = rows, times
        self.rows[count] = cached.vector
        self.times[count] = cached.created_at, math.inf if cached.expires_at is None else cached.expires_at
        self.places[cached.entry_id] = count
        self.cached.append(cached)

    def drop(self, gone: Collection[str]) -> None:
        """Leave these out from now on. O(gone), and now and then O(n d)."""
        for name in gone:
            place = self.places.pop(name, None)
            if place is not None:
                self.times[place] = -math.inf
                self.cached[place] = replace(self.cached[place], question="", documents=(), vector=_NO_VECTOR)
                self.rows[place] = 0.0
                self.gone += 1
        if 2 * self.gone > len(self):
            self._compact()

    def nearest(self, vector: Vector, count: int, made_after: float, now: float, usable: Usable | None) -> list[Near]:
        """Return the nearest that are alive and usable, nearest first; of equally near ones the oldest first."""
        if not len(self):
            return []
        if self.index is not None:
            found = self._behind_index(self.index, vector, count, made_after, now, usable)
            if len(found) >= count:
                return found
        # also where the index found too few, because most of what it knows has ended
        return self._best(self.rows[:len(self)] @ vector, None, count, made_after, now, usable)

    def _behind_index(self, index: Approximate, vector: Vector, count: int, made_after: float, now: float,
                      usable: Usable | None) -> list[Near]:
        found = index.search(vector, _SPARE * count)
        similarity = self.rows[found] @ vector
        if index.size < len(self):
            # rows behind the index lie side by side: no copy is made of them
            similarity = np.concatenate([similarity, self.rows[index.size:len(self)] @ vector])
            found = np.concatenate([found, np.arange(index.size, len(self))])
        return self._best(similarity, found, count, made_after, now, usable)

    def _best(self, similarity: Vector, places: Places | None, count: int, made_after: float, now: float,
              usable: Usable | None) -> list[Near]:
        """Return the nearest that may be served, of those at ``places``; None: of all, in the order of the rows."""
        found = self._best_of(similarity, places, count + _MORE, count, usable, made_after, now)
        if len(found) >= count or len(similarity) <= count + _MORE:
            return found
        # much of what is near has ended: leave that out first, so that it does not count as looked past
        times = self.times[:len(self)] if places is None else self.times[places]
        alive = np.flatnonzero((times[:, 0] > made_after) & (times[:, 1] > now))
        similarity, places = similarity[alive], alive if places is None else places[alive]
        reach = count
        while True:
            found = self._best_of(similarity, places, reach, count, usable, made_after, now)
            if len(found) >= count or len(places) <= reach or reach >= LOOKED_PAST:
                return found
            reach *= 8

    def _best_of(self, similarity: Vector, places: Places | None, reach: int, count: int, usable: Usable | None,
                 made_after: float, now: float) -> list[Near]:
        """Return up to ``count`` that may be served among the nearest ``reach``, nearest first."""
        top = _largest(similarity, reach)
        rows = top if places is None else places[top]
        near = sorted(zip((-similarity[top]).tolist(), rows.tolist(), strict=True))[:reach]
        found: list[Near] = []
        for less, at in near:
            created, ends = self.times[at].tolist()
            if created > made_after and ends > now and (usable is None or usable(self.cached[at])):
                found.append(Near(self.cached[at], -less))
                if len(found) == count:
                    break
        return found

    def _compact(self) -> None:
        kept = [at for at in range(len(self)) if self.cached[at].entry_id in self.places
                and self.places[self.cached[at].entry_id] == at]
        self.rows, self.times = self.rows[kept], self.times[kept]
        self.cached = [self.cached[at] for at in kept]
        self.places = {cached.entry_id: at for at, cached in enumerate(self.cached)}
        self.gone, self.index, self.generation = 0, None, self.generation + 1


def _largest(values: Vector, count: int) -> Places:
    """Return the places of the largest ``count`` values, and of all that equal the last of them. O(n)."""
    if len(values) <= count:
        return np.arange(len(values))
    least = np.partition(values, len(values) - count)[len(values) - count]
    return np.flatnonzero(values >= least)
