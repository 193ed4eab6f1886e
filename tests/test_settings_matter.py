"""Every setting does something: for each field a table says what is seen by default and what when it is changed."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from pydantic import SecretStr, ValidationError

from neuralcache_plugins import CacheSettings, Reranker, RerankSettings, SemanticCache, StoreSettings
from neuralcache_plugins import settings as settings_module
from neuralcache_plugins.errors import StoreBusyError
from neuralcache_plugins.reranker import texts as texts_module
from neuralcache_plugins.semantic_cache import nearest as nearest_module
from neuralcache_plugins.semantic_cache.features import FEATURES, Neighbour
from neuralcache_plugins.semantic_cache.parsing import parse
from neuralcache_plugins.semantic_cache.policy import Label, Policy
from neuralcache_plugins.stores.memory import MemoryStore
from neuralcache_plugins.testing import FailingStore, FakeClock, HashingEncoder

TEXTS = [
    "Cards are delivered within five working days",
    "Opening hours of our branches in town",
    "To reset a password open the settings of the app",
    "Interest rates for savings accounts",
    "Cancel a transfer that is still pending",
    "Exchange rates when you pay abroad",
]
IDS = ["cards", "hours", "password", "interest", "cancel", "abroad"]
QUESTION = "how long until my new card arrives"
DAY = 86_400.0


@pytest.fixture(autouse=True)
def own_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the machine: no variables, no data folder."""
    for name in [name for name in os.environ if name.startswith("NEURALCACHE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(settings_module, "user_data_path", lambda *_, **__: tmp_path / "data")


class Effect(NamedTuple):
    """One field: what ``look`` sees with the default and with ``value``; ``bad`` is refused because of ``why``."""

    look: Callable[..., Any]
    default: Any
    value: Any
    changed: Any
    bad: Any
    why: str


def opened(settings: RerankSettings | None = None, **options: Any) -> Reranker:
    options = {"encoder": HashingEncoder(), "store": "memory://", "clock": FakeClock(), **options}
    return Reranker(settings=settings, **options)


def teach(reranker: Reranker, helpful: str, question: str = QUESTION, times: int = 1, **where: Any) -> None:
    for _ in range(times):
        reranker.feedback(reranker.rerank(question, TEXTS, ids=IDS, **where), helpful=[helpful])


# how documents are ordered


def first_of_three_opinions(settings: RerankSettings) -> str:
    """Ask where the retriever, the words and the vectors each prefer another document."""
    opinions = {"retriever": "welcome to our app", "words": "how to reset a password", "vectors": "about us"}
    others = {f"page {number}": f"branch {number} in town" for number in range(20)}
    with opened(settings) as reranker:
        return reranker.rerank(
            "reset password", [*opinions.values(), *others.values()], ids=[*opinions, *others],
            prior_scores=[1.0, 0.5, 0.5, *[0.1] * 20], query_vector=[1.0, 0.0],
            vectors=[[0.6, 0.8], [0.6, 0.8], [1.0, 0.0], *[[0.6, 0.8]] * 20],
        ).ids[0]


def first_after_eight_rewards(settings: RerankSettings) -> str:
    with opened(settings) as reranker:
        teach(reranker, "abroad", times=8)
        return reranker.rerank(QUESTION, TEXTS, ids=IDS).ids[0]


def rankings_whose_texts_are_known(settings: RerankSettings) -> int:
    with opened(settings) as reranker:
        rankings = [reranker.rerank(QUESTION, TEXTS, ids=IDS) for _ in range(3)]
        return sum(reranker.has_texts(ranking.ranking_id) for ranking in rankings)


def credit_after_a_day(settings: RerankSettings) -> float:
    clock = FakeClock()
    with opened(settings, clock=clock) as reranker:
        teach(reranker, "abroad", times=8)
        clock.advance(DAY)
        ranking = reranker.rerank(QUESTION, TEXTS, ids=IDS)
        return round(float(ranking.signals["pheromone"][ranking.ids.index("abroad")]), 2)


def whether_a_session_bends_its_questions(settings: RerankSettings) -> bool:
    with opened(settings) as reranker:
        teach(reranker, "abroad", "rates when you pay abroad", session="s")
        one, two = (reranker.rerank("and the rates", TEXTS, ids=IDS, session=name) for name in ("s", "other"))
        return one.scores != two.scores


def whether_a_session_still_holds_its_first_topic(settings: RerankSettings) -> bool:
    with opened(settings) as reranker:
        for helpful in ("abroad", "hours"):
            teach(reranker, helpful, session="s")
        ranking = reranker.rerank(QUESTION, TEXTS, ids=IDS, session="s")
        narrative = dict(zip(ranking.ids, ranking.signals["narrative"].tolist(), strict=True))
        return narrative["abroad"] > 0.5


def order_of_near_copies(settings: RerankSettings) -> tuple[int, ...]:
    texts = ["reset the password now", "reset the password today", "reset the password", "branch opening hours"]
    with opened(settings) as reranker:
        return tuple(sorted(reranker.rerank("reset the password", texts, top_n=2).positions.tolist()))


def whether_any_rank_was_left_to_chance(settings: RerankSettings) -> bool:
    with opened(settings) as reranker:
        return min(reranker.rerank(QUESTION, TEXTS).propensities) < 1.0


def whether_it_explores_like_seed_0(settings: RerankSettings) -> bool:
    def orders(seed: int) -> list[list[int]]:
        with opened(RerankSettings(exploration=0.5, seed=seed)) as reranker:
            return [reranker.rerank(QUESTION, TEXTS).positions.tolist() for _ in range(5)]

    return orders(settings.seed) == orders(0)


# the cache


def answered_after(settings: CacheSettings, seconds: float, answer: Any = "so") -> bool:
    clock = FakeClock()
    with cache_with(settings, clock=clock) as cache:
        cache.put("how?", answer, scope="s")
        clock.advance(seconds)
        return cache.lookup("how?", scope="s") is not None


def whether_a_day_old_answer_is_served(settings: CacheSettings) -> bool:
    return answered_after(settings, DAY)


def whether_a_miss_is_compared(settings: CacheSettings) -> bool:
    with cache_with(settings) as cache:
        cache.put("how do I reset my password", "so", scope="s")
        cache.get_or_compute("how can I reset my password", lambda: "so", scope="s")
        return cache.stats().judged == 1


def whether_no_answer_is_still_known_after_a_minute(settings: CacheSettings) -> bool:
    return answered_after(settings, 60.0, None)


def answer_a_moment_after_it_expired(settings: CacheSettings) -> str:
    clock = FakeClock()
    with cache_with(settings, clock=clock) as cache:
        cache.put("how?", "old", scope="s", ttl=10)
        clock.advance(11)
        return str(cache.get_or_compute("how?", lambda: "new", scope="s"))


def answers_left_of_five(settings: CacheSettings) -> int:
    with cache_with(settings) as cache:
        for number in range(5):
            cache.put(f"q{number}", "x" * 1000, scope="s")
        return sum(hit is not None for hit in cache.lookup_many([f"q{number}" for number in range(5)], scope="s"))


def readings_of_two_answers_asked_twice(settings: CacheSettings) -> int:
    store = FailingStore(MemoryStore())
    with cache_with(settings, store=store) as cache:
        for number in (0, 1):
            cache.put(f"q{number}", "so", scope="s")
        for number in (0, 1, 0, 1):
            cache.lookup(f"q{number}", scope="s")
        return store.calls.count("find_answers")


def seconds_until_a_lease_runs_out(settings: CacheSettings) -> float:
    store, clock, leases = MemoryStore(), FakeClock(), []
    with cache_with(settings, store=store, clock=clock) as cache:
        cache.get_or_compute("how?", lambda: leases.extend(store._leases.values()), scope="s")
    return leases[0].expires_at - clock.now


def cost_saved_by_one_hit(settings: CacheSettings) -> float:
    with cache_with(settings) as cache:
        cache.put("how?", "so", scope="s")
        cache.lookup("how?", scope="s")
        return cache.stats().cost_saved


def cache_with(settings: CacheSettings, **options: Any) -> SemanticCache:
    return SemanticCache(HashingEncoder(), settings=settings,
                         **{"store": "memory://", "clock": FakeClock(), **options})


# the optional scorer


def texts_that_reach_the_scorer(settings: RerankSettings) -> int:
    asked: list[str] = []

    def scorer(_: str, texts: list[str]) -> list[float]:
        asked.extend(texts)
        return [0.0] * len(texts)

    with opened(settings, scorer=scorer) as reranker:
        reranker.rerank("page", [f"page {number}" for number in range(60)], prior_scores=[1.0] * 60)
    return len(asked)


def whether_the_scorer_decides(settings: RerankSettings) -> bool:
    with opened(settings, scorer=lambda _, texts: [float("Interest" in text) for text in texts]) as reranker:
        return reranker.rerank(QUESTION, TEXTS, ids=IDS).ids[0] == "interest"


# what is remembered


def questions_remembered_of_one_document(settings: RerankSettings) -> int:
    with opened(settings) as reranker:
        for number in range(5):
            teach(reranker, "hours", f"{QUESTION} {number}")
        return reranker.stats().namespace.remembered_questions


def questions_remembered_of_a_critic(settings: RerankSettings) -> int:
    with opened(settings) as reranker:
        ranking = reranker.rerank(QUESTION, TEXTS, ids=IDS)
        reranker.feedback(ranking, helpful=["hours"], source="critic:strict")
        return reranker.stats().namespace.remembered_questions


def documents_remembered(settings: RerankSettings) -> int:
    with opened(settings) as reranker:
        teach(reranker, "hours")
        return reranker.stats().namespace.documents


def questions_remembered_in_all(settings: RerankSettings) -> int:
    with opened(settings) as reranker:
        for helpful in IDS:
            teach(reranker, helpful)
        return reranker.stats().namespace.remembered_questions


def sessions_remembered(settings: RerankSettings) -> int:
    with opened(settings) as reranker:
        for session in "abcd":
            teach(reranker, "hours", session=session)
        return reranker.stats().namespace.sessions


def readings_of_the_log_for_two_namespaces_in_turn(settings: RerankSettings) -> int:
    class Counting(MemoryStore):
        readings = 0

        def read(self, **what: Any) -> Any:
            Counting.readings += what.get("namespace") is not None
            return super().read(**what)

    with closing(Counting()) as store, opened(settings, store=store) as reranker:
        for namespace in "abab":
            reranker.rerank(QUESTION, TEXTS, namespace=namespace)
    return Counting.readings


# what is waited for, and what is kept in memory


def degraded_by_an_encoder_that_needs_a_moment(settings: RerankSettings) -> tuple[str, ...]:
    class Slow(HashingEncoder):
        async def aembed_query(self, text: str) -> list[float]:
            await asyncio.sleep(0.05)
            return self.embed_query(text)

    async def ranked() -> tuple[str, ...]:
        return (await reranker.arerank(QUESTION, TEXTS)).degraded

    with opened(settings, encoder=Slow()) as reranker:
        return asyncio.run(ranked())


def texts_whose_words_are_counted_in_two_calls(settings: RerankSettings) -> int:
    counted: list[str] = []

    def counting(text: str) -> Any:
        counted.append(text)
        return original(text)

    original = texts_module.token_statistics
    with pytest.MonkeyPatch.context() as patch, opened(settings) as reranker:
        patch.setattr(texts_module, "token_statistics", counting)
        for _ in range(2):
            reranker.rerank(QUESTION, TEXTS)
    return len(counted)


# the store


def file_in_use(settings: StoreSettings, folder: Path) -> str:
    with opened(store=None, store_settings=settings) as reranker:
        path = Path(reranker.stats().store.removeprefix("sqlite:///"))
        assert path.stat().st_mode & 0o777 == 0o600
        return str(path.relative_to(folder.parent))


def texts_in_the_log(settings: StoreSettings, folder: Path) -> tuple[str | None, str | None]:
    with opened(store=f"sqlite:///{folder}/t.db", store_settings=settings) as reranker:
        reranker.rerank("my question", ["my document"])
    with closing(sqlite3.connect(folder / "t.db")) as connection:
        return (*connection.execute("SELECT query_text FROM rankings").fetchone(),
                *connection.execute("SELECT document_text FROM shown_documents").fetchone())


def pragma_synchronous(settings: StoreSettings, folder: Path) -> int:
    with opened(store=f"sqlite:///{folder}/t.db", store_settings=settings) as reranker:
        return int(reranker.store._connections.writer().execute("PRAGMA synchronous").fetchone()[0])


def feedback_while_another_writes_for_a_moment(settings: StoreSettings, folder: Path) -> str:
    with opened(store=f"sqlite:///{folder}/t.db", store_settings=settings) as reranker:
        ranking = reranker.rerank(QUESTION, TEXTS, ids=IDS)
        with closing(sqlite3.connect(folder / "t.db", isolation_level=None, check_same_thread=False)) as other:
            other.execute("BEGIN IMMEDIATE")
            leaving = threading.Timer(0.05, other.execute, ["ROLLBACK"])
            leaving.start()
            try:
                reranker.feedback(ranking, helpful=["hours"])
            except StoreBusyError:
                return "refused"
            finally:
                leaving.join()
            return "stored"


def whether_a_ranking_waits_a_fifth_of_a_second(settings: StoreSettings, _: Path) -> bool:
    def waits() -> bool:
        with opened(store_settings=settings) as reranker:
            start = time.monotonic()
            reranker.rerank(QUESTION, TEXTS)
            while reranker.stats().recorder.written == 0:
                time.sleep(0.002)
            return time.monotonic() - start > 0.2

    # an interval is never cut short, but a busy machine may be late
    return all(waits() for _ in range(2))


def rankings_dropped_of_five(settings: StoreSettings, _: Path) -> int:
    with opened(store_settings=settings.model_copy(update={"flush_interval_seconds": 3600.0})) as reranker:
        for _ in range(5):
            reranker.rerank(QUESTION, TEXTS)
        return reranker.stats().recorder.dropped


def rankings_left_after_a_day(settings: StoreSettings, _: Path) -> int:
    clock = FakeClock()
    with opened(clock=clock, store_settings=settings) as reranker:
        for _ in range(2):
            reranker.rerank(QUESTION, TEXTS)
            reranker.flush()
            clock.advance(DAY)
        for thread in threading.enumerate():
            if thread.name == "neuralcache-tidy":
                thread.join()
        return int(reranker.store.health()["rows"]["rankings"])


def snapshots_after_closing(settings: StoreSettings, folder: Path) -> int:
    with opened(store=f"sqlite:///{folder}/t.db", store_settings=settings) as reranker:
        teach(reranker, "hours")
    with closing(sqlite3.connect(folder / "t.db")) as connection:
        return int(connection.execute("SELECT count(*) FROM snapshots").fetchone()[0])


def encoder_calls_for_two_rankings(settings: StoreSettings, _: Path) -> int:
    # nothing on disk either, or the store would know the texts
    with opened(store_settings=settings.model_copy(update={"vectors_on_disk": 0})) as reranker:
        for _ in range(2):
            reranker.rerank(QUESTION, TEXTS)
        return reranker.stats().encoder_calls


def vectors_in_the_store(settings: StoreSettings, _: Path) -> int:
    with opened(store_settings=settings) as reranker:
        reranker.rerank(QUESTION, TEXTS)
        reranker.flush()
        return int(reranker.store.health()["rows"]["vectors"])


# what an answer from the cache must promise


def labels_until_the_cache_may_serve(settings: CacheSettings) -> int:
    """Teach a policy with pairs that are right exactly when they look it; count hundreds of labels until it serves."""
    policy = Policy(settings)
    looks = np.zeros((2, len(FEATURES)), dtype=np.float32)
    looks[1] = 1.0
    for seen in range(1, 3_000):
        policy.learn(Label(looks[seen % 2], right=bool(seen % 2), served=False, coin=0.0, rate=1.0, at=0.0))
        if policy.tests.live:
            return seen // 100
    return 0


def whether_every_answer_is_audited(settings: CacheSettings) -> bool:
    policy = Policy(settings)
    policy.tests.certify(1)
    policy.cuts[:] = -100.0
    near = [Neighbour(0, 0.9, parse("how do I reset my password"), "a", created_at=1.0)]
    return all(policy.decide(parse("reset password"), near, now=2.0, coin=coin).audit for coin in (0.05, 0.5, 0.95))


def size_of_the_index_over_thirty_answers(settings: CacheSettings) -> int:
    """Put thirty answers and return how many of them usearch finds; by default so few are searched one by one."""
    changed = settings.model_fields_set
    if changed == {"index"}:
        settings = CacheSettings(**settings.model_dump() | {"ann_threshold": 10})
    with pytest.MonkeyPatch.context() as patch, cache_with(settings) as cache:
        patch.setattr(nearest_module, "_FEW", 1)
        for number in range(30):
            cache.put(f"question {number}", "so", scope="s")
        cache.lookup("another", scope="s")
        cache._semantic._nearest.wait(20.0)
        (shelf,) = cache._semantic._nearest._shelves.values()
        return 0 if shelf.index is None else shelf.index.size


LEAST_0 = "Input should be greater than or equal to 0"
LEAST_1 = "Input should be greater than or equal to 1"
ABOVE_0 = "Input should be greater than 0"
MOST_1 = "Input should be less than or equal to 1"
MOST_10 = "Input should be less than or equal to 10"

RERANK = {
    "lexical_weight": Effect(first_of_three_opinions, "retriever", 9.0, "words", 11.0, MOST_10),
    "dense_weight": Effect(first_of_three_opinions, "retriever", 9.0, "vectors", -0.1, LEAST_0),
    "learning": Effect(first_after_eight_rewards, "abroad", False, "cards", "perhaps", "should be a valid boolean"),
    "half_life_seconds": Effect(credit_after_a_day, 0.89, DAY, 0.8, 0.0, r"greater than or equal to 0.001"),
    "narrative_weight": Effect(whether_a_session_bends_its_questions, True, 0.0, False, 11.0, MOST_10),
    "narrative_rate": Effect(whether_a_session_still_holds_its_first_topic, True, 1.0, False, 0.0, ABOVE_0),
    "questions_per_document": Effect(questions_remembered_of_one_document, 5, 2, 2, 0, LEAST_1),
    "max_documents": Effect(documents_remembered, 6, 3, 3, 0, LEAST_1),
    "max_questions": Effect(questions_remembered_in_all, 6, 4, 4, 1.5, "should be a valid integer"),
    "namespaces_in_memory": Effect(readings_of_the_log_for_two_namespaces_in_turn, 2, 1, 4, 0, LEAST_1),
    "max_sessions": Effect(sessions_remembered, 4, 2, 2, 0, LEAST_1),
    "source_weights": Effect(
        questions_remembered_of_a_critic, 1, {"critic": 0.0, "other": 1.0}, 0, {"critic": 1.5}, MOST_1),
    "diversity": Effect(order_of_near_copies, (0, 1), 0.7, (0, 3), -1.0, LEAST_0),
    "exploration": Effect(whether_any_rank_was_left_to_chance, False, 0.5, True, 2.0, MOST_1),
    "scorer_budget": Effect(texts_that_reach_the_scorer, 50, 7, 7, 0, LEAST_1),
    "scorer_weight": Effect(whether_the_scorer_decides, False, 9.0, True, float("nan"), "Input should be"),
    "encoder_timeout_seconds": Effect(
        degraded_by_an_encoder_that_needs_a_moment, (), 0.001, ("encoder",), 0.0, ABOVE_0),
    "texts_in_memory": Effect(texts_whose_words_are_counted_in_two_calls, 6, 2, 10, 0, LEAST_1),
    "shown_characters": Effect(rankings_whose_texts_are_known, 3, 600, 2, -1, LEAST_0),
    "seed": Effect(whether_it_explores_like_seed_0, True, 1, False, -1, LEAST_0),
}
CACHE = {
    "max_error": Effect(labels_until_the_cache_may_serve, 7, 0.05, 3, 0.0, "greater than or equal to 0.001"),
    "confidence": Effect(labels_until_the_cache_may_serve, 7, 0.8, 5, 1.0, "less than 1"),
    "audit_rate": Effect(whether_every_answer_is_audited, False, 1.0, True, 0.0, ABOVE_0),
    "judge_error": Effect(labels_until_the_cache_may_serve, 7, 0.5, 14, -0.1, LEAST_0),
    "semantic": Effect(whether_a_miss_is_compared, True, False, False, "perhaps", "should be a valid boolean"),
    "ttl_seconds": Effect(whether_a_day_old_answer_is_served, True, DAY / 2, False, 0.0, ABOVE_0),
    "negative_ttl_seconds": Effect(whether_no_answer_is_still_known_after_a_minute, False, 90.0, True, -1.0, LEAST_0),
    "stale_seconds": Effect(answer_a_moment_after_it_expired, "new", 5.0, "old", -1.0, LEAST_0),
    "max_entries": Effect(answers_left_of_five, 5, 2, 2, 0, LEAST_1),
    "max_bytes": Effect(answers_left_of_five, 5, 4_000, 2, 0, LEAST_1),
    "index": Effect(size_of_the_index_over_thirty_answers, 0, "usearch", 30, "faiss", "Input should be 'auto'"),
    "ann_threshold": Effect(size_of_the_index_over_thirty_answers, 0, 20, 30, 0, LEAST_1),
    "answers_in_memory": Effect(readings_of_two_answers_asked_twice, 0, 1, 4, -1, LEAST_0),
    "lease_seconds": Effect(seconds_until_a_lease_runs_out, 60.0, 5.0, 5.0, 0.0, ABOVE_0),
    "cost_per_answer": Effect(cost_saved_by_one_hit, 0.0, 0.25, 0.25, -1.0, LEAST_0),
}
STORE = {
    "url": Effect(file_in_use, "data/telemetry.db", "sqlite:///{folder}/own.db", "changed/own.db", 7, "a valid string"),
    "store_text": Effect(texts_in_the_log, (None, None), True, ("my question", "my document"), "x", "valid boolean"),
    "synchronous": Effect(pragma_synchronous, 1, "full", 2, "off", "Input should be 'normal' or 'full'"),
    "busy_timeout_seconds": Effect(feedback_while_another_writes_for_a_moment, "stored", 0.0, "refused", -1, LEAST_0),
    "flush_interval_seconds": Effect(whether_a_ranking_waits_a_fifth_of_a_second, True, 0.005, False, 0, ABOVE_0),
    "buffer_rankings": Effect(rankings_dropped_of_five, 0, 2, 3, 0, LEAST_1),
    "retention_seconds": Effect(rankings_left_after_a_day, 2, DAY / 2, 1, 0, ABOVE_0),
    "snapshot_every": Effect(snapshots_after_closing, 0, 1, 1, 0, LEAST_1),
    "vectors_in_memory": Effect(encoder_calls_for_two_rankings, 2, 0, 4, -1, LEAST_0),
    "vectors_on_disk": Effect(vectors_in_the_store, 6, 2, 2, "many", "should be a valid integer"),
}
FIELDS = [
    *(pytest.param(RerankSettings, name, effect, id=name) for name, effect in RERANK.items()),
    *(pytest.param(CacheSettings, name, effect, id=name) for name, effect in CACHE.items()),
    *(pytest.param(StoreSettings, name, effect, id=name) for name, effect in STORE.items()),
]
every_field = pytest.mark.parametrize(("kind", "name", "effect"), FIELDS)
Kind = type[RerankSettings] | type[CacheSettings] | type[StoreSettings]


@pytest.mark.parametrize(("kind", "table"), [(RerankSettings, RERANK), (CacheSettings, CACHE), (StoreSettings, STORE)])
def test_every_setting_is_in_the_table(kind: Kind, table: dict[str, Effect]) -> None:
    """A new field needs an entry that shows what it does, and the entry of a field that went must go."""
    assert sorted(table) == sorted(kind.model_fields)
    assert [name for name, effect in table.items() if effect.default == effect.changed] == []


@every_field
def test_a_setting_changes_what_is_seen(kind: Kind, name: str, effect: Effect, tmp_path: Path) -> None:
    def seen(label: str, settings: RerankSettings | CacheSettings | StoreSettings) -> Any:
        folder = [tmp_path / label] if isinstance(settings, StoreSettings) else []
        for place in folder:
            place.mkdir()
        return effect.look(settings, *folder)

    assert seen("default", kind()) == effect.default
    assert seen("changed", kind(**{name: value_of(effect, tmp_path / "changed")})) == effect.changed


@every_field
def test_a_variable_sets_it_and_an_argument_beats_the_variable(
    kind: Kind, name: str, effect: Effect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default, value = plain(kind(), name), value_of(effect, tmp_path)

    monkeypatch.setenv(variable(kind, name), written(value))

    assert (plain(kind(), name), default) == (value, kind.model_fields[name].default)
    assert plain(kind(**{name: default}), name) == default


@every_field
def test_an_empty_variable_counts_as_none(
    kind: Kind, name: str, effect: Effect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable(kind, name), "")

    assert kind() == kind(**{name: kind.model_fields[name].default})


@every_field
def test_a_value_that_cannot_be_used_is_refused_in_words(
    kind: Kind, name: str, effect: Effect, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValidationError, match=rf"for {kind.__name__}\n{name}(\.\w+)?\n  .*{effect.why}"):
        kind(**{name: effect.bad})
    if name != "url":  # any text may be one; the store says what it expects
        monkeypatch.setenv(variable(kind, name), written(effect.bad))
        with pytest.raises(ValidationError, match=rf"for {kind.__name__}\n{name}(\.\w+)?\n  "):
            kind()


@every_field
def test_a_setting_cannot_be_changed_in_place(kind: Kind, name: str, effect: Effect) -> None:
    settings = kind()
    with pytest.raises(ValidationError, match="frozen"):
        setattr(settings, name, effect.value)
    assert settings == kind()


@pytest.mark.parametrize("kind", [RerankSettings, CacheSettings, StoreSettings])
def test_an_unknown_name_is_refused(kind: Kind) -> None:
    with pytest.raises(ValidationError, match=r"diversty\n  Extra inputs are not permitted"):
        kind(diversty=0.3)


def test_a_reranker_without_settings_takes_those_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEURALCACHE_RERANK_MAX_DOCUMENTS", "3")
    monkeypatch.setenv("NEURALCACHE_STORE_URL", f"sqlite:///{tmp_path}/from-the-environment.db")
    monkeypatch.setenv("NEURALCACHE_STORE_SNAPSHOT_EVERY", "1")

    with opened(store=None) as reranker:
        teach(reranker, "hours")
        assert reranker.stats().namespace.documents == 3
    with closing(sqlite3.connect(tmp_path / "from-the-environment.db")) as connection:
        assert connection.execute("SELECT count(*) FROM snapshots").fetchone() == (1,)


def test_a_reranker_names_the_variable_that_it_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURALCACHE_RERANK_DIVERSITY", "7")

    with pytest.raises(ValueError, match=r"(?is)diversity.*less than or equal to 1.*7"):
        opened()


def test_a_variable_that_is_no_json_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURALCACHE_RERANK_SOURCE_WEIGHTS", "marker: 0.5")

    with pytest.raises(ValueError, match=r"SOURCE_WEIGHTS: .*a table is written as JSON"):
        opened()


def test_the_secrets_of_a_url_are_not_shown() -> None:
    settings = StoreSettings(url="other://me:hunter2@host/db")

    assert "hunter2" not in f"{settings!r} {settings} {settings.model_dump_json()}"
    assert settings.resolved_url() == "other://me:hunter2@host/db"


def variable(kind: Kind, name: str) -> str:
    return f"{kind.model_config['env_prefix']}{name.upper()}"


def written(value: Any) -> str:
    """Return a value as people write it into a variable: tables as JSON."""
    return json.dumps(value) if isinstance(value, dict) else str(value)


def value_of(effect: Effect, folder: Path) -> Any:
    return effect.value.format(folder=folder) if isinstance(effect.value, str) else effect.value


def plain(settings: RerankSettings | CacheSettings | StoreSettings, name: str) -> Any:
    value = getattr(settings, name)
    return value.get_secret_value() if isinstance(value, SecretStr) else value
