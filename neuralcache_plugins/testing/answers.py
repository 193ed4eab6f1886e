"""What every ``AnswerStore`` must do, and answers to try it with."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import fields, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pytest

from neuralcache_plugins.contracts import (
    AnswerBounds,
    AnswerCached,
    AnswerEvent,
    AnswerJudged,
    AnswerMissed,
    AnswerServed,
    AnswerStore,
    AnswerTotals,
    CachedAnswer,
    Erasure,
    Head,
    Lease,
    RecordedAnswer,
    Removal,
    Snapshot,
    TelemetryStore,
)
from neuralcache_plugins.errors import StoreClosedError

NO_BOUNDS = AnswerBounds(max_entries=1_000_000, max_bytes=1 << 40, expired_before=0.0)
"""Room for everything."""

NOW = 1_800_000_000.0


@runtime_checkable
class CacheStore(TelemetryStore, AnswerStore, Protocol):
    """A store of rankings and of answers: what the cache needs."""


def make_answer(question: str = "how", *, entry_id: str | None = None, namespace: str = "default", scope: str = "s",
                text: str = "so", **changes: Any) -> CachedAnswer:
    """Return a plausible answer; the question's text serves as its key."""
    answer = CachedAnswer(
        entry_id=entry_id or f"entry-{namespace}-{scope}-{question}", namespace=namespace, scope=scope,
        question_key=question, question=question, kind="text", payload=text.encode(), created_at=NOW,
    )
    return replace(answer, **changes)


def make_served(answer: CachedAnswer, hit_id: str = "hit-1", **changes: Any) -> AnswerServed:
    """Return the event that an answer was served."""
    served = AnswerServed(hit_id, answer.entry_id, answer.namespace, NOW + 1, answer.scope, "semantic", 0.75,
                          {"cosine": 0.5, "numbers": 0.0}, 0.125)
    return replace(served, **changes)


def make_judged(answer: CachedAnswer, judged_id: str = "judged-1", **changes: Any) -> AnswerJudged:
    """Return the event that an answer was judged right."""
    judged = AnswerJudged(judged_id, answer.entry_id, answer.namespace, NOW + 2, answer.scope, True, "audit", 0.75,
                          {"cosine": 0.5}, 0.125, "hit-1")
    return replace(judged, **changes)


def assert_same_answer(expected: CachedAnswer, actual: CachedAnswer) -> None:
    """Check all fields; vectors exactly, because they are float16 on both sides."""
    for each in fields(expected):
        wanted, got = getattr(expected, each.name), getattr(actual, each.name)
        if isinstance(wanted, np.ndarray):
            assert got.dtype == np.float16, each.name
            np.testing.assert_array_equal(got, wanted, err_msg=each.name)
        else:
            assert got == wanted, each.name


def read_all_answer_events(store: AnswerStore, *, namespace: str | None = None, batch: int = 100,
                           ) -> list[RecordedAnswer]:
    """Read all events about answers in batches, as a reader that catches up does."""
    entries: list[RecordedAnswer] = []
    while found := store.read_answer_events(after=entries[-1].position if entries else 0, namespace=namespace,
                                            limit=batch):
        entries.extend(found)
    return entries


