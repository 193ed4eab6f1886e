"""What happens to answers, written to the store: servings soon, judgements of people before they are acknowledged."""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from collections.abc import Sequence
from functools import partial

from neuralcache_plugins.contracts import AnswerEvent, AnswerServed, AnswerStore
from neuralcache_plugins.errors import StoreClosedError, StoreError
from neuralcache_plugins.telemetry import FlushThread, RecorderStats

_LOG = logging.getLogger(__name__)
_BATCH = 512


class AnswerRecorder:
    """Writes events about answers from a background thread, or at once. Reads of the cache never wait for it.

    One that nobody closes writes its rest when it is collected or the interpreter ends. After a fork the parent writes
    what it had pending.
    """

    def __init__(self, store: AnswerStore, *, flush_interval_seconds: float, room: int) -> None:
        self._pending = _Pending(store, room)
        self._thread = FlushThread(self, self._pending, flush_interval_seconds)
        self._closed = False
        self._at_exit = partial(_flush_at_exit, weakref.ref(self._pending))
        atexit.register(self._at_exit)

    def note(self, event: AnswerEvent) -> None:
        """Take an event to be written soon. Never waits, never raises; dropped and counted when there is no room."""
        if self._closed or not self._pending.put(event):
            self._pending.drop()
        elif not self._thread.running:
            self._thread.start()

    def tell(self, event: AnswerEvent, *, withdraw: Sequence[str] = ()) -> None:
        """Write an event now, after those pending, and let entries go with it; ``StoreError`` if that fails."""
        if self._closed:
            raise StoreClosedError("the cache is closed")
        self._pending.write(event, withdraw)

    def served(self, hit_id: str) -> AnswerServed | None:
        """Return a serving that is not written yet."""
        return self._pending.served(hit_id)

    def unwritten(self, kind: str) -> int:
        """Return how many servings of a kind are not written yet."""
        return self._pending.count(kind)

    def flush(self) -> None:
        """Write what is pending; ``StoreError`` if that fails, and then it stays pending."""
        self._pending.write_pending()

    def close(self) -> None:
        """Write what is pending and stop; can be tried again when that fails."""
        if self._closed:
            return
        self._thread.stop()
        self.flush()
        self._closed = True
        atexit.unregister(self._at_exit)

    def stats(self) -> RecorderStats:
        """Return the counts so far."""
        return self._pending.stats()

    def restart_after_fork(self) -> None:
        """Begin with nothing pending and a thread of one's own, in the child."""
        self._pending.restart_after_fork()
        self._thread = self._thread.anew(self)


class _Pending:
    """Events in the order in which they came, until they are written."""

    def __init__(self, store: AnswerStore, room: int) -> None:
        self._store = store
        self._room = room
        self._start()

    def put(self, event: AnswerEvent) -> bool:
        with self._lock:
            if len(self._events) >= self._room:
                return False
            self._events.append(event)
            return True

    def drop(self) -> None:
        with self._lock:
            self._dropped += 1
            first = self._dropped == 1
        if first:
            _LOG.warning("telemetry: events about answers are dropped, there is no room for them (logged once)")

    def served(self, hit_id: str) -> AnswerServed | None:
        with self._lock:
            found = [event for event in self._events if isinstance(event, AnswerServed) and event.hit_id == hit_id]
        return found[0] if found else None

    def count(self, kind: str) -> int:
        with self._lock:
            return sum(isinstance(event, AnswerServed) and event.kind == kind for event in self._events)

    def write_pending(self) -> None:
        with self._turn:
            self._write_all()

    def write(self, event: AnswerEvent, withdraw: Sequence[str]) -> None:
        with self._turn:
            self._write_all()
            self._append([event], withdraw)

    def stats(self) -> RecorderStats:
        with self._lock:
            return RecorderStats(len(self._events), self._written, self._dropped, self._failures, self._last_error)

    def restart_after_fork(self) -> None:
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()  # held for microseconds: never around the store
        self._turn = threading.Lock()
        self._events: list[AnswerEvent] = []
        self._written = self._dropped = self._failures = 0
        self._last_error: str | None = None

    def _write_all(self) -> None:
        while batch := self._first():
            self._append(batch)
            with self._lock:
                del self._events[: len(batch)]

    def _first(self) -> list[AnswerEvent]:
        with self._lock:
            return self._events[:_BATCH]

    def _append(self, events: Sequence[AnswerEvent], withdraw: Sequence[str] = ()) -> None:
        try:
            self._store.record_answers(events, withdraw=withdraw)
        except StoreError as error:
            with self._lock:
                first = self._last_error is None
                self._failures += 1
                self._last_error = str(error)
            if first:
                _LOG.warning("telemetry: %s; events about answers are kept and written later", error)
            raise
        with self._lock:
            self._written += len(events)


def _flush_at_exit(pending: weakref.ref[_Pending]) -> None:
    remembered = pending()
    if remembered is None:
        return
    try:
        remembered.write_pending()
    except StoreError:
        return  # counted and logged where it happened; nobody is left to raise to
