"""Which documents changed their meaning: claims that used to come true and, all of a sudden, do not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

AFTER = 0.9
"""A document that changed misses this share of its claims."""

LEAST = 0.05
"""A smaller share of misses is not believed: a few lucky claims prove little."""

PRIOR = 10.0
"""How many claims the namespace's share of misses is worth in a document's own."""

MEMORY = 1000.0
"""The namespace's share of misses is about this many recent claims."""

LIMIT = 7.0
"""Doubt at which a document counts as changed. One seed, drift, local / MiniLM: from 0.693 / 0.733 to 0.727 / 0.766;
with 8 to 0.705 / 0.754. At 6 hostile feedback raises false alarms now and then (local, one of two seeds: -0.012), at
4.5 often."""


OWN_MISSES = 0.25
MOST_NOISE = 0.5
"""A learner misses so many claims by itself; twice what surely goes beyond is taken for noise, up to ``MOST_NOISE``.
Chosen on banking77, where honest feedback ends at 0.1 missed, a change of half of the articles at 0.3, noise at 0.4 to
0.5. 10 times the fourth power and 3 times what is above 0.28 do within 0.005 of it."""


class Changes:
    """A detector of change for each document (a slot number): Page's cumulative sum (Biometrika 41, 1954).

    Whenever memory puts a document first it claims that it will be rewarded. Every miss adds to the doubt, and every
    hit takes from it, the log-likelihood ratio of "it misses nearly always now" to "it misses as often as ever". So
    noise that was there all along, everywhere or with one document, raises no alarm however much there is.
    """

    def __init__(self) -> None:
        self.misses = 0.5
        self.claims = 10.0
        self._documents: dict[int, tuple[float, float, float]] = {}

    @property
    def noise(self) -> float:
        """Return the share of feedback that is taken to name a wrong document.

        Less than the misses say by two standard errors (of a share of 1/2): nobody is accused on little evidence.
        """
        surely = self.misses - 1.0 / math.sqrt(self.claims)
        return min(MOST_NOISE, 2.0 * max(0.0, surely - OWN_MISSES))

    def observe(self, slot: int, *, missed: bool, weight: float = 1.0) -> bool:
        """Take in what became of one claim; return whether the document has changed, and if so begin anew. O(1)."""
        doubt, misses, claims = self._documents.get(slot, (0.0, 0.0, 0.0))
        usual = min(AFTER, max(LEAST, (misses + PRIOR * self.misses) / (claims + PRIOR)))
        self.claims = min(MEMORY, self.claims + weight)
        self.misses += weight * (missed - self.misses) / self.claims
        ratio = AFTER / usual if missed else (1.0 - AFTER) / (1.0 - usual)
        doubt = max(0.0, doubt + weight * math.log(ratio))
        if doubt > LIMIT:
            self.drop(slot)
            return True
        self._documents[slot] = doubt, misses + weight * missed, claims + weight
        return False

    def drop(self, slot: int) -> None:
        """Forget the document in ``slot``."""
        self._documents.pop(slot, None)

    def table(self, place: Mapping[int, int]) -> list[tuple[int, float, float, float]]:
        """Return place, doubt, misses and claims of every document that made a claim, for ``restore``."""
        return [(place[slot], *numbers) for slot, numbers in self._documents.items()]

    def restore(self, table: Sequence[Sequence[float]]) -> None:
        """Put back what ``table`` gave, places as slots."""
        self._documents = {int(slot): (float(a), float(b), float(c)) for slot, a, b, c in table}
