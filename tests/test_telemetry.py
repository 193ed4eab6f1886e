"""The recorder: what was served is written soon, what was told is durable at once."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from neuralcache_plugins.contracts import Erasure, FeedbackGiven
from neuralcache_plugins.errors import InvalidInputError, StoreBusyError, StoreClosedError, StoreError
from neuralcache_plugins.stores import open_store
from neuralcache_plugins.stores.sqlite import SqliteStore
from neuralcache_plugins.telemetry import Recorder, RecorderStats, storable_feedback, storable_ranking
from neuralcache_plugins.testing import FailingStore, assert_same_event, make_feedback, make_ranking, read_all

NEVER = 3600.0
LOGGER = "neuralcache_plugins.telemetry"


@pytest.fixture
def store():
    with closing(FailingStore(open_store("memory://"))) as store:
        yield store


@pytest.fixture
def recorders():
    """Make recorders that are closed at the end, whatever became of their store."""
    made = []

    def make(store, *, flush_interval_seconds=NEVER, buffer_rankings=100, **options):
        made.append(Recorder(store, flush_interval_seconds=flush_interval_seconds, buffer_rankings=buffer_rankings,
                             **options))
        return made[-1]

    yield make
    for recorder in made:
        try:
            recorder.close()
        except StoreError:
            continue


@pytest.fixture
def recorder(recorders, store):
    return recorders(store)


def names(store):
    return [entry.event.feedback_id if isinstance(entry.event, FeedbackGiven) else entry.event.ranking_id
            for entry in read_all(store)]


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def test_what_is_served_is_written_by_the_flush(recorder, store):
    """Serving touches the store not at all; flushing writes in the order served."""
    recorder.served(make_ranking("r1"))
    recorder.served(make_ranking("r2"))
    assert store.calls == []
    assert recorder.stats().pending == 2

    recorder.flush()
    assert names(store) == ["r1", "r2"]
    assert recorder.stats() == RecorderStats(pending=0, written=2, dropped=0, failures=0, last_error=None)


def test_the_background_thread_writes_soon(recorders, store):
    """Nobody needs to call flush."""
    recorder = recorders(store, flush_interval_seconds=0.01)
    recorder.served(make_ranking("r1"))
    wait_until(lambda: recorder.stats().written == 1)
    recorder.served(make_ranking("r2"))
    wait_until(lambda: recorder.stats().written == 2)
    assert names(store) == ["r1", "r2"]


def test_no_thread_before_the_first_ranking(recorders, store):
    """A recorder that is not used costs no thread."""
    before = threading.active_count()
    recorder = recorders(store)
    assert threading.active_count() == before
    recorder.served(make_ranking())
    assert threading.active_count() == before + 1
    recorder.close()
    assert threading.active_count() == before


def test_what_was_told_is_stored_when_it_returns(recorder, store):
    """Pending rankings and the feedback go in one append, and the position comes back."""
    ranking = make_ranking("r2")
    recorder.served(make_ranking("r1"))
    recorder.served(ranking)
    recorded = recorder.told(make_feedback(ranking, feedback_id="f"))

    assert store.calls == ["append"]
    assert names(store) == ["r1", "r2", "f"]
    assert recorded.position == store.head().position
    assert recorded.event.feedback_id == "f"
    assert recorder.stats().pending == 0


def test_feedback_twice_is_stored_once(recorder, store):
    """The second one gets the first one's position."""
    feedback = make_feedback()
    assert recorder.told(feedback).position == recorder.told(feedback).position
    assert names(store) == ["ranking-1", "feedback-1"]


def test_many_pending_rankings_go_before_the_feedbacks_transaction(recorders, store):
    """The append that holds the feedback stays small."""
    recorder = recorders(store, buffer_rankings=10_000)
    sizes = []
    append = store.append
    store.append = lambda events, **rest: sizes.append(len(events)) or append(events, **rest)
    for number in range(1000):
        recorder.served(make_ranking(f"r{number}", width=None))
    recorder.told(make_feedback(make_ranking("r7")))

    assert sum(sizes) == 1001
    assert max(sizes) <= 257
    assert names(store) == [*(f"r{number}" for number in range(1000)), "feedback-1"]


def test_feedback_that_cannot_be_stored_raises(recorder, store):
    """Nothing is stored, the rankings stay pending, and the next attempt stores all."""
    ranking = make_ranking()
    recorder.served(ranking)
    store.fail(StoreBusyError("busy"))
    with pytest.raises(StoreBusyError, match=r"^busy$"):
        recorder.told(make_feedback(ranking))
    assert recorder.stats() == RecorderStats(pending=1, written=0, dropped=0, failures=1, last_error="busy")

    store.recover()
    assert names(store) == []
    recorder.told(make_feedback(ranking))
    assert names(store) == ["ranking-1", "feedback-1"]


