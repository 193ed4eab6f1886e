"""What was shown behind each first document when nobody found anything helpful: it makes room for what was not."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from neuralcache_plugins.contracts import Array

PENALTY = 2.0
MOST_PENALTY = 10.0
"""Log-probability that a document loses for each silence, and in all. Half of it does as well within 0.01."""

FORGIVEN = 0.3
"""Share of a row that one reward takes back: where most questions are answered, a silence is an accident."""

LEAST = 0.05
"""Less than this is forgotten."""

MOST_OTHERS = 64
MOST_FIRSTS = 1024
"""Documents remembered behind one first document, and first documents remembered; the least and the oldest go."""

_NOTHING: Mapping[str, float] = {}


class Fruitless:
    """For each document that came first: what stood behind it in vain, by name, each with a weight.

    What is learned from feedback compares only documents that were shown. When the world changes, the new right one
    may not be among them, and then nothing that is told can bring it forward: only silence can, as evidence against
    all that was shown. Questions of one kind are far apart as vectors (on banking77 half of the pairs by less than 2.5
    deviations of any two), but memory answers them with the same document. So the first document stands for the kind
    of question, and the next question of that kind is shown others behind it. The first one keeps its place: whether
    it is right, feedback and silence tell by other ways.
    """

    def __init__(self) -> None:
        self._rows: OrderedDict[str, dict[str, float]] = OrderedDict()

    def silent(self, shown: Sequence[str], *, weight: float) -> None:
        """Count silence of ``weight`` in (0, 1] against all that was shown behind the first. O(shown)."""
        row = self._rows.setdefault(shown[0], {})
        self._rows.move_to_end(shown[0])
        for name in shown[1:]:
            row[name] = row.get(name, 0.0) + weight
        while len(row) > MOST_OTHERS:
            del row[min(row, key=row.__getitem__)]
        if len(self._rows) > MOST_FIRSTS:
            self._rows.popitem(last=False)

    def told(self, first: str, helped: Collection[str], *, weight: float) -> None:
        """Forgive those that helped behind ``first`` all, and the others a little: something was found. O(row)."""
        row = self._rows.get(first)
        if row is None:
            return
        kept = 1.0 - FORGIVEN * weight
        left = {name: kept * one for name, one in row.items() if name not in helped and kept * one >= LEAST}
        if left:
            self._rows[first] = left
        else:
            del self._rows[first]

    def penalties(self, names: Sequence[str], first: int) -> Array:
        """Return what each of ``names`` (n,) loses behind the one at ``first``, <= 0. O(n)."""
        get = self._rows.get(names[first], _NOTHING).get
        lost = np.minimum(MOST_PENALTY, PENALTY * np.array([get(name, 0.0) for name in names]))
        lost[first] = 0.0
        return -lost

    def knows(self, first: str) -> bool:
        """Return whether anything stood behind ``first`` in vain."""
        return first in self._rows

    def table(self) -> list[tuple[str, list[tuple[str, float]]]]:
        """Return all of it as JSON values, for ``restore``."""
        return [(first, list(row.items())) for first, row in self._rows.items()]

    def restore(self, table: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> None:
        """Put back what ``table`` gave."""
        self._rows = OrderedDict((first, dict(row)) for first, row in table)
