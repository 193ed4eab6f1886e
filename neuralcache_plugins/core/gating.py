"""How many candidates deserve the expensive scorer, and what its verdict changes."""

from __future__ import annotations

import numpy as np

from neuralcache_plugins.contracts import Array, Positions, Vector
from neuralcache_plugins.core.fusion import standardize

CONFIDENT_MASS = 0.99
"""The cheap signals are sure of a set of candidates when it holds this much of the probability."""

SHARPNESS = 1.75
"""As for the cold order: how decided probabilities are made of standardised scores."""


def contenders(log_probabilities: Array, *, budget: int) -> Positions:
    """Return the fewest best candidates that together hold ``CONFIDENT_MASS``, at most ``budget``, best first.

    One sure winner returns one candidate: then nothing is left for the scorer to decide. O(n log n).
    """
    order = np.argsort(-log_probabilities, kind="stable")
    mass = np.cumsum(np.exp(log_probabilities[order]))
    enough = int(np.searchsorted(mass, CONFIDENT_MASS * mass[-1])) + 1
    return order[: min(enough, budget)].astype(np.int64, copy=False)


def rescore(log_probabilities: Array, head: Positions, scores: Vector, *, weight: float) -> Array:
    """Return log-probabilities in which ``head`` (m,) has shared out its mass anew by the scorer's ``scores`` (m,).

    The mass of the head stays what it was, so a contender that the scorer rejects can fall behind the tail. O(n).
    """
    revised = log_probabilities.copy()
    if len(head) < 2:
        return revised
    worth = SHARPNESS * standardize(standardize(log_probabilities[head]) + weight * standardize(scores))
    share = np.exp(worth - worth.max())
    revised[head] = np.log(share / share.sum() + 1e-6) + np.log(np.exp(log_probabilities[head]).sum())
    return revised
