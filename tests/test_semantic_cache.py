"""The cache of answers: what is served, what never is, and one computation for all who ask."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralcache_plugins import CacheSettings, SemanticCache, StoreSettings, open_store
from neuralcache_plugins.contracts import AnswerJudged, AnswerMissed, AnswerServed, Erasure, TelemetryStore
from neuralcache_plugins.errors import (
    ComputationError,
    InvalidInputError,
    StoreClosedError,
    StoreError,
    UnknownHitError,
)
from neuralcache_plugins.semantic_cache import Sourced, background, semantic
from neuralcache_plugins.semantic_cache.judges import Judge, embedding_agreement, exact, normalised_text
from neuralcache_plugins.semantic_cache.keys import canonical
from neuralcache_plugins.semantic_cache.semantic import Proposal
from neuralcache_plugins.stores.memory import MemoryStore
from neuralcache_plugins.stores.sqlite import SqliteStore
from neuralcache_plugins.testing import FailingStore, FakeClock, HashingEncoder

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
SCOPE = {"model": "m", "prompt": 3}
EVENTUALLY_SECONDS = 20.0


def opened(store: Any = "memory://", **options: Any) -> SemanticCache:
    return SemanticCache(HashingEncoder(), store=store, **{"clock": FakeClock(), "seed": 0, **options})


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'telemetry.db'}"


@pytest.fixture(params=["memory", "sqlite"])
def cache(request: pytest.FixtureRequest, url: str) -> Iterator[SemanticCache]:
    with opened("memory://" if request.param == "memory" else url) as cache:
        yield cache


def eventually(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + EVENTUALLY_SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


async def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + EVENTUALLY_SECONDS
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


class Counting:
    """A computation that counts its calls and says which one answered."""

    def __init__(self, answer: str = "answer", seconds: float = 0.0, error: Exception | None = None,
                 until: Callable[[], object] = lambda: True) -> None:
        self.calls = 0
        self.answer, self.seconds, self.error, self.until = answer, seconds, error, until
        self._lock = threading.Lock()

    def __call__(self) -> str:
        with self._lock:
            self.calls += 1
        time.sleep(self.seconds)
        eventually(self.until)
        if self.error is not None:
            raise self.error
        return f"{self.answer} {self.calls}"


# exact answers


@pytest.mark.parametrize("answer", [
    "text", "ünï 🎿", "lone \udc80", b"\x00\xff", 3, 1.5, True, {"a": [1, None, {"b": "c"}]}, ["x"],
], ids=repr)
def test_an_answer_comes_back_equal(cache: SemanticCache, answer: Any) -> None:
    cache.put("how?", answer, scope=SCOPE)
    hit = cache.lookup("how?", scope=SCOPE)

    assert hit is not None
    assert (hit.value, type(hit.value)) == (answer, type(answer))
    assert (hit.kind, hit.score, hit.question) == ("exact", 1.0, "how?")


@pytest.mark.parametrize("answer", [object(), {1: "a"}, (1, 2), {"a": {1, 2}}, float("nan"), {"a": b"b"}], ids=repr)
def test_what_would_not_come_back_equal_is_refused(cache: SemanticCache, answer: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^an answer must be a str, bytes or a JSON value"):
        cache.put("how?", answer, scope=SCOPE)
    with pytest.raises(InvalidInputError):
        cache.get_or_compute("how?", lambda: answer, scope=SCOPE)


def test_an_answer_is_nobodys_to_change(cache: SemanticCache) -> None:
    """Who changes what he was given changes his copy."""
    cache.put("how?", {"list": [1]}, scope=SCOPE)
    for _ in range(2):
        hit = cache.lookup("how?", scope=SCOPE)
        assert hit is not None
        assert hit.value == {"list": [1]}
        hit.value["list"].append(2)


@pytest.mark.parametrize(("one", "other"), [
    ("how  do\tI ", "how do I"), ("caf\u0065\u0301", "caf\u00e9"), ("", "  "), ("a\nb ", "a\nb"),
])
def test_blanks_and_composition_make_no_other_question(one: str, other: str) -> None:
    assert canonical(one) == canonical(other)


@pytest.mark.parametrize(("one", "other"), [
    ("US", "us"), ("is it?", "is it"), ("5 days", "6 days"), ("def f():\n  a", "def f():\n a"), ("a b", "ab"),
])
def test_what_may_mean_something_makes_another_question(one: str, other: str) -> None:
    assert canonical(one) != canonical(other)


names = st.text(min_size=1, max_size=4) | st.sampled_from(["a", "b", "a/b", "1"])
scopes = st.text(max_size=4) | st.dictionaries(st.text(max_size=2), st.integers() | st.text(max_size=2) | st.booleans())
places = st.tuples(names, scopes, st.text(max_size=6))


def same(one: Any, other: Any) -> bool:
    """Tell whether two places are one: 1, 1.0 and True are equal in Python and not in JSON."""
    return (one[0], json.dumps(one[1], sort_keys=True), canonical(one[2])) == (
        other[0], json.dumps(other[1], sort_keys=True), canonical(other[2]))


class Nearest:
    """A decider without scruples: it serves the nearest question, whatever it is, and audits all."""

    def __init__(self, audit: bool = False, least: float = -2.0) -> None:
        self.audit, self.least = audit, least
        self.learned: list[AnswerJudged] = []

    def decide(self, question: str, near: Any, *, encoder: str, documents: Any, now: float, coin: float) -> Proposal:
        if not near:
            return Proposal(reasons=("no similar question is cached",))
        first = near[0].cached.entry_id
        if near[0].similarity < self.least:
            return Proposal(candidate=first, reasons=("too far",), features={"cosine": near[0].similarity})
        return Proposal(first, first, 0.75, self.audit, features={"cosine": near[0].similarity}, propensity=0.5)

    def learn(self, label: AnswerJudged) -> None:
        self.learned.append(label)

    def certificate(self, *, reused: int) -> str:
        return f"{reused} reused"

    name = "nearest"
    quarantined = float("-inf")

    def quarantined_until(self, encoder: str) -> float:
        return self.quarantined

    def note(self, cached: Any) -> None:
        pass

    def forget(self, gone: Any) -> None:
        pass

    def pack(self) -> bytes:
        return b""


@pytest.fixture
def deciders(monkeypatch: pytest.MonkeyPatch) -> list[Nearest]:
    """Plug in deciders that serve anything; the list has those that are in use."""
    made: list[Nearest] = []

    def make(*_: Any) -> Nearest:
        made.append(Nearest())
        return made[-1]

    monkeypatch.setattr(semantic, "decider_for", make)
    return made


@pytest.mark.parametrize("boldly", [False, True], ids=["exact tier", "semantic tier that serves anything"])
@settings(max_examples=60, deadline=None)
@given(put=st.lists(places, min_size=1, max_size=6), asked=st.lists(places, min_size=1, max_size=6))
def test_nothing_crosses_a_namespace_or_a_scope(boldly: bool, put: Any, asked: Any) -> None:
    """Whatever is cached where, an answer comes from the namespace and scope that were asked, and no other."""
    with pytest.MonkeyPatch.context() as patch, closing(MemoryStore()) as store:
        if boldly:
            patch.setattr(semantic, "decider_for", lambda *_: Nearest())
        for place in put:
            opened(store, namespace=place[0]).put(place[2], json.dumps(place), scope=place[1])
        for place in [*asked, *put]:
            hit = opened(store, namespace=place[0]).lookup(place[2], scope=place[1])
            if hit is not None:
                source = json.loads(hit.value)
                assert same((source[0], source[1], ""), (place[0], place[1], ""))
                assert boldly or same(source, place)
            else:
                assert not any(same(place, each) for each in put)


def test_a_text_and_a_mapping_are_never_one_scope(cache: SemanticCache) -> None:
    cache.put("how?", "so", scope='{"a":1}')

    assert cache.lookup("how?", scope={"a": 1}) is None
    assert cache.lookup("how?", scope='{"a": 1}') is None


def test_the_order_of_a_mapping_does_not_matter(cache: SemanticCache) -> None:
    cache.put("how?", "so", scope={"a": 1, "b": [2]})

    assert cache.lookup("how?", scope={"b": [2], "a": 1})


@pytest.mark.parametrize("scope", [None, 3, {1: "a"}, {"a": object()}, {"a": float("nan")}, ["a"]], ids=repr)
def test_an_unusable_scope_is_an_error_and_no_hit(cache: SemanticCache, scope: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^scope must"):
        cache.lookup("how?", scope=scope)


def test_many_questions_are_one_query(url: str) -> None:
    with closing(SqliteStore(url.removeprefix("sqlite:///"))) as store, opened(store) as cache:
        for number in range(20):
            cache.put(f"q{number}", number, scope=SCOPE)
        with opened(store) as other:
            statements: list[str] = []
            store.read()
            for connection in store._connections._idle:
                connection.set_trace_callback(statements.append)
            hits = other.lookup_many([f"q{number}" for number in range(0, 40, 2)], scope=SCOPE)
            assert [None if hit is None else hit.value for hit in hits] == [*range(0, 20, 2), *[None] * 10]
            several = len(statements)
            other.lookup_many([f"other {number}" for number in range(100)], scope=SCOPE)
            assert len(statements) < 2 * several  # however many are asked
            statements.clear()
            other.lookup_many([f"q{number}" for number in range(0, 20, 2)], scope=SCOPE)
            assert len(statements) == 1  # the mark: the answers are in memory


def test_a_restart_keeps_answers(url: str) -> None:
    with opened(url) as cache:
        cache.put("how?", "so", scope=SCOPE)
    with opened(url) as cache:
        hit = cache.lookup("how?", scope=SCOPE)
    assert hit is not None
    assert hit.value == "so"


def test_reads_never_write(url: str) -> None:
    """Looking up, hits included, changes nothing in the file until the recorder writes."""
    slow = StoreSettings(flush_interval_seconds=3600)
    with opened(url, store_settings=slow) as cache:
        cache.put("how?", "so", scope=SCOPE)
        with closing(open_store(url)) as watcher:
            before = watcher.sign()
            for _ in range(3):
                assert cache.lookup("how?", scope=SCOPE)
                assert cache.lookup("other", scope=SCOPE) is None
                cache.explain("how?", SCOPE)
            assert watcher.sign() == before
            cache.flush()
            assert watcher.sign() != before


# how long


def test_an_answer_expires(cache: SemanticCache) -> None:
    """The time to live is absolute: being asked does not prolong it."""
    clock: Any = cache._clock
    cache.put("how?", "so", scope=SCOPE, ttl=timedelta(seconds=10))
    for _ in range(9):
        clock.advance(1)
        assert cache.lookup("how?", scope=SCOPE)
    clock.advance(1)

    assert cache.lookup("how?", scope=SCOPE) is None
    assert cache.stats().misses == {"expired": 1}


@pytest.mark.parametrize("nothing", [None, "", [], {}, b""], ids=repr)
def test_that_there_is_no_answer_is_forgotten_soon(cache: SemanticCache, nothing: Any) -> None:
    clock: Any = cache._clock
    calls = count()

    def compute() -> Any:
        next(calls)
        return nothing

    for _ in range(2):
        assert cache.get_or_compute("how?", compute, scope=SCOPE) == nothing
    clock.advance(61)
    cache.get_or_compute("how?", compute, scope=SCOPE)
    assert next(calls) == 2


def test_an_expired_answer_is_served_while_a_fresh_one_is_made(url: str) -> None:
    clock, compute = FakeClock(), Counting()
    settings = CacheSettings(ttl_seconds=10, stale_seconds=5)
    with opened(url, clock=clock, settings=settings) as cache:
        assert cache.get_or_compute("how?", compute, scope=SCOPE) == "answer 1"
        clock.advance(12)
        assert cache.lookup("how?", scope=SCOPE) is None
        assert cache.get_or_compute("how?", compute, scope=SCOPE) == "answer 1"
        eventually(lambda: cache.lookup("how?", scope=SCOPE))
        assert cache.get_or_compute("how?", compute, scope=SCOPE) == "answer 2"
        clock.advance(16)
        assert cache.get_or_compute("how?", compute, scope=SCOPE) == "answer 3"
        assert cache.stats().stale_hits == 1


async def test_a_coroutine_gets_the_expired_answer_too() -> None:
    clock, compute = FakeClock(), Counting()
    with opened(clock=clock, settings=CacheSettings(ttl_seconds=10, stale_seconds=5)) as cache:
        await cache.aget_or_compute("how?", compute, scope=SCOPE)
        clock.advance(12)
        assert await cache.aget_or_compute("how?", compute, scope=SCOPE) == "answer 1"
        await until(lambda: cache.stats().stored == 2)
        assert await cache.aget_or_compute("how?", compute, scope=SCOPE) == "answer 2"


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), timedelta(0)])
def test_a_time_to_live_is_above_zero(cache: SemanticCache, ttl: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^ttl must be above 0 seconds"):
        cache.put("how?", "so", scope=SCOPE, ttl=ttl)


def test_no_more_is_kept_than_allowed(url: str) -> None:
    with opened(url, settings=CacheSettings(max_entries=10)) as cache:
        for number in range(50):
            cache.put(f"q{number}", "so", scope=SCOPE)
        hits = cache.lookup_many([f"q{number}" for number in range(50)], scope=SCOPE)
    with closing(open_store(url)) as store:
        assert store.health()["answers"]["entries"] <= 10
    assert hits[-1] is not None


# documents


@pytest.mark.parametrize(("asked", "served"), [
    ((), True), ([("a", "1"), ("b", "1")], True), ({"b": "1", "a": "1"}, True),
    ([("a", "2"), ("b", "1")], False), ([("a", "1")], False), ([("a", "1"), ("b", "1"), ("c", "1")], False),
], ids=["none named", "the same", "the same, as a mapping", "one changed", "one missing", "one more"])
def test_an_answer_holds_for_the_documents_it_was_made_from(cache: SemanticCache, asked: Any, served: bool) -> None:
    cache.put("how?", "so", scope=SCOPE, documents=[("a", "1"), ("b", "1")])

    assert bool(cache.lookup("how?", scope=SCOPE, documents=asked)) == served
    if not served:
        assert cache.stats().misses == {"documents changed": 1}


def test_an_answer_made_from_nothing_is_not_vouched_for(cache: SemanticCache) -> None:
    cache.put("how?", "so", scope=SCOPE)

    assert cache.lookup("how?", scope=SCOPE, documents=[("a", "1")]) is None


@pytest.mark.parametrize("documents", ["ab", [("a",)], [("a", 1)], ["ab"], [("a", "1"), ("a", "2")], [None]], ids=repr)
def test_unusable_documents_are_refused(cache: SemanticCache, documents: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"document"):
        cache.lookup("how?", scope=SCOPE, documents=documents)


@pytest.mark.parametrize("change", [["a"], [("a", "2")]], ids=["gone", "changed"])
def test_a_change_takes_answers_everywhere(url: str, change: Any) -> None:
    with opened(url) as cache, opened(url) as other:
        for each in (cache, other):
            each.put("how?", "so", scope=SCOPE, documents=[("a", "1")])
            each.put("why?", "because", scope=SCOPE, documents=[("b", "1")])
            assert each.lookup("how?", scope=SCOPE)
        assert other.invalidate(documents=change) == 1
        for each in (cache, other):
            assert each.lookup("how?", scope=SCOPE) is None
            assert each.lookup("why?", scope=SCOPE)


def test_an_answer_begun_before_the_change_is_not_kept(cache: SemanticCache) -> None:
    """The change comes while the model is still writing: who asked gets his answer, nobody else does."""
    def compute() -> str:
        cache.invalidate(documents=["a"])
        return "made from the old text"

    assert cache.get_or_compute("how?", compute, scope=SCOPE, documents=[("a", "1")]) == "made from the old text"
    assert cache.lookup("how?", scope=SCOPE) is None
    assert cache.stats().refused == 1


def test_a_put_after_a_look_comes_too_late_as_well(cache: SemanticCache) -> None:
    """Who looks, computes and puts by himself is held to the moment of his look."""
    documents = [("a", "1")]
    assert cache.lookup("how?", scope=SCOPE, documents=documents) is None
    cache.invalidate(documents=["a"])

    assert cache.put("how?", "old", scope=SCOPE, documents=documents) is None
    assert cache.put("how?", "new", scope=SCOPE, documents=documents) is not None


def test_a_computation_may_tell_what_it_came_from(cache: SemanticCache) -> None:
    """The documents are found on the way: the answer is bound to them all the same."""
    def compute() -> Sourced:
        return Sourced("so", [("a", "1")])

    assert cache.get_or_compute("how?", compute, scope=SCOPE) == "so"
    assert cache.lookup("how?", scope=SCOPE)
    assert cache.lookup("how?", scope=SCOPE, documents=[("a", "2")]) is None
    assert cache.invalidate(documents=["a"]) == 1


def test_who_asks_after_the_change_does_not_get_what_was_begun_before(cache: SemanticCache) -> None:
    """He joined a computation that was under way, and is computed anew when it comes too late."""
    begun, changed = threading.Event(), threading.Event()
    answers = iter(["old", "new"])

    def compute() -> str:
        answer = next(answers)
        begun.set()
        changed.wait(EVENTUALLY_SECONDS)
        return answer

    def ask() -> Any:
        return cache.get_or_compute("how?", compute, scope=SCOPE, documents=[("a", "1")])

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask)
        begun.wait(EVENTUALLY_SECONDS)
        cache.invalidate(documents=["a"])
        second = pool.submit(ask)
        eventually(lambda: cache.stats().shared == 1)
        changed.set()
        assert (first.result(), second.result()) == ("old", "new")


def test_no_stale_answer_beside_a_writer_that_changes_documents(url: str) -> None:
    """Threads on two caches ask while a writer changes the document: no answer is older than what was announced."""
    version, stop, wrong = 0, threading.Event(), []
    # five writers of one file, on a machine that may be busy with other things
    patient = StoreSettings(busy_timeout_seconds=60)
    with opened(url, store_settings=patient) as cache, opened(url, store_settings=patient) as other:
        def ask(each: SemanticCache) -> None:
            while not stop.is_set():
                announced = version  # announced before the question was asked
                answer = each.get_or_compute("how?", lambda: version, scope=SCOPE, documents=[("a", str(version))])
                hit = each.lookup("how?", scope=SCOPE)
                if answer < announced or (hit is not None and hit.value < announced):
                    wrong.append((answer, hit, announced))

        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(ask, each) for each in (cache, other, cache, other)]
            try:
                for number in range(1, 60):
                    cache.invalidate(documents=[("a", str(number))])
                    version = number
                    time.sleep(0.003)
            finally:
                stop.set()  # whatever happens: the pool waits for those who ask
            for each in asking:
                each.result()
        assert wrong == []
        assert cache.stats().stored + other.stats().stored > 10


def test_invalidates_by_scope_and_age(cache: SemanticCache) -> None:
    clock: Any = cache._clock
    for scope in ("s", "t"):
        cache.put("how?", "so", scope=scope)
    assert cache.invalidate(scope="s") == 1
    clock.advance(10)
    cache.put("why?", "because", scope="t")
    assert cache.invalidate(older_than=timedelta(seconds=5)) == 1
    assert cache.lookup("why?", scope="t")
    assert cache.clear() == 1


def remembered(cache: SemanticCache) -> str:
    """Return all texts and vectors that a cache keeps in memory of what it has stored."""
    shelves, decider = cache._semantic._nearest._shelves.values(), cache._semantic._decider
    return repr([cache._exact._known, [(shelf.cached, shelf.rows.tolist()) for shelf in shelves], decider._parsed])


@pytest.mark.parametrize("remove", [
    lambda cache, hit: cache.clear(), lambda cache, hit: cache.invalidate(scope=SCOPE),
    lambda cache, hit: cache.invalidate(documents=["a"]), lambda cache, hit: cache.invalidate(older_than=5.0),
    lambda cache, hit: cache.report(hit, False),
], ids=["clear", "scope", "documents", "age", "report"])
def test_nothing_of_a_removed_answer_stays_in_memory(cache: SemanticCache, remove: Callable[..., object]) -> None:
    cache.put("is the zanzibar branch open", "a zebra", scope=SCOPE, documents={"a": "1"})
    cache._clock.advance(10.0)
    cache.put("where is my card", "in the post", scope="other")
    hit = cache.lookup("is the zanzibar branch open", scope=SCOPE, documents={"a": "1"})
    cache.lookup("is the zanzibar branch shut", scope=SCOPE)
    vector = repr(next(iter(cache._semantic._nearest._shelves.values())).rows[0].tolist())
    assert all(text in remembered(cache) for text in ("zanzibar", "zebra", vector))

    remove(cache, hit.hit_id)
    assert not any(text in remembered(cache) for text in ("zanzibar", "zebra", vector))
    assert cache.lookup("is the zanzibar branch shut", scope=SCOPE) is None


@pytest.mark.parametrize("what", [{}, {"scope": "s", "older_than": 1}])
def test_an_invalidation_says_exactly_what(cache: SemanticCache, what: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^invalidate needs exactly one of documents, scope and older_than"):
        cache.invalidate(**what)


def test_an_erasure_takes_what_is_in_memory_too(url: str) -> None:
    with closing(open_store(url)) as store, opened(store) as cache:
        cache.put("how?", "so", scope=SCOPE, documents=[("a", "1")])
        assert cache.lookup("how?", scope=SCOPE)
        assert store.erase(Erasure(document_ids=("a",))).answers == 1
        assert cache.lookup("how?", scope=SCOPE) is None


# reports


def test_a_wrong_answer_goes_and_is_recorded(cache: SemanticCache) -> None:
    cache.put("how?", "wrong", scope=SCOPE)
    hit = cache.lookup("how?", scope=SCOPE)
    assert hit is not None
    cache.report(hit.hit_id, False)

    assert cache.lookup("how?", scope=SCOPE) is None
    served, judged = (entry.event for entry in cache._store.read_answer_events(kinds=[AnswerServed, AnswerJudged]))
    assert isinstance(served, AnswerServed)
    assert isinstance(judged, AnswerJudged)
    assert (judged.hit_id, judged.entry_id) == (hit.hit_id, served.entry_id)
    assert (judged.correct, judged.source) == (False, "report")
    assert (cache.stats().judged, cache.stats().reported_wrong) == (1, 1)


def test_a_right_answer_stays(cache: SemanticCache) -> None:
    cache.put("how?", "right", scope=SCOPE)
    hit = cache.lookup("how?", scope=SCOPE)
    assert hit is not None
    for _ in range(2):
        cache.report(hit.hit_id, True)

    assert cache.lookup("how?", scope=SCOPE)
    assert len(cache._store.read_answer_events(kinds=[AnswerJudged])) == 1


def test_another_process_may_report(url: str) -> None:
    with opened(url) as cache, opened(url) as other:
        cache.put("how?", "wrong", scope=SCOPE)
        hit = cache.lookup("how?", scope=SCOPE)
        assert hit is not None
        cache.flush()
        other.report(hit.hit_id, False)
        assert cache.lookup("how?", scope=SCOPE) is None


def test_an_unknown_hit_is_an_error(cache: SemanticCache) -> None:
    with pytest.raises(UnknownHitError, match=r"^no hit 'h' in namespace 'default' of "):
        cache.report("h", True)


# one computation


def test_fifty_threads_compute_once(cache: SemanticCache) -> None:
    compute = Counting(seconds=0.05)
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: cache.get_or_compute("how?", compute, scope=SCOPE), range(50)))

    assert set(answers) == {"answer 1"}
    assert compute.calls == 1
    assert cache.stats().computed == 1


async def test_fifty_coroutines_compute_once(cache: SemanticCache) -> None:
    calls = 0

    async def compute() -> str:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.05)
        return "answer"

    answers = await asyncio.gather(*(cache.aget_or_compute("how?", compute, scope=SCOPE) for _ in range(50)))
    assert answers == ["answer"] * 50
    assert calls == 1


async def test_threads_and_coroutines_share(cache: SemanticCache) -> None:
    compute = Counting(seconds=0.05)
    answers = await asyncio.gather(
        *(cache.aget_or_compute("how?", compute, scope=SCOPE) for _ in range(10)),
        *(asyncio.to_thread(cache.get_or_compute, "how?", compute, scope=SCOPE) for _ in range(10)))

    assert set(answers) == {"answer 1"}
    assert compute.calls == 1


async def test_waiting_threads_of_the_loop_do_not_starve_the_computation() -> None:
    """The loop's own threads are all taken by callers that wait for the very computation on the loop."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(4))
    with opened() as cache:
        async def compute() -> str:
            await until(lambda: cache.stats().shared == 4)
            return "answer"

        leader = asyncio.create_task(cache.aget_or_compute("how?", compute, scope=SCOPE))
        await until(lambda: cache._computing._flights._aloft)
        waiting = [asyncio.to_thread(cache.get_or_compute, "how?", str, scope=SCOPE) for _ in range(8)]
        assert await asyncio.wait_for(asyncio.gather(leader, *waiting), 20) == ["answer"] * 9


