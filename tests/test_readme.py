"""What the README shows works as it stands: its Python runs, its SQL finds rows, its tables tell the truth."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from neuralcache_plugins import RerankSettings, StoreSettings

README = (Path(__file__).resolve().parent.parent / "README.md").read_text("utf-8")

# one process for all blocks, because importing two frameworks takes seconds; each block starts with no names, as a
# reader who pastes it into a file would, and none may reach the network
RUNNER = """
import contextlib, io, json, sys

def offline(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo") and arguments[0] is not None:
        raise OSError(f"README.md reaches for the network: {event} {arguments[-2:]}")

sys.addaudithook(offline)
for block in json.load(sys.stdin):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})
    print(json.dumps(out.getvalue()), flush=True)
"""


class Fence(NamedTuple):
    """A fenced block, below as many empty lines as stand above it in the file: so tracebacks name its lines."""

    language: str
    text: str


class Ran(NamedTuple):
    """Where the Python blocks ran, what they printed, and what the reader's home folder held afterwards."""

    folder: Path
    printed: list[str]
    at_home: list[Path]


def fences() -> list[Fence]:
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [Fence(match[1], "\n" * README.count("\n", 0, match.start(2)) + match[2]) for match in found]


PYTHON = [fence.text for fence in fences() if fence.language == "python"]
QUERIES = [
    query for fence in fences() if not fence.language
    for query in re.findall(r'^sqlite3 (\S+) "(.+)"$', fence.text, re.MULTILINE)
]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder, home = tmp_path_factory.mktemp("readme"), tmp_path_factory.mktemp("home")
    outside = {name: value for name, value in os.environ.items() if not name.startswith("NEURALCACHE_")}
    done = subprocess.run(
        [sys.executable, "-c", RUNNER], input=json.dumps(PYTHON), capture_output=True, text=True, check=False,
        cwd=folder, env={**outside, "HOME": str(home), "XDG_DATA_HOME": str(home)}, timeout=120,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    return Ran(folder, [json.loads(line) for line in done.stdout.splitlines()], list(home.rglob("*.db")))


def test_no_block_escapes_this_test() -> None:
    """All fences are seen, and every line that looks like a query is one of those that run."""
    assert 2 * len(fences()) == len(re.findall("^ *```", README, re.MULTILINE))
    assert len(QUERIES) == len(re.findall("^ *sqlite3 ", README, re.MULTILINE))
    assert (len(PYTHON) >= 4, len(QUERIES) >= 2) == (True, True)
    assert {fence.language for fence in fences()} <= {"", "python"}


def test_every_python_block_runs_and_prints(ran: Ran) -> None:
    assert len(ran.printed) == len(PYTHON)
    assert [PYTHON[number].strip() for number, text in enumerate(ran.printed) if not text.strip()] == []


def test_both_adapters_print_scores_that_fall_and_the_document_that_helps(ran: Ran) -> None:
    for adapter in ("langchain import NeuralCacheCompressor", "llamaindex import NeuralCachePostprocessor"):
        printed = next(text for block, text in zip(PYTHON, ran.printed, strict=True)
                       if f"from neuralcache_plugins.{adapter}" in block)
        scores, documents = zip(*(line.split() for line in printed.splitlines()), strict=True)
        assert sorted(map(float, scores), reverse=True) == list(map(float, scores))
        assert "reset" in documents


def test_the_stores_are_made_where_the_blocks_say_and_nowhere_else(ran: Ran) -> None:
    named = {name for block in PYTHON for name in re.findall(r"sqlite:///(\w+\.db)", block)}
    assert named
    assert {path.name for path in ran.folder.iterdir() if path.suffix == ".db"} == named
    assert [(ran.folder / name).stat().st_mode & 0o777 for name in named] == [0o600] * len(named)
    assert ran.at_home == []


@pytest.mark.parametrize(("file", "query"), QUERIES)
def test_every_query_finds_rows_in_what_the_blocks_left(file: str, query: str, ran: Ran) -> None:
    with closing(sqlite3.connect(f"{(ran.folder / file).as_uri()}?mode=ro", uri=True)) as connection:
        rows = connection.execute(query).fetchall()
    assert rows
    assert [row for row in rows if None in row] == []


@pytest.mark.parametrize("view", ["rankings", "shown_documents", "feedback"])
def test_the_columns_of_a_view_are_those_in_the_table(view: str, ran: Ran) -> None:
    (described,) = re.findall(rf"^\| `{view}` \| (.*) \|$", README, re.MULTILINE)
    with closing(sqlite3.connect(ran.folder / "telemetry.db")) as connection:
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({view})")]
    assert re.findall(r"`(\w+)`", described) == columns


@pytest.mark.parametrize("kind", [RerankSettings, StoreSettings])
def test_the_table_of_settings_is_complete_and_true(kind: type[RerankSettings] | type[StoreSettings]) -> None:
    """Every field has its row in order: default, variable, and the words of its description."""
    (rows,) = re.findall(rf"^`{kind.__name__}`\n\n\| setting .*\n\|[- |]+\|\n((?:\|.*\n)+)", README, re.MULTILINE)
    assert rows.splitlines() == [
        f"| `{name}` | `{json.dumps(field.default) if isinstance(field.default, str) else field.default}` "
        f"| `{kind.model_config['env_prefix']}{name.upper()}` | {field.description} |"
        for name, field in kind.model_fields.items()
    ]
