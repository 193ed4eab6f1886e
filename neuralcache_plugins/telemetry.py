"""The recorder: what was served is written soon, what was told is written before ``told`` returns.

Events are handed to the store in *storable* precision (vectors as float16, numbers with six significant digits), so
that a process which learns from its own events learns the same as one which reads them back.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np

from neuralcache_plugins.contracts import (
    Appended,
    Erasure,
    Event,
    FeedbackGiven,
    HalfVector,
    RankingServed,
    Recorded,
    StoredVector,
    TelemetryStore,
    Vector,
)
from neuralcache_plugins.errors import ErasedMeanwhileError, InvalidInputError, StoreClosedError, StoreError

_LOG = logging.getLogger(__name__)

_BATCH = 256
_HALF_BYTES = 2
_SHELF_ROOM = 100_000
_LONGEST_WAIT_SECONDS = 30.0

_Key: TypeAlias = tuple[str, str]

OnWritten: TypeAlias = Callable[[Sequence[Recorded], Appended], None]
"""Called after each successful append, with its events in order of their positions; appends wait meanwhile."""


@dataclass(frozen=True, slots=True)
class RecorderStats:
    """What a recorder did so far, in events; ``failures`` counts appends that the store refused."""

    pending: int
    written: int
    dropped: int
    failures: int
    last_error: str | None


class Recorder:
    """Writes events to a store: rankings from a background thread, feedback at once.

    A recorder that nobody closes writes its rest when it is collected or the interpreter ends. After a fork the
    parent writes what it had pending, the child begins with nothing.
    """

    def __init__(self, store: TelemetryStore, *, flush_interval_seconds: float, buffer_rankings: int,
                 on_written: OnWritten | None = None, recent_rankings: int = 1024) -> None:
        self._buffer = _Buffer(buffer_rankings, recent_rankings)
        self._shelf = _Shelf()
        self._writer = _Writer(store, self._buffer, self._shelf, on_written)
        self._thread = FlushThread(self, self._writer, flush_interval_seconds)
        self._at_exit = partial(_flush_at_exit, weakref.ref(self._writer))
        self._closed = False
        atexit.register(self._at_exit)
        _RECORDERS.add(self)

    def served(self, event: RankingServed) -> None:
        """Take a ranking to be written soon. Takes microseconds, never waits for the store and never raises.

        When the buffer is full the ranking is dropped, counted, and logged once per episode.
        """
        if self._closed or not self._buffer.put(event):
            self._buffer.drop(1, "the recorder is closed" if self._closed else "the buffer is full")
        elif not self._thread.running:
            self._thread.start()

    def told(self, event: FeedbackGiven, *, epoch: int | None = None) -> Recorded:
        """Write feedback, after the rankings that are pending, and return when it is durable.

        Raises ``StoreError`` when the store cannot, and ``ErasedMeanwhileError`` when ``epoch`` is given and over; then
        the feedback is not stored and the rankings stay pending.
        """
        return self.told_all([event], epoch=epoch)[0]

    def told_all(self, events: Sequence[FeedbackGiven], *, epoch: int | None = None) -> list[Recorded]:
        """Do what ``told`` does for several, with one append: all of them are stored, or none is."""
        if self._closed:
            raise StoreClosedError("the recorder is closed")
        return self._writer.write_feedback(events, epoch)

    def keep_vectors(self, namespace: str, encoder: str, vectors: Sequence[StoredVector], *, at: float,
                     max_rows: int) -> None:
        """Take rows of the embedding cache to be written soon. Never waits; what does not fit is not kept."""
        kept = not self._closed and self._shelf.put(_Shelved(namespace, encoder, vectors, at, max_rows))
        if kept and not self._thread.running:
            self._thread.start()

    def pending(self, ranking_id: str, namespace: str | None = None) -> RankingServed | None:
        """Return a ranking that is not written yet."""
        return self._buffer.find_pending(ranking_id, namespace)

    def recent(self, ranking_id: str, namespace: str | None = None) -> RankingServed | None:
        """Return a ranking that is not written yet or was written lately; costs no query."""
        pending = self._buffer.find_pending(ranking_id, namespace) if len(self._buffer) else None
        return pending or self._buffer.find_recent(ranking_id, namespace)

    def latest_pending(self, query_key: str, namespace: str) -> RankingServed | None:
        """Return the newest ranking of a question that is not written yet: newer than any in the store."""
        for event in reversed(self._buffer.pending()):
            if event.query_key == query_key and event.namespace == namespace:
                return event
        return None

    def discard(self, what: Erasure) -> int:
        """Drop pending and recent rankings that an erasure is about, and return how many were pending.

        A ranking that showed one of ``document_ids`` goes as a whole, so flush before the store erases.
        """
        self._shelf.clear()
        return self._writer.discard(what.concerns)

    def forget_recent(self) -> None:
        """Forget what was written lately: somebody may have erased it in the store."""
        self._buffer.forget_recent()

    def flush(self) -> None:
        """Write everything that is pending; raises ``StoreError`` and keeps it when the store cannot."""
        self._writer.write_pending()

    def close(self) -> None:
        """Write what is pending and stop; ``StoreError`` if it cannot be written, and then closing can be tried again.

        Closing twice is fine; the store stays open.
        """
        if self._closed:
            return
        self._thread.stop()
        self.flush()
        self._closed = True
        atexit.unregister(self._at_exit)

    def stats(self) -> RecorderStats:
        """Return the counts so far."""
        return RecorderStats(len(self._buffer), self._writer.written, self._buffer.dropped,
                             self._writer.failures, self._writer.last_error)

    def _restart_after_fork(self) -> None:
        self._buffer.restart_after_fork()
        self._shelf.restart_after_fork()
        self._writer.restart_after_fork()
        self._thread = self._thread.anew(self)


class _Buffer:
    """Rankings by key in the order served: those not yet written, and the most recently written."""

    def __init__(self, room: int, recent_rankings: int) -> None:
        self.dropped = 0
        self._room = room
        self._keep = recent_rankings
        self._lock = threading.Lock()  # held for microseconds: never around the store
        self._pending: OrderedDict[_Key, RankingServed] = OrderedDict()
        self._recent: OrderedDict[_Key, RankingServed] = OrderedDict()
        self._overflowing = False

    def put(self, event: RankingServed) -> bool:
        with self._lock:
            if len(self._pending) >= self._room:
                return False
            self._pending[event.namespace, event.ranking_id] = event
            return True

    def __len__(self) -> int:
        return len(self._pending)

    def drop(self, count: int, why: str) -> None:
        with self._lock:
            self.dropped += count
            first, self._overflowing = not self._overflowing, True
        if first:
            _LOG.warning("telemetry: rankings are dropped because %s (%d so far)", why, self.dropped)

    def pending(self, limit: int | None = None) -> list[RankingServed]:
        with self._lock:
            return list(islice(self._pending.values(), limit))

    def find_pending(self, ranking_id: str, namespace: str | None) -> RankingServed | None:
        with self._lock:
            return _find(self._pending, ranking_id, namespace)

    def find_recent(self, ranking_id: str, namespace: str | None) -> RankingServed | None:
        if namespace is not None:
            return self._recent.get((namespace, ranking_id))
        with self._lock:
            return _find(self._recent, ranking_id, namespace)

    def settle(self, written: Sequence[RankingServed]) -> None:
        """Move rankings from pending to recent."""
        if not written:
            return
        with self._lock:
            for event in written:
                key = (event.namespace, event.ranking_id)
                self._pending.pop(key, None)
                self._recent[key] = event
                self._recent.move_to_end(key)
            while len(self._recent) > self._keep:
                self._recent.popitem(last=False)
            if 2 * len(self._pending) <= self._room:
                self._overflowing = False  # the next overflow is news again

    def forget_recent(self) -> None:
        with self._lock:
            self._recent.clear()

    def remove(self, concerns: Callable[[RankingServed], bool]) -> int:
        with self._lock:
            before = len(self._pending)
            for rankings in (self._pending, self._recent):
                for key in [key for key, event in rankings.items() if concerns(event)]:
                    del rankings[key]
            return before - len(self._pending)

    def restart_after_fork(self) -> None:
        self._lock = threading.Lock()
        self.dropped = 0
        # the parent writes them; the child may still be told about them
        self._recent.update(self._pending)
        self._pending = OrderedDict()


class _Shelved(NamedTuple):
    """One batch of new rows for the embedding cache."""

    namespace: str
    encoder: str
    vectors: Sequence[StoredVector]
    at: float
    max_rows: int


class _Shelf:
    """New rows of the embedding cache, not yet written. Losing some only costs encoding them again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._batches: list[_Shelved] = []

    def put(self, batch: _Shelved) -> bool:
        with self._lock:
            if sum(len(one.vectors) for one in self._batches) >= _SHELF_ROOM:
                return False
            self._batches.append(batch)
            return True

    def take(self) -> list[_Shelved]:
        with self._lock:
            taken, self._batches = self._batches, []
            return taken

    def clear(self) -> None:
        self.take()

    def restart_after_fork(self) -> None:
        self._lock = threading.Lock()
        self._batches = []


