"""An approximate index over rows of unit vectors, by usearch (extra ``usearch``), and who builds it beside the callers.

An index is never changed while it is searched: a larger one is made from a copy, in a thread, and takes its place.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from neuralcache_plugins.contracts import Matrix, Vector
from neuralcache_plugins.errors import MissingExtraError

Places = npt.NDArray[np.int64]

_LOG = logging.getLogger(__name__)

_BATCH = 1_000

_EXPANSION = 96
"""How widely the graph is searched: usearch's own 64 finds fewer. More neighbours than its 16 for each row, 24, find
hardly more, and a search then reads half as much again of what is in no processor cache."""


def is_installed() -> bool:
    """Return whether usearch can be imported."""
    return importlib.util.find_spec("usearch") is not None


def check_installed() -> None:
    """Raise ``MissingExtraError`` unless usearch can be imported."""
    if not is_installed():
        raise MissingExtraError("usearch", extra="usearch")


class Approximate:
    """Finds the nearest of the first ``size`` rows. Vectors are kept as int8, so what is found has to be rescored."""

    def __init__(self, index: Any, size: int) -> None:
        self._index = index
        self.size = size

    @classmethod
    def over(cls, rows: Matrix, *, before: Approximate | None, stopped: Callable[[], bool]) -> Approximate | None:
        """Return an index over rows (n, d), going on from one over the first of them; None if it was stopped.

        About 0.2 to 0.8 ms a row.
        """
        from usearch.index import Index

        if before is None:
            before = cls(Index(ndim=rows.shape[1], metric="ip", dtype="i8", expansion_search=_EXPANSION), 0)
        index = before._index.copy()
        for start in range(before.size, len(rows), _BATCH):
            if stopped():
                return None
            batch = rows[start:start + _BATCH]
            index.add(np.arange(start, start + len(batch), dtype=np.uint64), batch, threads=1)
        return cls(index, len(rows))

    def search(self, vector: Vector, count: int) -> Places:
        """Return the places of about the nearest ``count`` rows, in no promised order."""
        found = self._index.search(vector, min(count, self.size), threads=1)
        places: Places = found.keys.astype(np.int64)
        return places


class Builder:
    """One thread that builds one index at a time."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Whether an index is being built."""
        return self._thread is not None and self._thread.is_alive()

    def build(self, rows: Matrix, before: Approximate | None, done: Callable[[Approximate], None]) -> None:
        """Build in the background and hand the index to ``done``; nothing if the builder is busy or stopped."""
        if self.busy or self._stopped.is_set():
            return

        def work() -> None:
            try:
                built = Approximate.over(rows, before=before, stopped=self._stopped.is_set)
            except Exception:  # noqa: BLE001  # a library in C++, out of memory, say: the exact product needs none
                self._stopped.set()  # every look would begin it anew
                _LOG.exception("no index can be built, answers are searched one by one")
                return
            if built is not None:
                done(built)

        self._thread = threading.Thread(target=work, name="neuralcache-index", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._thread = None  # no more threads now: the next look tries again

    def wait(self, seconds: float) -> None:
        """Wait for the index that is being built."""
        if self._thread is not None:
            self._thread.join(seconds)

    def stop(self) -> None:
        """Give up what is being built."""
        self._stopped.set()
