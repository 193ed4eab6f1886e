"""The command line: what it prints, what it changes, and how it fails."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from neuralcache_plugins import CacheSettings, Reranker, SemanticCache, open_store
from neuralcache_plugins.cli import app
from neuralcache_plugins.settings import RerankSettings, StoreSettings, origins
from neuralcache_plugins.testing import HashingEncoder

TEXTS = {"reset": "Reset the password on the login page", "fees": "Fees for transfers", "card": "A lost card"}


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("NEURALCACHE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'telemetry.db'}"


@pytest.fixture
def filled(url: str) -> str:
    with Reranker(HashingEncoder(), store=url) as reranker:
        for namespace, session in (("shop", "monday"), ("bank", None)):
            ranking = reranker.rerank("how do I reset my password", list(TEXTS.values()), ids=list(TEXTS),
                                      namespace=namespace, session=session)
            reranker.feedback(ranking, helpful=["reset"], namespace=namespace)
    return url


def run(*arguments: str, typed: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=typed)


def rows(url: str) -> dict[str, int]:
    store = open_store(url)
    try:
        return dict(store.health()["rows"])
    finally:
        store.close()


def test_without_a_verb_the_verbs_are_listed() -> None:
    assert all(verb in run().output for verb in ("demo", "stats", "forget", "doctor"))


def test_stats_tells_of_every_namespace(filled: str) -> None:
    done = run("stats", "--store", filled)

    assert done.exit_code == 0
    assert re.findall(r"^namespace '(\w+)'$", done.stdout, re.MULTILINE) == ["bank", "shop"]
    assert done.stdout.count("rankings: 1\n") == 2
    assert len(re.findall(r"feedback: 1, from \d{4}-\d\d-\d\d \d\d:\d\d UTC to ", done.stdout)) == 2
    assert "trust: 0.05, not proven yet, so the order is the cold one: evidence 0.0 of 3.0 needed" in done.stdout


def test_stats_for_programs(filled: str) -> None:
    found = json.loads(run("stats", "--store", filled, "--json", "--namespace", "shop").stdout)

    assert found["store"] == filled
    (shop,) = found["namespaces"]
    assert (shop["namespace"], shop["rankings"], shop["feedback"], shop["sessions"]) == ("shop", 1, 1, 1)
    assert all(0 <= trust < 1 for trust in shop["trust"].values())
    assert all("cold" in weights for weights in shop["weights"].values())


def test_looking_writes_nothing(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a snapshot of what was learned, which closing a reranker would write here."""
    monkeypatch.setenv("NEURALCACHE_STORE_SNAPSHOT_EVERY", "1")
    before = Path(filled.removeprefix("sqlite:///")).read_bytes()

    run("stats", "--store", filled)
    run("doctor", "--store", filled)

    assert Path(filled.removeprefix("sqlite:///")).read_bytes() == before


def test_stats_tell_of_a_cache_of_answers(filled: str) -> None:
    """Also where a namespace has nothing else; reading changes nothing."""
    with SemanticCache(HashingEncoder(), store=filled, namespace="answers",
                       settings=CacheSettings(cost_per_answer=0.25)) as cache:
        for _ in range(3):
            cache.get_or_compute("how?", lambda: "so", scope="s")
    done = run("stats", "--store", filled)
    (told,) = json.loads(run("stats", "--store", filled, "--json", "--namespace", "answers").stdout)["namespaces"]

    own = done.stdout[done.stdout.index("namespace 'answers'"):done.stdout.index("namespace 'bank'")]
    assert "rankings" not in own
    assert "hits: 2 of 3 (exact 2); saved 0.0 s, cost 0.5\n" in own
    assert "misses: never asked 1\n" in own
    assert "certificate: 0 answers reused; not certified yet for at most 2 % wrong at 95 % confidence" in own
    assert (told["cache"]["served"], told["cache"]["cost_saved"]) == ({"exact": 2}, 0.5)
    assert told["cache"]["certificate"]["rule"] == 0


def test_stats_of_an_unknown_namespace(filled: str) -> None:
    done = run("stats", "--store", filled, "--namespace", "shops")

    assert done.exit_code == 2
    assert done.stderr == f"{filled} has no namespace 'shops'; it has: 'bank', 'shop'\n"


@pytest.mark.parametrize("command", [["stats"], ["forget", "--all-namespaces", "--yes"]], ids=["stats", "forget"])
def test_a_store_that_is_not_there_is_not_made(command: list[str], url: str, tmp_path: Path) -> None:
    done = run(*command, "--store", url)

    assert done.exit_code == 2
    assert done.stderr == (
        f"there is no file for {url}: nothing was recorded there yet; name another store with --store URL\n")
    assert list(tmp_path.iterdir()) == []


