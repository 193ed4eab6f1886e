"""What another order would have earned, from a log that explored: IPS, SNIPS and doubly robust estimates.

The question: had the other ranker chosen the first document of every explored ranking, what reward would that document
have got on average? The log answers where chance chose the same document, weighted by how rarely chance does. Only
the first place is used: its propensity is known exactly, and what is shown below cannot change who looks at it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.evaluation.uncertainty import Array, Bootstrap, Interval, finite

FOLDS = 5
RIDGE = 1.0


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """Mean reward of the first document, estimated from ``rankings`` explored rankings.

    ``logged`` is what the logged first documents got; ``gain`` is doubly robust minus logged, paired. ``matches``
    counts the rankings in which chance chose what the other ranker would have chosen. ``effective_sample_size`` is
    (sum w)^2 / sum w^2 (Kong 1992): how many equally weighted rankings the estimate is worth. ``mean_weight`` is 1 up
    to noise where chance has tried enough of the other ranker's choices.
    """

    rankings: int
    matches: int
    effective_sample_size: float
    largest_weight_share: float
    mean_weight: float
    logged: Interval
    ips: Interval
    snips: Interval
    doubly_robust: Interval
    gain: Interval

    def as_dict(self) -> dict[str, object]:
        """Return everything, ready for JSON."""
        names = ("logged", "ips", "snips", "doubly_robust", "gain")
        estimates = {name: getattr(self, name).as_dict() for name in names}
        return {
            "rankings": self.rankings, "matches": self.matches,
            "effective_sample_size": finite(self.effective_sample_size),
            "largest_weight_share": finite(self.largest_weight_share),
            "mean_weight": finite(self.mean_weight), **estimates,
        }


def counterfactual(
    rewards: Array, propensities: Array, matches: Array, logged_features: Array, chosen_features: Array, *,
    clusters: Sequence[str] | None = None, bootstrap: Bootstrap | None = None,
) -> Counterfactual:
    """Estimate the value of another choice from n logged ones.

    ``rewards`` (n,) are what the logged choices got, ``propensities`` (n,) in (0, 1] how likely they were, ``matches``
    (n,) whether the other ranker chooses the same. Features (n, f) describe the logged and the other choice to a model
    of the reward. With w = match / propensity:

    * IPS, mean(w r): unbiased (Horvitz and Thompson 1952).
    * SNIPS, sum(w r) / sum(w): a little biased, much steadier (Swaminathan and Joachims, NeurIPS 2015).
    * Doubly robust, mean(q(chosen) + w (r - q(logged))): unbiased because the model q, ridge regression, never saw the
      rankings it speaks about (five folds, contiguous in time), and steadier the better q is (Dudik, Langford and Li,
      ICML 2011).
    """
    if rewards.size and not ((propensities > 0.0) & (propensities <= 1.0)).all():
        raise InvalidInputError("propensities must be in (0, 1]")
    weights = matches.astype(np.float64) / propensities
    total, largest = float(weights.sum()), float(weights.max(initial=0.0))
    expected, predicted = _cross_fitted(rewards, logged_features, chosen_features)
    robust = expected + weights * (rewards - predicted)
    sure = bootstrap or Bootstrap()
    return Counterfactual(
        rankings=len(rewards),
        matches=int((weights > 0).sum()),
        effective_sample_size=total**2 / float(weights @ weights) if total else 0.0,
        largest_weight_share=largest / total if total else 0.0,
        mean_weight=total / len(rewards) if len(rewards) else 0.0,
        logged=sure.mean(rewards, clusters),
        ips=sure.mean(weights * rewards, clusters),
        snips=sure.ratio(weights * rewards, weights, clusters),
        doubly_robust=sure.mean(robust, clusters),
        gain=sure.mean(robust - rewards, clusters),
    )


def _cross_fitted(rewards: Array, logged: Array, chosen: Array) -> tuple[Array, Array]:
    """Return the model's rewards of the chosen and of the logged documents, each from the folds it was not in."""
    size = len(rewards)
    expected, predicted = np.zeros(size), np.zeros(size)
    fold = np.arange(size) * FOLDS // max(1, size)
    for one in range(FOLDS):
        held = fold == one
        if held.any() and not held.all():
            weights = _ridge(logged[~held], rewards[~held])
            expected[held] = _with_one(chosen[held]) @ weights
            predicted[held] = _with_one(logged[held]) @ weights
    return expected, predicted


def _ridge(features: Array, rewards: Array) -> Array:
    """Return ridge coefficients (f + 1,), the intercept (last) not shrunk: Hoerl and Kennard (1970)."""
    table = _with_one(features)
    penalty = RIDGE * np.eye(table.shape[1])
    penalty[-1, -1] = 1e-9
    return np.linalg.solve(table.T @ table + penalty, table.T @ rewards).astype(np.float64)


def _with_one(features: Array) -> Array:
    return np.concatenate([features, np.ones((len(features), 1))], axis=1)
