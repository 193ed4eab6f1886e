"""Threads of the cache's own for what would block an event loop.

Not the loop's default executor: it may be full of callers that wait for the very computation that needs a thread.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

QUICK = 8
SLOW = 64


class Threads:
    """Two pools: quick ones for the store, slow ones for computations, which must not hold up the store."""

    def __init__(self) -> None:
        self._start()

    async def quickly(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Await something that never waits for another computation."""
        return await self._run("quick", QUICK, partial(function, *args, **kwargs))

    async def slowly(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Await something that may take long."""
        return await self._run("slow", SLOW, partial(function, *args, **kwargs))

    def close(self) -> None:
        """Let the threads end when they have done what they have."""
        for pool in self._pools.values():
            pool.shutdown(wait=False)

    def restart_after_fork(self) -> None:
        """Leave the parent's threads alone: they do not exist in the child."""
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._pools: dict[str, ThreadPoolExecutor] = {}

    async def _run(self, name: str, size: int, work: Callable[[], _T]) -> _T:
        with self._lock:
            if name not in self._pools:
                self._pools[name] = ThreadPoolExecutor(size, thread_name_prefix=f"neuralcache-{name}")
            pool = self._pools[name]
        context = contextvars.copy_context()
        run: Callable[..., Any] = context.run
        result: _T = await asyncio.get_running_loop().run_in_executor(pool, run, work)
        return result
