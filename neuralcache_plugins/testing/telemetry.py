"""What every ``TelemetryStore`` must do."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from neuralcache_plugins.contracts import (
    Erasure,
    Event,
    FeedbackGiven,
    RankingServed,
    Receipt,
    Recorded,
    Snapshot,
    StoredVector,
    TelemetryStore,
    in_session,
    session_part,
)
from neuralcache_plugins.errors import ErasedMeanwhileError, InvalidInputError, StoreClosedError
from neuralcache_plugins.testing.events import assert_same_event, make_feedback, make_ranking, read_all, unit_vector


class StoreConformance:
    """What every telemetry store must do, as pytest tests; subclass it and provide the fixture ``store``."""

    @pytest.fixture
    def store(self) -> Iterator[TelemetryStore]:
        """Yield a new, empty store and close it."""
        raise NotImplementedError("provide a fixture named store")

    @pytest.fixture
    def reopen(self) -> Callable[[], TelemetryStore] | None:
        """Return what opens the same place once more, or None where nothing persists."""
        return None

    def test_is_a_telemetry_store(self, store: TelemetryStore) -> None:
        """The store has all methods of the protocol and a URL."""
        assert isinstance(store, TelemetryStore)
        assert "://" in store.url

    @pytest.mark.parametrize("ranking", [
        make_ranking(),
        make_ranking(width=None),
        make_ranking(documents=()),
        make_ranking("r", namespace="ünï/código", documents=("雪", "a'b\"c", "", "\\ {} %s\n", "🎿"), session="s 1",
                     query_key="k%"),
        make_ranking(run_id="run", parent_run_id="parent", trace_id="0af7", span_id="b7ad", trust=0.25,
                     degraded=("encoder", "scorer"), query_text="what's null?", document_texts=("x", "ÿ", "")),
        make_ranking(scores=(1.0, 0.5, 0.0), cold=(-0.0, -12.3456, -1e-9), signals={"own": (1e6, 123456.0, -3.0)},
                     propensities=(1.0, 1e-7, 0.25)),
    ], ids=["plain", "no vector", "nothing shown", "unicode", "all fields", "numbers"])
    def test_rankings_come_back_whole(self, store: TelemetryStore, ranking: RankingServed) -> None:
        """Every field of a ranking survives."""
        position = store.append([ranking]).positions[0]

        entry, = store.read()
        assert entry.position == position
        assert_same_event(ranking, entry.event)
        found = store.ranking(ranking.ranking_id)
        assert found is not None
        assert_same_event(ranking, found)

    @pytest.mark.parametrize("changes", [
        {},
        {"document_vector": None},
        {"rewards": (("a", 1.0), ("c", -0.333333), ("b", 0.0)), "source": "context_use"},
        {"rewards": (("a", -1.0),), "feedback_id": "é-1", "at": 1_800_000_000.123456},
    ], ids=["plain", "no vector", "many rewards", "times"])
    def test_feedback_comes_back_with_its_ranking(self, store: TelemetryStore, changes: dict[str, Any]) -> None:
        """Every field of feedback survives, its ranking included, read together or alone."""
        feedback = make_feedback(make_ranking(session="s"), **changes)
        first, second = store.append([feedback.ranking, feedback]).positions

        assert_same_event(feedback, store.read()[1].event)
        alone, = store.read(after=first)
        assert alone.position == second
        assert_same_event(feedback, alone.event)

    def test_keeps_no_hold_of_the_callers_arrays(self, store: TelemetryStore) -> None:
        """An array that is changed after the append does not change the log."""
        ranking = make_ranking()
        assert ranking.query_vector is not None
        before = ranking.query_vector.copy()
        store.append([ranking])
        ranking.query_vector[:] = 0

        event = store.read()[0].event
        assert isinstance(event, RankingServed)
        assert event.query_vector is not None
        np.testing.assert_allclose(event.query_vector, before, atol=1e-3)

    def test_feedback_brings_a_missing_ranking_along(self, store: TelemetryStore) -> None:
        """Feedback for a ranking that is not stored stores it too, before the feedback."""
        feedback = make_feedback()
        appended = store.append([feedback])
        position = appended.positions[0]
        assert appended.before is None

        ranking, told = store.read()
        assert ranking.position < told.position == position
        assert_same_event(feedback.ranking, ranking.event)
        assert_same_event(feedback, told.event)

    def test_positions_rise_in_the_order_given(self, store: TelemetryStore) -> None:
        """Positions rise along one append and from one append to the next."""
        positions = [*store.append([make_ranking("r1"), make_ranking("r2")]).positions,
                     *store.append([make_ranking("r0")]).positions]

        assert positions == sorted(set(positions))
        assert [entry.position for entry in store.read()] == positions
        assert _ids(store.read()) == ["r1", "r2", "r0"]
        assert store.head().position == positions[-1]

    def test_reads_within_bounds(self, store: TelemetryStore) -> None:
        """``after``, ``upto``, ``namespace`` and ``limit`` narrow what is read."""
        events = [make_ranking(f"r{number}", namespace="xy"[number % 2]) for number in range(6)]
        positions = store.append(events).positions

        assert _ids(store.read(after=positions[1], upto=positions[4])) == ["r2", "r3", "r4"]
        assert _ids(store.read(limit=2)) == ["r0", "r1"]
        assert _ids(store.read(namespace="y", after=positions[1], limit=1)) == ["r3"]
        assert _ids(store.read(namespace="z")) == []
        assert store.read(after=positions[-1]) == []
        assert store.namespaces() == ["x", "y"]

    def test_an_empty_log(self, store: TelemetryStore) -> None:
        """Nothing is found in an empty store, and appending nothing is fine."""
        assert store.append([]).positions == ()
        assert (store.read(), store.namespaces(), store.head().position) == ([], [], 0)
        assert store.ranking("r") is None
        assert store.latest_ranking("k", namespace="default") is None
        assert store.load_snapshot("default", "fold") is None
        assert store.get_vectors("default", "e", ["k"]) == {}
        assert store.get_vectors("default", "e", []) == {}

    def test_the_same_event_is_stored_once(self, store: TelemetryStore) -> None:
        """An id that is known keeps its old position and its old content."""
        feedback = make_feedback()
        first = store.append([feedback.ranking, feedback])
        again = store.append([feedback.ranking, replace(feedback, rewards=(("b", 1.0),)), feedback])

        assert again.positions == (first.positions[0], first.positions[1], first.positions[1])
        assert again.sign == first.sign
        assert len(store.read()) == 2
        assert_same_event(feedback, store.read()[1].event)

    def test_the_same_event_twice_in_one_append(self, store: TelemetryStore) -> None:
        """Both get the one position."""
        feedback = make_feedback()
        positions = store.append([feedback, feedback, feedback.ranking]).positions

        assert positions[0] == positions[1]
        assert len(store.read()) == 2

    def test_the_same_id_in_two_namespaces(self, store: TelemetryStore) -> None:
        """Ids belong to their namespace: two tenants with equal ids keep their own events."""
        mine, theirs = (make_feedback(make_ranking(namespace=name, seed=seed)) for name, seed in (("x", 1), ("y", 2)))
        store.append([mine, theirs])

        for feedback in (mine, theirs):
            entries = store.read(namespace=feedback.namespace)
            assert [type(entry.event) for entry in entries] == [RankingServed, FeedbackGiven]
            assert_same_event(feedback, entries[1].event)
            found = store.ranking(feedback.ranking_id, namespace=feedback.namespace)
            assert found is not None
            assert_same_event(feedback.ranking, found)
        assert store.ranking(mine.ranking_id, namespace="z") is None

    def test_an_append_happens_as_a_whole_or_not_at_all(self, store: TelemetryStore) -> None:
        """One event that cannot be stored keeps out all others of its append."""
        stray = replace(make_feedback(), namespace="elsewhere")
        before = store.append([make_ranking("r0")])

        with pytest.raises(InvalidInputError):
            store.append([make_ranking("r1"), make_feedback(make_ranking("r2")), stray])
        assert _ids(store.read()) == ["r0"]
        assert store.sign() == before.sign

    def test_an_append_of_an_epoch_that_is_over_stores_nothing(self, store: TelemetryStore) -> None:
        """Whoever appends what was found before an erasure is told so; in the new epoch it works again."""
        feedback, doomed = make_feedback(), make_ranking("doomed", documents=("z",))
        store.append([feedback.ranking, doomed])
        before = store.head().epoch
        store.append([make_ranking("r0")], epoch=before)
        store.erase(Erasure(namespace="default", document_ids=("z",)))
        sign = store.sign()

        for late in (feedback, make_ranking("r1"), make_feedback(doomed, rewards=(("z", 1.0),))):
            with pytest.raises(ErasedMeanwhileError):
                store.append([late], epoch=before)
        assert _ids(store.read()) == [feedback.ranking_id, "r0"]
        assert store.sign() == sign
        store.append([feedback], epoch=store.head().epoch)
        assert len(store.read()) == 3

    def test_finds_the_latest_ranking_of_a_question(self, store: TelemetryStore) -> None:
        """The newest by position counts, within the namespace."""
        store.append([make_ranking("r1", query_key="q", at=9.0), make_ranking("r2", query_key="q", at=5.0),
                      make_ranking("r3", query_key="other"), make_ranking("r4", query_key="q", namespace="y")])

        found = store.latest_ranking("q", namespace="default")
        assert found is not None
        assert found.ranking_id == "r2"
        assert store.latest_ranking("q", namespace="z") is None

    @pytest.mark.parametrize("name", ["run_id", "parent_run_id", "trace_id", "span_id"])
    def test_finds_the_rankings_of_a_trace(self, store: TelemetryStore, name: str) -> None:
        """By each of the four ids, newest first by position, within the namespace and the limit."""
        traced: dict[str, Any] = {name: "t1"}
        store.append([make_ranking("r1", at=9.0, **traced), make_ranking("r2", at=5.0, **traced),
                      make_ranking("r3", **traced | {name: "t2"}), make_ranking("r4", namespace="y", **traced),
                      make_feedback(make_ranking("r5"), feedback_id="f5")])

        found = store.traced_rankings("t1", namespace="default")
        assert [one.ranking_id for one in found] == ["r2", "r1"]
        assert_same_event(make_ranking("r2", at=5.0, **traced), found[0])
        assert [one.ranking_id for one in store.traced_rankings("t1", namespace="default", limit=1)] == ["r2"]
        assert store.traced_rankings("nobody", namespace="default") == []
        store.erase(Erasure(namespace="default"))
        assert store.traced_rankings("t1", namespace="default") == []

    def test_the_sign_after_an_append_stays(self, store: TelemetryStore) -> None:
        """The sign equals ``Appended.sign`` until somebody writes, and reading does not change it."""
        signs = {store.sign()}
        for number in range(3):
            appended = store.append([make_ranking(f"r{number}")])
            assert appended.sign not in signs
            signs.add(appended.sign)
            store.read()
            store.head()
            assert store.sign() == appended.sign == store.sign()

    def test_the_sign_changes_with_an_erasure(self, store: TelemetryStore) -> None:
        """An erasure shows in the sign and in the epoch."""
        sign = store.append([make_ranking()]).sign
        epoch = store.head().epoch
        store.erase(Erasure(namespace="default"))

        assert store.sign() != sign
        assert store.head().epoch != epoch

    def test_others_show_in_the_sign(self, store: TelemetryStore, reopen: Callable[[], TelemetryStore] | None) -> None:
        """An append or erasure through another object on the same place changes the sign."""
        with _second(reopen) as other:
            before = store.append([make_ranking("r1")]).sign
            other.append([make_ranking("r2")])
            between = store.sign()
            other.erase(Erasure(namespace="default"))

            assert len({before, between, store.sign()}) == 3

    def test_persists(self, store: TelemetryStore, reopen: Callable[[], TelemetryStore] | None) -> None:
        """Another object on the same place finds everything, the hash key included."""
        with _second(reopen) as other:
            store.append([make_feedback()])
            store.save_snapshot("default", "fold", Snapshot(store.head().epoch, 1, b"state"))
            store.put_vectors("default", "e", [_stored("k")], at=1.0, max_rows=10)

            assert other.head() == store.head()
            assert [entry.position for entry in other.read()] == [entry.position for entry in store.read()]
            assert other.load_snapshot("default", "fold") == store.load_snapshot("default", "fold")
            assert list(other.get_vectors("default", "e", ["k"])) == ["k"]
            assert other.hash_key() == store.hash_key()

    def test_the_hash_key_stays(self, store: TelemetryStore) -> None:
        """The key has 32 bytes and does not change."""
        key = store.hash_key()
        store.append([make_ranking()])
        store.erase(Erasure(namespace="default"))

        assert len(key) == 32
        assert store.hash_key() == key

    def test_a_reader_that_follows_misses_nothing(self, store: TelemetryStore) -> None:
        """However eight writers interleave, a reader that goes on after its last position sees all, once."""
        writers, appends = 8, 12
        done = threading.Event()
        with ThreadPoolExecutor(writers + 1) as pool:
            reader = pool.submit(_follow, store, done)
            written = [pool.submit(_append_some, store, f"w{writer}", appends) for writer in range(writers)]
            positions = [position for each in written for position in each.result()]
            done.set()
            seen = reader.result()

        assert seen == sorted(seen)
        assert len(positions) == len(set(positions)) == writers * appends * 2
        assert seen == sorted(positions)

    def test_one_feedback_from_many_threads_is_stored_once(self, store: TelemetryStore) -> None:
        """Idempotence holds under concurrency."""
        feedback = make_feedback()
        with ThreadPoolExecutor(8) as pool:
            appended = list(pool.map(store.append, [[feedback]] * 16))

        assert len({each.positions for each in appended}) == 1
        assert len(store.read()) == 2

    def test_snapshots_are_replaced(self, store: TelemetryStore) -> None:
        """The last snapshot of a namespace and fold is the one that counts."""
        epoch = store.head().epoch
        for position, namespace, fold in ((1, "x", "f"), (2, "x", "f"), (3, "x", "g"), (4, "y", "f")):
            store.save_snapshot(namespace, fold, Snapshot(epoch, position, bytes([0, position, 255])))

        assert store.load_snapshot("x", "f") == Snapshot(epoch, 2, b"\x00\x02\xff")
        assert store.load_snapshot("x", "g") == Snapshot(epoch, 3, b"\x00\x03\xff")
        assert store.load_snapshot("y", "f") == Snapshot(epoch, 4, b"\x00\x04\xff")
        assert store.load_snapshot("y", "g") is None

    def test_snapshots_of_another_epoch_are_ignored(self, store: TelemetryStore) -> None:
        """State that was folded before an erasure is not saved after it."""
        store.append([make_ranking()])
        old = store.head()
        store.erase(Erasure(namespace="default"))
        store.save_snapshot("default", "fold", Snapshot(old.epoch, old.position, b"old"))

        assert store.load_snapshot("default", "fold") is None

    def test_an_erasure_takes_the_snapshots_concerned(self, store: TelemetryStore) -> None:
        """What was learned from erased events goes; a snapshot that stays is valid in the new epoch."""
        store.append([make_ranking("r1", namespace="x"), make_ranking("r2", namespace="y", documents=("z",))])
        epoch = store.head().epoch
        for name in "xy":
            store.save_snapshot(name, "fold", Snapshot(epoch, 2, b"state"))
        receipt = store.erase(Erasure(document_ids=("a",)))

        assert receipt.snapshots >= 1
        assert store.load_snapshot("x", "fold") is None
        kept = store.load_snapshot("y", "fold")
        assert kept is None or kept.epoch == store.head().epoch

    def test_vectors_come_back(self, store: TelemetryStore) -> None:
        """Vectors come back as float16 by key; unknown keys are left out."""
        rows = [_stored("k1", 1), _stored("k2", 2, document_id="é")]
        store.put_vectors("x", "e", rows, at=1.0, max_rows=10)

        found = store.get_vectors("x", "e", ["k2", "k3", "k1", "k1"])
        assert set(found) == {"k1", "k2"}
        for row in rows:
            assert found[row.key].dtype == np.float16
            np.testing.assert_array_equal(found[row.key], row.vector)

    def test_vectors_belong_to_their_namespace_and_encoder(self, store: TelemetryStore) -> None:
        """No other namespace and no other encoder sees them."""
        store.put_vectors("x", "e", [_stored("k")], at=1.0, max_rows=10)

        assert store.get_vectors("y", "e", ["k"]) == {}
        assert store.get_vectors("x", "f", ["k"]) == {}

    def test_the_oldest_vectors_go(self, store: TelemetryStore) -> None:
        """The bound holds for the whole store; adding a known vector makes it young again."""
        store.put_vectors("x", "e", [_stored("k1"), _stored("k2")], at=1.0, max_rows=3)
        store.put_vectors("y", "e", [_stored("k3")], at=2.0, max_rows=3)
        store.put_vectors("x", "e", [_stored("k1", 5)], at=3.0, max_rows=3)
        store.put_vectors("x", "e", [_stored("k4"), _stored("k4")], at=4.0, max_rows=3)

        assert sorted(store.get_vectors("x", "e", ["k1", "k2", "k4"])) == ["k1", "k4"]
        assert list(store.get_vectors("y", "e", ["k3"])) == ["k3"]
        np.testing.assert_array_equal(store.get_vectors("x", "e", ["k1"])["k1"], _stored("k1", 5).vector)
        store.put_vectors("x", "e", [_stored("k5")], at=5.0, max_rows=0)
        assert store.get_vectors("x", "e", ["k1", "k4", "k5"]) == {}

    def test_erases_a_namespace(self, store: TelemetryStore) -> None:
        """Everything in the namespace goes, nothing outside."""
        _fill_for_erasure(store)
        receipt = store.erase(Erasure(namespace="x"))

        assert (receipt.rankings, receipt.feedback, receipt.shown_documents, receipt.vectors) == (2, 2, 5, 2)
        assert store.namespaces() == ["y"]
        assert _ids(read_all(store)) == ["r3", "f3"]
        assert store.ranking("r1") is None
        assert store.get_vectors("x", "e", ["k1", "k2"]) == {}
        assert list(store.get_vectors("y", "e", ["k1"])) == ["k1"]

    def test_erases_documents(self, store: TelemetryStore) -> None:
        """Documents are cut out of rankings, feedback and the embedding cache; empty events go."""
        _fill_for_erasure(store)
        receipt = store.erase(Erasure(document_ids=("a", "b")))

        assert (receipt.rankings, receipt.feedback, receipt.shown_documents, receipt.vectors) == (3, 3, 5, 2)
        assert _ids(read_all(store)) == ["r1", "f1", "r3"]
        first, told, _ = (entry.event for entry in read_all(store))
        assert isinstance(first, RankingServed)
        assert isinstance(told, FeedbackGiven)
        assert (first.document_ids, first.positions, first.document_texts) == (("c",), (2,), ("text of c",))
        assert len(first.scores) == len(first.cold) == len(first.propensities) == len(first.signals["dense"]) == 1
        assert (told.rewards, told.document_vector) == ((("c", 0.5),), None)
        assert_same_event(first, told.ranking)
        assert list(store.get_vectors("x", "e", ["k1", "k2"])) == ["k2"]

    def test_feedback_after_an_erasure_gets_the_stored_ranking(self, store: TelemetryStore) -> None:
        """What was cut out of a ranking does not come back with later feedback for it."""
        ranking = make_ranking()
        store.append([ranking])
        store.erase(Erasure(document_ids=("a",)))
        store.append([make_feedback(ranking, rewards=(("b", 1.0),))])

        told = store.read()[-1].event
        assert isinstance(told, FeedbackGiven)
        assert told.ranking.document_ids == ("b", "c")

    def test_erases_a_session(self, store: TelemetryStore) -> None:
        """The session's rankings and the feedback for them go, in every namespace, and no vectors."""
        _fill_for_erasure(store)
        receipt = store.erase(Erasure(session="s1"))

        assert (receipt.rankings, receipt.feedback, receipt.vectors) == (2, 2, 0)
        assert _ids(read_all(store)) == ["r2", "f2"]

    def test_erases_a_session_with_its_parts(self, store: TelemetryStore) -> None:
        """A conversation that turned to something else goes as a whole, and one that is named alike stays."""
        names = ["s", session_part("s", 2), session_part("s", 13), "s2", "s#2", "t", "r", None, session_part("ss", 2)]
        store.append([make_feedback(make_ranking(f"r{number}", session=name), feedback_id=f"f{number}")
                      for number, name in enumerate(names)])
        receipt = store.erase(Erasure(session="s"))

        assert (receipt.rankings, receipt.feedback) == (3, 3)
        assert _ids(read_all(store)) == [f"{kind}{number}" for number in range(3, 9) for kind in "rf"]
        assert store.erase(Erasure(session=session_part("ss", 2))).rankings == 1

    def test_erases_by_age(self, store: TelemetryStore) -> None:
        """What is older goes; feedback goes with its ranking; what is exactly as old stays."""
        _fill_for_erasure(store)
        receipt = store.erase(Erasure(older_than=20.0))

        assert (receipt.rankings, receipt.feedback, receipt.vectors) == (1, 1, 1)
        assert _ids(read_all(store)) == ["r2", "f2", "r3", "f3"]

    def test_conditions_narrow_each_other(self, store: TelemetryStore) -> None:
        """All fields that are set must hold."""
        _fill_for_erasure(store)

        assert store.erase(Erasure(namespace="y", session="s2")) == Receipt()
        assert store.erase(Erasure(namespace="x", older_than=5.0)) == Receipt()
        assert store.erase(Erasure(session="s2", document_ids=("c",))) == Receipt()
        receipt = store.erase(Erasure(namespace="x", session="s2", document_ids=("a", "z"), older_than=25.0))
        assert receipt == Receipt(rankings=1, shown_documents=1)
        ranking = store.ranking("r2")
        assert ranking is not None
        assert ranking.document_ids == ("b",)

    def test_an_erasure_that_finds_nothing_changes_nothing(self, store: TelemetryStore) -> None:
        """Its receipt is empty and the epoch stays, so that nothing has to be folded again."""
        _fill_for_erasure(store)
        before = store.head()

        assert store.erase(Erasure(namespace="nobody")) == Receipt()
        assert store.erase(Erasure(document_ids=())) == Receipt()
        assert store.head() == before

    def test_an_erasure_without_conditions_is_refused(self, store: TelemetryStore) -> None:
        """It would take everything."""
        with pytest.raises(InvalidInputError):
            store.erase(Erasure())

    def test_positions_are_not_used_twice(self, store: TelemetryStore) -> None:
        """After the newest event was erased, the next one gets a position of its own."""
        last = store.append([make_ranking("r1")]).positions[0]
        store.erase(Erasure(namespace="default"))

        assert store.append([make_ranking("r1")]).positions[0] > last

    @pytest.mark.parametrize("seed", range(5))
    def test_any_erasure_leaves_no_trace(self, store: TelemetryStore, seed: int) -> None:
        """Whatever is erased, no event that meets the conditions and no such document is left."""
        rng = random.Random(seed)
        store.append([_random_feedback(rng, number) for number in range(40)])
        what = _random_erasure(rng)
        before = _ids(read_all(store))
        store.erase(what)

        left = read_all(store)
        assert not [entry for entry in left if _should_be_gone(what, entry.event)]
        assert set(_ids(left)) <= set(before)
        for entry in left:
            if isinstance(entry.event, FeedbackGiven):
                shown = entry.event.ranking.document_ids
                assert entry.event.rewards
                assert all(name in shown for name, _ in entry.event.rewards)

    def test_health_has_facts(self, store: TelemetryStore) -> None:
        """Kind, place, rows and integrity are there for people to read."""
        store.append([make_feedback()])
        store.put_vectors("x", "e", [_stored("k")], at=1.0, max_rows=10)

        health = store.health()
        assert {"kind", "place", "schema", "rows", "bytes", "integrity"} <= set(health)
        expected = {"rankings": 1, "feedback": 1, "vectors": 1, "snapshots": 0}
        assert expected.items() <= health["rows"].items()
        assert health["integrity"] == "ok"

    @pytest.mark.parametrize("use", [
        lambda store: store.hash_key(),
        lambda store: store.append([make_ranking()]),
        lambda store: store.read(),
        lambda store: store.head(),
        lambda store: store.sign(),
        lambda store: store.ranking("r"),
        lambda store: store.latest_ranking("k", namespace="x"),
        lambda store: store.load_snapshot("x", "f"),
        lambda store: store.save_snapshot("x", "f", Snapshot(1, 1, b"")),
        lambda store: store.get_vectors("x", "e", ["k"]),
        lambda store: store.put_vectors("x", "e", [_stored("k")], at=1.0, max_rows=1),
        lambda store: store.erase(Erasure(namespace="x")),
        lambda store: store.namespaces(),
        lambda store: store.health(),
    ], ids=["hash_key", "append", "read", "head", "sign", "ranking", "latest_ranking", "load_snapshot",
            "save_snapshot", "get_vectors", "put_vectors", "erase", "namespaces", "health"])
    def test_a_closed_store_says_so(self, store: TelemetryStore, use: Callable[[TelemetryStore], object]) -> None:
        """Every method raises ``StoreClosedError`` after ``close``; closing twice is fine."""
        store.append([make_ranking()])
        store.close()
        store.close()

        with pytest.raises(StoreClosedError):
            use(store)