def ask_from_another_process(url: str, log: str, asking: Any, answers: Any, fails: bool) -> None:
    def compute() -> str:
        with Path(log).open("a") as file:
            file.write("computed\n")
        eventually(lambda: asking.value == 50)
        time.sleep(1.0)  # from saying so to waiting
        if fails:
            raise KeyError("the question")
        return "answer"

    with SemanticCache(HashingEncoder(), store=url) as cache:
        def ask(_: int) -> str:
            with asking.get_lock():
                asking.value += 1
            try:
                return str(cache.get_or_compute("how?", compute, scope=SCOPE))
            except (KeyError, ComputationError) as error:
                return type(error).__name__

        with ThreadPoolExecutor(10) as pool:
            for answer in pool.map(ask, range(10)):
                answers.put(answer)


@pytest.mark.parametrize("fails", [False, True], ids=["succeeds", "fails"])
def test_fifty_askers_in_five_processes_compute_once(url: str, tmp_path: Path, fails: bool) -> None:
    """One computation for all; when it fails all are told, and nothing is kept."""
    context = multiprocessing.get_context("spawn")
    asking, answers = context.Value("i", 0), context.Queue()
    log = tmp_path / "log"
    processes = [context.Process(target=ask_from_another_process, args=(url, str(log), asking, answers, fails))
                 for _ in range(5)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=60) for _ in range(50)]
    for process in processes:
        process.join()

    assert log.read_text() == "computed\n"
    assert {process.exitcode for process in processes} == {0}
    if fails:
        assert sorted(found) == ["ComputationError"] * 40 + ["KeyError"] * 10
        with opened(url, clock=time.time) as cache:
            assert cache.lookup("how?", scope=SCOPE) is None
            assert cache.get_or_compute("how?", lambda: "now it works", scope=SCOPE) == "now it works"
    else:
        assert set(found) == {"answer"}


