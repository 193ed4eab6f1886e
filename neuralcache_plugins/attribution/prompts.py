"""What a number in an answer means, read from the prompt that the answer was made from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice

_PROBE = 80
_HEADER = 160
_NUMBER = re.compile(r"\d{1,4}")
# blanks are matched possessively: shared out between neighbours they would take cubic time
_MARK = re.compile(r"\b(?:source|document|doc|passage|context|chunk|node)s?\s*+(?:id|no\.?|number)?\s*+[:#]?\s*+"
                   r"(\d{1,4})\b[\]):.]*"
                   r"|[\[(](\d{1,4})[\])]:?|^[ \t]*+(\d{1,4})[.)](?=\s)", re.I | re.M)
_FOLLOWING = 60
_SHORTEST = 12
_MOST_MARKS = 1_000


def labels_in(prompt: str, texts: Sequence[str]) -> dict[str, int] | None:
    """Return labels with the position of the text that each stands before in the prompt; None if no text is in it.

    A label is the number of a mark such as "Source 3:" or "[3]" whose text follows, a part of a document included; else
    a counting number in what stands before the texts; else texts are counted in the prompt's order, from 1. A label
    that two texts have (lists that begin anew) means neither. O(prompt + ``_MOST_MARKS`` * texts).
    """
    places = sorted((place, at) for at, text in enumerate(texts) if (place := _place(prompt, text)) >= 0)
    marked = _marked(prompt, texts)
    if marked and {at for _, at in places} <= {at for _, at in marked}:
        return _unambiguous(marked)
    if not places:
        return None
    headers, end = [], 0
    for place, at in places:
        headers.append([int(number) for number in _NUMBER.findall(prompt[max(end, place - _HEADER) : place])])
        end = place + min(len(texts[at]), _PROBE)
    counted = _counted(headers) or list(range(1, len(places) + 1))
    return _unambiguous([(str(number), at) for number, (_, at) in zip(counted, places, strict=True)])


def _marked(prompt: str, texts: Sequence[str]) -> list[tuple[str, int]]:
    """Return (number, position) of the first marks in the prompt that a part of exactly one text follows.

    Documents full of numbered lines have a mark in each, and each is looked for in all texts.
    """
    found = []
    for match in islice(_MARK.finditer(prompt), _MOST_MARKS):
        following = prompt[match.end() : match.end() + _FOLLOWING + 8].strip().partition("\n")[0][:_FOLLOWING]
        holders = [at for at, text in enumerate(texts) if len(following) >= _SHORTEST and following in text]
        if len(holders) == 1:
            found.append((str(int(next(filter(None, match.groups())))), holders[0]))
    return found


def _unambiguous(pairs: Sequence[tuple[str, int]]) -> dict[str, int]:
    meanings: dict[str, set[int]] = {}
    for label, at in pairs:
        meanings.setdefault(label, set()).add(at)
    return {label: next(iter(places)) for label, places in meanings.items() if len(places) == 1}


def _place(prompt: str, text: str) -> int:
    probe = text.strip()[:_PROBE]
    return prompt.find(probe) if probe else -1


def _counted(headers: Sequence[Sequence[int]]) -> list[int] | None:
    """Return the number before each text, if every header has one and they count up, perhaps beginning anew."""
    for first in headers[0]:
        found = [first]
        for header in headers[1:]:
            following = next((number for number in (found[-1] + 1, first) if number in header), None)
            if following is None:
                break
            found.append(following)
        else:
            return found
    return None