def test_the_store_comes_from_the_environment(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURALCACHE_STORE_URL", filled)

    assert f"store: {filled}" in run("stats").stdout


def test_forget_asks_first(filled: str) -> None:
    before = rows(filled)

    refused = run("forget", "--store", filled, "--namespace", "shop", typed="n\n")

    assert refused.exit_code == 1
    assert f"Erase everything in namespace 'shop' from {filled} for good? [y/N]" in refused.output
    assert rows(filled) == before


def test_forget_erases_one_namespace_and_tells_what_went(filled: str) -> None:
    done = run("forget", "--store", filled, "--namespace", "shop", typed="y\n")

    assert done.exit_code == 0
    assert f"Erased from {filled}: 1 rankings, 1 feedback, 3 shown documents" in done.output
    assert (rows(filled)["rankings"], rows(filled)["feedback"]) == (1, 1)


def test_forget_erases_all_namespaces(filled: str) -> None:
    run("forget", "--store", filled, "--all-namespaces", "--yes")

    assert set(rows(filled).values()) == {0}


@pytest.mark.parametrize(
    ("conditions", "left"),
    [
        (["--document", "reset"], (2, 0)),
        (["--document", "reset", "--document", "fees", "--document", "card"], (0, 0)),
        (["--session", "monday"], (1, 1)),
        (["--session", "tuesday"], (2, 2)),
        (["--older-than", "1d"], (2, 2)),
        (["--older-than", "0s"], (0, 0)),
    ],
    ids=["document", "documents", "session", "other session", "too young", "any age"],
)
def test_forget_erases_what_meets_the_conditions(conditions: list[str], left: tuple[int, int], filled: str) -> None:
    done = run("forget", "--store", filled, "--all-namespaces", "--yes", *conditions)

    assert done.exit_code == 0
    assert (rows(filled)["rankings"], rows(filled)["feedback"]) == left


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "forget needs either --namespace NAME or --all-namespaces, got neither"),
        (["--namespace", "a", "--all-namespaces"],
         "forget needs either --namespace NAME or --all-namespaces, got both"),
        (["--namespace", "a", "--older-than", "month"],
         "--older-than must look like 90s, 45m, 12h, 30d or 8w, got 'month'"),
    ],
)
def test_forget_refuses_what_is_not_clear(arguments: list[str], message: str, filled: str) -> None:
    done = run("forget", "--store", filled, *arguments)

    assert (done.exit_code, done.stderr) == (2, f"{message}\n")


def test_doctor_finds_a_healthy_store(filled: str) -> None:
    done = run("doctor", "--store", filled)

    assert (done.exit_code, done.stderr) == (0, "")
    assert re.search(r"neuralcache-plugins +\d+\.\d+", done.stdout)
    assert re.search(r"NEURALCACHE_RERANK_DIVERSITY +0\.0 +default", done.stdout)
    assert "local encoder: loads, wordllama:" in done.stdout
    assert "2 rankings, 2 feedback" in done.stdout
    assert "integrity: ok" in done.stdout
    assert "namespace 'shop' learned with" in done.stdout
    assert "learned vectors of this one are set aside" in done.stdout
    assert done.stdout.endswith("no problem found\n")


def test_doctor_makes_no_file(url: str, tmp_path: Path) -> None:
    done = run("doctor", "--store", url)

    assert done.exit_code == 0
    assert f"store: {url}, nothing was recorded there yet" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_doctor_finds_a_mistyped_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURALCACHE_RERANK_DENSE_WEIGTH", "0.5")

    done = run("doctor", "--store", "memory://")

    assert done.exit_code == 1
    assert done.stderr == (
        "problem: the environment variable NEURALCACHE_RERANK_DENSE_WEIGTH is no setting; "
        "was NEURALCACHE_RERANK_DENSE_WEIGHT meant?\n"
    )


def test_doctor_tells_where_a_setting_comes_from_and_keeps_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURALCACHE_RERANK_DIVERSITY", "0.25")
    monkeypatch.setenv("NEURALCACHE_STORE_URL", "other://me:hunter2@host/db?key=swordfish")

    done = run("doctor", "--store", "memory://")

    assert re.search(r"NEURALCACHE_RERANK_DIVERSITY +0\.25 +environment", done.stdout)
    assert re.search(r"NEURALCACHE_STORE_URL +\S+ +environment", done.stdout)
    assert "hunter2" not in done.output
    assert "swordfish" not in done.output


