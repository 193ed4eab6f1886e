"""Which documents changed their meaning: claims that used to come true and, all of a sudden, do not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

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


OWN_MISSES = 0.2
MOST_NOISE = 0.5
"""A learner misses so many claims by itself; twice what surely goes beyond is taken for noise, up to ``MOST_NOISE``.
Chosen on banking77, where honest feedback ends at 0.1 missed, a change of half of the articles at 0.3, noise at 0.4 to
0.5. 0.25 does as well within 0.006."""


class Claims(NamedTuple):
    """What became of one document's claims. ``since`` is the log position at which nothing yet spoke for a change.

    ``changed`` is that of the last alarm while what was learned before it is still there, else -1.
    """

    doubt: float = 0.0
    misses: float = 0.0
    claims: float = 0.0
    since: int = 0
    changed: int = -1


_NONE = Claims()


class Changes:
    """A detector of change for each document (a slot number): Page's cumulative sum (Biometrika 41, 1954).

    Whenever memory puts a document first it claims that it will be rewarded. Every miss adds to the doubt, and every
    hit takes from it, the log-likelihood ratio of "it misses nearly always now" to "it misses as often as ever". So
    noise that was there all along, everywhere or with one document, raises no alarm however much there is.
    """

    def __init__(self) -> None:
        self.misses = 0.5
        self.claims = PRIOR
        self._documents: dict[int, Claims] = {}

    @property
    def noise(self) -> float:
        """Return the share of feedback that is taken to name a wrong document.

        Less than the misses say by two standard errors (of a share of 1/2; the prior is no evidence): nobody is accused
        on little.
        """
        surely = self.misses - 1.0 / math.sqrt(max(1.0, self.claims - PRIOR))
        return min(MOST_NOISE, 2.0 * max(0.0, surely - OWN_MISSES))

    def observe(self, slot: int, *, missed: bool, at: int, weight: float = 1.0) -> bool:
        """Take in what became of one claim, at the log position ``at``; return whether the document has changed.

        If so its test begins anew, and ``changed`` tells since when. O(1).
        """
        doubt, misses, claims, since, changed = self._documents.get(slot, _NONE)
        usual = min(AFTER, max(LEAST, (misses + PRIOR * self.misses) / (claims + PRIOR)))
        self.claims = min(MEMORY, self.claims + weight)
        self.misses += weight * (missed - self.misses) / self.claims
        ratio = AFTER / usual if missed else (1.0 - AFTER) / (1.0 - usual)
        doubt = max(0.0, doubt + weight * math.log(ratio))
        if doubt > LIMIT:
            self._documents[slot] = Claims(since=at, changed=since)
            return True
        since = since if doubt > 0.0 else at
        self._documents[slot] = Claims(doubt, misses + weight * missed, claims + weight, since, changed)
        return False

    def changed(self, slot: int) -> int | None:
        """Return the log position since when the document has changed, None if it has not or all is settled."""
        changed = self._documents.get(slot, _NONE).changed
        return changed if changed >= 0 else None

    def settle(self, slot: int) -> None:
        """Note that nothing is left of what was learned before the document changed."""
        self._documents[slot] = self._documents[slot]._replace(changed=-1)

    def drop(self, slot: int) -> None:
        """Forget the document in ``slot``."""
        self._documents.pop(slot, None)

    def table(self, place: Mapping[int, int]) -> list[tuple[float, ...]]:
        """Return the place and the ``Claims`` of every document that made a claim, for ``restore``."""
        return [(place[slot], *numbers) for slot, numbers in self._documents.items()]

    def restore(self, table: Sequence[Sequence[float]]) -> None:
        """Put back what ``table`` gave, places as slots."""
        self._documents = {
            int(slot): Claims(doubt, misses, claims, int(since), int(changed))
            for slot, doubt, misses, claims, since, changed in table
        }