def test_a_failure_releases_all_and_is_not_kept(cache: SemanticCache) -> None:
    compute = Counting(error=KeyError("x"), until=lambda: cache.stats().shared == 19)

    def ask(_: int) -> str:
        with pytest.raises(KeyError):
            cache.get_or_compute("how?", compute, scope=SCOPE)
        return "told"

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(ask, range(20))) == ["told"] * 20
    assert compute.calls == 1
    compute.error = None
    assert cache.get_or_compute("how?", compute, scope=SCOPE) == "answer 2"


async def test_a_failure_releases_coroutines(cache: SemanticCache) -> None:
    async def compute() -> str:
        await asyncio.sleep(0.05)
        raise KeyError("x")

    found = await asyncio.gather(*(cache.aget_or_compute("how?", compute, scope=SCOPE) for _ in range(20)),
                                 return_exceptions=True)
    assert {type(each) for each in found} == {KeyError}


async def test_who_gives_up_takes_nothing_from_the_others(cache: SemanticCache) -> None:
    """A cancelled waiter leaves; a cancelled computation is taken over by who waits for it."""
    calls = 0

    async def compute() -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            await asyncio.Event().wait()
        return f"answer {calls}"

    def ask() -> asyncio.Task[Any]:
        return asyncio.create_task(cache.aget_or_compute("how?", compute, scope=SCOPE))

    leader = ask()
    await until(lambda: calls == 1)
    waiter, other = ask(), ask()
    await until(lambda: cache.stats().shared == 2)
    waiter.cancel()
    leader.cancel()

    assert await other == "answer 2"
    for each in (leader, waiter):
        with pytest.raises(asyncio.CancelledError):
            await each


