"""What is kept for each document: remembered questions with weights, and one linear model."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from neuralcache_plugins.contracts import Array, Matrix, Vector

FIRST_CAPACITY = 4
FIRST_SLOPES = 16
FIRST_WEIGHTS = 64
Offsets = npt.NDArray[np.int64]


class Near(NamedTuple):
    """All remembered questions of some candidates, compared with one question; see ``core.signals.association``.

    ``places`` (m,) is where their weights are kept, for ``Questions.reweigh`` before anything is added.
    """

    similarity: Vector
    weight: Vector
    starts: Offsets
    columns: Offsets
    remembered: Offsets
    places: Offsets


class Origin(NamedTuple):
    """Log positions: of the event that a remembered question is from, and of the one with which it was learned.

    They differ for a ranking that nobody answered, which is learned from when many later ones have been served.
    """

    event: int
    learned: int


_NOTHING = np.zeros((0, 0), dtype=np.float32)


class Questions:
    """For each document (a slot number) up to ``capacity`` question vectors with weights and origins.

    When a document is full, the remembered question nearest to the new one makes room: what it knew, the new one
    knows too. Blocks grow by doubling, so a document with one question costs four rows.

    Vectors have a block for each document. The weights of all documents stand in one array: they are read and written
    for many documents at once, where an array for each would cost more than the numbers in it.
    """

    def __init__(self, *, width: int, capacity: int) -> None:
        self.width = width
        self.capacity = capacity
        self.total = 0
        self._held: dict[int, Matrix] = {}
        """By slot, the filled part of its block."""
        self._begins = array("q")
        """By slot, where its weights begin, if it has any."""
        self.origins: dict[int, list[Origin]] = {}
        """By slot, in the order in which ``near`` has the questions. ``Origin.learned`` tells what came later: these
        lists change, and readers on other threads see it."""
        self._blocks: dict[int, Matrix] = {}
        self._weights: Vector = np.zeros(FIRST_WEIGHTS, dtype=np.float32)
        self._claimed = 0

    def near(self, slots: Sequence[int], question: Vector) -> Near | None:
        """Compare ``question`` with everything remembered for ``slots``, or return None if that is nothing.

        One matrix-vector product a candidate, without copying: O(remembered * width).
        """
        if not self._held:
            return None
        held = list(map(self._held.get, slots))
        found = [one for one in held if one is not None]
        if not found:
            return None
        compared = [rows.dot(question) for rows in found]
        sizes = np.fromiter(map(len, compared), dtype=np.int64, count=len(found))
        starts = sizes.cumsum()
        starts -= sizes
        if len(found) == len(held):
            columns, known = np.arange(len(held)), slots
        else:
            having = [at for at, one in enumerate(held) if one is not None]
            columns, known = np.array(having), [slots[at] for at in having]
        places = (np.frombuffer(self._begins, dtype=np.int64).take(known) - starts).repeat(sizes)
        places += np.arange(len(places))
        return Near(np.concatenate(compared), self._weights.take(places), starts, columns, sizes, places)

    def add(self, slot: int, question: Vector, weight: float, *, origin: Origin) -> None:
        """Remember one more question for ``slot``."""
        held = self._held.get(slot)
        count = 0 if held is None else len(held)
        if held is not None and count == self.capacity:
            self._overwrite(slot, int(held.dot(question).argmax()), question, weight, origin)
            return
        block, begin = self._room(slot, count)
        block[count] = question
        self._weights[begin + count] = weight
        self._held[slot] = block[: count + 1]
        self._begins[slot] = begin
        self.origins.setdefault(slot, []).append(origin)
        self.total += 1

    def suppose(self, slot: int, question: Vector, weight: float, *, origin: Origin, share: float) -> None:
        """Remember a question as ``add`` does, beyond a share of the capacity only in place of a weaker one."""
        weights = self._weights_of(slot)
        if len(weights) < share * self.capacity:
            self.add(slot, question, weight, origin=origin)
            return
        weakest = int(weights.argmin())
        if weights[weakest] < weight:
            self._overwrite(slot, weakest, question, weight, origin)

    def of(self, slot: int, number: int) -> tuple[Vector, float] | None:
        """Return one remembered question of ``slot`` and its weight, counting round and round; None if it has none."""
        rows = self._held.get(slot)
        if rows is None:
            return None
        place = number % len(rows)
        return rows[place], float(self._weights[self._begins[slot] + place])

    def reweigh(self, near: Near, weight: Vector) -> None:
        """Replace the weights (m,) of everything in ``near``; nothing may have been added or dropped since."""
        self._weights[near.places] = weight

    def fade(self, slot: int, kept: float, *, before: int | None = None) -> None:
        """Leave only the share ``kept`` of the weight of what ``slot`` remembers, if learned ``before`` a position."""
        weights = self._weights_of(slot)
        if len(weights):
            old = [before is None or origin.learned < before for origin in self.origins[slot]]
            weights[old] *= np.float32(kept)

    def take(self, slot: int, *, before: int) -> tuple[Matrix, list[Origin]]:
        """Forget for ``slot`` what was learned before a position, and return it: vectors (n, width) and origins."""
        rows = self._held.get(slot)
        if rows is None:
            return _zeros(0, self.width), []
        weights, origins = self._weights_of(slot), self.origins[slot]
        old = np.array([origin.learned < before for origin in origins])
        taken = rows[old], [one for one, gone in zip(origins, old.tolist(), strict=True) if gone]
        self.drop(slot)
        if not old.all():
            left = [one for one, gone in zip(origins, old.tolist(), strict=True) if not gone]
            self.restore(slot, rows[~old], weights[~old], left)
        return taken

    def rows(self, slot: int) -> Matrix:
        """Return the vectors (n, width) of what ``slot`` remembers."""
        rows = self._held.get(slot)
        return _zeros(0, self.width) if rows is None else rows

    def drop(self, slot: int) -> None:
        """Forget everything remembered for ``slot``."""
        rows = self._held.pop(slot, None)
        if rows is not None:
            self.total -= len(rows)
            del self.origins[slot], self._blocks[slot]

    def groups(self) -> Iterator[tuple[int, Matrix, Vector, list[Origin]]]:
        """Yield slot, rows, weights and origins of every document that has some."""
        for slot, rows in self._held.items():
            yield slot, rows, self._weights_of(slot), self.origins[slot]

    def restore(self, slot: int, rows: Matrix, weights: Vector, origins: Sequence[Origin]) -> None:
        """Put back what ``groups`` gave."""
        capacity = FIRST_CAPACITY
        while capacity < len(rows):
            capacity *= 2
        block, begin = self._new_block(slot, min(capacity, self.capacity))
        block[: len(rows)] = rows
        self._weights[begin : begin + len(rows)] = weights
        self._held[slot] = block[: len(rows)]
        self._begins[slot] = begin
        self.origins[slot] = list(origins)
        self.total += len(rows)

    def _overwrite(self, slot: int, place: int, question: Vector, weight: float, origin: Origin) -> None:
        self._held[slot][place] = question
        self._weights[self._begins[slot] + place] = weight
        self.origins[slot][place] = origin

    def _weights_of(self, slot: int) -> Vector:
        """Return the slot's weights (n,), to read or write."""
        rows = self._held.get(slot, _NOTHING)
        begin = self._begins[slot] if len(rows) else 0
        return self._weights[begin : begin + len(rows)]

    def _room(self, slot: int, count: int) -> tuple[Matrix, int]:
        """Return the slot's block, with room for more than ``count``, and where its weights begin."""
        block = self._blocks.get(slot)
        if block is not None and count < len(block):
            return block, self._begins[slot]
        grown, begin = self._new_block(slot, min(self.capacity, max(FIRST_CAPACITY, 2 * count)))
        if block is not None:
            grown[:count] = block
            self._weights[begin : begin + count] = self._weights_of(slot)
        return grown, begin

    def _new_block(self, slot: int, size: int) -> tuple[Matrix, int]:
        """Give the slot a block of ``size`` zeros, and claim as much room for its weights; what it had stays held."""
        if self._claimed + size > len(self._weights):
            self._close_ranks(size)
        begin = self._claimed
        self._claimed += size
        while slot >= len(self._begins):
            self._begins.append(0)
        self._blocks[slot] = block = _zeros(size, self.width)
        return block, begin

    def _close_ranks(self, more: int) -> None:
        """Move the weights together, where blocks that grew or went have left gaps, and make room for many ``more``."""
        room = sum(map(len, self._blocks.values()))
        moved = np.zeros(max(FIRST_WEIGHTS, 2 * (room + more)), dtype=np.float32)
        self._claimed = 0
        for slot, rows in self._held.items():
            moved[self._claimed : self._claimed + len(rows)] = self._weights_of(slot)
            self._begins[slot] = self._claimed
            self._claimed += len(self._blocks[slot])
        self._weights = moved


