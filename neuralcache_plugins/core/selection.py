"""From worth to an order: the best few, the best few that differ, or a little chance."""

from __future__ import annotations

import numpy as np

from neuralcache_plugins.contracts import Array, Matrix, Positions, Vector


def best(worth: Array, count: int) -> Positions:
    """Return the positions of the ``count`` greatest values, best first; ties go to the earlier. O(n log n)."""
    return np.argsort(-worth, kind="stable")[:count].astype(np.int64, copy=False)


def best_and_diverse(worth: Array, rows: Matrix, *, count: int, diversity: float) -> Positions:
    """Pick ``count`` candidates one by one, each worthy and unlike those already picked.

    Maximal marginal relevance (Carbonell & Goldstein, SIGIR 1998, eq. 1): the next pick maximises
    ``(1 - diversity) * worth - diversity * max cosine to the picks``. ``worth`` is in [0, 1], ``rows`` are unit rows
    (n, d). The first pick is always the worthiest. O(count * n * d): a running maximum replaces the comparison with
    every earlier pick.
    """
    remaining = ((1.0 - diversity) * worth).astype(np.float32)
    nearest = np.full(len(worth), -np.inf, dtype=np.float32)
    picked = [int(worth.argmax())]
    while len(picked) < count:
        remaining[picked[-1]] = -np.inf
        np.maximum(nearest, rows @ rows[picked[-1]], out=nearest)
        picked.append(int((remaining - diversity * nearest).argmax()))
    return np.array(picked, dtype=np.int64)


def explore(
    order: Positions, *, count: int, probability: float, rng: np.random.Generator
) -> tuple[Positions, Vector]:
    """Fill each rank at random with ``probability``, else with the best that is left.

    ``order`` (n,) is the greedy order of all candidates. Returns the first ``count`` positions and the propensity
    with which each got its rank, given the ranks before it: what inverse propensity scoring needs. O(count * n).
    """
    left = order.tolist()
    picked: list[int] = []
    propensities: list[float] = []
    for _ in range(count):
        choice = int(rng.integers(len(left))) if rng.random() < probability else 0
        propensities.append(probability / len(left) + (1.0 - probability) * (choice == 0))
        picked.append(left.pop(choice))
    return np.array(picked, dtype=np.int64), np.array(propensities, dtype=np.float32)
