"""What lately was right where memory put a document first, so that one that changed can hand over what it knew."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

KEPT = 0.8
"""What a claim leaves of the earlier ones: about the last five count."""

LEAST = 0.05
MOST_DOCUMENTS = 1024
"""Documents watched; the one heard of least recently goes. A row has at most 14 entries, for they fade."""

ENOUGH = 1.5
MAJORITY = 0.4
"""A successor has more than this much of what was told of late, and more than this share: twice, mostly. With 0.6
drift loses 0.01, with 1 and 0.3 it gains nothing."""


class Successors:
    """For each document, by name, what was rewarded when memory put it first: shares that fade with every claim."""

    def __init__(self) -> None:
        self._rows: OrderedDict[str, dict[str, float]] = OrderedDict()

    def observe(self, first: str, shares: Mapping[str, float]) -> None:
        """Take in what was right (shares that sum to 1) where ``first`` was claimed to be. O(1)."""
        row = {name: left for name, one in self._rows.pop(first, {}).items() if (left := KEPT * one) >= LEAST}
        for name, share in shares.items():
            row[name] = row.get(name, 0.0) + share
        self._rows[first] = row
        if len(self._rows) > MOST_DOCUMENTS:
            self._rows.popitem(last=False)

    def of(self, first: str) -> str | None:
        """Return the document that took the place of ``first``, if one clearly did. O(1)."""
        row = self._rows.get(first, {})
        others = {name: one for name, one in row.items() if name != first}
        if not others:
            return None
        best = max(others, key=others.__getitem__)
        return best if others[best] > max(ENOUGH, MAJORITY * sum(row.values())) else None

    def drop(self, first: str) -> None:
        """Forget what was right in the place of ``first``."""
        self._rows.pop(first, None)

    def table(self) -> list[tuple[str, list[tuple[str, float]]]]:
        """Return all of it as JSON values, for ``restore``."""
        return [(first, list(row.items())) for first, row in self._rows.items()]

    def restore(self, table: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> None:
        """Put back what ``table`` gave."""
        self._rows = OrderedDict((first, dict(row)) for first, row in table)
