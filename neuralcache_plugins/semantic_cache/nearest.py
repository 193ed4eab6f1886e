"""The nearest cached questions of a scope: an exact matrix product over vectors that are caught up with the store.

Beyond a number of entries an approximate index goes before it, where the extra ``usearch`` is installed; it is built
beside the callers, who have the exact product until it is there. Either is a hint: whatever is found is read from the
store before it is served, so an entry that went does no harm.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Collection
from typing import Literal

from neuralcache_plugins.contracts import AnswerStore, CachedQuestion, Removal, Vector
from neuralcache_plugins.semantic_cache import approximate
from neuralcache_plugins.semantic_cache.approximate import Approximate, Builder
from neuralcache_plugins.semantic_cache.shelf import Near, Shelf

__all__ = ["NEIGHBOURS", "Near", "NearestQuestions"]

_LOG = logging.getLogger(__name__)

NEIGHBOURS = 8
"""How many of the nearest are looked at."""

_BATCH = 5_000
_FEW = 500


class NearestQuestions:
    """The questions of one namespace by scope and encoder. About 4 d bytes for each, 2 d more in an index.

    ``index`` says whether there is one from ``ann_threshold`` entries of a scope on: "exact" never; "usearch" always,
    ``MissingExtraError`` without it; "auto" where it is installed.
    """

    def __init__(self, store: AnswerStore, namespace: str, *, most: int,
                 index: Literal["auto", "exact", "usearch"] = "exact", ann_threshold: int = 20_000) -> None:
        if index == "usearch":
            approximate.check_installed()
        self._store = store
        self._namespace = namespace
        self._most = most
        self._indexes = index != "exact"
        self._ann_threshold = ann_threshold
        self._lock = threading.Lock()
        self._builder = Builder()
        self._begin()

    def catch_up(self, mark: int | None = None) -> list[CachedQuestion]:
        """Take in what was stored since the last time, and return it, oldest first.

        ``mark`` is the store's of just now; None: it is looked at.
        """
        with self._lock:
            taken = self._catch_up(self._store.answers_mark() if mark is None else mark)
            self._build()
            return taken

    def find(self, vector: Vector, *, scope: str, encoder: str, count: int = NEIGHBOURS, made_after: float = -math.inf,
             now: float = -math.inf, usable: Callable[[CachedQuestion], bool] | None = None) -> list[Near]:
        """Return the nearest questions taken in, nearest first. O(entries of the scope * d); about O(log entries)
        behind an index.

        Only those that were made after ``made_after``, have not expired by ``now`` and are ``usable``: others would
        crowd out what may be served. Of what is not usable the nearest 512 are looked past.
        """
        with self._lock:
            shelf = self._shelves.get((scope, encoder))
            return [] if shelf is None else shelf.nearest(vector, count, made_after, now, usable)

    def forget(self, gone: Collection[str]) -> None:
        """Leave out entries that the store no longer has, and keep nothing of them but what an index holds."""
        if not gone:
            return
        with self._lock:
            for shelf in self._shelves.values():
                shelf.drop(gone)

    @property
    def last(self) -> int:
        """The number of the newest entry taken in."""
        return self._last

    def concerned(self, what: Removal, *, until: int) -> set[str]:
        """Return the ids of entries that were removed, of those up to the number ``until``. O(entries)."""
        with self._lock:
            return {one.entry_id for shelf in self._shelves.values() for one in shelf.cached
                    if one.number <= until and what.fits(one)}

    def restart(self) -> None:
        """Begin anew: everything is read again."""
        with self._lock:
            self._begin()

    def restart_after_fork(self) -> None:
        """Begin anew in a forked child."""
        self._lock = threading.Lock()
        self._builder = Builder()
        self._begin()

    def wait(self, seconds: float) -> None:
        """Wait for an index that is being built."""
        self._builder.wait(seconds)

    def close(self) -> None:
        """Give up an index that is being built."""
        self._builder.stop()

    def _begin(self) -> None:
        self._mark = -1
        self._last = 0
        self._rows = 0
        self._shelves: dict[tuple[str, str], Shelf] = {}

    def _catch_up(self, mark: int) -> list[CachedQuestion]:
        if mark == self._mark:
            return []
        if self._rows > 2 * self._most:
            self._last, self._rows, self._shelves = 0, 0, {}  # mostly entries that went
        taken: list[CachedQuestion] = []
        while found := self._store.read_questions(self._namespace, after=self._last, limit=_BATCH):
            for cached in found:
                self._shelves.setdefault((cached.scope, cached.encoder), Shelf()).add(cached)
            self._last = found[-1].number
            self._rows += len(found)
            taken += found
        self._mark = mark
        return taken

    def _build(self) -> None:
        """Begin an index for a shelf that has grown beyond the one it has. The lock is held."""
        if not self._indexes or self._builder.busy:
            return
        for shelf in self._shelves.values():
            if len(shelf) >= self._ann_threshold and shelf.unindexed > max(_FEW, len(shelf) // 200):
                if not approximate.is_installed():
                    self._indexes = False
                    _LOG.warning("%d answers of one scope are searched one by one; quicker with: "
                                 "pip install 'neuralcache-plugins[usearch]'", len(shelf))
                    return
                self._begin_index(shelf)
                return

    def _begin_index(self, shelf: Shelf) -> None:
        generation = shelf.generation

        def done(built: Approximate) -> None:
            with self._lock:
                if shelf.generation == generation:
                    shelf.index = built

        # rows of entries that are there are never written twice: they stay as they are while more are added behind them
        self._builder.build(shelf.rows[:len(shelf)], shelf.index, done)
