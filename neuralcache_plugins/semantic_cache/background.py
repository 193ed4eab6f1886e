"""Work that nobody waits for: a bounded number of threads with a bounded queue, and as many coroutines."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from neuralcache_plugins.semantic_cache.counts import Counts

WORKERS = 8
ROOM = 256
"""Work waiting, and coroutines under way. What finds no room is left undone and counted: it is an audit, a comparison
or a refresh, and others follow."""

_IDLE_SECONDS = 5.0


class Background:
    """Does things beside the caller; what goes wrong there is counted and logged, because nobody waits for it."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._start()

    def do(self, work: Callable[[], object]) -> bool:
        """Do something in a thread, soon; False if there is no room for it, or it was closed."""
        with self._changed:
            if self._closed or len(self._waiting) >= ROOM:
                self._counts.add("left_undone")
                return False
            if self._idle <= len(self._waiting) and self._workers < WORKERS and not self._employ():
                return False
            self._waiting.append(work)
            self._changed.notify_all()
            return True

    def ado(self, work: Coroutine[Any, Any, object]) -> bool:
        """Do something on the running event loop, soon; False if there is no room for it."""
        if len(self._tasks) >= ROOM:
            self._counts.add("left_undone")
            work.close()
            return False
        # the loop holds tasks weakly
        task = asyncio.get_running_loop().create_task(self._awaited(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    def wait(self, seconds: float) -> None:
        """Let the threads finish what there is, for so long at most."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and self._idle == self._workers, seconds)

    def close(self, seconds: float) -> None:
        """Let the threads finish what there is, for so long at most, and go home."""
        self.wait(seconds)
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def restart_after_fork(self) -> None:
        """Leave the parent's threads and coroutines alone: they do not exist in the child."""
        self._start()

    def _start(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Callable[[], object]] = deque()
        self._workers = self._idle = 0
        self._closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    def _employ(self) -> bool:
        try:
            threading.Thread(target=self._work, name="neuralcache-background", daemon=True).start()
        except RuntimeError:
            self._counts.add("left_undone")  # the interpreter is ending, or the system has no more threads
            return False
        self._workers += 1
        return True

    def _work(self) -> None:
        try:
            while (work := self._next()) is not None:
                try:
                    work()
                except Exception as error:  # noqa: BLE001  # the user's function: whatever it raises, the answer is out
                    self._counts.without("background", error)
        except BaseException:
            with self._changed:
                self._workers -= 1
            raise

    def _next(self) -> Callable[[], object] | None:
        """Return the next work, None when it is time to go home."""
        with self._changed:
            self._idle += 1
            self._changed.notify_all()  # somebody may wait for everything to be done
            self._changed.wait_for(lambda: self._waiting or self._closed, _IDLE_SECONDS)
            self._idle -= 1
            if self._waiting:
                return self._waiting.popleft()
            self._workers -= 1
            return None

    async def _awaited(self, work: Coroutine[Any, Any, object]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001  # as in _work
            self._counts.without("background", error)
