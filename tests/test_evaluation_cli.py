"""The instruments as verbs: what they print, what they write, and how they fail."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from neuralcache_plugins import Reranker
from neuralcache_plugins.cli import app
from neuralcache_plugins.evaluation import Run
from neuralcache_plugins.testing import HashingEncoder

TEXTS = {"reset": "Reset the password on the login page", "fees": "Fees for transfers abroad", "card": "A lost card",
         "hours": "Opening hours of branches"}


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("NEURALCACHE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'telemetry.db'}"
    rng = np.random.default_rng(0)
    with Reranker(HashingEncoder(), store=url, namespace="shop") as reranker:
        for name in rng.choice(list(TEXTS), 60).tolist():
            ranking = reranker.rerank(TEXTS[name].split()[-1], list(TEXTS.values()), ids=list(TEXTS),
                                      prior_scores=rng.standard_normal(4).tolist())
            reranker.feedback(ranking, helpful=[name])
    return url


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"_id": n, "text": t}) + "\n" for n, t in TEXTS.items()))
    (tmp_path / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": f"q-{n}", "text": t.split()[-1]}) + "\n" for n, t in TEXTS.items()))
    (tmp_path / "qrels.tsv").write_text("".join(f"q-{name}\t{name}\t1\n" for name in TEXTS))
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_evaluate(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "mine.py").write_text("def backwards(query, texts):\n    return range(len(texts))[::-1]\n")
    monkeypatch.syspath_prepend(folder)
    arguments = ["evaluate", str(folder), "--reranker", "mine:backwards", "--metric", "RR@10", "--candidates", "4"]

    shown = run(*arguments)
    given = run(*arguments, "--json", "--csv", str(folder / "all.csv"), "--runs", str(folder / "runs"),
                "--plot", str(folder / "all.png"))

    assert shown.exit_code == 0
    assert "4 questions, 4 candidates by bm25" in shown.stdout
    assert "mine:backwards" in shown.stdout
    content = json.loads(given.stdout)
    assert [one["name"] for one in content["rerankers"]] == ["input order", "mine:backwards"]
    assert content["rerankers"][0]["metrics"]["RR@10"]["value"] == 1.0
    assert (folder / "all.csv").read_text().startswith("reranker,metric,mean")
    assert (folder / "all.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (folder / "runs").iterdir()) == ["input-order.trec", "mine-backwards.trec"]
    assert Run.load(folder / "runs" / "input-order.trec").best("q-card", 1)[0][0] == "card"


def test_evaluate_over_a_run(folder: Path) -> None:
    Run("theirs", {"q-card": {"hours": 2.0, "card": 1.0}}).save(folder / "theirs.json")

    done = run("evaluate", str(folder), "--reranker", "input", "--first-stage", str(folder / "theirs.json"), "--json")

    assert json.loads(done.stdout)["first_stage"] == "theirs"
    assert json.loads(done.stdout)["rerankers"][0]["metrics"]["RR@10"]["value"] == 0.5 / 4


def test_simulate() -> None:
    arguments = ["simulate", "--questions", "120", "--documents", "10", "--seeds", "2", "--hostile", "0.2",
                 "--set", "questions_per_document=8"]

    shown, first, again = run(*arguments), run(*arguments, "--json"), run(*arguments, "--json")

    assert shown.exit_code == 0
    assert "synthetic: 120 questions, 5 shown, 2 seeds (medians); adversary share 0.2" in shown.stdout
    assert "right document first" in shown.stdout
    assert first.stdout == again.stdout
    assert json.loads(first.stdout)["settings"]["questions_per_document"] == 8


def test_replay(url: str, tmp_path: Path) -> None:
    shown = run("replay", "--store", url, "--set", "learning=false")
    given = run("replay", "--store", url, "--json", "--csv", str(tmp_path / "all.csv"), "--plot",
                str(tmp_path / "a.svg"))

    assert shown.exit_code == 0
    assert "60 rankings, 60 feedback, 60 rankings tell an order; replayed with learning False" in shown.stdout
    assert "warning: No exploration was recorded" in shown.stdout
    assert json.loads(given.stdout)["replayed"] == "the same settings"
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 61
    assert "<svg" in (tmp_path / "a.svg").read_text()


def test_replay_of_a_setting_that_is_in_the_environment(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURALCACHE_RERANK_QUESTIONS_PER_DOCUMENT", "3")

    assert json.loads(run("replay", "--store", url, "--json").stdout)["replayed"] == "the same settings"


def test_tune(url: str, tmp_path: Path) -> None:
    target = tmp_path / "rerank.env"

    shown = run("tune", "--store", url, "--try", "lexical_weight=0.1,3", "--held-out", "0.5", "--write", str(target))
    given = run("tune", "--store", url, "--try", "lexical_weight=0.1,3", "--held-out", "0.5", "--json")

    content = json.loads(given.stdout)
    assert shown.exit_code == 0
    assert content["reason"] in shown.stdout
    assert target.exists() == (content["recommended"] is not None)
    assert [one["changes"] for one in content["trials"]] == [{"lexical_weight": 0.1}, {"lexical_weight": 3.0}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "/nowhere"], "/nowhere has no qrels/test.tsv[.gz] or qrels.tsv[.gz]; a judged set needs"),
        (["simulate", "--adversary", "evil"], "adversary must be one of random, wrong, topmost, push, got 'evil'"),
        (["simulate", "--set", "lexical_weight"], "--set must look like lexical_weight=0.3, got 'lexical_weight'"),
        (["simulate", "--set", "wordiness=3"], "RerankSettings has no 'wordiness'"),
        (["simulate", "--set", "lexical_weight=much"], "lexical_weight: Input should be a valid number"),
        (["replay", "--store", "sqlite:////nowhere/t.db"], "there is no file for sqlite:////nowhere/t.db"),
        (["tune", "--store", "memory://", "--try", "seed=1"], "a log cannot tell what seed would have changed"),
        (["tune", "--store", "memory://", "--metric", "MAP"], "metric must be one of RR, first, log-loss, got 'MAP'"),
        (["replay", "--store", "memory://", "--namespace", "shop"], "memory:// has no namespace 'shop'; it has: none"),
        (["replay", "--store", "memory://", "--csv", "/nowhere/a.csv"], "/nowhere/a.csv cannot be written: "),
    ],
)
def test_what_goes_wrong_is_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    done = run(*arguments)

    assert done.exit_code == 2
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [("theirs", "--reranker must be ours or module:name, got 'theirs'\n"),
     ("nowhere:thing", "--reranker nowhere:thing cannot be imported: No module named 'nowhere'\n"),
     ("json:thing", "--reranker json:thing cannot be imported: module 'json' has no attribute 'thing'\n")],
)
def test_a_reranker_that_cannot_be_found(folder: Path, name: str, message: str) -> None:
    done = run("evaluate", str(folder), "--reranker", name)

    assert (done.exit_code, done.stderr) == (2, message)


def test_a_missing_extra_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ir_measures", None)

    done = run("evaluate", str(folder), "--reranker", "input")

    assert done.exit_code == 2
    assert done.stderr == "ir-measures is not installed; run: pip install 'neuralcache-plugins[eval]'\n"
