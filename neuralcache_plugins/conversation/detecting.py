"""Which markers are in a message, and what they say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from neuralcache_plugins.conversation.catalogue import Catalogue, Marker, Polarity
from neuralcache_plugins.conversation.folding import Folded, windows
from neuralcache_plugins.conversation.patterns import Pattern
from neuralcache_plugins.conversation.repetition import Asked, repeats
from neuralcache_plugins.conversation.topics import turns_away

SOURCE = "marker:"
STRONG = 0.5
"""Markers that are worth less are counted and shown, but no feedback comes of them."""

_LEADING = " \n\t.,;:!?()-\u2013\u2014\u2026\"\u00a1\u00bf"


@dataclass(frozen=True, slots=True)
class Hit:
    """A marker in a message. ``spans`` are (start, end) in the message, empty where no words tell (a repetition).

    ``value`` in [-1, 1] is the reward that it stands for.
    """

    marker: str
    language: str
    polarity: Polarity
    value: float
    scope: Literal["next", "same"]
    spans: tuple[tuple[int, int], ...]
    resets_narrative: bool = False

    @property
    def source(self) -> str:
        """The source of feedback that this marker gives."""
        return f"{SOURCE}{self.marker}"


class _Compiled(NamedTuple):
    marker: Marker
    language: str
    patterns: tuple[Pattern, ...]
    unless: tuple[Pattern, ...]


class Detector:
    """A catalogue, compiled. Deterministic; the work for one message is bounded. Raises ``InvalidInputError``."""

    def __init__(self, markers: Catalogue) -> None:
        self._compiled = []
        for file, marker in markers.markers():
            where = f"marker {marker.id!r} ({file.language})"
            self._compiled.append(_Compiled(
                marker, file.language,
                tuple(Pattern(file.expanded(one.pattern), where=where) for one in marker.patterns),
                tuple(Pattern(file.expanded(one), where=where) for one in marker.unless),
            ))

    def hits(self, message: str, *, now: Asked, before: Sequence[Asked] = (), was_asked: bool = False,
             answer: Asked | None = None) -> list[Hit]:
        """Return the markers in a message, in the catalogue's order, one for each id.

        ``now`` is the message as a question, ``before`` the user's questions before it; ``was_asked`` tells that the
        assistant's last words, ``answer``, were a question.
        """
        seen = windows(message)
        found: dict[str, Hit] = {}
        for each in self._compiled:
            if (was_asked and each.marker.not_as_answer) or each.marker.detector == "topic":
                continue
            spans = _repetition(each.marker, now, before) if not each.patterns else _spans(each, seen)
            if spans is None:
                continue
            known = found.get(each.marker.id)
            if known is None or abs(known.value) < each.marker.weight:
                found[each.marker.id] = _hit(each, spans)
        # who thanks, answers or asks to explain says other words than before, and is at the same topic
        return list(found.values()) if found or was_asked else self._another_topic(now, before, answer)

    def _another_topic(self, now: Asked, before: Sequence[Asked], answer: Asked | None) -> list[Hit]:
        return [_hit(each, ()) for each in self._compiled
                if each.marker.detector == "topic" and turns_away(now, before, answer, vector=each.marker.vector)]


def score(hits: Sequence[Hit], *, scope: Literal["next", "same"] = "next") -> tuple[float, Hit | None]:
    """Return what hits of one scope say of an answer, in [-1, 1], and the one that decides.

    The strongest decides, and negative ones come first: who corrects says thanks out of courtesy. Only weak ones (a
    request for clarification) yield to praise.
    """
    told = [hit for hit in hits if hit.scope == scope and hit.value]
    against = [hit for hit in told if hit.value < 0]
    decisive = [hit for hit in against if -hit.value >= STRONG] or [hit for hit in told if hit.value > 0] or against
    if not decisive:
        return 0.0, None
    strongest = max(decisive, key=lambda hit: abs(hit.value))
    return strongest.value, strongest


def _hit(each: _Compiled, spans: tuple[tuple[int, int], ...]) -> Hit:
    marker = each.marker
    return Hit(
        marker.id, each.language, marker.polarity, marker.value, marker.scope, spans, marker.resets_narrative
    )


def _repetition(marker: Marker, now: Asked, before: Sequence[Asked]) -> tuple[tuple[int, int], ...] | None:
    return () if repeats(now, before, lexical=marker.lexical, vector=marker.vector) else None


def _spans(each: _Compiled, seen: Sequence[Folded]) -> tuple[tuple[int, int], ...] | None:
    """Return where the marker is, None if it is not there; its rule must hold in one window."""
    spans: set[tuple[int, int]] = set()
    for window in seen:
        places = [list(pattern.spans(window.text)) for pattern in each.patterns]
        if each.marker.fires([bool(one) for one in places]):
            spans |= {_trimmed(window, start, end) for one in places for start, end in one}
    if not spans or any(pattern.matches(window.text) for window in seen for pattern in each.unless):
        return None
    return tuple(sorted(spans))


def _trimmed(window: Folded, start: int, end: int) -> tuple[int, int]:
    while start < end - 1 and window.text[start] in _LEADING:
        start += 1
    while end > start + 1 and window.text[end - 1] in _LEADING:
        end -= 1
    return window.span(start, end)
