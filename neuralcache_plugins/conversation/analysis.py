"""The whole picture of one conversation, for people and notebooks."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass

from neuralcache_plugins.conversation.detecting import Hit

_COLOURS = {"positive": "#c8e6c9", "negative": "#ffcdd2", "neutral": "#e0e0e0"}
_SHOWN = 300


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of the user.

    ``index`` is its place in the messages. ``score`` in [-1, 1] is what it says of the answer before it, ``decided_by``
    the marker that says so; ``opening`` is what it says of its own turn (scope "same"). ``topic`` counts from 1 and
    rises when a marker says that the conversation turns to something else.
    """

    index: int
    text: str
    hits: tuple[Hit, ...]
    score: float
    decided_by: str | None
    opening: float
    topic: int


@dataclass(frozen=True, slots=True)
class Analysis:
    """What a conversation tells, turn by turn. Holds the texts that it was given; shows itself in notebooks."""

    turns: tuple[Turn, ...]

    @property
    def score(self) -> float:
        """The mean score of the turns that say something of an answer; 0 where none does."""
        told = [turn.score for turn in self.turns if turn.score]
        return sum(told) / len(told) if told else 0.0

    def __str__(self) -> str:
        lines = [f"{len(self.turns)} turns of the user, mean score {self.score:+.2f}"]
        for turn in self.turns:
            names = ", ".join(hit.marker for hit in turn.hits) or "-"
            lines.append(f"{turn.index:>3}  topic {turn.topic}  {turn.score:+.2f}  {names}: {_short(turn.text)!r}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{turn.index}</td><td>{turn.topic}</td><td>{turn.score:+.2f}</td>"
            f"<td>{html.escape(', '.join(hit.marker for hit in turn.hits))}</td>"
            f'<td style="text-align: left">{"".join(_marked(turn))}</td></tr>'
            for turn in self.turns
        )
        head = "".join(f"<th>{name}</th>" for name in ("message", "topic", "score", "markers", "text"))
        caption = f"{len(self.turns)} turns, mean score {self.score:+.2f}"
        return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _marked(turn: Turn) -> Iterator[str]:
    at, end = 0, min(len(turn.text), _SHOWN)
    for start, stop, polarity in sorted((*span, hit.polarity) for hit in turn.hits for span in hit.spans):
        if start < at or stop > end:
            continue
        yield html.escape(turn.text[at:start])
        yield f'<mark style="background: {_COLOURS[polarity]}">{html.escape(turn.text[start:stop])}</mark>'
        at = stop
    yield html.escape(turn.text[at:end]) + ("…" if end < len(turn.text) else "")


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:79]}…"
