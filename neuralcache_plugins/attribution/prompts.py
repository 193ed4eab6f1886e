"""What a number in an answer means, read from the prompt that the answer was made from."""

from __future__ import annotations

import re
from collections.abc import Sequence

_PROBE = 80
_HEADER = 160
_NUMBER = re.compile(r"\d{1,4}")


def labels_in(prompt: str, texts: Sequence[str]) -> dict[str, int] | None:
    """Return labels with the position of the text that each stands before in the prompt; None if no text is in it.

    Where a counting number stands before every text ("Source 0:", "[3]"), that is its label; else texts are counted
    in the prompt's order, from 1. A label that two texts have (lists that begin anew) means neither. O(n * prompt).
    """
    places = sorted((place, at) for at, text in enumerate(texts) if (place := _place(prompt, text)) >= 0)
    if not places:
        return None
    headers, end = [], 0
    for place, at in places:
        headers.append([int(number) for number in _NUMBER.findall(prompt[max(end, place - _HEADER) : place])])
        end = place + min(len(texts[at]), _PROBE)
    runs = _counted(headers)
    labels: dict[str, int] = {}
    twice = set()
    for number, (_, at) in zip(runs or range(1, len(places) + 1), places, strict=True):
        if labels.setdefault(str(number), at) != at:
            twice.add(str(number))
    return {label: at for label, at in labels.items() if label not in twice}


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
