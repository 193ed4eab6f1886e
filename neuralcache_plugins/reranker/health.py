"""What a reranker had to do without: counted always, logged once."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping

logger = logging.getLogger(__name__)


class Health:
    """Counts of degraded rankings by what was missing, and of unusable vectors."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._degraded: Counter[str] = Counter()
        self._unusable = 0

    @property
    def degraded(self) -> Mapping[str, int]:
        """Rankings by what they had to do without."""
        return dict(self._degraded)

    @property
    def unusable_vectors(self) -> int:
        """Documents whose vector could not be used."""
        return self._unusable

    def restart_after_fork(self) -> None:
        """Take a new lock in a forked child: another thread of the parent may have held the old one."""
        self._lock = threading.Lock()

    def without(self, what: str, error: Exception | None = None) -> tuple[str, ...]:
        """Count one ranking without ``what`` and return it as ``Ranking.degraded`` wants it."""
        with self._lock:
            self._degraded[what] += 1
            first = self._degraded[what] == 1
        if first:
            logger.warning("ranking goes on without the %s until it recovers (logged once): %s", what, error)
        return (what,)

    def unusable(self, number: int) -> None:
        """Count documents without a usable vector."""
        if not number:
            return
        with self._lock:
            first = self._unusable == 0
            self._unusable += number
        if first:
            logger.warning(
                "%d documents have no usable vector and are ranked by their other signals (logged once)", number
            )
