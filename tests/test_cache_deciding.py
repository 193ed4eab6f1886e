"""The policy inside the cache: what it learns from a log, in any process, and what it then serves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuralcache_plugins import CacheSettings, SemanticCache
from neuralcache_plugins.contracts import AnswerJudged, Erasure
from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.semantic_cache import semantic
from neuralcache_plugins.semantic_cache.deciding import PolicyDecider
from neuralcache_plugins.stores import open_store
from neuralcache_plugins.testing import HashingEncoder

SCOPE = {"model": "m"}
LENIENT = CacheSettings(max_error=0.3, confidence=0.8, audit_rate=0.5)
THINGS = ["password", "card", "address", "limit", "account", "statement", "loan", "branch", "currency", "transfer"]
WAYS = ["how do I change my {}", "change my {} please", "I want to change my {}", "how can I change the {} of mine",
        "where do I change my {}", "can you change my {}", "help me change my {}", "is it possible to change my {}"]


def questions(seed: int) -> Iterator[tuple[str, str]]:
    """Yield questions about things, in many words, each with its one right answer."""
    rng = np.random.default_rng(seed)
    number = 0
    while True:
        thing, way, number = THINGS[rng.integers(len(THINGS))], WAYS[rng.integers(len(WAYS))], number + 1
        yield f"{way.format(thing)} {['today', 'now', 'soon', 'again'][rng.integers(4)]} {'x' * (number % 7)}", thing


def asked(cache: SemanticCache, count: int, seed: int = 0) -> list[bool]:
    """Ask so many questions and return whether each answer was right."""
    stream = questions(seed)
    right = []
    for _ in range(count):
        question, answer = next(stream)
        right.append(cache.get_or_compute(question, lambda told=answer: told, scope=SCOPE) == answer)
    cache._background.wait(20.0)
    cache.flush()
    return right


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """Make a store in which 400 questions were asked, and tell what the cache had to say then."""
    url = f"sqlite:///{tmp_path_factory.mktemp('cache') / 'c.db'}"
    with SemanticCache(HashingEncoder(), store=url, settings=LENIENT, seed=1) as cache:
        right = asked(cache, 400)
        stats = cache.stats()
        told = {"right": right, "hits": stats.semantic_hits, "certificate": str(cache.certificate()),
                "seen": [cache.explain(f"change my {thing} please", SCOPE) for thing in THINGS]}
    return url, told


def test_a_cache_earns_its_certificate_and_then_answers_similar_questions(filled: tuple[str, dict[str, Any]]) -> None:
    _, told = filled

    assert told["hits"] > 50
    assert "answers reused; at most 30 % wrong at 80 % confidence" in told["certificate"]
    assert np.mean(told["right"]) > 0.9


def test_another_process_knows_what_this_one_learned(filled: tuple[str, dict[str, Any]]) -> None:
    url, told = filled
    with SemanticCache(HashingEncoder(), store=url, settings=LENIENT) as other:
        again = [other.explain(f"change my {thing} please", SCOPE) for thing in THINGS]

        assert other.certificate().judged > 100
        assert [(one.hit, one.nearest) for one in again] == [(one.hit, one.nearest) for one in told["seen"]]
        assert [one.score for one in again] == pytest.approx([one.score for one in told["seen"]], abs=0.02)


def test_the_certificate_counts_what_all_processes_reused(filled: tuple[str, dict[str, Any]]) -> None:
    url, told = filled
    with SemanticCache(HashingEncoder(), store=url, settings=LENIENT) as other:
        before = other.certificate().reused
        hits = [other.lookup(f"how do I change my {thing} at last", scope=SCOPE) for thing in THINGS]
        similar = sum(hit is not None and hit.kind == "semantic" for hit in hits)

        assert similar > 0
        assert before >= told["hits"]
        assert other.certificate().reused == before + similar  # written or not
        other.flush()
        assert other.certificate().reused == before + similar


def test_the_certificate_tells_how_it_came_about(filled: tuple[str, dict[str, Any]]) -> None:
    url, _ = filled
    with SemanticCache(HashingEncoder(), store=url, settings=LENIENT) as other:
        certificate = other.certificate()

    assert [move.before for move in certificate.moves] == [0, *(move.after for move in certificate.moves[:-1])]
    assert certificate.moves[-1].after == certificate.rule
    assert {move.why for move in certificate.moves} <= {"certified", "alarm: audits", "alarm: surprise"}
    assert certificate.history()[0][1].startswith("rule 0 to ")


def test_stats_tell_of_this_object_and_of_all(filled: tuple[str, dict[str, Any]]) -> None:
    url, told = filled
    with SemanticCache(HashingEncoder(), store=url, settings=LENIENT) as other:
        other.lookup("what is the time in Rome", scope="another")
        other.flush()
        stats = other.stats()

    assert stats.hits == 0
    assert stats.logged.served["semantic"] >= told["hits"]
    assert stats.logged.judged.keys() == {"miss", "audit"}
    assert stats.logged.missed[next(iter(stats.misses))] >= 1
    assert "all processes:\n  hits: " in str(stats)
    assert "answers reused; at most 30 % wrong at 80 % confidence" in str(stats)
    assert stats._repr_html_().count("<tr>") == len(stats.facts()) + len(stats.logged_facts())


def test_a_snapshot_and_the_rest_of_the_log_are_the_whole_log(filled: tuple[str, dict[str, Any]],
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    url, _ = filled
    monkeypatch.setattr(semantic, "SNAPSHOT_EVERY", 10**9)
    with closing(open_store(url)) as store:
        labels = [entry.event for entry in store.read_answer_events(kinds=[AnswerJudged], limit=10_000)]
    whole, half = PolicyDecider(LENIENT), PolicyDecider(LENIENT)
    for label in labels:
        whole.learn(label)
    for label in labels[:150]:
        half.learn(label)
    restored = PolicyDecider.unpack(half.pack(), LENIENT)
    for label in labels[150:]:
        restored.learn(label)

    assert restored.pack() == whole.pack()


def test_a_start_from_a_snapshot_reads_only_the_labels_after_it(filled: tuple[str, dict[str, Any]],
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    url, _ = filled
    learned: list[AnswerJudged] = []
    learn = PolicyDecider.learn
    monkeypatch.setattr(PolicyDecider, "learn", lambda self, label: (learned.append(label), learn(self, label))[1])
    with SemanticCache(HashingEncoder(), store=url, settings=LENIENT) as cache:
        assert cache.certificate().live
    assert not learned


def test_other_limits_are_another_fold(filled: tuple[str, dict[str, Any]]) -> None:
    url, _ = filled
    with SemanticCache(HashingEncoder(), store=url, settings=CacheSettings(max_error=0.001)) as strict:
        assert strict.certificate().judged > 100
        assert not strict.certificate().live


def test_a_hit_that_was_reported_wrong_teaches_the_score(filled: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    with SemanticCache(HashingEncoder(), store=f"sqlite:///{tmp_path / 'own.db'}", settings=LENIENT, seed=1) as cache:
        asked(cache, 400)
        hit = next(hit for thing in THINGS
                   if (hit := cache.lookup(f"may I change my {thing}", scope=SCOPE)) is not None)
        before = cache.certificate().judged
        cache.report(hit.hit_id, correct=False)

        assert cache.certificate().judged == before + 1


def test_an_erasure_takes_what_was_learned_with_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'c.db'}"
    with (SemanticCache(HashingEncoder(), store=url, settings=LENIENT, seed=1) as cache,
          closing(open_store(url)) as store):
        asked(cache, 100)
        assert cache.certificate().judged > 50
        store.erase(Erasure(namespace="default"))

        assert cache.certificate().judged == 0
        assert cache.lookup("how do I change my card", scope=SCOPE) is None


def test_what_is_no_policy_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="not a policy"):
        PolicyDecider.unpack(b"nonsense", LENIENT)


def test_an_exact_hit_that_was_reported_teaches_nothing() -> None:
    decider = PolicyDecider(LENIENT)
    decider.learn(AnswerJudged("j", "e", "default", 1.0, "s", correct=False, source="report"))

    assert decider.certificate(reused=0).judged == 0


def test_the_log_holds_all_that_the_fold_needs_as_plain_numbers(filled: tuple[str, dict[str, Any]]) -> None:
    url, _ = filled
    with closing(open_store(url)) as store:
        labels = [entry.event for entry in store.read_answer_events(kinds=[AnswerJudged], limit=10_000)]

    assert all(np.isfinite(list(label.features.values())).all() for label in labels)
    assert {label.source for label in labels} == {"miss", "audit"}
    assert not any("password" in json.dumps(dict(label.features)) for label in labels)


def test_a_label_that_cannot_be_learned_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[str] = []

    def learn(self: PolicyDecider, label: AnswerJudged) -> None:
        learned.append(label.judged_id)
        if len(learned) == 2:
            raise RuntimeError("no")

    with SemanticCache(HashingEncoder(), store=f"sqlite:///{tmp_path / 'c.db'}", settings=LENIENT, seed=1) as cache:
        asked(cache, 20)
        monkeypatch.setattr(PolicyDecider, "learn", learn)
        cache._semantic.restart_after_fork()
        with pytest.raises(RuntimeError):
            cache.certificate()
        cache.certificate()
        assert len(learned) == len(set(learned)) > 2


def test_another_encoder_starts_anew(filled: tuple[str, dict[str, Any]]) -> None:
    """What was certified with one encoder's similarities says nothing of another's."""
    url, told = filled
    with SemanticCache(HashingEncoder(64), store=url, settings=LENIENT) as other:
        hits = [other.lookup(f"change my {thing} please", scope=SCOPE) for thing in THINGS]
        other.put("how do I change my hat", "so", scope=SCOPE)
        assert other.lookup("how can I change my hat", scope=SCOPE) is None

        assert not any(hit is not None and hit.kind == "semantic" for hit in hits)
        assert not other.certificate().live
    with SemanticCache(HashingEncoder(), store=url, settings=LENIENT) as same:
        assert [one.hit for one in (same.explain(f"change my {thing} please", SCOPE) for thing in THINGS)] == [
            one.hit for one in told["seen"]]
        assert same.certificate().live


def test_looking_up_and_putting_earns_a_certificate_and_is_audited(tmp_path: Path) -> None:
    """Who computes by himself is asked to do so again for one in two answers here, and both are compared."""
    with SemanticCache(HashingEncoder(), store=f"sqlite:///{tmp_path / 'c.db'}", settings=LENIENT, seed=1) as cache:
        stream = questions(0)
        for _ in range(500):
            question, answer = next(stream)
            if cache.lookup(question, scope=SCOPE) is None:
                cache.put(question, answer, scope=SCOPE)
        cache.flush()
        stats = cache.stats()

        assert stats.semantic_hits > 20
        assert 0.25 < stats.misses["audited"] / (stats.misses["audited"] + stats.semantic_hits) < 0.75
        assert cache.certificate().audited == stats.misses["audited"]
