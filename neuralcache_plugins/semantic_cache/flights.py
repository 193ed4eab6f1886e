"""Single flight inside one process: who asks what is being computed waits for it, threads and coroutines alike."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from neuralcache_plugins.semantic_cache import values
from neuralcache_plugins.semantic_cache.values import Payload

_LEADING: ContextVar[frozenset[str]] = ContextVar("neuralcache_leading", default=frozenset())


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a computation ended: a payload, or an error; neither means that those who waited must look again."""

    payload: Payload | None = None
    error: Exception | None = None

    @property
    def again(self) -> bool:
        """Whether there is nothing to share."""
        return self.payload is None and self.error is None

    def value(self) -> Any:
        """Return a copy of the answer, or raise the error."""
        if self.error is not None:
            raise self.error
        assert self.payload is not None
        return values.decode(self.payload)


@dataclass(slots=True, eq=False)
class Flight:
    """One computation under way. ``loop`` is the event loop that it runs on, if it is a coroutine."""

    loop: asyncio.AbstractEventLoop | None
    outcome: Future[Outcome] = field(default_factory=Future)


class Flights:
    """The computations of one cache that are under way, by name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._aloft: dict[str, Flight] = {}

    def join(self, name: str) -> tuple[Flight, bool]:
        """Return the flight of this name, and whether the caller leads it and must land it."""
        with self._lock:
            flight = self._aloft.get(name)
            if flight is not None:
                return flight, False
            flight = self._aloft[name] = Flight(running_loop())
            return flight, True

    def land(self, name: str, flight: Flight, outcome: Outcome) -> None:
        """Tell all who wait."""
        with self._lock:
            if self._aloft.get(name) is flight:
                del self._aloft[name]
        if not flight.outcome.done():
            flight.outcome.set_result(outcome)

    def is_aloft(self, name: str) -> bool:
        """Return whether somebody leads a flight of this name."""
        with self._lock:
            return name in self._aloft

    def restart_after_fork(self) -> None:
        """Forget the parent's flights: nobody in this process will land them."""
        self._lock = threading.Lock()
        self._aloft = {}


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that this thread is running, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def would_deadlock(name: str, flight: Flight | None = None) -> bool:
    """Return whether waiting would be for oneself: inside the very computation, or blocking the loop that it needs."""
    if flight is None:
        return name in _LEADING.get()
    return flight.loop is not None and flight.loop is running_loop()


@contextmanager
def leading(name: str) -> Iterator[None]:
    """Mark what runs inside as the computation of this name."""
    token = _LEADING.set(_LEADING.get() | {name})
    try:
        yield
    finally:
        _LEADING.reset(token)