class Slopes:
    """For each document (a slot number) one linear model: which directions of a question speak for it.

    Where remembered questions vote, this generalises: it is moved by its errors, so it also tells apart documents
    whose questions are alike. One row of ``width`` numbers a document.
    """

    def __init__(self, width: int) -> None:
        self.rows = _zeros(FIRST_SLOPES, width)

    def scores(self, slots: Sequence[int], question: Vector) -> Array:
        """Return each slot's model for ``question``, (n,); 0 for slots that never learned, such as -1. O(n * width)."""
        chosen = np.array(slots, dtype=np.int64)
        # of a copy even where most are asked for: of the whole, the last bit would depend on where a slot is
        scores = self.rows.take(chosen, axis=0, mode="clip").dot(question)
        if min(slots) < 0 or max(slots) >= len(self.rows):
            scores[(chosen < 0) | (chosen >= len(self.rows))] = 0.0
        wide: Array = scores.astype(np.float64)
        return wide

    def move(self, slots: Sequence[int], question: Vector, amounts: Sequence[float]) -> None:
        """Add ``amounts`` (n,) times ``question`` to the slots' models; of a slot named twice the last counts."""
        self._grow(max(slots) + 1)
        chosen = np.array(slots)
        moved = self.rows.take(chosen, axis=0)
        moved += np.array(amounts, dtype=np.float32)[:, None] * question
        self.rows[chosen] = moved

    def rehearse(self, slots: Sequence[int], questions: Matrix, rates: Vector) -> None:
        """Move the slots' models so that each of ``questions`` (n, width) speaks for its own slot, and not for another.

        One step on the listwise log-loss, of the size ``rates`` (n,), for all at once. O(n^2 * width).
        """
        chosen = np.array(slots)
        models = self.rows.take(chosen, axis=0)
        steps = questions.dot(models.T)
        steps -= np.maximum.reduce(steps, axis=1, keepdims=True)
        np.exp(steps, out=steps)
        steps *= (-rates / np.add.reduce(steps, axis=1))[:, None]
        steps.ravel()[:: len(chosen) + 1] += rates  # the diagonal
        models += steps.T.dot(questions)
        self.rows[chosen] = models

    def tell_apart(self, slot: int, other: int, questions: Matrix, rate: float) -> None:
        """Move two models so that ``questions`` (n, width), one after the other, speak for ``slot`` and not ``other``.

        Steps of logistic regression. O(n * width).
        """
        self._grow(max(slot, other) + 1)
        right, wrong = self.rows[slot], self.rows[other]
        for question in questions:
            step = np.float32(rate / (1.0 + math.exp(min(50.0, float((right - wrong).dot(question)))))) * question
            right += step
            wrong -= step

    def fade(self, slot: int, kept: float) -> None:
        """Leave only the share ``kept`` of the slot's model."""
        if slot < len(self.rows):
            self.rows[slot] *= np.float32(kept)

    def drop(self, slot: int) -> None:
        """Forget the slot's model."""
        self.fade(slot, 0.0)

    def of(self, slots: Sequence[int]) -> Matrix:
        """Return the slots' models (n, width)."""
        rows = _zeros(len(slots), self.rows.shape[1])
        known = [place for place, slot in enumerate(slots) if slot < len(self.rows)]
        rows[known] = self.rows[[slots[place] for place in known]]
        return rows

    def restore(self, rows: Matrix) -> None:
        """Put back what ``of`` gave, as slots 0, 1, ..."""
        self._grow(len(rows))
        self.rows[: len(rows)] = rows

    def _grow(self, size: int) -> None:
        while len(self.rows) < size:
            self.rows = np.concatenate((self.rows, np.zeros_like(self.rows)))


def _zeros(rows: int, width: int) -> Matrix:
    return np.zeros((rows, width), dtype=np.float32)
