"""Calibration as users have it: a log of questions and answers makes a cache start certified, in every process."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from neuralcache_plugins import CacheSettings, SemanticCache
from neuralcache_plugins.cli import app
from neuralcache_plugins.contracts import AnswerJudged, Erasure
from neuralcache_plugins.errors import EncoderError, InvalidInputError
from neuralcache_plugins.semantic_cache import read_records
from neuralcache_plugins.semantic_cache.certificate import AIMS
from neuralcache_plugins.semantic_cache.deciding import PolicyDecider
from neuralcache_plugins.semantic_cache.judges import Judge
from neuralcache_plugins.stores import open_store
from neuralcache_plugins.testing import FakeClock, HashingEncoder

SCOPE = {"model": "m"}
LENIENT = CacheSettings(max_error=0.2, confidence=0.8, audit_rate=0.5)
THINGS = ["password", "card", "address", "limit", "account", "statement", "loan", "branch", "currency", "transfer"]
WAYS = ["how do I change my {}", "change my {} please", "I want to change my {}", "how can I change the {} of mine",
        "where do I change my {}", "can you change my {}", "help me change my {}", "is it possible to change my {}"]


def records(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return questions about things, in many words, each with its one right answer."""
    rng = np.random.default_rng(seed)

    def drawn() -> Iterator[dict[str, Any]]:
        while True:
            thing, way = THINGS[rng.integers(len(THINGS))], WAYS[rng.integers(len(WAYS))]
            yield {"question": f"{way.format(thing)} {rng.integers(10_000)}x", "answer": f"about the {thing}"}

    return list(islice(drawn(), count))


def opened(url: str, **options: Any) -> SemanticCache:
    return SemanticCache(HashingEncoder(), store=url, **{"settings": LENIENT, "seed": 1, **options})


def served(cache: SemanticCache, seed: int = 9) -> list[bool]:
    """Ask 60 questions of the same kind and return whether each answer that came was right."""
    asked = records(60, seed)
    hits = cache.lookup_many([one["question"] for one in asked], scope=SCOPE)
    return [hit.value == one["answer"] for hit, one in zip(hits, asked, strict=True) if hit is not None]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'cache.db'}"


@pytest.mark.parametrize("store", ["sqlite", "memory"])
def test_a_cache_that_was_calibrated_answers_similar_questions_at_once(url: str, store: str) -> None:
    with opened(url if store == "sqlite" else "memory://") as cache:
        assert served(cache) == []
        report = cache.calibrate(records(300), scope=SCOPE)

        assert report.certified
        assert (report.questions, report.stored, report.judged_pairs) == (300, 300, 299)
        assert "answers reused; at most 20 % wrong at 80 % confidence; 0 audited; rule" in str(cache.certificate())
        right = served(cache)
        assert len(right) > 10
        assert np.mean(right) > 0.8


def test_so_does_another_process_on_the_same_store(url: str) -> None:
    with opened(url) as cache, opened(url) as other:
        assert not other.certificate().live
        cache.calibrate(records(300), scope=SCOPE)
        assert other.certificate() == cache.certificate()
        assert len(served(other)) > 10