def test_a_failing_store_is_retried_and_logged_once(recorders, store, caplog):
    """Rankings wait in the buffer; each attempt is counted, one line is logged, and all is written later."""
    recorder = recorders(store, flush_interval_seconds=0.005)
    store.fail()
    with caplog.at_level(logging.WARNING, LOGGER):
        recorder.served(make_ranking())
        wait_until(lambda: recorder.stats().failures >= 3)
    assert [record.message for record in caplog.records] == [
        "telemetry: told to fail; rankings are kept and written later"]
    assert recorder.stats().pending == 1

    store.recover()
    wait_until(lambda: recorder.stats().written == 1)
    assert names(store) == ["ranking-1"]


def test_retries_come_less_and_less_often(recorders, store):
    """The wait doubles with each failure."""
    recorder = recorders(store, flush_interval_seconds=0.01)
    store.fail()
    recorder.served(make_ranking())
    time.sleep(0.5)
    assert recorder.stats().failures <= 6  # after 10, 30, 70, 150 and 310 ms
    wait_until(lambda: recorder.stats().failures >= 3)


def test_the_flush_raises(recorder, store):
    """Who asks to write is told when it failed, and the ranking stays."""
    recorder.served(make_ranking())
    store.fail()
    with pytest.raises(StoreError, match=r"^told to fail$"):
        recorder.flush()
    assert recorder.stats().pending == 1


def test_a_full_buffer_drops_the_newest(recorders, store, caplog):
    """Drops are counted, and logged once for each time that the buffer overflows."""
    recorder = recorders(store, buffer_rankings=2)
    with caplog.at_level(logging.WARNING, LOGGER):
        for number in range(5):
            recorder.served(make_ranking(f"r{number}"))
        assert (recorder.stats().dropped, len(caplog.records)) == (3, 1)
        recorder.flush()
        for number in range(5, 8):
            recorder.served(make_ranking(f"r{number}"))
    assert (recorder.stats().dropped, len(caplog.records)) == (4, 2)
    recorder.flush()
    assert names(store) == ["r0", "r1", "r5", "r6"]


def test_serving_never_waits_for_the_store(recorder, store):
    """While an append is stuck, served and the look-ups go on."""
    stuck, go_on = threading.Event(), threading.Event()
    append = store.append

    def wait(events, **rest):
        stuck.set()
        assert go_on.wait(10)
        return append(events, **rest)

    store.append = wait
    recorder.served(make_ranking("r1"))
    with ThreadPoolExecutor(1) as pool:
        flushing = pool.submit(recorder.flush)
        assert stuck.wait(10)
        recorder.served(make_ranking("r2"))
        assert recorder.pending("r1") is not None
        assert recorder.stats().pending == 2
        go_on.set()
        flushing.result()
    assert names(store) in (["r1"], ["r1", "r2"])


def test_a_ranking_the_store_cannot_hold_does_not_stop_the_others(recorders, caplog):
    """It is dropped, counted and logged; feedback for another ranking is stored."""
    with closing(SqliteStore()) as store:
        recorder = recorders(store)
        with caplog.at_level(logging.WARNING, LOGGER):
            for ranking in (make_ranking("r1"), make_ranking("r2", namespace="\udce9"), make_ranking("r3")):
                recorder.served(ranking)
            recorder.told(make_feedback(make_ranking("r3")))
        assert names(store) == ["r1", "r3", "feedback-1"]
        assert recorder.stats().dropped == 1
        assert "not Unicode" in caplog.text
        recorder.close()


def test_feedback_the_store_cannot_hold_is_the_callers_error(recorders):
    """Its pending rankings are written all the same."""
    with closing(SqliteStore()) as store:
        recorder = recorders(store)
        recorder.served(make_ranking("r1"))
        with pytest.raises(InvalidInputError):
            recorder.told(make_feedback(source="\udce9"))
        assert names(store) == ["r1"]
        recorder.close()


def test_rankings_are_found_before_and_after_they_are_written(recorders, store):
    """Neither look-up asks the store."""
    recorder = recorders(store, recent_rankings=2)
    recorder.served(make_ranking("r1", namespace="x"))
    assert recorder.pending("r1").ranking_id == recorder.pending("r1", "x").ranking_id == "r1"
    assert recorder.pending("r1", "y") is None
    assert recorder.recent("r1", "x") is recorder.pending("r1")

    recorder.flush()
    assert recorder.pending("r1") is None
    assert recorder.recent("r1").ranking_id == recorder.recent("r1", "x").ranking_id == "r1"
    assert recorder.recent("r1", "y") is None
    for name in ("r2", "r3"):
        recorder.served(make_ranking(name))
    recorder.flush()
    assert recorder.recent("r1") is None
    assert store.calls == ["append"] * 2