class AnswerStoreConformance:
    """What every store of answers must do, as pytest tests; subclass it and provide the fixture ``store``.

    ``StoreConformance`` and this one may share a subclass.
    """

    @pytest.fixture
    def store(self) -> Iterator[CacheStore]:
        """Yield a new, empty store and close it."""
        raise NotImplementedError("provide a fixture named store")

    @pytest.fixture
    def reopen(self) -> Callable[[], CacheStore] | None:
        """Return what opens the same place once more, or None where nothing persists."""
        return None

    def test_is_an_answer_store(self, store: CacheStore) -> None:
        """The store has all methods of both protocols."""
        assert isinstance(store, AnswerStore)
        assert isinstance(store, TelemetryStore)

    @pytest.mark.parametrize("answer", [
        make_answer(),
        make_answer("wie heißt 雪?", namespace="ünï/código", payload="ja 🎿".encode(), expires_at=NOW + 60.5,
                    encoder="hashing-4", vector=np.asarray([0.5, 0.5, -0.5, 0.5], np.float16), cost=0.25, seconds=1.5),
        make_answer(kind="bytes", payload=bytes(range(256)), documents=(("a", "h1"), ("b'\"", ""), ("雪", "h"))),
        make_answer(kind="json", payload=b'{"a":[1,null]}', documents=(("lone \udc80", "v"),)),
        make_answer("lone \udc80 surrogate", question_key="key", entry_id="e", payload=b""),
    ], ids=["plain", "all fields", "bytes", "json", "not unicode"])
    def test_an_answer_comes_back_whole(self, store: CacheStore, answer: CachedAnswer) -> None:
        """Every field survives, by key and by id."""
        put(store, answer)

        assert_same_answer(answer, store.find_answers(answer.namespace, [answer.key]).answers[answer.key])
        assert_same_answer(answer, store.get_answers(answer.namespace, [answer.entry_id])[answer.entry_id])

    def test_finds_many_at_once(self, store: CacheStore) -> None:
        """One call returns all that are there."""
        answers = [make_answer(f"q{number}") for number in range(20)]
        put(store, *answers)

        found = store.find_answers("default", [("s", f"q{number}") for number in range(0, 40, 2)]).answers
        assert sorted(found) == sorted(("s", f"q{number}") for number in range(0, 20, 2))
        assert store.find_answers("default", []).answers == {}
        assert store.get_answers("default", []) == {}
        assert set(store.get_answers("default", ["entry-default-s-q1", "nobody"])) == {"entry-default-s-q1"}

    def test_nothing_crosses_a_namespace_or_a_scope(self, store: CacheStore) -> None:
        """The same question in another namespace or scope is another answer, whatever is done to the first."""
        answers = [make_answer(namespace=namespace, scope=scope, text=f"{namespace}{scope}", entry_id="same" + scope)
                   for namespace in "xy" for scope in "st"]
        put(store, *answers)
        store.record_answers([make_served(answers[0], hit_id="h")])

        for answer in answers:
            found = store.find_answers(answer.namespace, [answer.key]).answers[answer.key]
            assert found.payload == answer.payload
            assert found.hits == (answer is answers[0])
            assert store.get_answers(answer.namespace, [answer.entry_id])[answer.entry_id].payload == answer.payload
        assert store.find_answers("z", [answers[0].key]).answers == {}
        assert store.served_answer("h", namespace="y") is None
        assert store.remove_answers(Removal("x", scope="s")) == 1
        assert [len(store.find_answers(answer.namespace, [answer.key]).answers) for answer in answers] == [0, 1, 1, 1]

    def test_a_later_answer_replaces_the_earlier(self, store: CacheStore) -> None:
        """One answer per key; the earlier one's id is gone."""
        put(store, make_answer(entry_id="e1", text="old", documents=(("a", "h1"),)))
        put(store, make_answer(entry_id="e2", text="new"))

        assert set(store.get_answers("default", ["e1", "e2"])) == {"e2"}
        assert find(store).payload == b"new"
        assert store.remove_answers(Removal("default", documents={"a": None})) == 0

    def test_the_mark_rises_with_every_change(self, store: CacheStore) -> None:
        """Storing, replacing and removing show in the mark; reading and recording hits do not."""
        marks = [store.answers_mark()]
        stored = put(store, make_answer())
        assert stored.before == marks[0]
        marks.append(stored.mark)
        marks.append(put(store, make_answer(text="new")).mark)
        store.remove_answers(Removal("default", scope="s"))
        marks.append(store.answers_mark())

        assert marks == sorted(set(marks))
        answer = make_answer()
        mark = put(store, answer).mark
        store.record_answers([make_served(answer)])
        store.get_answers("default", ["e"])
        assert store.find_answers("default", [answer.key]).mark == store.answers_mark() == mark

    def test_who_finds_answers_learns_where_the_store_stands(self, store: CacheStore) -> None:
        """Mark, epoch and the newest event about answers come with any look, also with one for nothing."""
        answer = make_answer()
        for step in (
            lambda: put(store, answer),
            lambda: store.record_answers([make_judged(answer)]),
            lambda: store.record_answers([make_served(make_answer(namespace="y"))]),
            lambda: store.erase(Erasure(namespace="y")),
        ):
            step()
            newest = max((entry.position for entry in read_all_answer_events(store)), default=0)
            for keys in ([], [answer.key], [answer.key, ("s", "unknown")]):
                found = store.find_answers("default", keys)
                assert (found.mark, found.head) == (store.answers_mark(), Head(store.head().epoch, newest))
                assert len(found.answers) == bool(keys)

    def test_others_are_seen(self, store: CacheStore, reopen: Callable[[], CacheStore] | None) -> None:
        """What another object on the same place stores and removes is seen at once, and moves the mark."""
        with second(reopen) as other:
            put(store, make_answer("q1"))
            mark = store.answers_mark()
            put(other, make_answer("q2"))
            assert store.answers_mark() > mark
            assert store.find_answers("default", [("s", "q2")]).answers
            other.remove_answers(Removal("default", scope="s"))
            assert store.find_answers("default", [("s", "q1"), ("s", "q2")]).answers == {}
            other.record_answers([make_judged(make_answer("q1"))])
            assert [type(entry.event) for entry in read_all_answer_events(store)][-1] is AnswerJudged

    def test_reads_questions_with_vectors_by_number(self, store: CacheStore) -> None:
        """An index catches up by number; answers without a vector and of other namespaces are left out."""
        vector = np.asarray([1.0, 0.0], np.float16)
        put(store, make_answer("q0"), *(make_answer(f"q{number}", vector=vector, encoder="e", documents=(("a", "h"),))
                                        for number in range(1, 5)), make_answer("other", namespace="y", vector=vector))

        first = store.read_questions("default", limit=3)
        assert [entry.question for entry in first] == ["q1", "q2", "q3"]
        (last,) = store.read_questions("default", after=first[-1].number)
        assert (last.entry_id, last.scope, last.encoder, last.documents) == (
            "entry-default-s-q4", "s", "e", (("a", "h"),))
        np.testing.assert_array_equal(last.vector, vector)
        assert last.answer == make_answer("q4").digest

    def test_keeps_no_hold_of_the_callers_array(self, store: CacheStore) -> None:
        """A vector that is changed after the put does not change in the store."""
        vector = np.ones(3, np.float16)
        put(store, make_answer(vector=vector))
        vector[:] = 0

        assert store.read_questions("default")[0].vector.tolist() == [1.0, 1.0, 1.0]

    def test_a_changed_document_takes_its_answers(self, store: CacheStore) -> None:
        """Answers bound to another version go, those bound to this version or to other documents stay."""
        put(store, make_answer("q1", documents=(("a", "h1"), ("b", "h1"))), make_answer("q2", documents=(("a", "h2"),)),
            make_answer("q3", documents=(("b", "h1"),)), make_answer("q4"),
            make_answer("q1", namespace="y", documents=(("a", "h1"),)))

        assert store.remove_answers(Removal("default", documents={"a": "h2", "c": None})) == 1
        assert questions(store, 5) == ["q2", "q3", "q4"]
        assert store.remove_answers(Removal("default", documents={"a": None, "b": None})) == 2
        assert questions(store, 5) == ["q4"]
        assert store.find_answers("y", [("s", "q1")]).answers

    def test_removes_by_scope_and_by_age(self, store: CacheStore) -> None:
        """Conditions narrow each other; a namespace alone means all of it."""
        put(store, *(make_answer(f"q{number}", scope="st"[number % 2], created_at=NOW + number) for number in range(6)))

        assert store.remove_answers(Removal("default", scope="s", older_than=NOW + 3)) == 2
        assert store.remove_answers(Removal("default", older_than=NOW + 2)) == 1
        assert store.remove_answers(Removal("elsewhere")) == 0
        assert store.remove_answers(Removal("default")) == 3

    def test_what_was_removed_is_not_put_back(self, store: CacheStore) -> None:
        """An answer that was begun before its document, scope or namespace was removed comes too late."""
        removals = [Removal("default", documents={"a": None}), Removal("default", documents={"a": "h2"}),
                    Removal("default", scope="s"), Removal("default")]
        for removal in removals:
            mark = store.answers_mark()
            store.remove_answers(removal)
            late = make_answer(documents=(("a", "h1"),))
            assert store.put_answers([late], bounds=NO_BOUNDS, mark=mark).stored == (False,), removal
            assert store.find_answers("default", [late.key]).answers == {}

    def test_who_begins_after_a_removal_may_put(self, store: CacheStore) -> None:
        """A removal bars what was begun before, other documents' answers and other scopes not at all."""
        before = store.answers_mark()
        store.remove_answers(Removal("default", documents={"a": None}))
        store.remove_answers(Removal("default", scope="t"))
        other = make_answer("q2", documents=(("b", "h1"),))
        fresh = make_answer("q1", documents=(("a", "h1"),))

        assert store.put_answers([other], bounds=NO_BOUNDS, mark=before).stored == (True,)
        assert store.put_answers([fresh], bounds=NO_BOUNDS, mark=store.answers_mark()).stored == (True,)
        assert store.put_answers([make_answer(scope="t")], bounds=NO_BOUNDS,
                                 mark=store.answers_mark()).stored == (True,)

    def test_a_known_version_bars_every_other(self, store: CacheStore) -> None:
        """Once a version was told, no answer made from another one is stored, with or without a mark."""
        store.remove_answers(Removal("default", documents={"a": "h2"}))
        old, new = (make_answer(f"q-{version}", documents=(("a", version), ("b", "x"))) for version in ("h1", "h2"))

        assert store.put_answers([old, new], bounds=NO_BOUNDS).stored == (False, True)
        assert store.put_answers([old], bounds=NO_BOUNDS, mark=store.answers_mark()).stored == (False,)
        assert store.put_answers([replace(old, namespace="y")], bounds=NO_BOUNDS).stored == (True,)
        store.remove_answers(Removal("default", documents={"a": "h1"}))
        assert store.put_answers([old], bounds=NO_BOUNDS).stored == (True,)

    def test_a_removal_beside_writers_leaves_nothing_stale(self, store: CacheStore) -> None:
        """However eight writers of the old version interleave with the removal, none of their answers is left."""
        started = threading.Barrier(9)

        def write(number: int) -> None:
            started.wait()
            for each in range(10):
                mark = store.answers_mark()
                store.put_answers([make_answer(f"q{number}-{each}", documents=(("a", "h1"),))], bounds=NO_BOUNDS,
                                  mark=mark)

        with ThreadPoolExecutor(8) as pool:
            writing = [pool.submit(write, number) for number in range(8)]
            started.wait()
            store.remove_answers(Removal("default", documents={"a": "h2"}))
            for each in writing:
                each.result()
        keys = [("s", f"q{number}-{each}") for number in range(8) for each in range(10)]
        assert store.find_answers("default", keys).answers == {}

    def test_the_bound_on_entries_holds(self, store: CacheStore) -> None:
        """Never more than allowed in the whole store; the newest is there; hit and costly ones outlive others."""
        bounds = AnswerBounds(max_entries=5, max_bytes=1 << 30, expired_before=0.0)
        hot, dear = make_answer("hot", namespace="y"), make_answer("dear", cost=50.0)
        store.put_answers([hot, dear], bounds=bounds)
        store.record_answers([make_served(hot, hit_id=f"h{number}") for number in range(50)])
        for number in range(20):
            newest = make_answer(f"q{number}", created_at=NOW + number)
            assert store.put_answers([newest], bounds=bounds).stored == (True,)
            assert store.find_answers("default", [newest.key]).answers
        assert questions(store, 20) == ["q17", "q18", "q19"]
        assert store.find_answers("y", [hot.key]).answers
        assert store.find_answers("default", [dear.key]).answers

    def test_the_bound_on_bytes_holds(self, store: CacheStore) -> None:
        """Old answers go for a new one; one that is too large by itself is not stored and takes nothing with it."""
        bounds = AnswerBounds(max_entries=100, max_bytes=5_000, expired_before=0.0)
        for number in range(10):
            store.put_answers([make_answer(f"q{number}", payload=b"x" * 1000, created_at=NOW + number)], bounds=bounds)
        left = questions(store, 10)

        assert 3 <= len(left) <= 4
        assert left[-1] == "q9"
        assert store.put_answers([make_answer("big", payload=b"x" * 6000)], bounds=bounds).stored == (False,)
        assert questions(store, 10) == left

    def test_what_has_expired_goes_first(self, store: CacheStore) -> None:
        """When room is needed, expired answers go before any other; until then they are still found."""
        bounds = AnswerBounds(max_entries=3, max_bytes=1 << 30, expired_before=NOW + 10)
        store.put_answers([make_answer("q0", cost=9.0, expires_at=NOW + 10), make_answer("q1", expires_at=NOW + 11),
                           make_answer("q2")], bounds=bounds)
        assert questions(store, 4) == ["q0", "q1", "q2"]
        store.put_answers([make_answer("q3")], bounds=bounds)

        assert questions(store, 4) == ["q1", "q2", "q3"]

    def test_events_come_back_in_order(self, store: CacheStore) -> None:
        """Puts, servings and judgements come back whole, by position, by namespace and by kind."""
        one, other = make_answer(cost=2.0, seconds=3.0), make_answer(namespace="y")
        put(store, one, other)
        events: list[AnswerEvent] = [make_served(one, cost=2.0), AnswerMissed("m", "default", NOW, "s", "expired"),
                                     make_judged(one, hit_id=None, correct=False, source="miss")]
        positions = store.record_answers(events)

        assert list(positions) == sorted(set(positions))
        cached = AnswerCached(one.entry_id, "default", NOW, "s", 2.0, 3.0)
        assert [entry.event for entry in store.read_answer_events(namespace="default")] == [cached, *events]
        assert [entry.position for entry in store.read_answer_events(namespace="default")][1:] == list(positions)
        assert [entry.event for entry in store.read_answer_events(kinds=[AnswerJudged])] == [events[2]]
        assert [entry.event for entry in store.read_answer_events(kinds=[AnswerMissed])] == [events[1]]
        assert [entry.event for entry in store.read_answer_events(after=positions[1])] == [events[2]]
        assert len(store.read_answer_events(limit=2)) == 2
        assert store.served_answer("hit-1", namespace="default") == events[0]

    def test_an_event_is_stored_once(self, store: CacheStore) -> None:
        """A known id keeps its position and its content, and is no second hit."""
        answer = make_answer()
        put(store, answer)
        first = store.record_answers([make_served(answer), make_judged(answer)])

        assert store.record_answers([make_judged(answer, correct=False), make_served(answer)]) == first[::-1]
        assert len(read_all_answer_events(store)) == 3
        assert find(store).hits == 1

    def test_the_log_is_counted(self, store: CacheStore) -> None:
        """Counts by kind, reason and source equal those made by hand, from any position, within a namespace."""
        one, other = make_answer(), make_answer(namespace="y")
        put(store, one, other)
        store.record_answers([
            make_served(one, "h1", cost=2.0, seconds=3.0), make_served(one, "h2", kind="exact", cost=0.5),
            make_judged(one, "j1"), make_judged(one, "j2", correct=False, source="miss"),
            AnswerMissed("m1", "default", NOW, "s", "expired"), AnswerMissed("m2", "y", NOW, "s", "expired"),
        ])
        first = store.answer_totals("default")
        (last,) = store.record_answers([AnswerMissed("m3", "default", NOW, "s", "never asked")])

        assert first == AnswerTotals(first.position, 1, {"semantic": 1, "exact": 1}, {"expired": 1},
                                     {"audit": 1, "miss": 1}, {"miss": 1}, 2.5, 3.0)
        later = store.answer_totals("default", after=first.position)
        assert later == AnswerTotals(last, 0, {}, {"never asked": 1}, {}, {}, 0.0, 0.0)
        assert first + later == store.answer_totals("default")
        assert store.answer_totals("default", after=last) == AnswerTotals(last)
        assert store.answer_totals("nobody") == AnswerTotals()
        store.erase(Erasure(namespace="default"))
        assert store.answer_totals("default") == AnswerTotals()

    def test_a_namespace_with_answers_alone_is_known(self, store: CacheStore) -> None:
        """By a cached answer, or by an event about one."""
        put(store, make_answer(namespace="put"))
        store.record_answers([AnswerMissed("m", "missed", NOW, "s", "expired")])

        assert store.namespaces() == ["missed", "put"]
        store.erase(Erasure(namespace="put"))
        assert store.namespaces() == ["missed"]

    def test_questions_are_read_on_from_any_number(self, store: CacheStore) -> None:
        """Those of a namespace that have a vector and are still there, by number, however many come and go."""
        vector = np.ones(2, dtype=np.float16)
        put(store, *(make_answer(f"q{number}", namespace="xy"[number % 2], vector=None if number % 3 == 0 else vector)
                     for number in range(12)))
        put(store, make_answer("q2", namespace="x", vector=vector))
        store.record_answers([make_judged(make_answer("q4", namespace="x"))], withdraw=["entry-x-s-q4"])
        every = store.read_questions("x")

        assert [one.question for one in every] == ["q8", "q10", "q2"]
        assert [one.number for one in every] == sorted(one.number for one in every)
        assert [one.question for one in store.read_questions("x", after=every[0].number, limit=1)] == ["q10"]
        assert store.read_questions("x", after=every[-1].number) == store.read_questions("nobody") == []

    def test_a_withdrawal_and_its_event_are_one(self, store: CacheStore) -> None:
        """The entry goes in the step that records why, in the event's namespace only."""
        answer = make_answer(entry_id="e")
        put(store, answer, make_answer(entry_id="e", namespace="y"))
        mark = store.answers_mark()
        store.record_answers([make_judged(answer, correct=False)], withdraw=["e"])

        assert store.get_answers("default", ["e"]) == {}
        assert store.get_answers("y", ["e"])
        assert store.answers_mark() > mark

    def test_rankings_and_answers_keep_apart(self, store: CacheStore) -> None:
        """The log of rankings does not see the events about answers."""
        put(store, make_answer())

        assert store.read() == []
        assert store.head().position == 0

    @pytest.mark.parametrize(("what", "left"), [
        (Erasure(namespace="default"), ["y"]),
        (Erasure(document_ids=("a",)), ["plain", "y"]),
        (Erasure(namespace="default", document_ids=("a",)), ["plain", "y"]),
        (Erasure(older_than=NOW + 1), ["young", "y"]),
        (Erasure(session="s"), ["old", "plain", "young", "y"]),
        (Erasure(namespace="nobody"), ["old", "plain", "young", "y"]),
    ], ids=["namespace", "document", "both", "age", "session", "nothing"])
    def test_an_erasure_takes_answers(self, store: CacheStore, what: Erasure, left: list[str]) -> None:
        """Answers and what was recorded about them go; the epoch moves only if something went."""
        answers = [make_answer("old", documents=(("a", "h1"),)), make_answer("plain"),
                   make_answer("young", created_at=NOW + 5, documents=(("a", "h1"),)),
                   make_answer("y", namespace="y", created_at=NOW + 5)]
        put(store, *answers)
        epoch = store.head().epoch
        receipt = store.erase(what)

        kept = [answer.question for answer in answers
                if store.find_answers(answer.namespace, [answer.key]).answers]
        expected = [answer for answer in answers if answer.question in kept]
        assert receipt.answers == len(answers) - len(kept)
        assert {entry.event.entry_id for entry in read_all_answer_events(store)} == {
            answer.entry_id for answer in expected}
        assert kept == left
        assert (store.head().epoch != epoch) == bool(receipt.answers)

    @pytest.mark.parametrize("what", [Erasure(document_ids=("a",)), Erasure(older_than=NOW + 1)],
                             ids=["document", "age"])
    def test_an_erasure_of_answers_takes_what_was_learned_from_them(self, store: CacheStore, what: Erasure) -> None:
        """Snapshots of a namespace that loses events about answers go."""
        put(store, make_answer(documents=(("a", "h1"),)))
        head = store.head()
        store.save_snapshot("default", "fold", Snapshot(head.epoch, 1, b"state"))
        receipt = store.erase(what)

        assert receipt.snapshots == 1
        assert store.load_snapshot("default", "fold") is None

    def test_what_was_erased_is_not_put_back(self, store: CacheStore) -> None:
        """An answer that was begun before an erasure comes too late."""
        put(store, make_answer(documents=(("a", "h1"),)))
        mark = store.answers_mark()
        store.erase(Erasure(document_ids=("a",)))

        assert store.put_answers([make_answer()], bounds=NO_BOUNDS, mark=mark).stored == (False,)
        assert store.put_answers([make_answer()], bounds=NO_BOUNDS, mark=store.answers_mark()).stored == (True,)

    def test_one_holds_a_lease(self, store: CacheStore) -> None:
        """Others get the holder's until it is released or over; the holder may prolong it."""
        mine = store.acquire_lease("n", "me", now=NOW, seconds=10)

        assert mine == Lease("me", NOW + 10) == store.lease("n")
        assert store.acquire_lease("n", "you", now=NOW + 9, seconds=10) == mine
        assert store.acquire_lease("other", "you", now=NOW + 9, seconds=10).owner == "you"
        assert store.acquire_lease("n", "me", now=NOW + 9, seconds=10) == Lease("me", NOW + 19)
        assert store.acquire_lease("n", "you", now=NOW + 19, seconds=10) == Lease("you", NOW + 29)
        store.release_lease("n", "me")
        assert store.lease("n") == Lease("you", NOW + 29)
        store.release_lease("n", "you")
        assert store.lease("n") is None

    def test_a_failure_is_told(self, store: CacheStore) -> None:
        """A lease that ended in failure says so to those who look, and holds nobody up."""
        store.acquire_lease("n", "me", now=NOW, seconds=10)
        store.release_lease("n", "me", failure="ValueError", now=NOW + 1)

        told = store.lease("n")
        assert told is not None
        assert (told.owner, told.failure) == ("me", "ValueError")
        assert store.acquire_lease("n", "you", now=NOW + 2, seconds=10) == Lease("you", NOW + 12)

    def test_many_who_ask_for_a_lease(self, store: CacheStore) -> None:
        """Exactly one of sixteen gets it."""
        with ThreadPoolExecutor(16) as pool:
            leases = list(pool.map(lambda owner: store.acquire_lease("n", owner, now=NOW, seconds=10),
                                   map(str, range(16))))

        assert len({lease.owner for lease in leases}) == 1

    def test_a_follower_misses_no_event(self, store: CacheStore) -> None:
        """However writers interleave, a reader that goes on after its last position sees all, once."""
        answer, done = make_answer(), threading.Event()

        def write(writer: int) -> list[int]:
            return [store.record_answers([make_served(answer, hit_id=f"{writer}-{number}")])[0] for number in range(12)]

        def follow() -> list[int]:
            seen: list[int] = []
            while True:
                was_done = done.is_set()
                found = store.read_answer_events(after=seen[-1] if seen else 0, limit=7)
                seen.extend(entry.position for entry in found)
                if was_done and not found:
                    return seen

        with ThreadPoolExecutor(7) as pool:
            following = pool.submit(follow)
            written = sorted(position for each in pool.map(write, range(6)) for position in each)
            done.set()
            assert following.result() == written

    def test_answers_persist(self, store: CacheStore, reopen: Callable[[], CacheStore] | None) -> None:
        """Another object on the same place finds answers, events, barriers and leases."""
        with second(reopen) as other:
            put(store, make_answer())
            store.remove_answers(Removal("default", documents={"a": "h2"}))
            store.acquire_lease("n", "me", now=NOW, seconds=10)

            assert find(other).payload == b"so"
            assert other.lease("n") == Lease("me", NOW + 10)
            assert other.put_answers([make_answer(documents=(("a", "h1"),))], bounds=NO_BOUNDS).stored == (False,)
            assert len(read_all_answer_events(other)) == 1

    @pytest.mark.parametrize("use", [
        lambda store: store.put_answers([make_answer()], bounds=NO_BOUNDS),
        lambda store: store.find_answers("x", [("s", "q")]),
        lambda store: store.get_answers("x", ["e"]),
        lambda store: store.read_questions("x"),
        lambda store: store.answers_mark(),
        lambda store: store.remove_answers(Removal("x")),
        lambda store: store.record_answers([make_served(make_answer())]),
        lambda store: store.read_answer_events(),
        lambda store: store.answer_totals("x"),
        lambda store: store.served_answer("h", namespace="x"),
        lambda store: store.acquire_lease("n", "me", now=1.0, seconds=1.0),
        lambda store: store.release_lease("n", "me"),
        lambda store: store.lease("n"),
    ], ids=["put_answers", "find_answers", "get_answers", "read_questions", "answers_mark", "remove_answers",
            "record_answers", "read_answer_events", "answer_totals", "served_answer", "acquire_lease",
            "release_lease", "lease"])
    def test_a_closed_store_says_so_about_answers(self, store: CacheStore,
                                                  use: Callable[[CacheStore], object]) -> None:
        """Every method raises ``StoreClosedError`` after ``close``."""
        store.close()

        with pytest.raises(StoreClosedError):
            use(store)


def put(store: AnswerStore, *answers: CachedAnswer) -> Any:
    """Store answers without bounds."""
    stored = store.put_answers(answers, bounds=NO_BOUNDS)
    assert all(stored.stored)
    return stored


def find(store: AnswerStore, question: str = "how") -> CachedAnswer:
    """Return the answer to a question in the default place."""
    return store.find_answers("default", [("s", question)]).answers["s", question]


def questions(store: AnswerStore, count: int) -> Sequence[str]:
    """Return which of q0, q1, ... are answered in the default place."""
    keys = [("s", f"q{number}") for number in range(count)]
    found = store.find_answers("default", keys).answers
    return [question for _, question in keys if ("s", question) in found]


def second(reopen: Callable[[], CacheStore] | None) -> closing[CacheStore]:
    """Open the same place once more, or skip where nothing persists."""
    if reopen is None:
        pytest.skip("nothing persists outside the object")
    return closing(reopen())
