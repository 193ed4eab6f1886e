"""What a stranger reads and installs: the README's promises, one version, proved floors, pinned actions."""

from __future__ import annotations

import ast
import os
import re
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer
from packaging.requirements import Requirement
from pydantic_settings import BaseSettings

import neuralcache_plugins
from neuralcache_plugins import cli, settings

PROJECT = Path(__file__).resolve().parent.parent
README = (PROJECT / "README.md").read_text("utf-8")
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))
WORKFLOWS = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))
SETTINGS = [
    value for value in vars(settings).values()
    if isinstance(value, type) and issubclass(value, BaseSettings) and value is not BaseSettings
]
FIELDS = [(owner, name) for owner in SETTINGS for name in owner.model_fields]


def section(title: str) -> str:
    """Return the text under a second-level heading of the README."""
    parts = re.split(r"^## (.+)$", README, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True)).get(title, "")


@pytest.mark.parametrize("title", ["Quickstart", "Tests"])
def test_the_readme_has_one_line_to_paste(title: str) -> None:
    fences = re.findall(r"^```\w*\n(.*?)^```$", section(title), flags=re.MULTILINE | re.DOTALL)

    assert len(fences) == 1
    assert fences[0].count("\n") == 1
    assert fences[0].strip()


def test_the_quickstart_installs_the_demo_and_runs_it() -> None:
    assert re.search(r"pip install .*\[demo\].* && python -m neuralcache_plugins demo", section("Quickstart"))


def same_value(text: str, default: Any) -> bool:
    if isinstance(default, bool) or not isinstance(default, int | float):
        return text in (repr(default), str(default), f'"{default}"')
    try:
        return float(text.replace("_", "").replace(",", "")) == default
    except ValueError:
        return False


@pytest.mark.parametrize(("owner", "name"), FIELDS, ids=[f"{owner.__name__}.{name}" for owner, name in FIELDS])
def test_the_readme_tells_each_setting_its_default_and_its_variable(owner: type[BaseSettings], name: str) -> None:
    """One table row per setting, with the name, the default and the variable each in backticks."""
    variable = f"{owner.model_config['env_prefix']}{name.upper()}"
    rows = [line for line in README.splitlines() if line.startswith("|") and f"`{variable}`" in line]

    assert len(rows) == 1
    quoted = re.findall(r"`([^`]+)`", rows[0])
    assert name in quoted
    assert any(same_value(text, owner.model_fields[name].default) for text in quoted)


def test_the_readme_names_no_variable_that_nothing_reads() -> None:
    known = {f"{owner.model_config['env_prefix']}{name.upper()}" for owner, name in FIELDS}

    assert set(re.findall(r"NEURALCACHE_[A-Z]+_[A-Z_]*[A-Z]", README)) <= known


def verbs() -> list[str]:
    (app,) = {id(each): each for each in vars(cli).values() if isinstance(each, typer.Typer)}.values()
    return sorted(typer.main.get_command(app).commands)


@pytest.mark.parametrize("verb", verbs())
def test_the_readme_shows_every_verb_of_the_command_line(verb: str) -> None:
    assert re.search(rf"(neuralcache-plugins|python -m neuralcache_plugins) {verb}\b", README)


def test_the_command_line_has_the_promised_verbs() -> None:
    assert {"demo", "doctor", "forget", "stats"} <= set(verbs())


@pytest.mark.parametrize("page", ["README.md", "SECURITY.md", "CHANGELOG.md"])
def test_every_internal_link_leads_somewhere(page: str) -> None:
    text = re.sub(r"^```.*?^```$", "", (PROJECT / page).read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    inside = [target for target in targets if not re.match(r"[a-z]+:", target)]

    assert [target for target in inside if not leads_somewhere(target, page)] == []


def leads_somewhere(target: str, page: str) -> bool:
    name, _, anchor = target.partition("#")
    place = PROJECT / (name or page)
    return place.exists() and (not anchor or anchor in anchors(place.read_text("utf-8")))


def anchors(text: str) -> set[str]:
    """Return the anchors that the forge makes of headings."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_version_is_written_once() -> None:
    """Metadata takes it from the package; no other line of code and no second table repeats it."""
    sources = [*Path(neuralcache_plugins.__file__).parent.rglob("*.py"), PROJECT / "pyproject.toml"]
    written = [
        f"{path.name}: {line.strip()}" for path in sources for line in path.read_text("utf-8").splitlines()
        if re.search(rf"['\"]{re.escape(neuralcache_plugins.__version__)}['\"]", line)
    ]

    assert written == [f'__init__.py: __version__ = "{neuralcache_plugins.__version__}"']
    assert metadata.version("neuralcache-plugins") == neuralcache_plugins.__version__
    assert f"## [{neuralcache_plugins.__version__}]" in (PROJECT / "CHANGELOG.md").read_text("utf-8")


def floors() -> dict[str, str]:
    """Return package -> lowest version for what a user gets; the tools of the tests are not held low."""
    extras = PYPROJECT["project"]["optional-dependencies"]
    texts = [*PYPROJECT["project"]["dependencies"], *(text for name, all_ in extras.items() if name != "test"
                                                      for text in all_)]
    wanted = [Requirement(text) for text in texts]
    return {
        each.name: next(bound.version for bound in each.specifier if bound.operator == ">=")
        for each in wanted if each.name != "neuralcache-plugins"
    }


def test_the_lowest_versions_that_ci_installs_are_the_floors() -> None:
    lines = (PROJECT / ".github" / "constraints-lowest.txt").read_text("utf-8").splitlines()
    held = dict(line.split("==") for line in lines if not line.startswith("#"))

    assert {name: same_release(held.get(name, "")) for name in floors()} == {
        name: same_release(version) for name, version in floors().items()
    }


def same_release(version: str) -> str:
    return re.sub(r"(\.0)+$", "", version)


def test_actions_are_pinned_by_commit() -> None:
    used = [line for path in WORKFLOWS for line in path.read_text("utf-8").splitlines() if "uses:" in line]

    assert used
    assert [line for line in used if not re.search(r"uses: [\w./-]+@[0-9a-f]{40} # v\d", line)] == []


def test_workflows_may_do_nothing_by_default() -> None:
    assert [path.name for path in WORKFLOWS if "\npermissions: {}\n" not in path.read_text("utf-8")] == []


def test_ci_runs_every_python_that_the_metadata_names() -> None:
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PYPROJECT["project"]["classifiers"]))
    (matrix,) = re.findall(r"check:.*?python: (\[.*?\])", (WORKFLOWS[0]).read_text("utf-8"), flags=re.DOTALL)

    assert ast.literal_eval(matrix) == named


def test_the_ci_command_can_be_run() -> None:
    assert os.access(PROJECT / ".ci" / "run", os.X_OK)