class _Writer:
    """Appends to the store, one append at a time, and tells what was written in order."""

    def __init__(self, store: TelemetryStore, buffer: _Buffer, shelf: _Shelf, on_written: OnWritten | None) -> None:
        self.written = 0
        self.failures = 0
        self.last_error: str | None = None
        self._store = store
        self._buffer = buffer
        self._shelf = shelf
        self._on_written = on_written
        self._turn = threading.Lock()
        self._failing = False

    def write_feedback(self, events: Sequence[FeedbackGiven], epoch: int | None) -> list[Recorded]:
        with self._turn:
            if not len(self._buffer):
                return self._append([
                    storable_feedback(event, self._buffer.find_recent(event.ranking_id, event.namespace))
                    for event in events
                ], epoch)
            # many rankings go first, in transactions of their own: the one with the feedback stays small
            self._write_rankings(leave=_BATCH)
            rankings = list(map(storable_ranking, self._buffer.pending()))
            feedback = [storable_feedback(event, self._known(event, rankings)) for event in events]
            try:
                return self._append([*rankings, *feedback], epoch)[-len(feedback) :]
            except InvalidInputError:
                # one of the rankings cannot be stored at all; or the feedback itself, and then this raises again
                self._write_rankings(leave=0)
                return self._append(feedback, epoch)

    def write_pending(self) -> None:
        with self._turn:
            self._write_rankings(leave=0)
            self._write_vectors()

    def _write_vectors(self) -> None:
        for namespace, encoder, vectors, at, max_rows in self._shelf.take():
            try:
                self._store.put_vectors(namespace, encoder, vectors, at=at, max_rows=max_rows)
            except StoreError as error:
                self._note_failure(error)
                raise

    def discard(self, concerns: Callable[[RankingServed], bool]) -> int:
        with self._turn:
            return self._buffer.remove(concerns)

    def restart_after_fork(self) -> None:
        self._turn = threading.Lock()
        self.written = self.failures = 0
        self.last_error = None

    def _known(self, event: FeedbackGiven, pending: Sequence[RankingServed]) -> RankingServed | None:
        for ranking in pending:
            if ranking.ranking_id == event.ranking_id and ranking.namespace == event.namespace:
                return ranking
        return self._buffer.find_recent(event.ranking_id, event.namespace)

    def _write_rankings(self, *, leave: int) -> None:
        """Write pending rankings in batches until at most ``leave`` are left."""
        left = len(self._buffer)
        while left > leave:
            batch = self._buffer.pending(_BATCH)
            self._write_batch(batch)
            left -= len(batch)

    def _write_batch(self, batch: Sequence[RankingServed]) -> None:
        try:
            self._append(list(map(storable_ranking, batch)))
        except InvalidInputError as error:
            if len(batch) > 1:
                for event in batch:
                    self._write_batch([event])
                return
            # it would be refused again for ever, and keep all others waiting
            self.last_error = str(error)
            self._buffer.remove(lambda event: event is batch[0])
            self._buffer.drop(1, f"the store cannot hold them: {error}")

    def _append(self, events: Sequence[Event], epoch: int | None = None) -> list[Recorded]:
        try:
            appended = self._store.append(events, epoch=epoch)
        except ErasedMeanwhileError:
            raise  # the store is well
        except StoreError as error:
            self._note_failure(error)
            raise
        self._failing = False
        self.written += len(events)
        recorded = [Recorded(position, event) for position, event in zip(appended.positions, events, strict=True)]
        if len(events) > 1 or isinstance(events[0], RankingServed):
            self._buffer.settle([event for event in events if isinstance(event, RankingServed)])
            self._announce(sorted(recorded, key=lambda entry: entry.position), appended)
        else:
            self._announce(recorded, appended)
        return recorded

    def _announce(self, recorded: Sequence[Recorded], appended: Appended) -> None:
        if self._on_written is None:
            return
        try:
            self._on_written(recorded, appended)
        except StoreError as error:
            # the events are stored; whoever listens catches up by reading
            self._note_failure(error)

    def _note_failure(self, error: StoreError) -> None:
        self.failures += 1
        self.last_error = str(error)
        if not self._failing:
            _LOG.warning("telemetry: %s; rankings are kept and written later", error)
        self._failing = True


