"""How much the learned order may count: weights that follow the evidence, and a guard with the burden of proof.

Every feedback is a test of the learned order, taken before the order learns from it. The guard compares, as a
betting wealth in logarithms, what the learned order predicted with what two nulls predicted:

1. the cold order, as a Bayes mixture over how sharply it should be read;
2. "never the right one": whoever rewards wrong documents at random earns that much by avoiding the right one.

Only when both are beaten beyond a burden does the learned order count at all. Exponential weights with a prior as in
Vovk (1998) and Freund & Schapire (1997); the learner is AdaGrad (Duchi et al., 2011) on the listwise log-loss.

What is right for a question asked before in other words is wrong for one that memory knows only from afar, and how
far is too far differs between corpora. So weights and evidence are kept by nearness, at a few knots with linear
interpolation between them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from neuralcache_plugins.contracts import Array

FEATURES = ("cold", "near", "middle", "wide", "rejection", "pheromone", "narrative", "linear", "uncommon")
START = np.array([
    [0.4, 0.2, 0.2, 0.2, 0.3, 0.02, 0.0, 0.3, 0.4],
    [0.8, 0.45, 0.45, 0.3, 0.3, 0.02, 0.0, 0.3, 0.8],
    [0.8, 0.45, 0.45, 0.3, 0.3, 0.02, 0.0, 0.3, 0.8],
])
"""By nearness, as ``WEIGHT_KNOTS``. From afar about the cold order; close to what is known the votes lead at once, for
a question may come back before anything was learned about questions that come back. Between those that squad and
scifact end at and those of banking77. What is uncommon corrects the cold order, so it begins with the same
weight. With it, MiniLM, banking77: sparse +0.004, all +0.001 (40 fresh orders), drift +0.010, clicks +0.006, hostile
+0.003 (12)."""

RATE = np.array([0.15, 0.15, 0.15, 0.15, 0.15, 0.0, 0.02, 0.15, 0.15])
"""Pheromone only breaks ties: its learned weight grew to 1 on scifact, where it can only hurt what never recurred."""

COLD, LINEAR, UNCOMMON = FEATURES.index("cold"), FEATURES.index("linear"), FEATURES.index("uncommon")
SHARPNESS = np.array([0.25, 0.5, 0.75, 1.0, 1.5])
BURDEN = 3.0
COST = 0.01
FORGETTING = 0.999
WORST = -10.0
UNIFORM_SHARE = 0.02

WEIGHT_KNOTS = (0.7, 0.85, 1.0)
"""Few, because every knot learns from its own share of the feedback: four cost 0.01 to 0.02 under hostile feedback. The
lowest one is where different questions of one topic end. The same question has a knot of its own: without it, other
questions of one passage taught it that votes mean little (squad asked again, MiniLM, seed 10: 0.923 against 0.942)."""

CLEAR_LEAD = 0.3
DISPUTE = 0.5
"""A question near to those of two documents is more often a new one than a known one in other words: in squad's first
pass, at a nearness of 0.8 to 0.9, the nearest question's document is right in 0.32 if another comes within 0.1 of it
and in 0.88 if none does within ``CLEAR_LEAD`` (MiniLM). So what is missing of that lead counts ``DISPUTE`` times
against nearness where weights are looked up. With the knots (0.75, 0.9, 1) and without it, 12 seeds: trust earned in 9
instead of 11, right 0.9431 instead of 0.9459 where it was; banking77 (40 fresh orders, MiniLM): sparse -0.001, clicks
+0.002."""

EVIDENCE_KNOTS = (0.3, 0.45, 0.6, 0.75, 0.85, 0.95)

CAUTION = np.array([3.0, 3.0, 3.0, 1.0, 1.0, 1.0])
"""By evidence knot: so many times a loss counts where what was rewarded had no memory yet. Such a document can only be
pushed down, by others that are lifted for being near in topic, and what memory gains elsewhere must not pay for it.
Chosen on scifact and squad."""

LOANS = np.array([0.0, 0.0, 0.0, 10.0, 10.0, 10.0])
INTEREST = 3.0
"""By evidence knot: once trust is earned somewhere, a near region without evidence of its own may borrow so much, up to
``INTEREST`` times the best evidence; enough to count, lost by losses of its own. Where only few questions came back so
far, as in squad's first pass, that is all the proof there can be. What works close by need not work from afar, so far
regions have to prove themselves alone. 5 and 1 instead: squad asked again, MiniLM, 0.935 against 0.939 (10 seeds)."""


class Nearness(NamedTuple):
    """How near memory comes to a question.

    ``place`` is 0 for the similarity of two ordinary questions and 1 for the same question. ``reach`` in [0, 1] is 0
    where memory has nothing near enough to say anything, and then the order stays cold. ``lead`` is by how much, in
    the unit of ``place``, the nearest document's questions come nearer than any other document's.
    """

    place: float
    reach: float
    lead: float = CLEAR_LEAD

    @property
    def undisputed(self) -> float:
        """Return ``place`` less what is missing of a clear lead."""
        return self.place - DISPUTE * max(0.0, CLEAR_LEAD - self.lead)


def log_softmax(values: Array) -> Array:
    """Return the logarithms of the probabilities that ``values`` (n,) stand for. O(n)."""
    shifted: Array = values - np.maximum.reduce(values)
    shifted -= math.log(np.add.reduce(np.exp(shifted)))
    return shifted


def softmax(values: Array) -> Array:
    """Return the probabilities that ``values`` (n,) stand for. O(n)."""
    chances: Array = np.exp(values - np.maximum.reduce(values))
    chances /= np.add.reduce(chances)
    return chances


def plausibility(chances: Array, helped: Array | npt.NDArray[np.bool_], *, noise: float) -> float:
    """Return the probability in [0, 1] that feedback named the right documents and not some of the others shown.

    ``chances`` (k,), summing to 1, are those that each of the documents shown is right, ``helped`` (k,) says which
    were rewarded. The posterior under a uniform label noise of share ``noise`` (Patrini et al., CVPR 2017, correct the
    loss by it). Feedback that rewards everything shown accuses nothing, so it is plausible. O(k).
    """
    others = len(helped) - np.count_nonzero(helped)
    if others == 0:
        return 1.0
    claimed = float(chances.dot(helped))
    right = (1.0 - noise) * claimed
    wrong = noise / others * (1.0 - claimed)
    return right / (right + wrong) if right > 0.0 else 0.0


def hats(place: float, knots: Sequence[float]) -> Array:
    """Return the share of each knot in ``place``, summing to 1: linear interpolation, constant beyond the ends."""
    shares = [0.0] * len(knots)  # for so few numbers plain Python is faster than numpy
    inside = min(max(place, knots[0]), knots[-1])
    for left, (low, high) in enumerate(pairwise(knots)):
        if inside <= high:
            shares[left + 1] = (inside - low) / (high - low)
            shares[left] = 1.0 - shares[left + 1]
            break
    return np.array(shares)


@dataclass(slots=True)
class Trust:
    """Weights of the features and the evidence for them, by nearness, of one namespace and encoder."""

    weights: Array = field(default_factory=lambda: START.copy())
    squares: Array = field(default_factory=lambda: np.full(START.shape, 1e-2))
    over_cold: Array = field(default_factory=lambda: np.zeros(len(EVIDENCE_KNOTS)))
    over_avoidance: Array = field(default_factory=lambda: np.zeros(len(EVIDENCE_KNOTS)))
    sharpness_evidence: Array = field(default_factory=lambda: np.zeros(len(SHARPNESS)))
    tests: int = 0

    @property
    def value(self) -> float:
        """Return the trust in [0, 1) where it is highest: the logistic of the evidence beyond the burden of proof."""
        return _logistic(max(map(min, self.over_cold.tolist(), self.over_avoidance.tolist())) - BURDEN)

    @property
    def earned(self) -> bool:
        """Return whether the learned order counts for any question at all."""
        return self.value > 0.5

    def strongest(self) -> tuple[float, float]:
        """Return the evidence over the cold order and over avoidance where the weaker of them is strongest."""
        place = int(self._evidence().argmax())
        return float(self.over_cold[place]), float(self.over_avoidance[place])

    def share(self, nearness: Nearness) -> float:
        """Return the share in [0, 1] of the learned order in the final one.

        0 until trust passes 1/2, anywhere and there (what may be borrowed included); 1 there from 3/4.
        """
        if nearness.reach == 0.0 or not self.earned:
            return 0.0
        evidence = self._evidence()
        loan = np.minimum(LOANS, INTEREST * evidence.max())
        own = float(hats(nearness.place, EVIDENCE_KNOTS) @ (evidence + loan))
        return nearness.reach * min(1.0, max(0.0, 4.0 * _logistic(own - BURDEN) - 2.0))

    def weights_at(self, nearness: Nearness) -> Array:
        """Return the weight (f,) of each feature for a question this near to memory."""
        weights: Array = hats(nearness.undisputed, WEIGHT_KNOTS) @ self.weights
        return weights

    def named_weights(self) -> dict[str, float]:
        """Return the weight of each feature by name, where memory knows almost the same question."""
        return dict(zip(FEATURES, self.weights[-1].tolist(), strict=True))

    def order(self, features: Array, cold: Array, *, nearness: Nearness) -> Array:
        """Return log-probabilities (n,) from features (n, f) and cold log-probabilities (n,)."""
        share = self.share(nearness)
        if share == 0.0:
            return cold
        return (1.0 - share) * cold + share * log_softmax(features @ self.weights_at(nearness))

    def test_and_learn(
        self, features: Array, rewards: Array, *, nearness: Nearness, weight: float = 1.0, novel: float = 0.0
    ) -> Array:
        """Grade the learned order on one feedback, then move the weights. O(k * f) for the k documents shown.

        Returns the log-probabilities (k,) that the learned order gave before. ``weight`` in (0, 1] is what the feedback
        counts, as evidence and as a lesson; ``novel`` in [0, 1] is the share of the rewards whose documents had no
        memory.

        ``features`` (k, f) are those of the documents shown, ``rewards`` (k,) are >= 0 and not all zero. Feedback
        that rewards everything shown says nothing about their order and is ignored. Where memory held nothing
        near the question the learned order made no claim, so there is nothing to grade.
        """
        place = hats(nearness.undisputed, WEIGHT_KNOTS)
        predicted = log_softmax(features.dot(place.dot(self.weights)))
        helped = int(np.count_nonzero(rewards))
        if helped == len(rewards):
            return predicted
        target = rewards / np.add.reduce(rewards)
        if nearness.reach == 1.0:
            self._grade(predicted, features[:, COLD], target, helped=helped, place=nearness.place,
                        weight=weight, novel=novel)
        gradient = place[:, None] * ((target - np.exp(predicted)).dot(features) * weight)
        self.squares += gradient * gradient
        gradient *= RATE
        gradient /= np.sqrt(self.squares)
        gradient += self.weights
        self.weights = np.maximum(gradient, 0.0, out=gradient)
        return predicted

    def _evidence(self) -> Array:
        return np.minimum(self.over_cold, self.over_avoidance)

    def _grade(self, predicted: Array, cold: Array, target: Array, *, helped: int, place: float,
               weight: float, novel: float) -> None:
        shown = len(target)
        readings = _readings(cold, target)
        from_cold = _mixed(readings.tolist(), self.sharpness_evidence.tolist())
        self.sharpness_evidence = FORGETTING * (self.sharpness_evidence + weight * readings)
        chances = (1.0 - UNIFORM_SHARE) * np.exp(predicted)
        chances += UNIFORM_SHARE / shown
        learned = float(np.log(chances, out=chances).dot(target))
        shares = (weight * hats(place, EVIDENCE_KNOTS)).tolist()
        gain = learned - from_cold
        felt = [gain * (1.0 + novel * (one - 1.0)) if gain < 0.0 else gain for one in CAUTION.tolist()]
        self.over_cold = _step(self.over_cold, felt, shares)
        avoided = learned + math.log(_avoidance(shown, helped))
        self.over_avoidance = _step(self.over_avoidance, [avoided] * len(shares), shares)
        self.tests += 1


def _readings(cold: Array, target: Array) -> Array:
    """Return the log-probability (s,) of ``target`` (k,) that the cold order gives it, for each sharpness."""
    depth = cold - np.maximum.reduce(cold)
    readings: Array = SHARPNESS * depth.dot(target)
    readings -= np.log(np.add.reduce(np.exp(SHARPNESS[:, None] * depth), axis=1))
    return readings


def _mixed(readings: Sequence[float], evidence: Sequence[float]) -> float:
    """Return the log-probability of a Bayes mixture: each of ``readings`` counts by its evidence, both logarithms."""
    most = max(evidence)
    beliefs = [math.exp(one - most) for one in evidence]
    chances = [belief * math.exp(reading) for belief, reading in zip(beliefs, readings, strict=True)]
    return math.log(sum(chances) / sum(beliefs))


def _avoidance(shown: int, helped: int) -> float:
    """Return the number of documents among which blind avoidance of the right one would have to guess.

    With two shown, always avoiding the right one is the same as always preferring the other: nothing tells an
    adversary from a bad retriever, so the null is plain chance.
    """
    return max(shown - helped, 2) if shown > 2 else 2


def _step(evidence: Array, gains: Sequence[float], shares: Sequence[float]) -> Array:
    """Return the evidence after one more test, all of it by knot; deeper than ``WORST`` it does not sink."""
    return np.array([  # for so few numbers plain Python is faster than numpy
        max(WORST, (1.0 - (1.0 - FORGETTING) * share) * one + (gain - COST) * share)
        for one, gain, share in zip(evidence.tolist(), gains, shares, strict=True)
    ])


def _logistic(x: float) -> float:
    return 1.0 / (1.0 + math.exp(min(700.0, -x)))