def _ids(entries: Sequence[Recorded]) -> list[str]:
    return [entry.event.feedback_id if isinstance(entry.event, FeedbackGiven) else entry.event.ranking_id
            for entry in entries]


def _stored(key: str, seed: int = 0, *, document_id: str | None = None) -> StoredVector:
    return StoredVector(key, unit_vector(np.random.default_rng(seed), 8).astype(np.float16), document_id)


def _second(reopen: Callable[[], TelemetryStore] | None) -> closing[TelemetryStore]:
    if reopen is None:
        pytest.skip("nothing persists outside the object")
    return closing(reopen())


def _append_some(store: TelemetryStore, writer: str, appends: int) -> list[int]:
    positions: list[int] = []
    for number in range(appends):
        ranking = make_ranking(f"{writer}-{number}", documents=("a",))
        positions.extend(store.append([ranking, make_feedback(ranking, feedback_id=f"{writer}-{number}")]).positions)
    return positions


def _follow(store: TelemetryStore, done: threading.Event) -> list[int]:
    seen: list[int] = []
    while True:
        was_done = done.is_set()
        found = store.read(after=seen[-1] if seen else 0, limit=7)
        seen.extend(entry.position for entry in found)
        if was_done and not found:
            return seen


def _fill_for_erasure(store: TelemetryStore) -> None:
    """Store two events in x of age 10 and 20, one in y of age 30; sessions s1, s2, s1."""
    first = make_ranking("r1", namespace="x", at=10.0, session="s1", documents=("a", "b", "c"),
                         document_texts=("text of a", "text of b", "text of c"))
    second = make_ranking("r2", namespace="x", at=20.0, session="s2", documents=("a", "b"))
    third = make_ranking("r3", namespace="y", at=30.0, session="s1", documents=("a", "z"))
    store.append([
        make_feedback(first, feedback_id="f1", rewards=(("a", 1.0), ("c", 0.5))),
        make_feedback(second, feedback_id="f2", rewards=(("b", 1.0),)),
        make_feedback(third, feedback_id="f3", rewards=(("a", -1.0),)),
    ])
    store.put_vectors("x", "e", [_stored("k1", document_id="a"), _stored("k2", document_id="c")], at=20.0, max_rows=9)
    store.put_vectors("y", "e", [_stored("k1", document_id="b")], at=15.0, max_rows=9)


