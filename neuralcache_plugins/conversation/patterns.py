"""Patterns that run in linear time, or are refused: RE2 (package ``google-re2``), which has no backtracking.

What RE2 cannot do in time proportional to the text (look-around, back references) or in the memory granted (huge
repetitions) it does not compile, and that is an error here. So neither a catalogue nor a message can hang a process.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from neuralcache_plugins.conversation.folding import unaccented
from neuralcache_plugins.errors import InvalidInputError, MissingExtraError

MAX_BYTES = 2 << 20
"""Memory of one compiled pattern, its automaton included. What does not fit is refused."""

MOST_SPANS = 8
"""So many places of one pattern are looked for in a message; further ones add nothing."""


class Match(Protocol):
    """What RE2 returns."""

    def span(self) -> tuple[int, int]:
        """Return start and end."""


class Pattern:
    """One compiled pattern: case does not matter, and accents do not."""

    def __init__(self, source: str, *, where: str) -> None:
        re2 = _re2()
        options = re2.Options()
        options.case_sensitive = False
        options.log_errors = False
        options.max_mem = MAX_BYTES
        try:
            self._compiled: Any = re2.compile(unaccented(source), options)
        except re2.error as error:
            raise InvalidInputError(
                f"{where}: the pattern {_short(source)} cannot run in linear time or is none: {_words(error)}"
            ) from error
        if self._compiled.search("") is not None:
            raise InvalidInputError(f"{where}: the pattern {_short(source)} matches the empty text, so it says nothing")

    def matches(self, text: str) -> bool:
        """Return whether the pattern is somewhere in the text. O(length of the text)."""
        return self._compiled.search(text) is not None

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield where the pattern is, from left to right, ``MOST_SPANS`` times at most."""
        for number, match in enumerate(self._compiled.finditer(text)):
            if number == MOST_SPANS:
                return
            start, end = match.span()
            if start < end:
                yield start, end


def _re2() -> Any:
    try:
        import re2
    except ImportError as error:
        if error.name != "re2":
            raise
        raise MissingExtraError("google-re2", extra="conversation") from error
    return re2


def _short(source: str) -> str:
    return repr(source if len(source) <= 60 else f"{source[:57]}...")


def _words(error: Exception) -> str:
    told = error.args[0] if error.args else error
    return told.decode("utf-8", "replace") if isinstance(told, bytes) else str(told)
