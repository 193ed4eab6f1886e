"""How much the learned order may count: weights that follow the evidence, and a guard with the burden of proof.

Every feedback is a test of the learned order, taken before the order learns from it. The guard compares, as a
betting wealth in logarithms, what the learned order predicted with what two nulls predicted:

1. the cold order, as a Bayes mixture over how sharply it should be read;
2. "never the right one": whoever rewards wrong documents at random earns that much by avoiding the right one.

Only when both are beaten beyond a burden does the learned order count at all. Exponential weights with a prior as in
Vovk (1998) and Freund & Schapire (1997); the learner is AdaGrad (Duchi et al., 2011) on the listwise log-loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from neuralcache_plugins.contracts import Array

FEATURES = ("cold", "near", "middle", "wide", "rejection", "pheromone", "narrative")
START = np.array([0.1, 0.3, 0.3, 0.3, 0.3, 0.0, 0.0])
RATE = np.array([0.15, 0.15, 0.15, 0.15, 0.15, 0.02, 0.02])
SHARPNESS = np.array([0.25, 0.5, 0.75, 1.0, 1.5])
BURDEN = 3.0
COST = 0.02
FORGETTING = 0.999
WORST = -5.0
UNIFORM_SHARE = 0.02


def log_softmax(values: Array) -> Array:
    """Return the logarithms of the probabilities that ``values`` (n,) stand for. O(n)."""
    shifted = values - values.max()
    result: Array = shifted - math.log(np.exp(shifted).sum())
    return result


@dataclass(slots=True)
class Trust:
    """Weights of the features and the evidence for them, of one namespace and encoder."""

    weights: Array = field(default_factory=START.copy)
    squares: Array = field(default_factory=lambda: np.full(len(START), 1e-2))
    over_cold: float = 0.0
    over_avoidance: float = 0.0
    sharpness_evidence: Array = field(default_factory=lambda: np.zeros(len(SHARPNESS)))
    tests: int = 0

    @property
    def value(self) -> float:
        """Return the trust in [0, 1): the logistic of the lesser evidence beyond the burden of proof."""
        return 1.0 / (1.0 + math.exp(min(700.0, BURDEN - min(self.over_cold, self.over_avoidance))))

    @property
    def share(self) -> float:
        """Return the share in [0, 1] of the learned order in the final one: 0 until trust passes 1/2, 1 from 3/4."""
        return min(1.0, max(0.0, 4.0 * self.value - 2.0))

    def named_weights(self) -> dict[str, float]:
        """Return the weight of each feature by name."""
        return dict(zip(FEATURES, self.weights.tolist(), strict=True))

    def order(self, features: Array, cold: Array, *, nearness: float) -> Array:
        """Return log-probabilities (n,) from features (n, f) and cold log-probabilities (n,).

        ``nearness`` in [0, 1] is how much memory has to say about this question: nothing leaves the cold order alone.
        """
        share = self.share * nearness
        if share == 0.0:
            return cold
        return (1.0 - share) * cold + share * log_softmax(features @ self.weights)

    def test_and_learn(self, features: Array, rewards: Array, *, informed: bool) -> None:
        """Grade the learned order on one feedback, then move the weights. O(k * f) for the k documents shown.

        ``features`` (k, f) are those of the documents shown, ``rewards`` (k,) are >= 0 and not all zero. Feedback
        that rewards everything shown says nothing about their order and is ignored. Where memory held nothing
        near the question (not ``informed``) the learned order made no claim, so there is nothing to grade.
        """
        helped = rewards > 0
        if helped.all():
            return
        target = rewards / rewards.sum()
        predicted = log_softmax(features @ self.weights)
        if informed:
            self._grade(predicted, features[:, 0], target, helped=int(helped.sum()))
        gradient = (target - np.exp(predicted)) @ features
        self.squares += gradient * gradient
        self.weights = np.maximum(0.0, self.weights + RATE * gradient / np.sqrt(self.squares))

    def _grade(self, predicted: Array, cold: Array, target: Array, *, helped: int) -> None:
        shown = len(target)
        reading = SHARPNESS[:, None] * (cold - cold.max())
        reading -= np.log(np.exp(reading).sum(axis=1, keepdims=True))
        readings = reading @ target
        belief = self.sharpness_evidence - self.sharpness_evidence.max()
        belief = np.exp(belief)
        from_cold = math.log(float(belief @ np.exp(readings)) / float(belief.sum()))
        self.sharpness_evidence = FORGETTING * (self.sharpness_evidence + readings)
        learned = float(np.log((1.0 - UNIFORM_SHARE) * np.exp(predicted) + UNIFORM_SHARE / shown) @ target)
        self.over_cold = _step(self.over_cold, learned - from_cold)
        self.over_avoidance = _step(self.over_avoidance, learned + math.log(_avoidance(shown, helped)))
        self.tests += 1


def _avoidance(shown: int, helped: int) -> float:
    """Return the number of documents among which blind avoidance of the right one would have to guess.

    With two shown, always avoiding the right one is the same as always preferring the other: nothing tells an
    adversary from a bad retriever, so the null is plain chance.
    """
    return max(shown - helped, 2) if shown > 2 else 2


def _step(evidence: float, gain: float) -> float:
    return max(WORST, FORGETTING * evidence + gain - COST)