def _random_feedback(rng: random.Random, number: int) -> FeedbackGiven:
    documents = rng.sample("abcdef", rng.randint(1, 4))
    ranking = make_ranking(f"r{number}", namespace=rng.choice("xy"), at=rng.uniform(0, 100), documents=documents,
                           session=rng.choice(["s1", "s2", session_part("s1", 2), None]))
    rewarded = rng.sample(documents, rng.randint(1, len(documents)))
    return make_feedback(ranking, feedback_id=f"f{number}", at=ranking.at + rng.uniform(-5, 50),
                         rewards=tuple((name, 1.0) for name in rewarded))


def _random_erasure(rng: random.Random) -> Erasure:
    while True:
        what = Erasure(
            namespace=rng.choice([None, "x", "y"]), session=rng.choice([None, None, "s1"]),
            document_ids=rng.choice([None, ("a",), ("b", "f", "unknown")]),
            older_than=rng.choice([None, None, 30.0, 70.0]),
        )
        if what != Erasure():
            return what


def _should_be_gone(what: Erasure, event: Event) -> bool:
    ranking = event if isinstance(event, RankingServed) else event.ranking
    named = [name for name, _ in event.rewards] if isinstance(event, FeedbackGiven) else event.document_ids
    return (what.namespace in (None, event.namespace)
            and (what.session is None or in_session(ranking.session, what.session))
            and (what.older_than is None or min(event.at, ranking.at) < what.older_than)
            and (what.document_ids is None or not set(what.document_ids).isdisjoint(named)))