def test_other_questions_scopes_and_documents_do_not_wait(cache: SemanticCache) -> None:
    """A computation inside a computation is another one, even of the very same question."""
    def inner() -> str:
        return cache.get_or_compute("how?", lambda: "inner", scope=SCOPE)

    def outer() -> str:
        return cache.get_or_compute("how?", inner, scope="other") + cache.get_or_compute("how?", inner, scope=SCOPE)

    assert cache.get_or_compute("how?", outer, scope=SCOPE) == "innerinner"


async def test_a_blocking_call_on_the_loop_of_the_computation_does_not_deadlock(cache: SemanticCache) -> None:
    begun = asyncio.Event()

    async def compute() -> str:
        begun.set()
        await asyncio.sleep(0.05)
        return "slowly"

    task = asyncio.create_task(cache.aget_or_compute("how?", compute, scope=SCOPE))
    await begun.wait()
    assert cache.get_or_compute("how?", lambda: "at once", scope=SCOPE) == "at once"
    assert await task == "slowly"


def test_a_lease_of_a_dead_process_runs_out(url: str) -> None:
    """Its holder was killed: after the lease's time somebody else computes."""
    clock = FakeClock()
    with opened(url, clock=clock, settings=CacheSettings(lease_seconds=5)) as cache:
        name = cache._keys.flight(cache._keys.asked("how?", SCOPE, ()))
        cache._store.acquire_lease(name, "dead", now=clock.now, seconds=5)
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(cache.get_or_compute, "how?", lambda: "alive", scope=SCOPE)
            time.sleep(0.1)
            assert not answer.done()
            clock.advance(6)
            assert answer.result(EVENTUALLY_SECONDS) == "alive"


