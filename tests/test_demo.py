"""The demo: real pages, two frameworks, one memory, and nothing that is not computed."""

from __future__ import annotations

import io
import re
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from neuralcache_plugins import Reranker, demo, settings
from neuralcache_plugins.demo import caching, story
from neuralcache_plugins.demo.corpus import Page, pages, read_pages, sources

TOPICS = {"calendar", "fnmatch", "glob", "heapq", "random", "statistics", "tempfile", "webbrowser"}


@pytest.fixture(scope="module")
def few() -> list[Page]:
    return list(read_pages(source for source in sources() if source[0].partition(".")[0] in TOPICS))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("the demo must not open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def played(url: str | None, few: list[Page], *, width: int = 100, **options: Any) -> str:
    output = io.StringIO()
    demo.run(Console(file=output, width=width, highlight=False), store=url, pages=few, **options)
    return output.getvalue()


@pytest.fixture(scope="module")
def shown(few: list[Page], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    path = tmp_path_factory.mktemp("demo") / "demo.db"
    return played(f"sqlite:///{path}", few), path


def test_the_corpus_is_thousands_of_pages_with_unique_names() -> None:
    found = pages()

    assert 4000 <= len(found) <= 8000
    assert len({page.name for page in found}) == len(found)
    assert {"textwrap.shorten", "collections.deque", "str.split", "math.sqrt", "heapq"} <= {page.name for page in found}
    assert all(page.text.startswith(f"{page.name}\n") and len(page.text.split()) <= 121 for page in found)


def test_the_corpus_imports_no_module_that_has_source_code(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text('"""A module that must not be run."""\nraise SystemExit\n', "utf-8")
    (tmp_path / "old.py").write_text('print "a module that is no Python of today"\n', "utf-8")

    names = [page.name for page in pages(tmp_path)]

    assert names[0] == "loud"
    assert "old" not in names


def test_both_frameworks_show_the_same_order(shown: tuple[str, Path]) -> None:
    assert "10 shown: the same order in both frameworks" in shown[0]


def test_trust_is_earned_and_starts_at_nothing(shown: tuple[str, Path]) -> None:
    asked = sum(len(topic.asked) for topic in story.OPINIONS)
    trust = [float(value) for value in re.findall(r"^ +\d +.+ +(?:\d+|-) +(\d\.\d\d) *$", shown[0], re.MULTILINE)]

    assert "Nothing was learned yet." in shown[0]
    assert len(trust) == asked
    assert trust[0] < 0.1
    assert trust[-1] > 0.9


def test_most_right_pages_move_up_and_none_down(shown: tuple[str, Path]) -> None:
    (up, down) = re.findall(r"Of 5 pages, (\d) moved up, (\d) moved down", shown[0])[0]

    assert int(up) >= 3
    assert int(down) == 0
    assert re.search(r"^rank +id +was +score .*association", shown[0], re.MULTILINE)


def test_an_unrelated_question_stays_as_it_was(shown: tuple[str, Path]) -> None:
    assert f'"{story.UNRELATED}": all 10 pages as without learning' in " ".join(shown[0].split())


def test_the_certificate_fills_up_until_similar_questions_are_answered(shown: tuple[str, Path]) -> None:
    rows = [(int(asked), int(similar), said) for asked, similar, said in re.findall(
        r"^ +(\d+) +0 +(\d+) +0 +(not yet, \d+ judged|rule \d of \d) *$", shown[0], re.MULTILINE)]
    judged = [int(said.split()[2]) for _, _, said in rows if said.startswith("not yet")]

    assert [asked for asked, _, _ in rows] == list(range(50, 401, 50))
    assert all((similar == 0) == said.startswith("not yet") for _, similar, said in rows)
    assert len(judged) >= 3
    assert judged == sorted(set(judged))
    assert rows[-1][1] >= 20


def test_rewordings_are_answered_from_the_cache_and_near_misses_are_not(shown: tuple[str, Path]) -> None:
    text = shown[0]

    assert f"Of {len(caching.TRIALS)} rewordings, {len(caching.TRIALS)} were answered from the cache" in text
    assert "questions that only look the same, 0 got another question's answer" in " ".join(text.split())
    for trial in caching.TRIALS:
        assert re.search(rf"^  first: {re.escape(trial.question)}\n +\S+, from the pipeline", text, re.MULTILINE)
        assert re.search(rf"^  again: {re.escape(trial.reworded)}\n +\S+, from the cache: similar", text, re.MULTILINE)
        assert re.search(rf"^  other: {re.escape(trial.near_miss)}\n +\S+, from the pipeline", text, re.MULTILINE)


def test_it_says_why_a_near_miss_is_another_question(shown: tuple[str, Path]) -> None:
    said = re.findall(r"from the pipeline: other (.+)", shown[0])

    assert said == ["meaning: disable against enable", "number: 10 against 5", "name: safari against firefox"]
    assert "nearest cached question: 'How do I enable automatic garbage collection?'" in shown[0]


def test_a_question_that_was_answered_is_answered_from_the_cache_for_good(few: list[Page], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'own.db'}"

    played(url, few)
    again = played(url, few)

    # what was not reused the first time lies there now under its own words
    assert re.search(r"^ +400 +3\d\d +\d+ +0 +rule \d of \d *$", again, re.MULTILINE)
    assert len(re.findall(r"from the cache: asked before$", again, re.MULTILINE)) == 2 * len(caching.TRIALS)
    assert "questions that only look the same, 0 got another question's answer" in " ".join(again.split())


def test_the_log_is_the_same_for_the_same_pages_and_asks_for_each_page_in_other_words(few: list[Page]) -> None:
    log = caching.questions(few)
    asked = [question for question, _ in log]

    assert log == caching.questions(few)
    assert len(set(asked)) == len(asked) == caching.PAGES * caching.WAYS
    assert {page for _, page in log} <= {page.name for page in few}
    assert not set(asked) & {question for trial in caching.TRIALS for question in trial}


def test_the_figures_shown_are_those_in_the_file(shown: tuple[str, Path]) -> None:
    text, path = shown
    connection = sqlite3.connect(path)
    rankings, = connection.execute("SELECT count(*) FROM rankings").fetchone()
    told = connection.execute(
        "SELECT f.document_id, count(*), max(s.rank), min(s.rank) FROM feedback f "
        "JOIN shown_documents s USING (ranking_id, document_id) GROUP BY 1").fetchall()
    connection.close()

    assert f"{rankings} rankings, {sum(row[1] for row in told)} times feedback" in text
    assert {topic.right for topic in story.OPINIONS} == {row[0] for row in told}
    for row in told:
        assert re.search(r"^ +" + " +".join(re.escape(str(cell)) for cell in row) + " *$", text, re.MULTILINE)


def test_the_output_is_plain_and_fits(shown: tuple[str, Path]) -> None:
    ours = [line for line in shown[0].splitlines() if "sqlite:///" not in line]

    assert "\x1b" not in shown[0]
    assert max(map(len, ours)) <= 100


def test_a_narrow_screen_loses_no_rank(few: list[Page]) -> None:
    text = played("memory://", few, width=80)
    lines = [line for line in text.splitlines() if "explain()" not in line]

    assert re.search(r"asked in +a question never asked +right page +cold +now", text)
    assert re.search(r"# +retriever alone +LangChain +LlamaIndex", text)
    assert max(map(len, lines)) <= 100


def test_a_store_of_the_users_is_not_emptied(few: list[Page], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'own.db'}"

    played(url, few)
    again = played(url, few)

    assert re.search(r"This store remembers feedback given \d+ times\.", again)


@pytest.fixture
def data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(settings, "user_data_path", lambda *_, **__: tmp_path)
    return tmp_path


def test_the_demos_own_file_starts_empty_unless_kept(
    few: list[Page], data_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))

    first, fresh, kept = (played(None, few, keep=keep) for keep in (False, False, True))

    assert "Nothing was learned yet." in first
    assert "Nothing was learned yet." in fresh
    assert "This store remembers" in kept
    assert {path.name for path in data_folder.iterdir()} <= {"demo.db", "demo.db-wal", "demo.db-shm"}
    assert list(Path.cwd().iterdir()) == []


def test_the_demo_needs_no_network(few: list[Page], offline: None) -> None:
    assert "How to go on:" in played("memory://", few)


def typed(*lines: str | type[BaseException]) -> Callable[..., str]:
    waiting: Iterator[str | type[BaseException]] = iter(lines)

    def read(*_: Any) -> str:
        line = next(waiting)
        if isinstance(line, str):
            return line
        raise line

    return read


@pytest.mark.parametrize("leave", ["", EOFError, KeyboardInterrupt], ids=["empty line", "end of input", "ctrl-c"])
def test_a_person_asks_and_judges_until_they_leave(
    leave: str | type[BaseException], few: list[Page], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'talk.db'}"
    monkeypatch.setattr("builtins.input", typed("the smallest numbers of a list", "n", "y", leave))

    text = played(url, few, interactive=True)

    assert "Noted. Trust in learning: 0." in text
    assert "How to go on:" in text
    with sqlite3.connect(tmp_path / "talk.db") as connection:
        rewards = [reward for (reward,) in connection.execute("SELECT reward FROM feedback")]
    connection.close()
    assert sorted(rewards) == [-1.0, 1.0]


def test_leaving_in_the_middle_of_judging_keeps_nothing_of_it(
    few: list[Page], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'talk.db'}"
    monkeypatch.setattr("builtins.input", typed("a temporary folder", "n", EOFError))

    played(url, few, interactive=True)

    with Reranker(store=url, namespace=demo.NAMESPACE) as reranker:
        assert reranker.stats().namespace.feedback == 0


def test_the_whole_demo_runs_as_a_command(tmp_path: Path) -> None:
    """In another process, over all pages, from a folder that stays empty, and in less than a minute."""
    (tmp_path / "here").mkdir()
    command = [sys.executable, "-m", "neuralcache_plugins", "demo", "--store", f"sqlite:///{tmp_path / 'demo.db'}"]

    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path / "here", timeout=60, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert "the same order in both frameworks" in done.stdout
    assert int(re.findall(r"Of 5 pages, (\d) moved up", done.stdout)[0]) >= 3
    flat = " ".join(done.stdout.split())
    assert re.search(r"Of 3 rewordings, [23] were answered from the cache", flat)
    assert "that only look the same, 0 got another question's answer" in flat
    assert "\x1b" not in done.stdout
    assert list((tmp_path / "here").iterdir()) == []
