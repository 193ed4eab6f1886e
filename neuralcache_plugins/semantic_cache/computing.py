"""One computation for all who ask the same: flights inside the process, leases across processes."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from neuralcache_plugins.semantic_cache import values
from neuralcache_plugins.semantic_cache.counts import Counts
from neuralcache_plugins.semantic_cache.flights import Flight, Flights, Outcome, leading, would_deadlock
from neuralcache_plugins.semantic_cache.keys import Asked, Keys
from neuralcache_plugins.semantic_cache.leases import Leases, apause, pause, waits
from neuralcache_plugins.semantic_cache.looking import Look, LookStage
from neuralcache_plugins.semantic_cache.threads import Threads

Compute: TypeAlias = Callable[[], Any]
AnyCompute: TypeAlias = Callable[[], Any | Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Kept:
    """A computed answer: for who computed it, and for those who waited (who must look again if it came too late)."""

    mine: Outcome
    theirs: Outcome


Keep: TypeAlias = Callable[[Look, Any, float], Kept]
"""Takes the look from before the computation, the answer, and how many seconds it took; puts it into the cache."""


class ComputeStage:
    """Computes answers that nobody has, each once."""

    def __init__(self, keys: Keys, looks: LookStage, leases: Leases, counts: Counts, threads: Threads,
                 clock: Callable[[], float]) -> None:
        self._keys = keys
        self._looks = looks
        self._leases = leases
        self._counts = counts
        self._threads = threads
        self._clock = clock
        self._flights = Flights()

    def is_under_way(self, asked: Asked) -> bool:
        """Return whether this process is computing the answer."""
        return self._flights.is_aloft(self._keys.flight(asked))

    def run(self, asked: Asked, compute: Compute, keep: Keep) -> Outcome:
        """Compute, or wait for who computes it already. A failure is everybody's; nothing is kept of it."""
        name = self._keys.flight(asked)
        flight, leads = (None, False) if would_deadlock(name) else self._flights.join(name)
        if flight is None or (not leads and would_deadlock(name, flight)):
            return self._compute(asked, compute, keep).mine
        if not leads:
            self._counts.add("shared")
            return flight.outcome.result()
        return self._lead(name, flight, asked, compute, keep)

    async def arun(self, asked: Asked, compute: AnyCompute, keep: Keep) -> Outcome:
        """Do what ``run`` does; coroutines are awaited, plain functions run in a thread."""
        name = self._keys.flight(asked)
        if would_deadlock(name):
            return (await self._acompute(asked, compute, keep)).mine
        flight, leads = self._flights.join(name)
        if not leads:
            self._counts.add("shared")
            # shielded: who gives up waiting must not take the flight from the others
            return await asyncio.shield(asyncio.wrap_future(flight.outcome))
        return await self._alead(name, flight, asked, compute, keep)

    async def awaited(self, compute: AnyCompute) -> Any:
        """Return what a function or coroutine function computes, without blocking the event loop."""
        value = compute() if inspect.iscoroutinefunction(compute) else await self._threads.slowly(compute)
        return await value if inspect.isawaitable(value) else value

    def restart_after_fork(self) -> None:
        """Forget what the parent is computing."""
        self._flights.restart_after_fork()

    def _lead(self, name: str, flight: Flight, asked: Asked, compute: Compute, keep: Keep) -> Outcome:
        theirs = Outcome()
        try:
            with leading(name):
                kept = self._compute_leased(name, asked, compute, keep)
            theirs = kept.theirs
            return kept.mine
        except Exception as error:
            theirs = Outcome(error=error)
            raise
        finally:
            self._flights.land(name, flight, theirs)

    async def _alead(self, name: str, flight: Flight, asked: Asked, compute: AnyCompute, keep: Keep) -> Outcome:
        theirs = Outcome()
        try:
            with leading(name):
                kept = await self._acompute_leased(name, asked, compute, keep)
            theirs = kept.theirs
            return kept.mine
        except Exception as error:
            theirs = Outcome(error=error)
            raise
        finally:
            self._flights.land(name, flight, theirs)

    def _compute_leased(self, name: str, asked: Asked, compute: Compute, keep: Keep) -> Kept:
        owner, waiting = self._leases.owner(), waits()
        while held := self._leases.acquire(name, owner):
            while True:
                pause(next(waiting))
                if (found := self._elsewhere(asked)) is not None:
                    return found
                if self._leases.is_over(name, held):
                    break
        try:
            kept = self._elsewhere(asked) or self._compute(asked, compute, keep)
        except BaseException as error:
            self._leases.release(name, owner, error)
            raise
        self._leases.release(name, owner)
        return kept

    async def _acompute_leased(self, name: str, asked: Asked, compute: AnyCompute, keep: Keep) -> Kept:
        owner, waiting = self._leases.owner(), waits()
        try:
            while held := await self._threads.quickly(self._leases.acquire, name, owner):
                while True:
                    await apause(next(waiting))
                    if (found := await self._threads.quickly(self._elsewhere, asked)) is not None:
                        return found
                    if await self._threads.quickly(self._leases.is_over, name, held):
                        break
            found = await self._threads.quickly(self._elsewhere, asked)
            kept = found or await self._acompute(asked, compute, keep)
        except BaseException as error:
            # in this thread: who is cancelled awaits nothing any more, and must not leave the lease behind
            self._leases.release(name, owner, error)
            raise
        await self._threads.quickly(self._leases.release, name, owner)
        return kept

    def _elsewhere(self, asked: Asked) -> Kept | None:
        """Return what somebody else has put meanwhile."""
        answer = self._look(asked).answer
        if answer is None:
            return None
        self._counts.add("shared")
        outcome = Outcome((answer.kind, answer.payload))
        return Kept(outcome, outcome)

    def _compute(self, asked: Asked, compute: Compute, keep: Keep) -> Kept:
        look, started = self._look(asked), time.perf_counter()
        try:
            value = compute()
        except Exception:
            self._counts.add("failed")
            raise
        self._counts.add("computed")
        return keep(look, value, time.perf_counter() - started)

    async def _acompute(self, asked: Asked, compute: AnyCompute, keep: Keep) -> Kept:
        look, started = await self._threads.quickly(self._look, asked), time.perf_counter()
        try:
            value = await self.awaited(compute)
        except Exception:
            self._counts.add("failed")
            raise
        self._counts.add("computed")
        return await self._threads.quickly(keep, look, value, time.perf_counter() - started)

    def _look(self, asked: Asked) -> Look:
        return self._looks.exactly([asked], now=self._clock())[0]


def outcome_of(value: Any) -> Outcome:
    """Return a computed answer as those who wait get it; ``InvalidInputError`` for what cannot be cached."""
    return Outcome(values.encode(value))