def test_finds_the_latest_pending_ranking_of_a_question(recorder):
    """The newest, within the namespace."""
    for name, key, namespace in (("r1", "q", "x"), ("r2", "q", "x"), ("r3", "p", "x"), ("r4", "q", "y")):
        recorder.served(make_ranking(name, query_key=key, namespace=namespace))
    assert recorder.latest_pending("q", "x").ranking_id == "r2"
    assert recorder.latest_pending("q", "z") is None


def test_tells_what_was_written_in_order(recorders, store):
    """Each append is announced once, with rising positions, the events and what the store returned."""
    announced = []
    recorder = recorders(store, on_written=lambda recorded, appended: announced.append((recorded, appended)))
    ranking = make_ranking("r1")
    recorder.served(ranking)
    recorder.told(make_feedback(ranking))
    recorder.told(make_feedback(ranking))

    (first, appended), (again, _) = announced
    assert [entry.position for entry in first] == [1, 2]
    assert appended.positions == (1, 2)
    assert appended.sign == store.sign()
    assert [entry.position for entry in again] == [2]


def test_threads_are_announced_in_order(recorders, store):
    """Eight threads give feedback; positions rise from one announcement to the next and nothing is missing."""
    positions = []
    recorder = recorders(store, flush_interval_seconds=0.001,
                         on_written=lambda recorded, _: positions.extend(entry.position for entry in recorded))

    def work(thread):
        for number in range(25):
            ranking = make_ranking(f"r{thread}-{number}")
            recorder.served(ranking)
            recorder.told(make_feedback(ranking, feedback_id=f"f{thread}-{number}"))

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, thread) for thread in range(8)]:
            done.result()
    assert positions == sorted(positions) == [entry.position for entry in read_all(store)]
    assert len(positions) == 400


def test_a_listener_in_trouble_does_not_make_feedback_fail(recorders, store):
    """The feedback is stored; the listener's StoreError is counted."""
    def listen(recorded, appended):
        raise StoreError("cannot read")

    recorder = recorders(store, on_written=listen)
    recorder.told(make_feedback())
    assert len(names(store)) == 2
    assert (recorder.stats().failures, recorder.stats().last_error) == (1, "cannot read")


def test_what_is_announced_is_what_others_will_read(recorders):
    """A process that learns from its own events learns from the same numbers as one that reads them."""
    announced = []
    with closing(SqliteStore()) as store:
        recorder = recorders(store, on_written=lambda recorded, _: announced.extend(recorded))
        for number in range(5):
            ranking = make_ranking(f"r{number}", seed=number, width=64, trust=1 / 3)
            recorder.served(ranking)
            recorder.told(make_feedback(ranking, feedback_id=f"f{number}", rewards=(("b", 1 / 7),)))
        recorder.close()
        read = store.read()
    assert [entry.position for entry in announced] == [entry.position for entry in read]
    for mine, theirs in zip(announced, read, strict=True):
        one, other = mine.event, theirs.event
        if isinstance(one, FeedbackGiven):
            assert one.rewards == other.rewards
            np.testing.assert_array_equal(one.document_vector, other.document_vector)
            one, other = one.ranking, other.ranking
        np.testing.assert_array_equal(one.query_vector, other.query_vector)
        assert (one.scores, one.cold, dict(one.signals), one.trust) == (
            other.scores, other.cold, dict(other.signals), other.trust)


def test_making_storable_changes_little_and_only_once():
    """Numbers keep six digits, and a second time changes nothing."""
    feedback = make_feedback(make_ranking(width=32, trust=0.123456789))
    once = storable_feedback(feedback)
    assert_same_event(feedback, replace(once, document_vector=once.document_vector.astype(np.float32)))
    assert storable_feedback(once, once.ranking) is once
    twice = storable_feedback(once)
    assert twice.ranking.scores == once.ranking.scores
    assert twice.ranking.trust == once.ranking.trust == 0.123457
    assert storable_ranking(make_ranking(documents=(), width=None)).signals["dense"] == ()


@pytest.mark.parametrize(("what", "left"), [
    (Erasure(namespace="x"), ["r3"]),
    (Erasure(session="s1"), ["r2"]),
    (Erasure(document_ids=("z",)), ["r1", "r2"]),
    (Erasure(older_than=20.0), ["r2", "r3"]),
    (Erasure(namespace="x", session="s1"), ["r2", "r3"]),
    (Erasure(document_ids=()), ["r1", "r2", "r3"]),
], ids=["namespace", "session", "documents", "age", "two conditions", "no documents"])
@pytest.mark.parametrize("written", [False, True])
def test_discards_what_an_erasure_is_about(recorder, store, what, left, written):
    """Neither pending nor recent rankings survive it."""
    rankings = [make_ranking("r1", namespace="x", at=10.0, session="s1"),
                make_ranking("r2", namespace="x", at=20.0),
                make_ranking("r3", namespace="y", at=30.0, session="s1", documents=("z",))]
    for ranking in rankings:
        recorder.served(ranking)
    if written:
        recorder.flush()

    assert recorder.discard(what) == (0 if written else 3 - len(left))
    assert [each.ranking_id for each in rankings if recorder.recent(each.ranking_id)] == left


