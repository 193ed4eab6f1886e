"""A plain store in this process's memory: nothing survives it."""

from __future__ import annotations

import secrets
import threading
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from neuralcache_plugins.contracts import (
    Appended,
    Erasure,
    Event,
    FeedbackGiven,
    HalfVector,
    Head,
    RankingServed,
    Receipt,
    Recorded,
    Snapshot,
    StoredVector,
    StoreHealth,
    Vector,
)
from neuralcache_plugins.errors import StoreClosedError
from neuralcache_plugins.stores import codec, erasure, forking
from neuralcache_plugins.stores.memory_answers import AnswersInMemory

_Array = TypeVar("_Array", npt.NDArray[np.float16], npt.NDArray[np.float32])


@dataclass(frozen=True, slots=True)
class _Cached:
    at: float
    number: int
    stored: StoredVector


class MemoryStore(AnswersInMemory):
    """Keeps everything in lists and dictionaries, behind one lock."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._paused = False
        self._closed = False
        self._hash_key = secrets.token_bytes(32)
        self._log: list[Recorded] = []
        self._known: dict[tuple[str, str, str], int] = {}
        self._rankings: dict[tuple[str, str], RankingServed] = {}
        self._last = 0
        self._epoch = 1
        self._snapshots: dict[tuple[str, str], Snapshot] = {}
        self._vectors: dict[tuple[str, str, str], _Cached] = {}
        self._vector_number = 0
        self._start_answers()
        forking.watch(self)

    @property
    def url(self) -> str:
        """``memory://``."""
        return "memory://"

    def hash_key(self) -> bytes:
        """Return this object's random key."""
        with self._open():
            return self._hash_key

    def append(self, events: Sequence[Event], *, epoch: int | None = None) -> Appended:
        """Append all events that are not there yet."""
        for event in events:
            codec.check(event)
        with self._open():
            erasure.check_epoch(self._epoch, epoch)
            before, known = self._sign(), self._last
            positions = tuple([self._add(event) for event in events])
            carried = self._last - known > len({position for position in positions if position > known})
            return Appended(positions, None if carried else before, self._sign())

    def read(self, *, after: int = 0, upto: int | None = None, namespace: str | None = None,
             limit: int = 1000) -> list[Recorded]:
        """Return events by position."""
        with self._open():
            start = bisect_right(self._log, after, key=_position)
            end = len(self._log) if upto is None else bisect_right(self._log, upto, key=_position)
            wanted = (entry for entry in islice(self._log, start, end)
                      if namespace is None or entry.event.namespace == namespace)
            return list(islice(wanted, limit))

    def head(self) -> Head:
        """Return where the log stands."""
        with self._open():
            return Head(self._epoch, self._log[-1].position if self._log else 0)

    def sign(self) -> Hashable:
        """Return the last position and the epoch."""
        # no lock: a sign must not wait, and a stale one is caught by the next
        self._check_open()
        return self._sign()

    def ranking(self, ranking_id: str, *, namespace: str | None = None) -> RankingServed | None:
        """Return a ranking by id."""
        return self._newest(lambda ranking: ranking.ranking_id == ranking_id and namespace in (None, ranking.namespace))

    def latest_ranking(self, query_key: str, *, namespace: str) -> RankingServed | None:
        """Return the newest ranking of a question."""
        return self._newest(lambda ranking: ranking.query_key == query_key and ranking.namespace == namespace)

    def traced_rankings(self, trace: str, *, namespace: str, limit: int = 100) -> list[RankingServed]:
        """Return the newest rankings with this id."""
        with self._open():
            events = (entry.event for entry in reversed(self._log))
            found = (event for event in events if isinstance(event, RankingServed) and event.namespace == namespace
                     and trace in (event.run_id, event.parent_run_id, event.trace_id, event.span_id))
            return list(islice(found, limit))

    def load_snapshot(self, namespace: str, fold: str) -> Snapshot | None:
        """Return a snapshot."""
        with self._open():
            return self._snapshots.get((namespace, fold))

    def save_snapshot(self, namespace: str, fold: str, snapshot: Snapshot) -> None:
        """Keep a snapshot of the current epoch."""
        with self._open():
            if snapshot.epoch == self._epoch:
                self._snapshots[namespace, fold] = snapshot

    def get_vectors(self, namespace: str, encoder: str, keys: Sequence[str]) -> dict[str, npt.NDArray[np.float16]]:
        """Return the cached vectors among the keys."""
        with self._open():
            found = ((key, self._vectors.get((namespace, encoder, key))) for key in keys)
            return {key: cached.stored.vector for key, cached in found if cached is not None}

    def put_vectors(self, namespace: str, encoder: str, vectors: Sequence[StoredVector], *, at: float,
                    max_rows: int) -> None:
        """Add vectors; the oldest go beyond the bound."""
        with self._open():
            for stored in vectors:
                self._vector_number += 1
                kept = replace(stored, vector=_frozen(stored.vector.astype(np.float16)))
                self._vectors[namespace, encoder, stored.key] = _Cached(at, self._vector_number, kept)
            excess = len(self._vectors) - max_rows
            if excess > 0:
                by_age = sorted(self._vectors, key=lambda key: (self._vectors[key].at, self._vectors[key].number))
                for key in by_age[:excess]:
                    del self._vectors[key]

    def erase(self, what: Erasure) -> Receipt:
        """Erase and start a new epoch."""
        erasure.check(what)
        with self._open():
            log, receipt, concerned = _erased(self._log, what)
            if what.namespace is not None and what == Erasure(namespace=what.namespace):
                concerned.add(what.namespace)
            vectors = {key: cached for key, cached in self._vectors.items() if not _concerns_vector(what, key, cached)}
            answers, answer_events = self._erase_answers(what, concerned)
            snapshots = {key: kept for key, kept in self._snapshots.items() if key[0] not in concerned}
            receipt = replace(receipt, vectors=len(self._vectors) - len(vectors),
                              snapshots=len(self._snapshots) - len(snapshots), answers=answers,
                              answer_events=answer_events)
            if receipt != Receipt():
                self._log, self._vectors = log, vectors
                self._start_epoch(snapshots)
            return receipt

    def namespaces(self) -> list[str]:
        """Return the namespaces that have events or cached answers."""
        with self._open():
            places = {entry.event.namespace for entry in self._log} | {one.namespace for one in self._answers.values()}
            return sorted(places | {entry.event.namespace for entry in self._answer_log})

    def health(self) -> StoreHealth:
        """Return counts."""
        with self._open():
            rankings = sum(isinstance(entry.event, RankingServed) for entry in self._log)
            rows = {"rankings": rankings, "feedback": len(self._log) - rankings, "vectors": len(self._vectors),
                    "snapshots": len(self._snapshots)}
            return {"kind": "memory", "place": self.url, "schema": None, "rows": rows,
                    "answers": self._count_answers(), "bytes": None, "integrity": "ok"}

    def close(self) -> None:
        """Forget everything."""
        with self._lock:
            self._closed = True
            self._log, self._known, self._rankings, self._snapshots, self._vectors = [], {}, {}, {}, {}
            self._start_answers()

    def __repr__(self) -> str:
        return f"MemoryStore({self.url!r})"

    def pause(self) -> None:
        """Wait for what is under way; called before a fork."""
        self._paused = self._lock.acquire(timeout=forking.PATIENCE_SECONDS)

    def resume(self) -> None:
        """Go on after a fork, in the parent and in the child."""
        if self._paused:
            self._lock.release()

    def restart(self) -> None:
        """Replace a lock whose holder was not forked."""
        if not self._paused:
            self._lock = threading.RLock()

    @contextmanager
    def _open(self) -> Iterator[None]:
        with self._lock:
            self._check_open()
            yield

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError("the store memory:// is closed")

    def _sign(self) -> Hashable:
        return self._last, self._epoch

    def _add(self, event: Event) -> int:
        known = self._known.get(_key(event))
        if known is not None:
            return known
        if isinstance(event, FeedbackGiven):
            self._add(event.ranking)
            ranking = self._rankings[event.namespace, event.ranking_id]
            event = replace(event, ranking=ranking, document_vector=_own(_full(event.document_vector)))
        else:
            event = replace(event, query_vector=_own(event.query_vector))
            self._rankings[event.namespace, event.ranking_id] = event
        entry = Recorded(self._last + 1, event)
        self._log.append(entry)
        self._known[_key(event)] = entry.position
        self._last = entry.position
        return entry.position

    def _newest(self, matches: Callable[[RankingServed], bool]) -> RankingServed | None:
        with self._open():
            for entry in reversed(self._log):
                if isinstance(entry.event, RankingServed) and matches(entry.event):
                    return entry.event
        return None

    def _start_epoch(self, snapshots: dict[tuple[str, str], Snapshot]) -> None:
        self._epoch += 1
        # namespaces that lost nothing need not be folded again
        self._snapshots = {key: replace(kept, epoch=self._epoch) for key, kept in snapshots.items()}
        self._known = {_key(entry.event): entry.position for entry in self._log}
        self._rankings = {(entry.event.namespace, entry.event.ranking_id): entry.event for entry in self._log
                          if isinstance(entry.event, RankingServed)}