# trouble


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_store_in_trouble_costs_hits_and_no_answers(asynchronous: bool) -> None:
    store = FailingStore(MemoryStore())
    with opened(store) as cache:
        cache.put("how?", "so", scope=SCOPE)
        store.fail()
        assert cache.lookup("how?", scope=SCOPE) is None
        ask = cache.aget_or_compute if asynchronous else cache.get_or_compute
        answer = ask("how?", lambda: "fresh", scope=SCOPE)
        assert (await answer if asynchronous else answer) == "fresh"
        with pytest.raises(StoreError):
            cache.put("how?", "so", scope=SCOPE)
        with pytest.raises(StoreError):
            cache.invalidate(scope=SCOPE)
        store.recover()
        assert cache.lookup("how?", scope=SCOPE).value == "so"
        assert cache.stats().degraded["store"] > 0


def test_a_store_without_answers_is_refused_by_name() -> None:
    names = [name for name in vars(TelemetryStore) if not name.startswith("_")]
    old = type("OldStore", (), {name: lambda *_: None for name in names} | {"url": "old://place"})
    assert isinstance(old(), TelemetryStore)
    with pytest.raises(InvalidInputError, match=r"^OldStore \(old://place\) keeps no answers: it has to be a "
                                                r"neuralcache_plugins\.contracts\.AnswerStore as well; SQLite and"):
        SemanticCache(HashingEncoder(), store=old())


def test_a_closed_cache_says_so() -> None:
    cache = opened()
    cache.close()
    cache.close()
    for use in (lambda: cache.lookup("q", scope="s"), lambda: cache.put("q", "a", scope="s"), cache.clear,
                lambda: cache.get_or_compute("q", str, scope="s"), cache.certificate, lambda: cache.report("h", True)):
        with pytest.raises(StoreClosedError):
            use()


@forks
def test_a_forked_child_goes_on(url: str) -> None:
    """The child has locks, threads and flights of its own, though the parent was computing when it was forked."""
    with opened(url, clock=time.time) as cache:
        cache.put("how?", "so", scope=SCOPE)
        started, go = threading.Event(), threading.Event()

        def compute() -> str:
            started.set()
            go.wait(EVENTUALLY_SECONDS)
            return "parent"

        with ThreadPoolExecutor(1) as pool:
            parents = pool.submit(cache.get_or_compute, "why?", compute, scope=SCOPE)
            started.wait(EVENTUALLY_SECONDS)
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    hit = cache.lookup("how?", scope=SCOPE)
                    done = hit is not None and cache.get_or_compute("where?", lambda: "child", scope=SCOPE) == "child"
                    cache.flush()
                    code = 0 if done else 2
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            go.set()
            assert parents.result() == "parent"
        assert cache.lookup("where?", scope=SCOPE).value == "child"


def test_processes_see_each_others_answers_within_a_second(url: str) -> None:
    with opened(url, clock=time.time) as cache:
        assert cache.lookup("how?", scope=SCOPE) is None
        code = ("import sys; from neuralcache_plugins import SemanticCache\n"
                f"with SemanticCache(store={url!r}) as cache: cache.put('how?', 'so', scope={SCOPE!r})")
        subprocess.run([sys.executable, "-c", code], check=True)
        assert cache.lookup("how?", scope=SCOPE).value == "so"


