"""Real text that lies on every machine: the documentation inside Python's own standard library."""

from __future__ import annotations

import ast
import importlib
import inspect
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, starmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from neuralcache_plugins.contracts import Encoder, Matrix

WORDS = 120
"""Longer documentation is cut here."""

LEFT_OUT = {
    "__pycache__", "antigravity.py", "dist-packages", "distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data",
    "site-packages", "test", "tests", "this.py", "tkinter", "turtledemo",
}
"""Files and folders that are no documentation of today's library."""

COMPILED = {
    "_bisect": "bisect", "_collections": "collections", "_functools": "functools", "_heapq": "heapq", "_io": "io",
    "_operator": "operator", "_random": "random", "_socket": "socket", "_struct": "struct", "array": "array",
    "atexit": "atexit", "binascii": "binascii", "builtins": "builtins", "cmath": "cmath", "errno": "errno",
    "gc": "gc", "itertools": "itertools", "marshal": "marshal", "math": "math", "nt": "os", "posix": "os",
    "select": "select", "sys": "sys", "time": "time", "unicodedata": "unicodedata", "zlib": "zlib",
}
"""Modules without Python source -> the public name of what they hold. Importing them has no side effects."""


class Page(NamedTuple):
    """One document: ``name`` is the qualified name it documents, ``text`` begins with it."""

    name: str
    text: str


def pages(folder: Path | None = None) -> list[Page]:
    """Return the documentation of modules, classes and functions, by name; nothing but compiled modules is imported.

    ``folder`` holds the sources; None is the running interpreter's standard library. Takes a few seconds.
    """
    return list(read_pages(sources(folder)))


def sources(folder: Path | None = None) -> list[tuple[str, Path]]:
    """Return the public modules that have source code: dotted name and file."""
    root = folder or Path(sysconfig.get_paths()["stdlib"])
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        hidden = any(part.startswith("_") and part != "__init__.py" for part in parts)
        if not hidden and LEFT_OUT.isdisjoint(parts):
            found.append((".".join(parts).removesuffix(".py").removesuffix(".__init__"), path))
    return found


def read_pages(modules: Iterable[tuple[str, Path]]) -> Iterator[Page]:
    """Yield the pages of these modules, one after the other, and of the compiled ones; each name once."""
    seen: set[str] = set()
    for page in chain(chain.from_iterable(starmap(_written, modules)), _compiled()):
        if page.name not in seen:
            seen.add(page.name)
            yield page


class Shelf:
    """Pages that can be searched: a plain dense retriever, to have something that a reranker can improve."""

    def __init__(self, stock: Sequence[Page], vectors: Matrix, encoder: Encoder) -> None:
        self.pages = list(stock)
        self._vectors = vectors
        self._encoder = encoder

    def search(self, question: str, count: int) -> list[tuple[Page, float]]:
        """Return the ``count`` pages nearest to the question with their cosines, best first."""
        cosines = self._vectors @ np.asarray(self._encoder.embed_query(question), dtype=np.float32)
        best = np.argsort(-cosines, kind="stable")[:count]
        return [(self.pages[position], float(cosines[position])) for position in best.tolist()]


def _written(module: str, path: Path) -> Iterator[Page]:
    # the library also holds files for other dialects, and old spellings that today's parser warns about
    with suppress(SyntaxError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(path.read_bytes())
        yield from _page(module, ast.get_docstring(tree))
        yield from _inside(tree, module)


def _inside(node: ast.AST, owner: str) -> Iterator[Page]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If | ast.Try):
            yield from _inside(child, owner)
        elif isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and child.name[0] != "_":
            yield from _page(f"{owner}.{child.name}", ast.get_docstring(child))
            if isinstance(child, ast.ClassDef):
                yield from _inside(child, f"{owner}.{child.name}")


def _compiled() -> Iterator[Page]:
    for module, name in COMPILED.items():
        with suppress(ImportError):  # each system has its own
            for member, value in inspect.getmembers(importlib.import_module(module)):
                if member[0] != "_":
                    yield from _described(f"{name}.{member}".removeprefix("builtins."), value)


def _described(name: str, value: Any) -> Iterator[Page]:
    if isinstance(value, type) or inspect.isroutine(value):
        yield from _page(name, inspect.getdoc(value))
    if isinstance(value, type) and not issubclass(value, BaseException):
        for member in sorted(vars(value)):
            if member[0] != "_":
                yield from _page(f"{name}.{member}", inspect.getdoc(getattr(value, member)))


def _page(name: str, documentation: str | None) -> Iterator[Page]:
    words = (documentation or "").split()
    if len(words) >= 4:
        yield Page(name, f"{name}\n{' '.join(words[:WORDS])}")