@pytest.mark.parametrize("snapshots", [True, False], ids=["from the snapshot", "from the log alone"])
def test_so_does_a_process_after_a_restart(url: str, snapshots: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not snapshots:
        monkeypatch.setattr("neuralcache_plugins.stores.sqlite.SqliteStore.save_snapshot", lambda *_: None)
    with opened(url) as cache:
        told = cache.calibrate(records(300), scope=SCOPE).certificate
    code = (
        "import sys; from neuralcache_plugins import CacheSettings, SemanticCache\n"
        "from neuralcache_plugins.testing import HashingEncoder\n"
        f"settings = CacheSettings(**{LENIENT.model_dump()!r})\n"
        f"with SemanticCache(HashingEncoder(), store={url!r}, settings=settings, seed=1) as cache:\n"
        f"    hits = cache.lookup_many({[one['question'] for one in records(60, 9)]!r}, scope={SCOPE!r})\n"
        "    print(sum(hit is not None and hit.kind == 'semantic' for hit in hits)); print(cache.certificate().rule)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    hits, rule = map(int, done.stdout.split())

    assert hits > 10
    assert rule == told.rule


def test_a_calibration_under_other_limits_certifies_them_too_as_far_as_it_goes(url: str) -> None:
    """The pairs are in the log: who allows less folds them anew and asks more of them."""
    with opened(url) as cache:
        cache.calibrate(records(300), scope=SCOPE)
    with opened(url, settings=CacheSettings(max_error=0.001)) as strict:
        assert (strict.certificate().live, strict.certificate().judged) == (False, 299)


def test_without_the_answers_a_cache_is_certified_and_empty(url: str) -> None:
    with opened(url) as cache:
        report = cache.calibrate(records(300), put=False)

        assert (report.certified, report.stored) == (True, 0)
        assert served(cache) == []
        cache.put("how do I change my card", "about the card", scope=SCOPE)
        hits = [cache.lookup(f"how do I change my card {number}x", scope=SCOPE) for number in range(20)]
        assert any(hit is not None for hit in hits)


def test_the_latest_answer_to_a_question_is_the_one_that_is_put(url: str) -> None:
    with opened(url) as cache:
        report = cache.calibrate([("how?", "old"), ("why?", "so"), ("how?", "new")], scope=SCOPE)

        assert (report.questions, report.repeats, report.stored) == (2, 1, 2)
        hit = cache.lookup("how?", scope=SCOPE)
        assert hit is not None
        assert hit.value == "new"


def test_a_log_that_grew_tests_only_what_is_new(url: str) -> None:
    log = records(400)
    with opened(url) as cache:
        first = cache.calibrate(log[:300], scope=SCOPE)
        again = cache.calibrate(log[:300], scope=SCOPE)
        grown = cache.calibrate(log, scope=SCOPE)

        assert (again.known, again.judged_pairs) == (300, 0)
        assert "nothing new to test" in again.verdict()
        assert again.certificate == first.certificate
        assert (grown.known, grown.judged_pairs) == (300, 100)
        cache.flush()
        events = cache._store.read_answer_events(kinds=[AnswerJudged], limit=10_000)
        names = [entry.event.judged_id for entry in events if isinstance(entry.event, AnswerJudged)]
        assert len(names) == len(set(names)) == 399 + 2


def test_scopes_and_documents_come_with_each_line(url: str) -> None:
    log = [{**one, "scope": {"part": number % 2}, "documents": {"guide": "1"}}
           for number, one in enumerate(records(60))]
    with opened(url) as cache:
        cache.calibrate(log)
        asked = log[0]["question"]

        assert cache.lookup(asked, scope={"part": 0}, documents=[("guide", "1")])
        assert cache.lookup(asked, scope={"part": 0}, documents=[("guide", "2")]) is None
        assert cache.lookup(asked, scope={"part": 1}) is None
        assert cache.invalidate(documents=["guide"]) == 60


def test_a_document_that_is_erased_takes_what_it_taught_and_the_cache_goes_on(url: str) -> None:
    log = [{**one, "documents": {f"guide {number % 2}": "1"}} for number, one in enumerate(records(200))]
    with closing(open_store(url)) as store, opened(url) as cache:
        cache.calibrate(log, scope=SCOPE)
        before = cache.certificate().judged
        store.erase(Erasure(document_ids=("guide 0",)))

        assert 0 < cache.certificate().judged < before


def test_a_judge_says_which_answers_are_the_same(url: str) -> None:
    log = [{**one, "answer": {"text": one["answer"], "took": number}} for number, one in enumerate(records(300))]
    with opened(url) as cache:
        assert not cache.calibrate(log, scope=SCOPE, put=False).certified
    with opened(f"{url}2") as cache:
        same = Judge(lambda cached, fresh: cached["text"] == fresh["text"], "by text")
        report = cache.calibrate(log, scope=SCOPE, judge=same)
        assert report.certified
        assert "judge: by text" in str(report)


def test_progress_is_told(url: str) -> None:
    told: list[tuple[int, int]] = []
    with opened(url) as cache:
        cache.calibrate(records(30), scope=SCOPE, progress=lambda done, total: told.append((done, total)))
    assert told == [(30, 30)]


async def test_coroutines_calibrate_too(url: str) -> None:
    with opened(url) as cache:
        assert (await cache.acalibrate(records(300), scope=SCOPE)).certified


def test_an_encoder_that_fails_leaves_nothing_behind(url: str) -> None:
    class Broken(HashingEncoder):
        def embed_query(self, text: str) -> list[float]:
            raise OSError("no network")

    with SemanticCache(Broken(), store=url, settings=LENIENT) as cache:
        with pytest.raises(EncoderError):
            cache.calibrate(records(10), scope=SCOPE)
        assert cache._store.read_answer_events() == []


@pytest.mark.parametrize(("given", "why"), [
    ([{"question": "how?"}], r"^record 1: must be a mapping with question and answer, or a pair of them, got keys"),
    ([("how?", "so"), ("why?",)], r"^record 2: must be a mapping .* got tuple$"),
    ([("how?", object())], r"^record 1: an answer must be a str, bytes or a JSON value"),
    ([(3, "so")], r"^record 1: question must be a str, got int$"),
    ([{"question": "how?", "answer": "so", "documents": ["a"]}], r"^record 1: a document must be"),
    ("how?", r"^records must be mappings or \(question, answer\) pairs, got a str$"),
])
def test_records_that_cannot_be_used_are_named(url: str, given: Any, why: str) -> None:
    with opened(url) as cache, pytest.raises(InvalidInputError, match=why):
        cache.calibrate(given, scope=SCOPE)


def test_an_answer_that_nobody_would_find_is_not_put(url: str) -> None:
    with opened(url) as cache:
        with pytest.raises(InvalidInputError, match=r"^record 2 names no scope, so nobody would find its answer"):
            cache.calibrate([{"question": "a", "answer": 1, "scope": "s"}, ("b", 2)])
        assert cache._store.read_answer_events() == []


def test_where_the_semantic_tier_is_off_there_is_nothing_to_certify(url: str) -> None:
    with (opened(url, settings=CacheSettings(semantic=False)) as cache,
          pytest.raises(InvalidInputError, match=r"semantic is off")):
        cache.calibrate([], scope=SCOPE)


def test_no_log_certifies_nothing_and_says_so(url: str) -> None:
    with opened(url) as cache:
        report = cache.calibrate([], scope=SCOPE)
    assert not report.certified
    assert "nothing new to test" in str(report)


def test_the_report_is_for_people_notebooks_and_programs(url: str) -> None:
    with opened(url) as cache:
        report = cache.calibrate(records(300), scope=SCOPE)

    assert f"rule {report.proof.passed} of {len(AIMS)} is certified: " in str(report)
    assert report._repr_html_().count("<tr>") == len(report.facts()) + 1 + len(report.proof.rules)
    assert json.loads(json.dumps(report.as_dict()))["proof"]["rules"][0].keys() == {"hits", "wrong", "p_value"}


def test_labels_that_were_decided_before_an_alarm_prove_nothing_after_it(url: str) -> None:
    decider = PolicyDecider(LENIENT)
    with opened(url, clock=FakeClock()) as cache:
        cache.calibrate(records(100), scope=SCOPE)
        events = [entry.event for entry in cache._store.read_answer_events(kinds=[AnswerJudged], limit=1_000)]
    for event in events:
        decider.learn(event)
    (policy,) = decider._policies.values()
    policy._retreat(events[0].features["asked"] + 1.0)
    seen = policy.tests.seen, policy.window.added, policy.labels
    late = AnswerJudged("late", "e", "default", events[0].at + 9.0, "s", True, "miss", features=events[0].features)
    decider.learn(late)

    assert (policy.tests.seen, policy.window.added, policy.labels) == (*seen[:2], seen[2] + 1)


# the command line


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name in [name for name in os.environ if name.startswith("NEURALCACHE_")]:
        monkeypatch.delenv(name)
    (tmp_path / "encoders_of_mine.py").write_text(
        "from neuralcache_plugins.testing import HashingEncoder\nencoder = HashingEncoder()\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "encoders_of_mine:encoder"


def written(path: Path, log: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(log[0]))
            writer.writeheader()
            writer.writerows(log)
        return path
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(one) + "\n" for one in log)
    return path


@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz", "log.csv"])
def test_a_log_in_a_file_certifies_from_the_command_line(name: str, url: str, encoders: str, tmp_path: Path) -> None:
    log = written(tmp_path / name, records(300))
    done = run("calibrate", str(log), "--store", url, "--scope", json.dumps(SCOPE), "--max-error", "0.2",
               "--confidence", "0.8", "--encoder", encoders)

    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1].startswith("0 answers reused; at most 20 % wrong at 80 % confidence; 0 audited")
    assert "max_error=0.2 (NEURALCACHE_CACHE_MAX_ERROR)" in done.stdout
    with opened(url) as cache:
        assert len(served(cache)) > 10


def test_calibrate_for_programs_with_names_of_ones_own(url: str, encoders: str, tmp_path: Path) -> None:
    log = written(tmp_path / "log.jsonl", [{"ask": one["question"], "say": one["answer"]} for one in records(40)])
    done = run("calibrate", str(log), "--store", url, "--no-put", "--question-field", "ask", "--answer-field", "say",
               "--encoder", encoders, "--judge", "embedding", "--threshold", "0.5", "--json", "--namespace", "shop")

    content = json.loads(done.stdout)
    assert (content["namespace"], content["questions"], content["stored"]) == ("shop", 40, 0)
    assert content["judge"] == "embedding agreement of 0.5"


@pytest.mark.parametrize(("name", "text", "why"), [
    ("log.txt", "", "a log must end in .jsonl, .ndjson or .csv, .gz is fine"),
    ("log.jsonl", "{", "line 1 is no JSON"), ("log.jsonl", "[1]", "line 1 is no JSON object"),
    ("log.jsonl", '{"question": "a"}', "line 1 has no 'answer'; it has: 'question'"),
    ("log.csv", "question,answer,documents\na,b,{\n", "line 2: documents is no JSON"),
    ("log.csv", "question,answer\nhow?,first this, then that\n", "line 2 has more fields than the header"),
    ("log.jsonl.gz", "no gzip", "cannot be read"),
    ("log.jsonl", '{"question": "a", "answer": "b"}', "record 1 names no scope"),
])
def test_a_log_that_cannot_be_read_is_told_by_line(name: str, text: str, why: str, url: str, encoders: str,
                                                   tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    done = run("calibrate", str(tmp_path / name), "--store", url, "--encoder", encoders)

    assert done.exit_code == 2
    assert why in done.stderr


def test_a_file_holds_scopes_and_documents(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text('question,answer,scope,documents,note\na,b,"{""x"": 1}","[[""d"", ""1""]]",\nc,d,plain,,x\n')

    assert list(read_records(path)) == [
        {"question": "a", "answer": "b", "scope": {"x": 1}, "documents": [["d", "1"]]},
        {"question": "c", "answer": "d", "scope": "plain"},
    ]


@pytest.mark.parametrize("ttl", [-1, 0, float("nan"), "a week"])
def test_a_time_to_live_that_is_none_is_refused_before_anything_is_learned(url: str, ttl: Any) -> None:
    """The lines would be used up: none may test twice."""
    with opened(url) as cache:
        with pytest.raises(InvalidInputError, match=r"^ttl must be "):
            cache.calibrate(records(300), scope=SCOPE, ttl=ttl)
        assert cache.stats().logged.judged == {}
        assert cache.calibrate(records(300), scope=SCOPE).certified
