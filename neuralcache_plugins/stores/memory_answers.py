"""Cached answers in this process's memory: the part of ``MemoryStore`` that makes it an ``AnswerStore``."""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from neuralcache_plugins.contracts import (
    AnswerBounds,
    AnswerCached,
    AnswerEvent,
    AnswerJudged,
    AnswerKey,
    AnswerMissed,
    AnswerServed,
    AnswerTotals,
    CachedAnswer,
    CachedQuestion,
    Erasure,
    FoundAnswers,
    Head,
    Lease,
    RecordedAnswer,
    Removal,
    StoredAnswers,
)
from neuralcache_plugins.stores import answer_codec
from neuralcache_plugins.stores.answer_codec import FAILURE_KEPT_SECONDS, LEAST_COST, ROOM


@dataclass(frozen=True, slots=True)
class _Barrier:
    """The last removal of a document, a scope or a namespace; ``version`` is the document's, if it was told."""

    mark: int
    version: str | None = None


class AnswersInMemory:
    """What ``AnswerStore`` asks for, in dictionaries behind the lock of a ``MemoryStore``."""

    _open: Callable[[], AbstractContextManager[None]]
    _check_open: Callable[[], None]
    _epoch: int

    def put_answers(self, answers: Sequence[CachedAnswer], *, bounds: AnswerBounds,
                    mark: int | None = None) -> StoredAnswers:
        """Store answers."""
        with self._open():
            before = self._mark
            stored = tuple([self._put(answer, bounds, mark) for answer in answers])
            kept = [answer for answer, done in zip(answers, stored, strict=True) if done]
            evicted = self._make_room(kept, bounds)
            return StoredAnswers(stored, before, self._mark, evicted)

    def find_answers(self, namespace: str, keys: Sequence[AnswerKey]) -> FoundAnswers:
        """Return the answers under these keys."""
        with self._open():
            found = {key: self._numbers.get((namespace, *key)) for key in keys}
            position = self._answer_log[-1].position if self._answer_log else 0
            return FoundAnswers({key: self._answers[number] for key, number in found.items() if number is not None},
                                self._mark, Head(self._epoch, position))

    def get_answers(self, namespace: str, entry_ids: Sequence[str]) -> dict[str, CachedAnswer]:
        """Return the answers with these ids."""
        with self._open():
            numbers = [self._entries.get((namespace, entry_id)) for entry_id in entry_ids]
            found = [self._answers[number] for number in numbers if number is not None]
            return {answer.entry_id: answer for answer in found}

    def read_questions(self, namespace: str, *, after: int = 0, limit: int = 10_000) -> list[CachedQuestion]:
        """Return questions with vectors, by number."""
        with self._open():
            numbers = self._asked.get(namespace, [])
            start = bisect_right(numbers, after)
            return [_question(number, self._answers[number]) for number in numbers[start:start + limit]]

    def answers_mark(self) -> int:
        """Return the mark."""
        self._check_open()
        return self._mark

    def remove_answers(self, what: Removal) -> int:
        """Remove answers and bar their way back."""
        with self._open():
            removed = self._remove(what.concerns)
            self._mark += 1
            if what.documents is not None:
                for name, version in what.documents.items():
                    self._barriers[what.namespace, "document", name] = _Barrier(self._mark, version)
            elif what.older_than is None:
                kind, name = ("all", "") if what.scope is None else ("scope", what.scope)
                self._barriers[what.namespace, kind, name] = _Barrier(self._mark)
            return removed

    def record_answers(self, events: Sequence[AnswerEvent], *, withdraw: Sequence[str] = ()) -> tuple[int, ...]:
        """Append events."""
        with self._open():
            positions = tuple([self._record(event) for event in events])
            places, gone = {event.namespace for event in events}, set(withdraw)
            if gone:
                self._remove(lambda answer: answer.entry_id in gone and answer.namespace in places)
            return positions

    def read_answer_events(self, *, after: int = 0, namespace: str | None = None,
                           kinds: Sequence[type[AnswerEvent]] | None = None,
                           limit: int = 1000) -> list[RecordedAnswer]:
        """Return events by position."""
        with self._open():
            # every look of the cache reads on from where it was: not from the beginning each time
            start = bisect_right(self._answer_log, after, key=lambda entry: entry.position)
            found = [entry for entry in self._answer_log[start:]
                     if namespace in (None, entry.event.namespace) and (kinds is None or type(entry.event) in kinds)]
            return found[:limit]

    def answer_totals(self, namespace: str, *, after: int = 0) -> AnswerTotals:
        """Return the events counted."""
        found = self.read_answer_events(after=after, namespace=namespace, limit=sys.maxsize)
        events = [entry.event for entry in found]
        served = [event for event in events if isinstance(event, AnswerServed)]
        judged = [event for event in events if isinstance(event, AnswerJudged)]
        return AnswerTotals(
            position=found[-1].position if found else after,
            put=sum(isinstance(event, AnswerCached) for event in events),
            served=Counter(event.kind for event in served),
            missed=Counter(event.reason for event in events if isinstance(event, AnswerMissed)),
            judged=Counter(event.source for event in judged),
            wrong=Counter(event.source for event in judged if not event.correct),
            cost_saved=sum(event.cost for event in served), seconds_saved=sum(event.seconds for event in served),
        )

    def served_answer(self, hit_id: str, *, namespace: str) -> AnswerServed | None:
        """Return a serving."""
        with self._open():
            for entry in reversed(self._answer_log):
                event = entry.event
                if isinstance(event, AnswerServed) and (event.hit_id, event.namespace) == (hit_id, namespace):
                    return event
        return None

    def acquire_lease(self, name: str, owner: str, *, now: float, seconds: float) -> Lease:
        """Return the lease, one's own or another's."""
        with self._open():
            for key in [key for key, lease in self._leases.items() if lease.expires_at < now - FAILURE_KEPT_SECONDS]:
                del self._leases[key]
            held = self._leases.get(name)
            if held is None or held.expires_at <= now or held.failure is not None or held.owner == owner:
                self._leases[name] = held = Lease(owner, now + seconds)
            return held

    def release_lease(self, name: str, owner: str, *, failure: str | None = None, now: float = 0.0) -> None:
        """Give a lease up."""
        with self._open():
            held = self._leases.get(name)
            if held is None or held.owner != owner:
                return
            if failure is None:
                del self._leases[name]
            else:
                self._leases[name] = Lease(owner, now + FAILURE_KEPT_SECONDS, failure)

    def lease(self, name: str) -> Lease | None:
        """Return the lease as it stands."""
        with self._open():
            return self._leases.get(name)

    def _start_answers(self) -> None:
        self._answers: dict[int, CachedAnswer] = {}  # by number, which is the order of insertion
        self._numbers: dict[tuple[str, str, str], int] = {}
        self._asked: dict[str, list[int]] = {}  # those with a vector by namespace, rising
        self._entries: dict[tuple[str, str], int] = {}
        self._barriers: dict[tuple[str, str, str], _Barrier] = {}
        self._answer_log: list[RecordedAnswer] = []
        self._answer_positions: dict[tuple[str, str, str], int] = {}
        self._leases: dict[str, Lease] = {}
        self._last_number = 0
        self._last_answer_event = 0
        self._answer_bytes = 0
        self._mark = 0
        self._erased_mark = 0

    def _put(self, answer: CachedAnswer, bounds: AnswerBounds, mark: int | None) -> bool:
        if answer.size > bounds.max_bytes or bounds.max_entries < 1 or self._is_barred(answer, mark):
            return False
        self._drop(self._numbers.get((answer.namespace, *answer.key)))
        self._drop(self._entries.get((answer.namespace, answer.entry_id)))
        vector = answer.vector
        if vector is not None:
            vector = vector.copy()
            vector.setflags(write=False)
        self._last_number += 1
        self._answers[self._last_number] = replace(answer, vector=vector)
        self._numbers[answer.namespace, *answer.key] = self._last_number
        self._entries[answer.namespace, answer.entry_id] = self._last_number
        if vector is not None:
            self._asked.setdefault(answer.namespace, []).append(self._last_number)
        self._answer_bytes += answer.size
        self._mark += 1
        self._record(AnswerCached(answer.entry_id, answer.namespace, answer.created_at, answer.scope, answer.cost,
                                  answer.seconds))
        return True

    def _is_barred(self, answer: CachedAnswer, mark: int | None) -> bool:
        for name, version in answer.documents:
            barrier = self._barriers.get((answer.namespace, "document", name))
            if barrier is None or barrier.version == version:
                continue
            if barrier.version is not None or (mark is not None and barrier.mark > mark):
                return True
        if mark is None:
            return False
        places = (self._barriers.get((answer.namespace, *place)) for place in (("all", ""), ("scope", answer.scope)))
        return self._erased_mark > mark or any(barrier is not None and barrier.mark > mark for barrier in places)

    def _make_room(self, fresh: Sequence[CachedAnswer], bounds: AnswerBounds) -> int:
        if not fresh or not self._is_full(bounds):
            return 0
        before = len(self._answers)
        self._remove(lambda answer: answer.expires_at is not None and answer.expires_at <= bounds.expired_before)
        if not self._is_full(bounds):
            return before - len(self._answers)
        entries = len(self._answers) - (bounds.max_entries - bounds.max_entries // ROOM)
        size = self._answer_bytes - (bounds.max_bytes - bounds.max_bytes // ROOM)
        now, young = max(answer.created_at for answer in fresh), {answer.entry_id for answer in fresh}
        worst = sorted(self._answers, key=lambda number: _rank(self._answers[number], number, now, young))
        for number in worst:
            if entries <= 0 and size <= 0:
                break
            entries, size = entries - 1, size - self._answers[number].size
            self._drop(number)
        return before - len(self._answers)

    def _is_full(self, bounds: AnswerBounds) -> bool:
        return len(self._answers) > bounds.max_entries or self._answer_bytes > bounds.max_bytes

    def _remove(self, concerns: Callable[[CachedAnswer], bool]) -> int:
        going = [number for number, answer in self._answers.items() if concerns(answer)]
        for number in going:
            self._drop(number)
        return len(going)

    def _drop(self, number: int | None) -> None:
        if number is None or number not in self._answers:
            return
        answer = self._answers.pop(number)
        del self._numbers[answer.namespace, *answer.key]
        del self._entries[answer.namespace, answer.entry_id]
        if answer.vector is not None:
            asked = self._asked[answer.namespace]
            del asked[bisect_left(asked, number)]
        self._answer_bytes -= answer.size
        self._mark += 1

    def _record(self, event: AnswerEvent) -> int:
        kind, place, _, name, entry_id, _, _ = answer_codec.encode(event)
        known = self._answer_positions.get((kind, place, name))
        if known is not None:
            return known
        number = self._entries.get((place, entry_id))
        if number is not None and isinstance(event, AnswerServed):
            self._answers[number] = replace(self._answers[number], hits=self._answers[number].hits + 1)
        self._last_answer_event += 1
        self._answer_log.append(RecordedAnswer(self._last_answer_event, event))
        self._answer_positions[kind, place, name] = self._last_answer_event
        return self._last_answer_event

    def _erase_answers(self, what: Erasure, concerned: set[str]) -> tuple[int, int]:
        if what.session is not None:
            return 0, 0  # answers know no sessions
        going = {(answer.namespace, answer.entry_id) for answer in self._answers.values()
                 if _concerned(what, answer)}
        answers = self._remove(lambda answer: (answer.namespace, answer.entry_id) in going)
        kept = [entry for entry in self._answer_log
                if (entry.event.namespace, entry.event.entry_id) not in going and not _is_erased(what, entry.event)]
        events = len(self._answer_log) - len(kept)
        left = {entry.position for entry in kept}
        concerned.update(entry.event.namespace for entry in self._answer_log if entry.position not in left)
        self._answer_log = kept
        self._answer_positions = {key: at for key, at in self._answer_positions.items() if at in left}
        if self._erase_barriers(what) or answers or events:
            self._mark += 1
            self._erased_mark = self._mark
        return answers, events

    def _erase_barriers(self, what: Erasure) -> int:
        places = {answer.namespace for answer in self._answers.values()}
        kept = {
            (namespace, kind, name): barrier for (namespace, kind, name), barrier in self._barriers.items()
            if what.namespace not in (None, namespace)
            or (what.document_ids is not None and (kind != "document" or name not in what.document_ids))
            or (what.older_than is not None and namespace in places)
        }
        gone = len(self._barriers) - len(kept)
        self._barriers = kept
        return gone

    def _count_answers(self) -> Mapping[str, int]:
        return {"entries": len(self._answers), "bytes": self._answer_bytes, "events": len(self._answer_log)}


def _question(number: int, answer: CachedAnswer) -> CachedQuestion:
    assert answer.vector is not None
    return CachedQuestion(number, answer.entry_id, answer.scope, answer.question, answer.encoder, answer.vector,
                          answer.documents, answer.created_at, answer.expires_at, answer.digest)


def _rank(answer: CachedAnswer, number: int, now: float, young: set[str]) -> tuple[bool, float, int]:
    worth = (1.0 + answer.hits) * (answer.cost + LEAST_COST) / (max(now - answer.created_at, 0.0) + 3600)
    return answer.entry_id in young, worth, number


def _concerned(what: Erasure, answer: CachedAnswer) -> bool:
    return (what.namespace in (None, answer.namespace)
            and (what.older_than is None or answer.created_at < what.older_than)
            and (what.document_ids is None or any(name in what.document_ids for name, _ in answer.documents)))


def _is_erased(what: Erasure, event: AnswerEvent) -> bool:
    return (what.document_ids is None and what.namespace in (None, event.namespace)
            and (what.older_than is None or event.at < what.older_than))