def _position(entry: Recorded) -> int:
    return entry.position


def _key(event: Event) -> tuple[str, str, str]:
    if isinstance(event, RankingServed):
        return codec.RANKING, event.namespace, event.ranking_id
    return codec.FEEDBACK, event.namespace, event.feedback_id


def _full(vector: Vector | HalfVector | None) -> Vector | None:
    return None if vector is None else vector.astype(np.float32, copy=False)


def _own(vector: Vector | None) -> Vector | None:
    if vector is None or not vector.flags.writeable:
        return vector
    return _frozen(vector.copy())


def _frozen(vector: _Array) -> _Array:
    vector.setflags(write=False)
    return vector


def _concerns_vector(what: Erasure, key: tuple[str, str, str], cached: _Cached) -> bool:
    return (what.session is None
            and what.namespace in (None, key[0])
            and (what.document_ids is None or cached.stored.document_id in what.document_ids)
            and (what.older_than is None or cached.at < what.older_than))


def _erased(log: list[Recorded], what: Erasure) -> tuple[list[Recorded], Receipt, set[str]]:
    """Return the log after the erasure, what was taken from events, and the namespaces that lost something."""
    rankings = {(entry.event.namespace, entry.event.ranking_id): _after(what, entry.event)
                for entry in log if isinstance(entry.event, RankingServed)}
    kept: list[Recorded] = []
    counts = {RankingServed: 0, FeedbackGiven: 0}
    shown = 0
    concerned: set[str] = set()
    for entry in log:
        event = entry.event
        left = rankings[event.namespace, event.ranking_id]
        if isinstance(event, RankingServed):
            shown += len(event.document_ids) - (0 if left is None else len(left.document_ids))
            after: Event | None = left
            changed = left is not event
        else:
            after, changed = _feedback_after(what, event, left)
        if changed:
            counts[type(event)] += 1
            concerned.add(event.namespace)
        if after is not None:
            kept.append(Recorded(entry.position, after))
    return kept, Receipt(counts[RankingServed], counts[FeedbackGiven], shown), concerned


def _after(what: Erasure, ranking: RankingServed) -> RankingServed | None:
    if not erasure.concerns_ranking(what, ranking):
        return ranking
    if what.document_ids is None:
        return None
    if not set(what.document_ids) & set(ranking.document_ids):
        return ranking
    return erasure.ranking_without(ranking, set(what.document_ids))


def _feedback_after(what: Erasure, feedback: FeedbackGiven,
                    ranking: RankingServed | None) -> tuple[FeedbackGiven | None, bool]:
    """Return what is left of the feedback, and whether a row of its own is touched."""
    if ranking is None:
        return None, True
    left: FeedbackGiven | None = feedback
    if erasure.concerns_feedback(what, feedback):
        left = None if what.document_ids is None else erasure.feedback_without(feedback, set(what.document_ids))
    if left is None:
        return None, True
    return replace(left, ranking=ranking), left is not feedback