class Writes(Protocol):
    """Something with events that wait to be written."""

    def write_pending(self) -> None:
        """Write them all; ``StoreError``, counted and logged, if that fails."""


class FlushThread:
    """Writes what is pending every interval, for as long as the recorder lives."""

    def __init__(self, recorder: object, writer: Writes, interval_seconds: float) -> None:
        self.running = False
        self._recorder = weakref.ref(recorder)
        self._writer = writer
        self._interval_seconds = interval_seconds
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def anew(self, recorder: object) -> FlushThread:
        """Return a thread of the same kind, not started: for a forked child."""
        return FlushThread(recorder, self._writer, self._interval_seconds)

    def start(self) -> None:
        """Start, unless it runs."""
        with self._starting:
            if self.running:
                return
            self._thread = threading.Thread(target=self._run, name="neuralcache-recorder", daemon=True)
            self.running = True
            try:
                self._thread.start()
            except RuntimeError:
                self.running = False  # the interpreter is ending: what is pending is written at exit

    def stop(self) -> None:
        """Let it end, and wait for it."""
        self._stop.set()
        if self._thread is not None and self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        try:
            self._flush_regularly()
        finally:
            self.running = False

    def _flush_regularly(self) -> None:
        # the recorder is held weakly, or its own thread would keep it alive for ever
        wait = self._interval_seconds
        while self._recorder() is not None and not self._stop.wait(wait):
            wait = self._interval_seconds if self._flush() else min(2 * wait, _LONGEST_WAIT_SECONDS)
        if not self._stop.is_set():
            self._flush()  # nobody closed the recorder; this is its rest

    def _flush(self) -> bool:
        try:
            self._writer.write_pending()
        except StoreError:
            return False  # counted and logged where it happened
        return True