def test_closing_writes_the_rest(recorder, store):
    """Closing twice is fine, and the store stays open."""
    recorder.served(make_ranking())
    recorder.close()
    recorder.close()
    assert names(store) == ["ranking-1"]


def test_a_closed_recorder_takes_nothing(recorder, store):
    """Served rankings are dropped and counted, never an error; feedback raises."""
    recorder.close()
    recorder.served(make_ranking())
    assert recorder.stats().dropped == 1
    with pytest.raises(StoreClosedError, match=r"^the recorder is closed$"):
        recorder.told(make_feedback())
    assert names(store) == []


def test_closing_says_when_the_rest_cannot_be_written(recorder, store):
    """The rest is not lost: closing can be tried again."""
    recorder.served(make_ranking())
    store.fail()
    for _ in range(2):
        with pytest.raises(StoreError, match=r"^told to fail$"):
            recorder.close()
    assert recorder.stats().pending == 1
    store.recover()
    recorder.close()
    assert recorder.stats().pending == 0


def test_a_recorder_nobody_closed_is_collected_and_writes_its_rest(store):
    """Its thread does not keep it alive."""
    recorder = Recorder(store, flush_interval_seconds=0.02, buffer_rankings=10)
    remembered = weakref.ref(recorder)
    recorder.served(make_ranking())
    thread = recorder._thread._thread
    del recorder
    gc.collect()
    assert remembered() is None
    thread.join(10)
    assert names(store) == ["ranking-1"]


def test_the_rest_is_written_when_the_interpreter_ends(tmp_path):
    """Neither recorder nor store is closed by hand, and nothing is printed."""
    path = tmp_path / "telemetry.db"
    code = ("import sys\n"
            "from neuralcache_plugins.stores import open_store\n"
            "from neuralcache_plugins.telemetry import Recorder\n"
            "from neuralcache_plugins.testing import make_ranking\n"
            "recorder = Recorder(open_store('sqlite:///' + sys.argv[1]), flush_interval_seconds=3600,"
            " buffer_rankings=10)\n"
            "recorder.served(make_ranking())")
    ended = subprocess.run([sys.executable, "-W", "error", "-X", "dev", "-c", code, str(path)], capture_output=True,
                           text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    with closing(SqliteStore(path)) as store:
        assert names(store) == ["ranking-1"]


def test_a_failing_listener_does_not_end_the_writing(recorders, store, monkeypatch):
    """The thread that died of it is replaced at the next ranking."""
    died = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: died.append(arguments.exc_type))
    trouble = [ZeroDivisionError()]

    def listen(recorded, appended):
        if trouble:
            raise trouble.pop()

    recorder = recorders(store, flush_interval_seconds=0.005, on_written=listen)
    recorder.served(make_ranking("r1"))
    wait_until(lambda: died == [ZeroDivisionError] and not recorder._thread.running)
    recorder.served(make_ranking("r2"))
    wait_until(lambda: names(store) == ["r1", "r2"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_writes_its_own_events_only(tmp_path, recorders):
    """What was pending in the parent is written by the parent; the child knows it, and writes with its own thread."""
    with closing(SqliteStore(tmp_path / "telemetry.db")) as store:
        recorder = recorders(store, flush_interval_seconds=0.02)
        recorder._writer._turn.acquire()  # as if the thread were writing
        recorder.served(make_ranking("parent"))
        child = os.fork()
        if child == 0:
            code = 1
            try:
                assert recorder.stats().pending == 0
                assert recorder.recent("parent") is not None
                recorder.served(make_ranking("child"))
                wait_until(lambda: recorder.stats().written == 1)
                recorder.close()
                store.close()
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert names(store) == ["child"]
        recorder._writer._turn.release()
        recorder.close()
        assert names(store) == ["child", "parent"]


def test_serving_takes_microseconds(recorder):
    """Budget of the hot path: 30 microseconds; the median is far below."""
    events = [make_ranking(f"r{number}", width=None) for number in range(100)]
    times = []
    for event in events:
        start = time.perf_counter()
        recorder.served(event)
        times.append(time.perf_counter() - start)
    assert sorted(times)[50] < 30e-6


def test_stats_are_frozen(recorder):
    """They are a picture of one moment."""
    with pytest.raises(FrozenInstanceError):
        recorder.stats().pending = 3
