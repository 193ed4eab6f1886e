"""What was shown lately: new ranking ids, and the vectors that feedback will ask for."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from itertools import count

import numpy as np

from neuralcache_plugins.contracts import HalfVector, Matrix, RankingServed, Vector

CAPACITY = 512
RANKS = 10


class RankingIds:
    """UUIDs of version 7 (RFC 9562): they sort by time, then by order within this process."""

    def __init__(self) -> None:
        self._tick = count()

    def new(self, now: float) -> str:
        """Return a new id for a ranking of the moment ``now``, in seconds since the epoch."""
        stamp = max(0, int(now * 1000)) & 0xFFFF_FFFF_FFFF
        head = (stamp << 16 | 0x7000 | next(self._tick) & 0xFFF).to_bytes(8).hex()
        tail = os.urandom(8).hex()
        return f"{head[:8]}-{head[8:12]}-{head[12:]}-a{tail[1:4]}-{tail[4:]}"


class ShownVectors:
    """The vectors of the top documents of recent rankings, so that feedback can tell what helped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: OrderedDict[str, Matrix] = OrderedDict()

    def keep(self, ranking_id: str, rows: Matrix) -> None:
        """Remember the rows (k, d) of a ranking."""
        with self._lock:
            self._rows[ranking_id] = rows
            if len(self._rows) > CAPACITY:
                self._rows.popitem(last=False)

    def helpful(self, served: RankingServed, given: Sequence[tuple[str, float]]) -> HalfVector | None:
        """Return the unit mean of the vectors that helped, weighted by reward; None where they are not known.

        In the precision of stores: feedback waits for this, and each rounding costs it two microseconds.
        """
        rows = self._rows.get(served.ranking_id)
        mean = None if rows is None else self._mean(rows, served, given)
        return None if mean is None else mean.astype(np.float16)

    def _mean(self, rows: Matrix, served: RankingServed, given: Sequence[tuple[str, float]]) -> Vector | None:
        if len(given) == 1:
            (name, reward), names = given[0], served.document_ids[: len(rows)]
            return rows[names.index(name)] if reward > 0 and name in names else None
        rewards = dict(given)
        weights = [max(0.0, rewards.get(name, 0.0)) for name in served.document_ids[: len(rows)]]
        mean: Vector = np.array(weights, dtype=np.float32) @ rows
        length = float(np.sqrt(mean.dot(mean)))
        return mean / np.float32(length) if length > 0 else None

    def restart_after_fork(self) -> None:
        """Take a new lock in a forked child: another thread of the parent may have held the old one."""
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Drop everything."""
        with self._lock:
            self._rows.clear()
