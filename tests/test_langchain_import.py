"""Importing the LangChain adapter with and without LangChain."""

from __future__ import annotations

import subprocess
import sys

import neuralcache_plugins.langchain as adapter

BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r} or name.startswith({name!r} + "."):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
try:
    import neuralcache_plugins.langchain
except ImportError as error:
    print(type(error).__name__, getattr(error, "extra", None), error.name, error, sep="|")
"""


def run(script, **options):
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, **options)
    return done.stdout.strip()


def test_without_langchain_the_error_names_the_extra():
    """An ``ImportError`` with the command to paste, never a stand-in class."""
    assert run(BLOCKED.format(name="langchain_core")) == (
        "MissingExtraError|langchain|langchain-core|"
        "langchain-core is not installed; run: pip install 'neuralcache-plugins[langchain]'"
    )


def test_a_broken_langchain_shows_its_own_error(tmp_path):
    """When it is there but misses something itself, installing the extra would not help."""
    (tmp_path / "langchain_core").mkdir()
    (tmp_path / "langchain_core" / "__init__.py").write_text("import something_that_langchain_needs")

    shown = run(BLOCKED.format(name="something_that_langchain_needs"), cwd=tmp_path)

    assert shown.startswith("ModuleNotFoundError|None|something_that_langchain_needs|")


def test_the_package_itself_loads_no_framework():
    """Only the adapter does."""
    script = "import sys, neuralcache_plugins as n; n.errors; print('langchain_core' in sys.modules)"

    assert run(script.replace("n.errors; ", "n.NeuralCacheError; ")) == "False"


def test_the_adapter_loads_langchain_core_alone():
    """Neither the other framework nor LangChain's bigger packages."""
    script = (
        "import sys, neuralcache_plugins.langchain\n"
        "print([m for m in ('llama_index', 'langchain', 'langchain_classic', 'langchain_community', 'langgraph')"
        " if m in sys.modules])"
    )

    assert run(script) == "[]"


def test_the_public_names_are_listed():
    """Sorted, and all there."""
    assert adapter.__all__ == ["CachedRunnable", "NeuralCacheCallbackHandler", "NeuralCacheCompressor",
                               "NeuralCacheLLMCache", "NeuralCacheRetriever", "cached", "document_versions"]
    assert all(hasattr(adapter, name) for name in adapter.__all__)
