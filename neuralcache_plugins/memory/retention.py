"""Erasing by age, now and then."""

from __future__ import annotations

import threading

from neuralcache_plugins.contracts import Erasure

SHORTEST_PAUSE_SECONDS = 60.0
LONGEST_PAUSE_SECONDS = 86_400.0


class Retention:
    """Says when events have grown too old. Rare, because an erasure makes every process fold the log anew."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._next_at = float("-inf")

    def restart_after_fork(self) -> None:
        """Take a new lock in a forked child: another thread of the parent may have held the old one."""
        self._lock = threading.Lock()

    def due(self, now: float) -> Erasure | None:
        """Return what to erase at ``now``, or None; at most once in a tenth of the retention or a day."""
        if self._seconds is None:
            return None
        with self._lock:
            if now < self._next_at:
                return None
            self._next_at = now + min(LONGEST_PAUSE_SECONDS, max(SHORTEST_PAUSE_SECONDS, self._seconds / 10))
        return Erasure(older_than=now - self._seconds)
