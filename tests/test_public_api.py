"""The public surface: what is exported, what an import costs, which errors are which, and what is never used."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import neuralcache_plugins
from neuralcache_plugins import errors

PACKAGE = Path(neuralcache_plugins.__file__).parent
ERRORS = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]


def test_all_is_sorted_and_complete() -> None:
    """The list, the table of homes and the names that type checkers see are one."""
    tree = ast.parse(Path(neuralcache_plugins.__file__).read_text("utf-8"))
    (typed,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    checked = [alias.name for node in typed.body if isinstance(node, ast.ImportFrom) for alias in node.names]

    assert neuralcache_plugins.__all__ == sorted(neuralcache_plugins._HOME)
    assert sorted(checked) == neuralcache_plugins.__all__


@pytest.mark.parametrize("name", neuralcache_plugins.__all__)
def test_a_public_name_resolves_to_its_home(name: str) -> None:
    home = import_module(f"neuralcache_plugins.{neuralcache_plugins._HOME[name]}")

    assert getattr(neuralcache_plugins, name) is getattr(home, name)


@pytest.mark.parametrize(
    "module", ["conversation", "langchain", "llamaindex", "outside", "semantic_cache", "stores", "testing"]
)
def test_the_public_names_of_a_subpackage_resolve(module: str) -> None:
    found = import_module(f"neuralcache_plugins.{module}")

    assert found.__all__ == sorted(found.__all__)
    assert [name for name in found.__all__ if not hasattr(found, name)] == []


def test_dir_shows_the_public_names() -> None:
    assert dir(neuralcache_plugins) == sorted([*neuralcache_plugins.__all__, "__version__"])


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'neuralcache_plugins' has no attribute 'Rerankr'$"):
        neuralcache_plugins.Rerankr  # noqa: B018


def loaded_by(statement: str) -> set[str]:
    """Return the top-level packages beyond the standard library, and sqlite3, that a fresh process loads."""
    script = (
        "import sys, json\nbefore = set(sys.modules)\n"
        f"{statement}\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in set(sys.modules) - before})))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    standard = (sys.stdlib_module_names - {"sqlite3"}) | {"neuralcache_plugins"}
    return {name for name in json.loads(done.stdout) if name not in standard and not name.startswith("_sysconfigdata")}


PYDANTIC = {"pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"}


def test_importing_the_package_loads_numpy_and_pydantic_at_most() -> None:
    assert loaded_by("import neuralcache_plugins") <= {"numpy"} | PYDANTIC


def test_asking_for_an_error_or_a_result_loads_no_settings() -> None:
    assert loaded_by("from neuralcache_plugins import NeuralCacheError, Ranking") <= {"numpy"} | PYDANTIC


def test_asking_for_the_reranker_loads_no_framework_and_no_driver() -> None:
    base = {"numpy", "pydantic_settings", "platformdirs", "dotenv", *PYDANTIC}

    assert loaded_by("from neuralcache_plugins import Reranker, open_store") <= base
    assert loaded_by("from neuralcache_plugins import SemanticCache, open_store") <= base


@pytest.mark.parametrize(
    ("module", "other"), [("langchain", {"llama_index"}), ("llamaindex", {"langchain_core", "langchain"})]
)
def test_an_adapter_loads_no_other_framework(module: str, other: set[str]) -> None:
    loaded = loaded_by(f"import neuralcache_plugins.{module}")

    assert loaded & other == set()
    assert "wordllama" not in loaded


@pytest.mark.parametrize(
    ("error", "built_in"),
    [
        ("InvalidInputError", ValueError),
        ("DimensionMismatchError", ValueError),
        ("UnknownRankingError", LookupError),
        ("UnknownDocumentError", LookupError),
        ("UnknownHitError", LookupError),
        ("ComputationError", RuntimeError),
        ("EncoderError", RuntimeError),
        ("MissingExtraError", ImportError),
        ("StoreError", RuntimeError),
        ("StoreBusyError", RuntimeError),
        ("StoreFullError", RuntimeError),
        ("StoreCorruptError", RuntimeError),
        ("StoreClosedError", RuntimeError),
        ("ErasedMeanwhileError", RuntimeError),
        ("SchemaVersionError", RuntimeError),
    ],
)
def test_an_error_is_also_its_built_in(error: str, built_in: type[Exception]) -> None:
    assert issubclass(getattr(errors, error), built_in)
    assert issubclass(getattr(errors, error), errors.NeuralCacheError)


def drawn(error: type[Exception]) -> bool:
    """Tell whether the tree in the module docstring hangs the error under its parent, by the depth of its branch."""
    lines = (errors.__doc__ or "").splitlines()
    depth = {name: line.index(name) for line in lines for name in re.findall(r"\b\w+Error\b(?!\))", line)}
    parents = [name for name in depth if depth[name] == depth.get(error.__name__, 0) - 4]
    return error.__name__ in depth and (error is errors.NeuralCacheError or error.__bases__[0].__name__ in parents)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_error_is_exported_and_drawn_in_the_tree(error: type[Exception]) -> None:
    assert error.__name__ in neuralcache_plugins.__all__
    assert drawn(error)


def test_a_missing_extra_names_the_package_the_extra_and_the_command() -> None:
    error = errors.MissingExtraError("langchain-core", extra="langchain")

    assert str(error) == "langchain-core is not installed; run: pip install 'neuralcache-plugins[langchain]'"
    assert (error.name, error.extra) == ("langchain-core", "langchain")


def test_a_wrong_width_names_both_widths() -> None:
    error = errors.DimensionMismatchError("query_vector", got=3, expected=256)

    assert str(error) == "query_vector has 3 dimensions, expected 256"
    assert (error.got, error.expected) == (3, 256)


UNSAFE_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
UNSAFE_CALLS = {
    "eval", "exec", "hash", "suppress(Exception)", "contextlib.suppress(Exception)", "logging.basicConfig",
    "random.seed", "np.random.seed", "warnings.simplefilter", "warnings.filterwarnings", "os.chdir",
}


def banned(source: str) -> list[str]:
    """Return what must not be used: code from data, order by process, errors thrown away, the user's global state."""
    tree = ast.parse(source)
    fine = {
        inner for node in ast.walk(tree)
        if (isinstance(node, ast.FunctionDef) and node.name == "__hash__")
        or (isinstance(node, ast.With) and any("catch_warnings" in ast.unparse(item) for item in node.items))
        for statement in node.body for inner in ast.walk(statement)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name in UNSAFE_MODULES]
        if isinstance(node, ast.ImportFrom) and node.module in UNSAFE_MODULES:
            found.append(node.module)
        if isinstance(node, ast.Call) and node not in fine:
            found += sorted({ast.unparse(node.func), ast.unparse(node)} & UNSAFE_CALLS)
            found += [each.arg for each in node.keywords if ast.unparse(each) == "allow_pickle=True"]
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_banned_is_used(path: Path) -> None:
    assert banned(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import pickle", "pickle"),
        ("from marshal import loads", "marshal"),
        ("def f():\n return eval('1')", "eval"),
        ("key = hash(text)", "hash"),
        ("with suppress(Exception):\n pass", "suppress(Exception)"),
        ("np.random.seed(0)", "np.random.seed"),
        ("np.load(place, allow_pickle=True)", "allow_pickle"),
        ("logging.basicConfig(level=10)", "logging.basicConfig"),
    ],
)
def test_a_planted_use_is_found(source: str, expected: str) -> None:
    assert banned(source) == [expected]


def test_a_hash_method_may_hash_and_a_block_may_silence_its_own_warnings() -> None:
    assert banned("class A:\n def __hash__(self):\n  return hash(self.key)") == []
    assert banned("with warnings.catch_warnings():\n warnings.simplefilter('ignore')") == []
