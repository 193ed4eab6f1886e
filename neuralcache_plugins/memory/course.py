"""How trust came to be what it is: some points of its past, and the last time the guard changed its mind."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from neuralcache_plugins.contracts import Array
from neuralcache_plugins.core.trust import FEATURES, Trust

MOST_POINTS = 64


class Decision(NamedTuple):
    """The guard changed its mind: from now on the learned order counts, or no longer does.

    ``feedback`` is the number of the namespace's feedback that tipped it, ``at`` that feedback's time (seconds since
    the epoch, UTC). ``over_cold`` and ``over_avoidance`` are the evidence (natural logarithms) as of then.
    """

    counts: bool
    feedback: int
    at: float
    over_cold: float
    over_avoidance: float


class Point(NamedTuple):
    """Trust, evidence and weights (by the order of ``core.trust.FEATURES``) right after one feedback."""

    feedback: int
    at: float
    trust: float
    over_cold: float
    over_avoidance: float
    weights: tuple[float, ...]


class Course:
    """The past of one ``Trust``, bounded: every ``stride``-th feedback, which doubles when there are too many points.

    So the points are evenly spread over all feedback, between 32 and 64 of them, and the same log gives the same.
    """

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.decision: Decision | None = None
        self.seen = 0
        self.stride = 1
        self.tests = 0

    def observe(self, trust: Trust, *, feedback: int, at: float) -> None:
        """Look at ``trust`` after one more feedback that it has learned from."""
        self.seen += 1
        if trust.tests != self.tests:  # only a test moves the evidence
            self.tests = trust.tests
            if trust.earned != (self.decision is not None and self.decision.counts):
                self.decision = Decision(trust.earned, feedback, at, *trust.strongest())
        if self.seen % self.stride == 0:
            weights = tuple(trust.named_weights().values())
            self.points.append(Point(feedback, at, trust.value, *trust.strongest(), weights))
            if len(self.points) > MOST_POINTS:
                self.points = self.points[1::2]
                self.stride *= 2

    def table(self) -> Array:
        """Return the points as rows of numbers, (points, 5 + features)."""
        rows = [(*point[:-1], *point.weights) for point in self.points]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(Point._fields) - 1 + len(FEATURES))

    def restore(self, table: Array) -> None:
        """Put back what ``table`` gave."""
        self.points = [
            Point(int(feedback), at, trust, over_cold, over_avoidance, tuple(weights))
            for feedback, at, trust, over_cold, over_avoidance, *weights in table.tolist()
        ]
