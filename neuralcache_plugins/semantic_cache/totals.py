"""What the log of a store holds of one namespace, counted once and then kept up with."""

from __future__ import annotations

import threading

from neuralcache_plugins.contracts import AnswerStore, AnswerTotals, TelemetryStore


class Totals:
    """Counts over all processes. The first look reads every event of the namespace, later ones what is new."""

    def __init__(self, store: AnswerStore, log: TelemetryStore, namespace: str) -> None:
        self._store = store
        self._log = log
        self._namespace = namespace
        self._lock = threading.Lock()
        self._epoch: int | None = None
        self._known = AnswerTotals()

    def read(self) -> AnswerTotals:
        """Return the counts up to now, all anew after an erasure; ``StoreError`` passes through."""
        with self._lock:
            epoch = self._log.head().epoch
            if epoch != self._epoch:
                self._epoch, self._known = epoch, AnswerTotals()
            self._known += self._store.answer_totals(self._namespace, after=self._known.position)
            return self._known

    def restart_after_fork(self) -> None:
        """Take a new lock in a forked child."""
        self._lock = threading.Lock()
