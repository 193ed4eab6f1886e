"""What is known of documents by themselves: credit, exposure, rewards. Bounded; the stalest goes."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from itertools import repeat

import numpy as np
import numpy.typing as npt

from neuralcache_plugins.contracts import Array, Vector
from neuralcache_plugins.core import signals

COLUMNS = ("credit", "exposure", "written_at", "rewards", "passed_over")

FEW = 16
"""Up to so many numbers plain Python is faster than numpy."""

KNOWN_AFTER = 2.0
"""So many feedbacks that passed a document over make it half known."""


class Documents:
    """Numbers by document, each document in a slot of its own that is used again when the document goes.

    Arrays of the standard library: written one number at a time, where numpy is slow, and read by many, where it is
    fast and needs no copy of them.
    """

    def __init__(self, *, capacity: int, half_life_seconds: float) -> None:
        self.capacity = capacity
        self.half_life_seconds = half_life_seconds
        self.slots: OrderedDict[str, int] = OrderedDict()
        self.free: list[int] = []
        self.credit = array("d")
        self.exposure = array("d")
        self.written_at = array("d")
        self.rewards = array("d")
        self.passed_over = array("d")
        self.rewards_total = 0.0

    def __len__(self) -> int:
        return len(self.slots)

    def slots_of(self, ids: Sequence[str]) -> list[int]:
        """Return the slot of each document, -1 for those never seen."""
        return list(map(self.slots.get, ids, repeat(-1)))

    def pheromones(self, slots: Sequence[int], now: float) -> Vector:
        """Return the standing of each slot in (-1, 1) as of ``now``; 0 for the unknown."""
        if not self.slots:
            return np.zeros(len(slots), dtype=np.float32)
        if len(slots) <= FEW:
            return np.array([self._standing(slot, now) for slot in slots], dtype=np.float32)
        chosen = np.array(slots, dtype=np.int64)
        fade = signals.fade(np.frombuffer(self.written_at)[chosen], now, half_life_seconds=self.half_life_seconds)
        standing = signals.pheromone(
            np.frombuffer(self.credit)[chosen] * fade, np.frombuffer(self.exposure)[chosen] * fade
        )
        standing[chosen < 0] = 0.0
        return standing

    def shares(self, slots: npt.NDArray[np.int64]) -> Array:
        """Return the share of all rewards that each known slot has, as far as there are enough to tell."""
        shares: Array = np.frombuffer(self.rewards).take(slots)
        shares /= self.rewards_total + signals.POPULARITY_PRIOR
        return shares

    def unknown(self, slots: Sequence[int]) -> Array:
        """Return how little is known of each slot, (n,) in (0, 1]: 1 if no feedback ever passed it over, less later."""
        if not self.slots:
            return np.ones(len(slots))
        chosen = np.array(slots, dtype=np.int64)
        unknown: Array = KNOWN_AFTER / (KNOWN_AFTER + np.frombuffer(self.passed_over)[chosen])
        unknown[chosen < 0] = 1.0
        return unknown

    def pay(self, document_id: str, *, at: float, credit: float = 0.0, exposure: float = 0.0) -> int | None:
        """Bring a document's numbers up to ``at``, then add. Returns the slot of a document that had to go for it."""
        slot, evicted = self.slots.get(document_id), None
        if slot is None:
            slot, evicted = self._new_slot(document_id)
        else:
            self.slots.move_to_end(document_id)
        written = self.written_at[slot]
        if at > written:
            fade = 2.0 ** ((written - at) / self.half_life_seconds)
            self.credit[slot] *= fade
            self.exposure[slot] *= fade
            self.written_at[slot] = at
        self.credit[slot] += credit
        self.exposure[slot] += exposure
        if credit > 0:
            self.rewards[slot] += credit
            self.rewards_total += credit
        return evicted

    def pass_over(self, slot: int, weight: float) -> None:
        """Note that feedback of ``weight`` on a ranking did not praise the document in ``slot``, if not -1. O(1).

        At whatever rank it was shown, so that documents always shown together stay equally known.
        """
        if slot >= 0:
            self.passed_over[slot] += weight

    def evict(self) -> int:
        """Drop the document that was heard of least recently and return its slot."""
        _, slot = self.slots.popitem(last=False)
        self.rewards_total -= self.rewards[slot]
        for name in COLUMNS:
            getattr(self, name)[slot] = 0.0
        self.free.append(slot)
        return slot

    def _standing(self, slot: int, now: float) -> float:
        """Return what ``signals.pheromone`` does for one slot."""
        if slot < 0:
            return 0.0
        fade: float = 2.0 ** (min(0.0, self.written_at[slot] - now) / self.half_life_seconds)
        credit, exposure = self.credit[slot] * fade, self.exposure[slot] * fade
        discounted = credit / (1.0 + max(0.0, exposure - abs(credit)) / signals.EXPOSURE_PATIENCE)
        return discounted / (1.0 + abs(discounted))

    def _new_slot(self, document_id: str) -> tuple[int, int | None]:
        evicted = self.evict() if len(self.slots) >= self.capacity else None
        if self.free:
            slot = self.free.pop()
        else:
            slot = len(self.credit)
            for name in COLUMNS:
                getattr(self, name).append(0.0)
        self.slots[document_id] = slot
        return slot, evicted