def storable_ranking(event: RankingServed) -> RankingServed:
    """Return the ranking as any store hands it back: vectors rounded to float16, numbers to six digits."""
    names = tuple(event.signals)
    columns = [event.scores, event.cold, event.propensities, *event.signals.values()]
    rounded = iter(_storable([*chain.from_iterable(columns), event.trust]))
    scores, cold, propensities, *signals = [tuple(islice(rounded, len(column))) for column in columns]
    question = event.query_vector
    return replace(
        event, query_vector=None if question is None else _half(question).astype(np.float32), scores=scores, cold=cold,
        propensities=propensities, signals=dict(zip(names, signals, strict=True)), trust=next(rounded),
    )


def storable_feedback(event: FeedbackGiven, ranking: RankingServed | None = None) -> FeedbackGiven:
    """Return the feedback as any store hands it back, about a ranking that is already storable if one is given.

    What is storable already comes back as it is: somebody waits for this.
    """
    rewards = tuple([(name, float(f"{reward:.6g}")) for name, reward in event.rewards])
    vector = event.document_vector
    if event.ranking is ranking and rewards == event.rewards and (vector is None or vector.itemsize == _HALF_BYTES):
        return event
    return FeedbackGiven(event.feedback_id, event.ranking_id, event.namespace, event.at, event.source, rewards,
                         ranking or storable_ranking(event.ranking), None if vector is None else _half(vector))


def _storable(values: Sequence[float]) -> list[float]:
    # one format for all of them is twice as fast as one for each
    return [float(digits) for digits in (("%g " * len(values)) % tuple(values)).split()]


def _half(vector: Vector | HalfVector) -> HalfVector:
    return vector.astype(np.float16, copy=False)


def _find(rankings: OrderedDict[_Key, RankingServed], ranking_id: str, namespace: str | None) -> RankingServed | None:
    if namespace is not None:
        return rankings.get((namespace, ranking_id))
    return next((event for event in reversed(rankings.values()) if event.ranking_id == ranking_id), None)


def _flush_at_exit(writer: weakref.ref[_Writer]) -> None:
    remembered = writer()
    if remembered is None:
        return
    try:
        remembered.write_pending()
    except StoreError:
        return  # counted and logged where it happened; nobody is left to raise to


_RECORDERS: weakref.WeakSet[Recorder] = weakref.WeakSet()


def _restart_after_fork() -> None:
    for recorder in list(_RECORDERS):
        recorder._restart_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restart_after_fork)