WRITER = """
import sys
from neuralcache_plugins import SemanticCache
cache = SemanticCache(store=sys.argv[1])
number = 0
while True:
    cache.put(f"{sys.argv[2]}-{number}", "answer " * 20, scope="s", documents=[("a", "1")])
    print(f"{sys.argv[2]}-{number}", flush=True)
    number += 1
"""


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_kill_nine_loses_no_acknowledged_put(url: str) -> None:
    acknowledged: list[str] = []
    for each in range(3):
        command = [sys.executable, "-c", WRITER, url, str(each)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(20 + 15 * each):
                acknowledged.append(writer.stdout.readline().strip())
            writer.send_signal(signal.SIGKILL)
            acknowledged.extend(line.strip() for line in writer.stdout if line.endswith("\n"))
    with closing(open_store(url)) as store:
        assert store.health()["integrity"] == "ok"
        with SemanticCache(store=store) as cache:
            hits = cache.lookup_many(acknowledged, scope="s", documents=[("a", "1")])
    assert len(acknowledged) > 100
    assert None not in hits


# the place of the semantic tier


def test_switched_off_the_semantic_tier_embeds_nothing() -> None:
    encoder: Any = HashingEncoder()
    with SemanticCache(encoder, store="memory://", settings=CacheSettings(semantic=False)) as plain:
        plain.put("how do I reset it", "so", scope=SCOPE)
        assert plain.lookup("how do I reset it?", scope=SCOPE) is None
        assert str(plain.certificate()) == "only exact repeats are answered: CacheSettings.semantic is off"
        assert "CacheSettings.semantic is off" in str(plain.explain("how do I reset it?", SCOPE))
    assert encoder.calls == 0


def test_before_it_is_certified_only_exact_answers_are_served(cache: SemanticCache) -> None:
    cache.put("how do I reset it", "so", scope=SCOPE)
    assert cache.lookup("how do I reset it?", scope=SCOPE) is None
    assert "not certified yet for at most 2 % wrong at 95 % confidence" in str(cache.certificate())
    assert "not certified yet: only exact repeats are answered" in str(cache.explain("how do I reset it?", SCOPE))


def test_a_policy_serves_similar_questions(url: str, deciders: list[Nearest]) -> None:
    with opened(url) as cache, opened(url) as other:
        cache.put("how do I reset my password", "so", scope=SCOPE)
        hit = other.lookup("how do I reset my old password", scope=SCOPE)
        assert hit is not None
        assert (hit.kind, hit.value, hit.question, hit.score) == ("semantic", "so", "how do I reset my password", 0.75)
        other.report(hit.hit_id, False)
        assert other.lookup("how do I reset my old password", scope=SCOPE) is None
        (judged,) = (entry.event for entry in other._store.read_answer_events(kinds=[AnswerJudged]))
        assert isinstance(judged, AnswerJudged)
        assert judged.features == pytest.approx({"cosine": 0.93}, abs=0.02)
        assert judged.propensity == 0.5
        assert deciders[-1].learned == [judged]
        assert cache.certificate() == "1 reused"  # by the other object, as the log says


def test_a_semantic_answer_is_not_made_from_a_changed_document(deciders: list[Nearest]) -> None:
    with opened() as cache:
        cache.put("how do I reset it", "so", scope=SCOPE, documents=[("a", "1"), ("b", "1")])
        assert cache.lookup("how do I reset that", scope=SCOPE, documents=[("a", "1"), ("c", "1")])
        assert cache.lookup("how do I reset that", scope=SCOPE, documents=[("a", "2"), ("b", "1")]) is None


def test_what_the_exact_tier_refused_is_not_served_as_a_similar_question(deciders: list[Nearest]) -> None:
    with opened() as cache:
        cache.put("how do I reset it", "so", scope=SCOPE, documents=[("a", "1")])
        cache.put("how do I delete it", "so", scope=SCOPE)
        assert cache.lookup("how do I reset it", scope=SCOPE, documents=[("a", "1")])
        for asked in ("how do I reset it", "how do I delete it"):
            hit = cache.lookup(asked, scope=SCOPE, documents=[("a", "1"), ("b", "1")])
            assert hit is None or hit.question != asked


def test_what_may_not_be_served_does_not_crowd_out_what_may(deciders: list[Nearest]) -> None:
    clock = FakeClock()
    with opened(clock=clock) as cache:
        for number in range(20):
            cache.put(f"how do I reset it {'x' * number}", "old", scope=SCOPE, ttl=None if number % 2 else 1.0)
        cache.put("how do I reset it from another version", "old", scope=SCOPE, documents=[("a", "1")])
        cache.certificate()
        deciders[-1].quarantined = clock()
        clock.advance(10.0)
        cache.put("something else about resetting", "new", scope=SCOPE)
        hit = cache.lookup("how do I reset it", scope=SCOPE)
        assert hit is not None
        assert hit.value == "new"


def test_a_look_asks_the_store_for_the_exact_answer_and_then_for_what_came_nearest() -> None:
    store = FailingStore(MemoryStore())
    with opened(store) as cache:
        cache.put("how do i reset my password", "so", scope=SCOPE)
        cache.lookup("how can i change my address", scope=SCOPE)  # reads what was stored and learned
        store.calls.clear()
        cache.lookup("how can i reset my passwords", scope=SCOPE)

        assert store.calls == ["find_answers", "get_answers"]


def test_after_everything_went_a_look_stays_quick(url: str, deciders: list[Nearest],
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(url) as cache:
        for number in range(60):
            cache.put(f"how do I reset {number}", "so", scope=SCOPE)
        assert cache.lookup("how do I reset it", scope=SCOPE)
        cache.clear()
        calls: list[Any] = []
        get = SqliteStore.get_answers
        monkeypatch.setattr(SqliteStore, "get_answers", lambda *given: (calls.append(given), get(*given))[1])
        assert cache.lookup("how do I reset it", scope=SCOPE) is None
        assert len(calls) <= semantic.ROUNDS


def test_an_entry_that_went_is_not_found_by_the_index(url: str, deciders: list[Nearest]) -> None:
    with opened(url) as cache, opened(url) as other:
        cache.put("how do I reset it", "so", scope=SCOPE)
        cache.put("where is the branch", "there", scope=SCOPE)
        assert other.lookup("how do I reset that", scope=SCOPE).value == "so"
        cache.invalidate(scope="another")
        assert cache.clear() == 2
        assert other.lookup("how do I reset that", scope=SCOPE) is None


def test_misses_and_audits_are_judged(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    decider = Nearest(audit=True, least=0.8)
    monkeypatch.setattr(semantic, "decider_for", lambda *_: decider)
    with opened(url) as cache:
        cache.put("how do I reset it", "So!", scope=SCOPE)
        assert cache.get_or_compute("how do I delete an account", lambda: "so", scope=SCOPE) == "so"
        assert cache.get_or_compute("how do I reset it now", lambda: "otherwise", scope=SCOPE) == "So!"
        eventually(lambda: cache.stats().judged == 2)
        eventually(lambda: cache.stats().stored == 3)
        cache.flush()
        labels = [entry.event for entry in cache._store.read_answer_events(kinds=[AnswerJudged])]
        assert [(label.source, label.correct, label.hit_id is None) for label in labels] == [
            ("miss", True, True), ("audit", False, False)]
        assert cache.get_or_compute("how do I reset it now", str, scope=SCOPE) == "otherwise"


def test_an_audit_that_fails_is_counted_and_leaves_no_label(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "decider_for", lambda *_: Nearest(audit=True))
    with opened(url) as cache:
        cache.put("how do I reset it", "so", scope=SCOPE)
        compute = Counting(error=KeyError("no network"))
        assert cache.get_or_compute("how do I reset it now", compute, scope=SCOPE) == "so"
        eventually(lambda: cache.stats().audits_failed == 1)
        cache.flush()
        assert cache._store.read_answer_events(kinds=[AnswerJudged]) == []
        assert cache.stats().degraded["background"] == 1


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_one_question_is_audited_once_at_a_time(asynchronous: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty are served at once and all of them are to be audited: one fresh answer, one label."""
    monkeypatch.setattr(semantic, "decider_for", lambda *_: Nearest(audit=True))
    with opened() as cache:
        cache.put("how do I reset it", "so", scope=SCOPE)
        all_served = threading.Event()
        compute = Counting(until=all_served.is_set)
        for _ in range(20):
            if asynchronous:
                answer = await cache.aget_or_compute("how do I reset it now", compute, scope=SCOPE)
            else:
                answer = cache.get_or_compute("how do I reset it now", compute, scope=SCOPE)
            assert answer == "so"
        all_served.set()
        await until(lambda: cache.stats().judged == 1 and not cache._background._tasks)
        await asyncio.to_thread(cache._background.wait, EVENTUALLY_SECONDS)
        assert (compute.calls, cache.stats().judged) == (1, 1)


def test_work_in_the_background_is_bounded(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many audits are due, so many threads and no more; what finds no room is left undone and counted."""
    monkeypatch.setattr(semantic, "decider_for", lambda *_: Nearest(audit=True))
    monkeypatch.setattr(background, "ROOM", 10)
    go, begun = threading.Event(), Counting()

    def compute() -> str:
        begun()
        go.wait(EVENTUALLY_SECONDS)
        return "so"

    with opened() as cache:
        before = {thread.ident for thread in threading.enumerate()}
        cache.put("how do I reset it", "so", scope=SCOPE)
        for number in range(50):
            cache.get_or_compute(f"how do I reset it {number}", compute, scope=SCOPE)
        eventually(lambda: begun.calls == background.WORKERS)
        others = {thread.ident for thread in threading.enumerate()} - before
        assert len(others) <= background.WORKERS + 1  # and the recorder's
        go.set()
        cache._background.wait(EVENTUALLY_SECONDS)
        undone = cache.stats().left_undone
        assert undone >= 50 - background.WORKERS - 10
        assert cache.stats().judged == 50 - undone


async def test_coroutines_in_the_background_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic, "decider_for", lambda *_: Nearest(audit=True))
    monkeypatch.setattr(background, "ROOM", 3)
    with opened() as cache:
        cache.put("how do I reset it", "so", scope=SCOPE)
        go = asyncio.Event()

        async def compute() -> str:
            await go.wait()
            return "so"

        for number in range(9):
            await cache.aget_or_compute(f"how do I reset it {number}", compute, scope=SCOPE)
        assert len(cache._background._tasks) == 3
        go.set()
        await until(lambda: cache.stats().judged == 3)
        assert cache.stats().left_undone == 6


def test_after_an_alarm_the_very_same_question_is_still_answered(deciders: list[Nearest]) -> None:
    """The exact tier promises time to live and documents, not the certificate: an alarm leaves it alone."""
    clock = FakeClock()
    with opened(clock=clock) as cache:
        cache.put("how do I reset it", "so", scope=SCOPE)
        assert cache.lookup("how do I reset that", scope=SCOPE)
        deciders[-1].quarantined = clock()
        clock.advance(1.0)
        assert cache.lookup("how do I reset that", scope=SCOPE) is None
        assert cache.lookup("how do I reset it", scope=SCOPE).kind == "exact"


def test_a_similar_answer_made_from_nobody_knows_what_is_not_for_who_names_documents(deciders: list[Nearest]) -> None:
    with opened() as cache:
        cache.put("how do I reset it", "so", scope=SCOPE)
        assert cache.lookup("how do I reset that", scope=SCOPE)
        assert cache.lookup("how do I reset that", scope=SCOPE, documents=[("a", "1")]) is None


async def test_coroutines_are_audited_too(monkeypatch: pytest.MonkeyPatch) -> None:
    decider = Nearest(audit=True, least=0.8)
    monkeypatch.setattr(semantic, "decider_for", lambda *_: decider)
    with opened() as cache:
        await cache.aput("how do I reset it", "So!", scope=SCOPE)

        async def compute() -> str:
            return "so"

        assert await cache.aget_or_compute("how do I reset it now", compute, scope=SCOPE) == "So!"
        await until(lambda: cache.stats().judged == 1)


def test_an_encoder_that_fails_costs_the_semantic_tier_only(deciders: list[Nearest]) -> None:
    class Broken(HashingEncoder):
        def embed_query(self, text: str) -> list[float]:
            raise OSError("no network")

    with SemanticCache(Broken(), store="memory://") as cache:
        assert cache.put("how?", "so", scope=SCOPE)
        assert cache.lookup("how?", scope=SCOPE)
        assert cache.lookup("why?", scope=SCOPE) is None
        assert cache.stats().degraded["encoder"] == 2


def test_explain_says_what_forbids_a_similar_answer(cache: SemanticCache) -> None:
    cache.put("how do I enable the alarm", "so", scope=SCOPE)
    told = cache.explain("how do I disable the alarm", SCOPE)

    assert told.reasons == ("similar questions mean something else", "other meaning: disable against enable")
    assert cache.lookup("how do I disable the alarm", scope=SCOPE) is None
    assert cache.stats().misses == {"similar questions mean something else": 1}


@pytest.mark.parametrize("how", ["clear", "invalidate"])
def test_explain_shows_no_question_that_was_removed(how: str, url: str) -> None:
    with opened(url) as cache, opened(url) as other:
        cache.put("how do I enable the alarm", "so", scope=SCOPE)
        for each in (cache, other):
            assert each.explain("how do I disable the alarm", SCOPE).nearest == "how do I enable the alarm"
        cache.clear() if how == "clear" else cache.invalidate(scope=SCOPE)
        for each in (cache, other):
            told = each.explain("how do I disable the alarm", SCOPE)
            assert told.nearest is None
            assert "enable" not in str(told)


def test_misses_are_counted_by_few_reasons(deciders: list[Nearest]) -> None:
    with opened() as cache:
        cache.put("how do I reset it", "so", scope=SCOPE)
        cache.certificate()
        deciders[-1].least = 2.0
        deciders[-1].decide = lambda *given, **more: Proposal(  # type: ignore[method-assign]
            candidate=given[1][0].cached.entry_id, reasons=(f"score {more['coin']} is below the cut",))
        for number in range(5):
            assert cache.lookup(f"how do I reset it {'x' * number}!", scope=SCOPE) is None
        assert cache.stats().misses == {"not sure enough of a similar answer": 5}


def test_a_snapshot_that_cannot_be_written_does_not_fail_the_close(url: str, monkeypatch: pytest.MonkeyPatch,
                                                                   deciders: list[Nearest]) -> None:
    def fail(*_: Any) -> None:
        raise StoreError("full")

    with opened(url) as cache:
        cache.put("how do I reset it", "so", scope=SCOPE)
        hit = cache.lookup("how do I reset that", scope=SCOPE)
        assert hit is not None
        cache.report(hit.hit_id, True)
        cache.certificate()
        monkeypatch.setattr(SqliteStore, "save_snapshot", fail)


def test_misses_are_recorded_with_their_reason_and_no_word_of_the_question(cache: SemanticCache) -> None:
    assert cache.lookup("a secret question", scope=SCOPE) is None
    cache.flush()
    (entry,) = cache._store.read_answer_events(kinds=[AnswerMissed])

    assert entry.event.reason == "never asked"
    assert "secret" not in repr(entry)
    assert cache.stats().logged.missed == {"never asked": 1}


def test_stats_of_a_store_in_trouble_tell_what_this_object_did() -> None:
    store = FailingStore(MemoryStore())
    with opened(store) as cache:
        cache.put("how?", "so", scope=SCOPE)
        store.fail()
        stats = cache.stats()
        store.recover()

    assert (stats.stored, stats.logged, stats.certificate) == (1, None, None)
    assert "log: cannot be read" in str(stats)


def test_what_is_older_than_the_retention_goes(url: str) -> None:
    """Without a reranker beside it, too: answers and events about them share the store's retention."""
    clock = FakeClock()
    with opened(url, clock=clock, store_settings=StoreSettings(retention_seconds=3600)) as cache:
        cache.put("how?", "so", scope=SCOPE, ttl=10**6)
        clock.advance(4000)
        cache.put("why?", "so", scope=SCOPE)
        eventually(lambda: cache.stats().logged.put == 1)
        assert cache.lookup("how?", scope=SCOPE) is None
        assert cache.lookup("why?", scope=SCOPE)


# judges


@pytest.mark.parametrize(("judge", "cached", "fresh", "right"), [
    (exact(), "a", "a", True), (exact(), "a", "A", False), (exact(), 1, True, False),
    (normalised_text(), "The answer is 5.", "the answer is  5", True), (normalised_text(), "-5", "5", False),
    (normalised_text(), "3.5", "35", False), (normalised_text(), "5 €", "5 $", False),
    (normalised_text(), 5, "5", False),
    (embedding_agreement(HashingEncoder(), threshold=0.9), "one two", "two one", True),
    (embedding_agreement(HashingEncoder(), threshold=0.9), "one two", "one three", False),
    (embedding_agreement(HashingEncoder()), "", "one", False), (embedding_agreement(HashingEncoder()), [1], [1], True),
])
def test_judges(judge: Judge, cached: Any, fresh: Any, right: bool) -> None:
    assert judge(cached, fresh) is right


def test_a_judge_says_how_often_it_is_wrong() -> None:
    assert Judge(lambda *_: True, "model", error_rate=0.03).error_rate == 0.03
    with pytest.raises(InvalidInputError, match=r"^error_rate must be in \[0, 1\), got 1"):
        Judge(lambda *_: True, "model", error_rate=1.0)


def test_a_judge_that_fails_does_not_cost_the_answer(cache: SemanticCache) -> None:
    def fail(*_: Any) -> bool:
        raise ValueError("cannot say")

    cache.put("how do I reset it", "so", scope=SCOPE)
    judge = Judge(fail, "failing", quick=True)
    assert cache.get_or_compute("how do I reset that", lambda: "fresh", scope=SCOPE, judge=judge) == "fresh"
    assert cache.lookup("how do I reset that", scope=SCOPE)
    assert cache.stats().degraded == {"background": 1}


async def test_a_judge_that_errs_more_than_the_settings_say_is_refused() -> None:
    judge = Judge(lambda *_: True, "model", error_rate=0.03)
    with opened() as cache:
        with pytest.raises(InvalidInputError, match=r"judge_error is 0: the certificate would promise too much"):
            cache.get_or_compute("how?", str, scope=SCOPE, judge=judge)
        with pytest.raises(InvalidInputError, match=r"judge_error is 0: the certificate would promise too much"):
            await cache.aget_or_compute("how?", str, scope=SCOPE, judge=judge)
    with opened(settings=CacheSettings(judge_error=0.03)) as cache:
        assert cache.get_or_compute("how?", lambda: "so", scope=SCOPE, judge=judge) == "so"


def test_stats_say_what_was_saved(cache: SemanticCache) -> None:
    cache.put("how?", "so", scope=SCOPE, cost=0.25, seconds=2.0)
    for _ in range(3):
        cache.lookup("how?", scope=SCOPE)
    cache.lookup("why?", scope=SCOPE)
    stats = cache.stats()

    assert (stats.hits, stats.exact_hits, stats.misses, stats.stored) == (
        3, 3, {"not certified yet: only exact repeats are answered": 1}, 1)
    assert (stats.cost_saved, stats.seconds_saved) == (0.75, 6.0)
    cache.flush()
    found = cache._store.find_answers("default", [cache._keys.asked("how?", SCOPE, ()).key])
    assert next(iter(found.answers.values())).hits == 3


def test_vectors_are_kept_as_halves(deciders: list[Nearest]) -> None:
    with opened() as cache:
        cache.put("how?", "so", scope=SCOPE)
        (question,) = cache._store.read_questions("default")
        assert question.vector.dtype == np.float16
        assert question.encoder == "hashing-256:256"
