"""Text as patterns see it, and the way back: lower case, no accents, no apostrophes, one blank, "sooo" as "so".

A long message is seen in part only: people thank and correct at its beginning or end, what lies between is pasted.
So the work for one message is bounded, however long it is.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

WINDOW = 1_000
"""A message longer than twice this is seen in its first and its last so many characters."""

APOSTROPHES = frozenset("'`\u2019\u2018\u00b4\u02bc")
LENGTHENED = 3
"""A letter written so many times in a row counts once."""


class Folded(NamedTuple):
    """A stretch of a message as patterns see it; ``places[i]`` is where character ``i`` stands in the message."""

    text: str
    places: list[int]

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return where a non-empty stretch of ``text`` stands in the message."""
        return self.places[start], self.places[end - 1] + 1


def windows(message: str) -> list[Folded]:
    """Return what is looked at of a message: all of it, or its two ends. O(1) in the length of the message."""
    if len(message) <= 2 * WINDOW:
        return [fold(message)]
    return [fold(message[:WINDOW]), fold(message[-WINDOW:], offset=len(message) - WINDOW)]


def fold(text: str, *, offset: int = 0) -> Folded:
    """Return the text as patterns see it; ``offset`` is added to every place. O(length)."""
    folded: list[str] = []
    places: list[int] = []
    run = 0
    for place, one in _characters(text):
        last = folded[-1] if folded else ""
        if one in " \n" and last in (" ", "\n"):
            if one == "\n":
                folded[-1] = one  # a line break among blanks is a line break
            continue
        run = run + 1 if one == last and one.isalpha() else 1
        if run >= LENGTHENED:
            if run == LENGTHENED:
                folded.pop()
                places.pop()
            continue
        folded.append(one)
        places.append(offset + place)
    return Folded("".join(folded), places)


def unaccented(text: str) -> str:
    """Return the text without accents; for patterns, whose case has a meaning."""
    return "".join(one for one in unicodedata.normalize("NFKD", text) if not unicodedata.combining(one))


def _characters(text: str) -> Iterator[tuple[int, str]]:
    for place, character in enumerate(text):
        if character in APOSTROPHES or character == "\ufe0f":
            continue
        if character.isspace():
            yield place, "\n" if character in "\r\n\u2028\u2029" else " "
            continue
        if character.isascii():
            yield place, character.lower()
            continue
        for one in unicodedata.normalize("NFKD", character).casefold():
            if not unicodedata.combining(one) and one not in APOSTROPHES:
                yield place, " " if one.isspace() else one
