"""Build the wheel and prove that it works where nothing of the source tree can be imported.

The wheel goes into a fresh environment without any extra, and is used there from another folder by ``python -I``.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parent.parent

PROBE = """
import sys
from importlib import import_module

import neuralcache_plugins as package

loaded = {name.partition(".")[0] for name in sys.modules}
heavy = {"langchain", "langchain_core", "llama_index", "wordllama", "typer", "rich", "sqlite3", "pydantic_settings"}
assert "site-packages" in package.__file__, package.__file__
assert not loaded & heavy, f"importing the package loads {sorted(loaded & heavy)}"

for module in ("langchain", "llamaindex"):
    try:
        import_module(f"neuralcache_plugins.{module}")
    except package.MissingExtraError as error:
        assert f"pip install 'neuralcache-plugins[{module}]'" in str(error), error
    else:
        raise AssertionError(f"{module} was imported without its framework")

for name in package.__all__:
    getattr(package, name)


class Lengths:
    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text):
        return [1.0, float(len(text)), float(text.count("a"))]


with package.Reranker(Lengths(), store="sqlite://:memory:") as reranker:
    ranking = reranker.rerank("banana", ["cherry", "banana", "apple"], ids=["c", "b", "a"])
    assert sorted(ranking.ids) == ["a", "b", "c"], ranking.ids
    reranker.feedback(ranking, helpful=["b"])

from neuralcache_plugins.conversation import ConversationMonitor, catalogue

assert len(catalogue().markers()) > 20
try:
    ConversationMonitor()
except package.MissingExtraError as error:
    assert "pip install 'neuralcache-plugins[conversation]'" in str(error), error
else:
    raise AssertionError("without the extra 'conversation' there must be no monitor")

try:
    with package.Reranker(store="sqlite://:memory:") as reranker:
        reranker.rerank("banana", ["cherry", "banana"])
except package.MissingExtraError as error:
    assert "pip install 'neuralcache-plugins[local]'" in str(error), error
else:
    raise AssertionError("without the extra 'local' there must be no default encoder")
"""


def main() -> None:
    """Run every check; the first that fails ends the program with its message."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", name, str(ROOT), cwd=folder)
        (wheel,) = folder.glob("*.whl")
        check_contents(wheel)
        venv.create(folder / "venv", with_pip=True)
        python = str(folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python")
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel), cwd=folder)
        run(python, "-W", "error", "-I", "-c", PROBE, cwd=folder)
        check_command(python, folder)
    sys.stdout.write(f"{wheel.name}: complete, and works without the tree and without extras\n")


def check_contents(wheel: Path) -> None:
    """Refuse a wheel without its type marker, licence or marker files, or with anything beside the package."""
    with ZipFile(wheel) as archive:
        names = archive.namelist()
    top = {name.partition("/")[0] for name in names}
    info = next(name for name in top if name.endswith(".dist-info"))
    if top != {"neuralcache_plugins", info}:
        sys.exit(f"{wheel.name} holds more than the package: {sorted(top)}")
    markers = {f"neuralcache_plugins/conversation/markers/{name}.toml" for name in ("any", "en", "de", "es")}
    missing = {"neuralcache_plugins/py.typed", f"{info}/licenses/LICENSE", *markers} - set(names)
    if missing:
        sys.exit(f"{wheel.name} lacks {sorted(missing)}")
    tests = [name for name in names if "tests/" in name or Path(name).name.startswith(("test_", "conftest"))]
    if tests:
        sys.exit(f"{wheel.name} holds tests: {tests}")


def check_command(python: str, folder: Path) -> None:
    """Without its extra the command line must name the way out, never show a traceback."""
    done = subprocess.run(
        [python, "-I", "-m", "neuralcache_plugins", "doctor"], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode == 0 or "Traceback" in done.stderr or "pip install 'neuralcache-plugins[" not in done.stderr:
        sys.exit(f"the command line without its extra: exit {done.returncode}\n{done.stdout}{done.stderr}")


def run(*command: str, cwd: Path) -> None:
    """Run a command to its end; a failure ends this program with its exit code."""
    done = subprocess.run(command, cwd=cwd, check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
