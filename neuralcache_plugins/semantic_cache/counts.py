"""Counts of one cache object, and what it had to do without: counted always, logged once."""

from __future__ import annotations

import logging
import threading
from collections import Counter

_LOG = logging.getLogger(__name__)


class Counts:
    """Thread-safe counters by name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: Counter[str] = Counter()
        self._misses: Counter[str] = Counter()
        self._degraded: Counter[str] = Counter()
        self.seconds_saved = 0.0
        self.cost_saved = 0.0

    def add(self, name: str, number: int = 1) -> None:
        """Count one more, or so many."""
        with self._lock:
            self._numbers[name] += number

    def hit(self, kind: str, *, seconds: float, cost: float) -> None:
        """Count a hit and what it saved."""
        with self._lock:
            self._numbers[kind] += 1
            self.seconds_saved += seconds
            self.cost_saved += cost

    def miss(self, reason: str) -> None:
        """Count a miss."""
        with self._lock:
            self._misses[reason] += 1

    def without(self, what: str, error: Exception) -> None:
        """Count something done without ``what``."""
        with self._lock:
            self._degraded[what] += 1
            first = self._degraded[what] == 1
        if first:
            _LOG.warning("the cache goes on without the %s until it recovers (logged once): %s", what, error)

    def number(self, name: str) -> int:
        """Return one count."""
        with self._lock:
            return self._numbers[name]

    def misses(self) -> dict[str, int]:
        """Return misses by reason."""
        with self._lock:
            return dict(self._misses)

    def degraded(self) -> dict[str, int]:
        """Return what had to be done without."""
        with self._lock:
            return dict(self._degraded)

    def restart_after_fork(self) -> None:
        """Take a new lock in a forked child."""
        self._lock = threading.Lock()