def test_a_setting_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURALCACHE_RERANK_DIVERSITY", "7")

    done = run("doctor", "--store", "memory://")

    assert done.exit_code == 2
    assert done.stderr == "NEURALCACHE_RERANK_DIVERSITY: Input should be less than or equal to 1, got '7'\n"


def test_origins_tell_default_environment_and_argument_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEURALCACHE_RERANK_DIVERSITY", "0.25")
    monkeypatch.setenv("NEURALCACHE_RERANK_SEED", "3")

    found = origins(RerankSettings(seed=4, learning=False))

    assert (found["diversity"], found["seed"], found["learning"], found["exploration"]) == (
        "environment", "argument", "argument", "default")
    assert set(origins(StoreSettings()).values()) == {"default"}


@pytest.fixture
def corrupt(url: str) -> str:
    Path(url.removeprefix("sqlite:///")).write_bytes(b"this is no database at all, whatever its name says " * 100)
    return url


@pytest.mark.parametrize("verb", [["stats"], ["forget", "--all-namespaces", "--yes"]], ids=["stats", "forget"])
def test_a_corrupt_file_is_named_with_the_way_out(verb: list[str], corrupt: str) -> None:
    done = run(*verb, "--store", corrupt)

    assert done.exit_code == 2
    assert done.stderr.endswith(f"python -m neuralcache_plugins doctor --quarantine --store {corrupt}\n")


def test_doctor_finds_a_corrupt_file_and_leaves_it(corrupt: str, tmp_path: Path) -> None:
    done = run("doctor", "--store", corrupt)

    assert done.exit_code == 1
    assert done.stderr.startswith(f"problem: {corrupt}: file is not a database")
    assert [path.name for path in tmp_path.iterdir()] == ["telemetry.db"]


def test_doctor_moves_a_corrupt_file_aside_and_starts_fresh(corrupt: str, tmp_path: Path) -> None:
    done = run("doctor", "--quarantine", "--store", corrupt)

    (moved,) = tmp_path.glob("telemetry.db.quarantined-*")
    assert done.exit_code == 0
    assert f"moved the damaged file to {moved}\n{corrupt} starts fresh" in done.stdout
    assert moved.read_bytes().startswith(b"this is no database")
    assert set(rows(corrupt).values()) == {0}


def test_doctor_finds_damage_inside_a_file_that_still_opens(filled: str, tmp_path: Path) -> None:
    path = Path(filled.removeprefix("sqlite:///"))
    content = path.read_bytes()
    path.write_bytes(content[:8192] + b"\x7f" * (len(content) - 8192))

    found = run("doctor", "--store", filled)
    moved = run("doctor", "--quarantine", "--store", filled)

    assert found.exit_code == 1
    assert found.stderr.endswith(f"doctor --quarantine --store {filled}\n")
    assert moved.exit_code == 0
    assert set(rows(filled).values()) == {0}
    assert len(list(tmp_path.glob("telemetry.db.quarantined-*"))) == 1


def test_quarantine_leaves_a_healthy_file_alone(filled: str, tmp_path: Path) -> None:
    done = run("doctor", "--quarantine", "--store", filled)

    assert done.exit_code == 0
    assert not list(tmp_path.glob("*quarantined*"))
    assert rows(filled)["rankings"] == 2


def test_a_store_url_that_means_nothing() -> None:
    done = run("stats", "--store", "telemetry.db")

    assert done.exit_code == 2
    assert "a store URL must look like" in done.stderr


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=60)


def test_the_module_is_a_command(filled: str) -> None:
    done = command("-m", "neuralcache_plugins", "stats", "--store", filled)

    assert (done.returncode, done.stderr) == (0, "")
    assert "namespace 'shop'" in done.stdout


def test_an_error_of_ours_is_no_traceback(corrupt: str) -> None:
    done = command("-m", "neuralcache_plugins", "stats", "--store", corrupt)

    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_without_its_extra_the_command_says_what_to_install(package: str) -> None:
    done = command(
        "-c", f"import sys; sys.modules[{package!r}] = None; from neuralcache_plugins.__main__ import main; main()")

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{package} is not installed; run: pip install 'neuralcache-plugins[cli]'\n"


def test_without_a_framework_the_demo_says_what_to_install() -> None:
    done = command(
        "-c", "import sys; sys.modules['llama_index'] = None; sys.modules['llama_index.core'] = None; "
        "sys.argv[1:] = ['demo', '--store', 'memory://']; from neuralcache_plugins.__main__ import main; main()")

    assert done.returncode == 2
    assert done.stderr == "llama-index-core is not installed; run: pip install 'neuralcache-plugins[llamaindex]'\n"
