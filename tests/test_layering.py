"""Who may import whom: the table, the walk that holds it, and the proof that the walk sees what is planted."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import neuralcache_plugins

PACKAGE = Path(neuralcache_plugins.__file__).parent
ROOT = "neuralcache_plugins"


@dataclass(frozen=True)
class Layer:
    """What one layer may import: modules of ours, top-level names of others.

    ``core.*`` stands for the package and all below it, ``stores:open_store`` for that one name of that module. What
    is in the ``on_use`` fields may be imported inside functions and under TYPE_CHECKING only.
    """

    ours: frozenset[str] = frozenset()
    third: frozenset[str] = frozenset()
    ours_on_use: frozenset[str] = frozenset()
    third_on_use: frozenset[str] = frozenset()


def names(text: str) -> frozenset[str]:
    return frozenset(text.split())


WORDS = names("errors contracts")
BELOW = WORDS | names("settings core.*")
STATE = BELOW | names("encoders.* telemetry.* memory.*")
READERS = STATE | names("stores:open_store stores:mask")
CORE = READERS | names("conversation.* attribution.* outside.*")
WHOLE = CORE | names("semantic_cache.* reranker.*")
FRAMEWORKS = names("langchain_core langchain_classic langchain langgraph llama_index")
ADAPTERS = names("langchain.* llamaindex.*")

TABLE = {
    "": Layer(ours_on_use=WHOLE | names("stores")),
    "errors": Layer(),
    "contracts": Layer(names("errors"), names("numpy")),
    "settings": Layer(WORDS, names("pydantic pydantic_settings platformdirs")),
    "core": Layer(WORDS, names("numpy")),
    "stores": Layer(WORDS, names("numpy")),
    "encoders": Layer(BELOW, names("numpy"), third_on_use=names("wordllama")),
    "telemetry": Layer(BELOW, names("numpy")),
    "memory": Layer(BELOW, names("numpy")),
    "semantic_cache": Layer(READERS, names("numpy pydantic"), third_on_use=names("usearch re2")),
    "conversation": Layer(READERS, names("numpy pydantic"), third_on_use=names("re2")),
    "outside": Layer(READERS, names("numpy")),
    "attribution": Layer(READERS, names("numpy pydantic"), third_on_use=names("re2")),
    "reranker": Layer(CORE, names("numpy")),
    "langchain": Layer(WHOLE - names("core.*"), names("numpy pydantic langchain_core")),
    "llamaindex": Layer(WHOLE - names("core.*"), names("numpy pydantic llama_index")),
    "evaluation": Layer(
        WHOLE, names("numpy"), ours_on_use=ADAPTERS,
        third_on_use=FRAMEWORKS | names("pandas pyarrow scipy ir_measures sklearn matplotlib"),
    ),
    "server": Layer(
        WHOLE | names("evaluation.*"), names("numpy pydantic fastapi starlette uvicorn"), ours_on_use=ADAPTERS,
    ),
    "demo": Layer(
        WHOLE, names("numpy typer rich"), ours_on_use=ADAPTERS | names("evaluation.*"), third_on_use=FRAMEWORKS,
    ),
    "cli": Layer(
        WHOLE | names("stores.*"), names("numpy typer rich"),
        ours_on_use=ADAPTERS | names("evaluation.* server.* demo.*"),
    ),
    "testing": Layer(WORDS, names("numpy pytest")),
    "__main__": Layer(names("errors"), ours_on_use=names("cli.*")),
}

GRANTED = {"stores": names("settings")}
"""Exceptions: what one module, and not its whole layer, may import inside functions."""

DRIVERS = {
    "sqlite": names("sqlite3"),
    "postgres": names("psycopg psycopg_pool"),
    "redis": names("redis"),
}
"""Kind of store -> its drivers. Only files of that kind import them, and the package asks for such files on use."""


@dataclass(frozen=True)
class Import:
    """One imported thing: ``core.vectors:unit_rows`` of ours, or the top-level name of a foreign package."""

    target: str
    ours: bool
    line: int
    on_use: bool


def layer_of(module: str) -> str:
    return module.partition(".")[0]


def is_module(dotted: str) -> bool:
    place = PACKAGE.joinpath(*dotted.split("."))
    return dotted in TABLE or place.with_suffix(".py").exists() or place.is_dir()


def kind_of_store(module: str) -> str | None:
    layer, _, rest = module.partition(".")
    if layer != "stores":
        return None
    return next((kind for kind in DRIVERS if rest.lstrip("_").startswith(kind)), None)


def imports(source: str, module: str, *, is_package: bool) -> Iterator[Import]:
    yield from _walk(ast.parse(source), module if is_package else module.rpartition(".")[0], on_use=False)


def _walk(node: ast.AST, package: str, *, on_use: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        for dotted in _targets(child, package):
            inside = dotted == ROOT or dotted.startswith((ROOT + ".", ROOT + ":"))
            target = _home(dotted) if inside else dotted.partition(":")[0].partition(".")[0]
            yield Import(target, inside, child.lineno, on_use)
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for statement in child.body:
                yield from _walk(ast.Module([statement], []), package, on_use=True)
            for statement in child.orelse:
                yield from _walk(ast.Module([statement], []), package, on_use=on_use)
            continue
        function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _walk(child, package, on_use=on_use or function)


def _targets(node: ast.AST, package: str) -> list[str]:
    """Return absolute ``package.module`` or ``package.module:name`` for what this very node imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{_absolute(node, package)}:{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")) and node.args:
        named = node.args[0]
        return [named.value] if isinstance(named, ast.Constant) and not named.value.startswith(".") else []
    return []


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = [ROOT, *package.split(".")] if package else [ROOT]
    above = parts[: len(parts) - node.level + 1]
    return ".".join([*above, node.module] if node.module else above)


def _home(dotted: str) -> str:
    """Return ``module:name`` relative to the package, looking through the lazy names of the package root."""
    path, _, name = dotted.partition(":")
    inner = path[len(ROOT) + 1 :]
    if name and is_module(f"{inner}.{name}".lstrip(".")):
        return f"{inner}.{name}".lstrip(".")
    if name and not inner and name in neuralcache_plugins._HOME:
        return f"{neuralcache_plugins._HOME[name]}:{name}"
    return f"{inner}:{name}" if name else inner


def allowed(target: str, entries: frozenset[str]) -> bool:
    module = target.partition(":")[0]
    return target in entries or any(
        module == entry or (entry.endswith(".*") and f"{module}.".startswith(entry[:-1])) for entry in entries
    )


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    layer = TABLE.get(layer_of(module))
    if layer is None:
        return [f"{module} has no layer: put {layer_of(module)!r} into the table"]
    return [
        f"{module or '__init__'}:{found.line} {'our ' if found.ours else ''}{found.target}"
        f"{'' if found.on_use else ' at module level'}"
        for found in imports(source, module, is_package=is_package)
        if not _is_fine(found, module, layer, is_package=is_package)
    ]


def _is_fine(found: Import, module: str, layer: Layer, *, is_package: bool) -> bool:
    if found.ours:
        return _ours_is_fine(found, module, layer)
    drivers = DRIVERS.get(kind_of_store(module) or "", frozenset())
    if found.target in frozenset().union(*DRIVERS.values()):
        return found.target in drivers
    if found.target in sys.stdlib_module_names:
        return True
    return found.target in layer.third or (found.on_use and found.target in layer.third_on_use)


def _ours_is_fine(found: Import, module: str, layer: Layer) -> bool:
    target = found.target.partition(":")[0]
    if found.target == ":__version__":
        return True
    if module and target and layer_of(target) == layer_of(module):
        return found.on_use or kind_of_store(target) in (None, kind_of_store(module))
    on_use = layer.ours_on_use | GRANTED.get(module, frozenset())
    return allowed(found.target, layer.ours) or (found.on_use and allowed(found.target, on_use))


MODULES = sorted(PACKAGE.rglob("*.py"))


def dotted_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", MODULES, ids=[dotted_name(path) or "__init__" for path in MODULES])
def test_a_module_imports_only_what_its_layer_may(path: Path) -> None:
    found = violations(path.read_text("utf-8"), dotted_name(path), is_package=path.name == "__init__.py")

    assert found == []


PLANTED = {
    "core -> framework": ("core.fusion", "import langchain_core", "langchain_core at module level"),
    "core -> framework, on use": ("core.fusion", "def f():\n import llama_index.core", "llama_index"),
    "core -> framework, for types": (
        "core.fusion", "if TYPE_CHECKING:\n from langchain_core.documents import Document", "langchain_core",
    ),
    "core -> framework, by name": ("core.fusion", "def f():\n import_module('langchain_core')", "langchain_core"),
    "core -> stores": ("core.signals", "from neuralcache_plugins.stores import open_store", "our stores:open_store"),
    "core -> settings": ("core.gating", "from neuralcache_plugins import settings", "our settings"),
    "core -> settings, through the root": (
        "core.gating", "from neuralcache_plugins import RerankSettings", "our settings:RerankSettings",
    ),
    "core -> third party": ("core.lexical", "from scipy import sparse", "scipy"),
    "stores -> reranker": ("stores.sqlite", "from neuralcache_plugins.reranker import Reranker", "our reranker"),
    "stores -> reranker, for types": (
        "stores.memory", "if typing.TYPE_CHECKING:\n from ..reranker import Reranker", "our reranker:Reranker",
    ),
    "stores -> settings": ("stores.sqlite", "def f():\n from ..settings import StoreSettings", "our settings"),
    "stores -> driver of another store": ("stores.memory", "import sqlite3", "sqlite3"),
    "telemetry -> driver": ("telemetry", "def f():\n import sqlite3", "sqlite3"),
    "telemetry -> memory": ("telemetry", "from neuralcache_plugins.memory import Memory", "our memory:Memory"),
    "encoders -> wordllama at module level": ("encoders", "from wordllama import WordLlama", "at module level"),
    "reranker -> inside of stores": (
        "reranker", "from neuralcache_plugins.stores.sqlite import SqliteStore", "our stores.sqlite",
    ),
    "reranker -> another name of stores": (
        "reranker", "from neuralcache_plugins.stores import MemoryStore", "our stores:MemoryStore",
    ),
    "reranker -> semantic_cache": ("reranker", "import neuralcache_plugins.semantic_cache", "our semantic_cache"),
    "adapter -> core": ("langchain.compressor", "from neuralcache_plugins.core import fusion", "our core"),
    "adapter -> the other adapter": ("langchain.retriever", "from ..llamaindex import x", "our llamaindex"),
    "adapter -> the other framework": ("llamaindex.postprocessor", "import langchain_core", "langchain_core"),
    "evaluation -> pandas at module level": ("evaluation.reports", "import pandas as pd", "pandas at module level"),
    "evaluation -> pandas in a class body": ("evaluation.reports", "class A:\n import pandas", "at module level"),
    "evaluation -> pandas in an else": (
        "evaluation.reports", "if TYPE_CHECKING:\n pass\nelse:\n import pandas", "pandas at module level",
    ),
    "demo -> framework at module level": ("demo", "try:\n import llama_index\nexcept ImportError: ...", "llama_index"),
    "relative": ("langchain.compressor", "from ..core.vectors import unit_rows", "our core.vectors"),
    "relative, of the package": ("core.fusion", "from .. import reranker", "our reranker"),
    "testing -> stores": ("testing", "from neuralcache_plugins.stores import open_store", "our stores"),
    "unknown module": ("utils", "", "has no layer"),
}


@pytest.mark.parametrize(("module", "source", "expected"), PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_violation_is_found(module: str, source: str, expected: str) -> None:
    (found,) = violations(source, module)

    assert expected in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("", "if TYPE_CHECKING:\n from neuralcache_plugins.reranker import Reranker"),
        ("stores", "def f():\n from neuralcache_plugins.settings import StoreSettings"),
        ("stores", "def f():\n from .sqlite import SqliteStore"),
        ("stores.sqlite", "import sqlite3"),
        ("stores.sqlite_schema", "import sqlite3"),
        ("encoders", "def f():\n from wordllama import WordLlama"),
        ("reranker", "from neuralcache_plugins.stores import open_store"),
        ("reranker", "from neuralcache_plugins import open_store, __version__"),
        ("langchain.compressor", "from langchain_core.documents import Document\nfrom .retriever import x"),
        ("evaluation.reports", "def f():\n import pandas"),
        ("evaluation.reports", "if TYPE_CHECKING:\n import pandas"),
    ],
)
def test_what_the_table_allows_is_not_reported(module: str, source: str) -> None:
    assert violations(source, module, is_package=module in ("", "stores")) == []


def test_the_stores_package_waits_with_its_backends() -> None:
    assert violations("from .sqlite import SqliteStore", "stores", is_package=True) == [
        "stores:1 our stores.sqlite:SqliteStore at module level"
    ]
