"""Work that must not keep an answer waiting: one thread, a bounded queue."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable

logger = logging.getLogger(__name__)

Job = Callable[[], object]

IDLE_SECONDS = 1.0
"""A thread without work ends after so long: some make a handler for every call, and close none."""


class Background:
    """Runs jobs one after the other in a thread of its own, which begins with a job and ends when none comes.

    Beyond ``capacity`` waiting jobs the newest is dropped: ``done``, ``failed`` and ``dropped`` count. What a job
    raises is logged. At the interpreter's exit, what waits is done.
    """

    def __init__(self, name: str, *, capacity: int) -> None:
        self._name = name
        self._capacity = capacity
        self._changed = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._thread: threading.Thread | None = None
        self._busy = False
        self._closed = False
        self.done = 0
        self.failed = 0
        self.dropped = 0
        _ALIVE.add(self)

    def submit(self, job: Job) -> bool:
        """Queue a job; returns whether there was room, and False after ``close``. Microseconds."""
        with self._changed:
            if self._closed:
                return False
            if len(self._jobs) >= self._capacity:
                self.dropped += 1
                if self.dropped == 1:
                    logger.warning("%s: more than %d jobs wait; further ones are dropped", self._name, self._capacity)
                return False
            self._jobs.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
            self._changed.notify_all()
            return True

    def flush(self, timeout_seconds: float | None = None) -> bool:
        """Wait until everything queued is done; returns whether it is."""
        if threading.current_thread() is self._thread:
            return False  # a job that waits for itself
        with self._changed:
            return self._changed.wait_for(lambda: not self._jobs and not self._busy, timeout_seconds)

    def close(self, timeout_seconds: float | None = None) -> bool:
        """Do what waits, then take no more; closing twice is fine."""
        finished = self.flush(timeout_seconds)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        return finished

    def restart_after_fork(self) -> None:
        """Begin anew in a forked child: the parent's thread does what it queued."""
        self._changed = threading.Condition()
        self._jobs.clear()
        self._thread = None
        self._busy = False

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._jobs or self._closed, IDLE_SECONDS)
                if not self._jobs:
                    self._thread = None
                    return
                job = self._jobs.popleft()
                self._busy = True
            try:
                job()
                self.done += 1
            except BaseException:  # foreign code: whatever it raises, an exit included, must not end the thread
                self.failed += 1
                logger.exception("%s: a job failed", self._name)


_ALIVE: weakref.WeakSet[Background] = weakref.WeakSet()
_PATIENCE_AT_EXIT_SECONDS = 10.0


def _finish() -> None:
    for background in list(_ALIVE):
        background.close(_PATIENCE_AT_EXIT_SECONDS)


def _restart_after_fork() -> None:
    for background in list(_ALIVE):
        background.restart_after_fork()


atexit.register(_finish)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restart_after_fork)
