"""Which of the shown documents an answer was made from."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from neuralcache_plugins.contracts.arrays import Array

CITATION = "citation"
CONTEXT_USE = "context_use"


def _no_table() -> Array:
    return np.zeros((0, 0))


@dataclass(frozen=True, slots=True, eq=False)
class Attribution:
    """Which of the shown documents an answer used. Holds ids and numbers, no text.

    ``probabilities`` say for each shown document, in the order shown, how likely the answer used it; ``cited`` are
    those that it names; ``abstained`` tells that it says it cannot answer. ``rewards`` are what follows for learning:
    documents of which neither is sure get none. ``source`` is "citation" or "context_use". ``feedback`` maps the id of
    each ranking that was told to the id of the feedback. ``evidence`` (n, f) has one column per name in ``features``.
    """

    probabilities: Mapping[str, float]
    rewards: Mapping[str, float]
    source: str = CONTEXT_USE
    cited: tuple[str, ...] = ()
    abstained: bool = False
    feedback: Mapping[str, str] = field(default_factory=dict)
    features: tuple[str, ...] = ()
    evidence: Array = field(default_factory=_no_table, repr=False)

    def explain(self) -> str:
        """Return a table with one line per shown document: probability, reward, whether cited, and the evidence."""
        header, rows = self._table()
        widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
        lines = ["  ".join(cell.ljust(width) if place == 0 else cell.rjust(width)
                           for place, (cell, width) in enumerate(zip(row, widths, strict=True)))
                 for row in [header, *rows]]
        return "\n".join([self._caption(), *lines])

    def _repr_html_(self) -> str:
        header, rows = self._table()
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        return (f"<table><caption>{html.escape(self._caption())}</caption><thead><tr>{head}</tr></thead>"
                f"<tbody>{body}</tbody></table>")

    def _caption(self) -> str:
        if self.abstained:
            return "the answer says that it cannot answer: no feedback"
        told = ", ".join(self.feedback) or "nobody"
        return f"what the answer used, by {self.source}; told: {told}"

    def _table(self) -> tuple[list[str], list[list[str]]]:
        header = ["id", "used", "reward", "cited", *self.features]
        rows = [
            [name, f"{probability:.2f}", f"{self.rewards[name]:+.2f}" if name in self.rewards else "-",
             "yes" if name in self.cited else "-", *(f"{value:.2f}" for value in numbers)]
            for (name, probability), numbers in zip(self.probabilities.items(), self._numbers(), strict=True)
        ]
        return header, rows

    def _numbers(self) -> list[list[float]]:
        if self.evidence.size:
            found: list[list[float]] = self.evidence.tolist()
            return found
        return [[] for _ in self.probabilities]
