"""Single flight across processes that share a store: one holds the lease and computes, the others wait and look."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from itertools import count

from neuralcache_plugins.contracts import AnswerStore, Lease
from neuralcache_plugins.errors import ComputationError, StoreError
from neuralcache_plugins.semantic_cache.counts import Counts

_FIRST_WAIT_SECONDS = 0.005
_LONGEST_WAIT_SECONDS = 0.1


class Leases:
    """Leases of one cache object. A store in trouble leaves everybody to compute for himself."""

    def __init__(self, store: AnswerStore, counts: Counts, clock: Callable[[], float], *, seconds: float) -> None:
        self._store = store
        self._counts = counts
        self._clock = clock
        self._seconds = seconds
        self._number = count()
        self._own = os.urandom(8).hex()

    def owner(self) -> str:
        """Return a name that no other computation has, in any process."""
        return f"{self._own}-{os.getpid()}-{next(self._number)}"

    def acquire(self, name: str, owner: str) -> Lease | None:
        """Return None if the caller may compute, else the lease of whoever does."""
        try:
            lease = self._store.acquire_lease(name, owner, now=self._clock(), seconds=self._seconds)
        except StoreError as error:
            self._counts.without("store", error)
            return None
        return None if lease.owner == owner else lease

    def is_over(self, name: str, held: Lease) -> bool:
        """Return whether whoever held the lease has finished; ``ComputationError`` if that was a failure."""
        try:
            lease = self._store.lease(name)
        except StoreError as error:
            self._counts.without("store", error)
            return True
        if lease is not None and lease.owner == held.owner and lease.failure is not None:
            raise ComputationError(f"another process failed to compute this answer: {lease.failure}")
        return lease is None or lease.owner != held.owner or lease.expires_at <= self._clock()

    def release(self, name: str, owner: str, error: BaseException | None = None) -> None:
        """Give the lease up, if it is the owner's; those who wait in other processes learn the type of the error."""
        # the type alone: messages may quote the question; who was cancelled did not fail, others may try
        failure = type(error).__name__ if isinstance(error, Exception) else None
        try:
            self._store.release_lease(name, owner, failure=failure, now=self._clock())
        except StoreError as error:
            self._counts.without("store", error)  # it expires by itself


def waits() -> Iterator[float]:
    """Yield ever longer waits, in seconds."""
    wait = _FIRST_WAIT_SECONDS
    while True:
        yield wait
        wait = min(1.5 * wait, _LONGEST_WAIT_SECONDS)


def pause(seconds: float) -> None:
    """Wait in this thread."""
    time.sleep(seconds)


async def apause(seconds: float) -> None:
    """Wait in this coroutine."""
    await asyncio.sleep(seconds)
