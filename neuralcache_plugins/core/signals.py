"""What the past says about candidates: decayed credit, narratives, and votes of remembered questions."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from neuralcache_plugins.contracts import Array, Vector

NEAR = 2.5
"""A remembered question starts to count this many standard deviations above an ordinary pair of questions."""

BANDWIDTHS = (0.25, 0.5, 1.0)
"""Kernel widths of the association, in the same unit: from "almost this question" to "this topic"."""

FAR = 1.0
"""Below this, in the same unit, a remembered question says nothing at all, however many agree with it."""

POPULARITY_PRIOR = 50.0
"""Rewards that a namespace must have seen before a document's overall share of them means anything."""

VOTE_FLOOR = 0.003
"""Added to every chance before its logarithm: so wrong may votes be. 0.008 instead: clicks -0.003, sparse -0.001
(MiniLM, 16 orders of banking77)."""

UNKNOWN_KEPT = 0.2
"""Votes speak of documents that something is remembered for. One that no feedback ever passed over keeps this share of
the chances that the cold order gives it, however many votes there are: nobody has seen it fail. Without this and
``unmoved`` learning costs twice as much on scifact where nothing recurs, 0.005 where feedback is sparse."""

SHARE_EXPONENT = 0.75
MOST_REMEMBERED = 4096
"""Questions of one document, at most; as in ``RerankSettings.questions_per_document``."""
POPULARITY_DISCOUNT = 2.0
EXPOSURE_PATIENCE = 10.0
_WIDTHS = np.array(BANDWIDTHS, dtype=np.float32)[:, None]
_CROWDING = (1.0 + np.arange(MOST_REMEMBERED + 1)) ** -SHARE_EXPONENT  # powers are slow
_CUTS = np.array([FAR, NEAR], dtype=np.float32)[:, None, None]


def fade(at: Array, now: float, *, half_life_seconds: float) -> Array:
    """Return what is left at ``now`` of one unit written at ``at``; a clock that ran backwards changes nothing."""
    left: Array = np.exp2(np.maximum(0.0, now - at) / -half_life_seconds)
    return left


def pheromone(credit: Array, exposure: Array) -> Vector:
    """Return each document's standing in (-1, 1), shape (n,), from its decayed credit and fruitless exposure.

    Bounded, so that no amount of reward can outweigh relevance; exposure without reward discounts, never forbids.
    """
    discounted = credit / (1.0 + np.maximum(0.0, exposure - np.abs(credit)) / EXPOSURE_PATIENCE)
    standing: Vector = (discounted / (1.0 + np.abs(discounted))).astype(np.float32)
    return standing


def moved_towards(narrative: Vector | None, vector: Vector, *, rate: float) -> Vector:
    """Return the unit moving average after one more step: a small one, so that one vote cannot take it over."""
    if narrative is None:
        return vector
    step: Vector = narrative * (1.0 - rate)
    step += vector * rate
    length = math.sqrt(step.dot(step))
    if length == 0.0:
        return narrative
    step /= length
    return step


def association(
    similarity: Vector,
    weight: Vector,
    starts: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
    remembered: npt.NDArray[np.int64],
    share: Array,
    cold: Array,
    unknown: Array | None,
    *,
    mean: float,
    deviation: float,
) -> Array:
    """Return log-probabilities (3, n) that remembered questions give the n candidates, one row per bandwidth.

    ``similarity`` and ``weight`` (m,) are the cosines and weights of all remembered questions of the candidates,
    grouped by candidate: group ``j`` begins at ``starts[j]`` and belongs to candidate ``columns[j]``, which keeps
    ``remembered[j]`` questions and has ``share[j]`` of all rewards. ``cold`` (n,) are probabilities; ``unknown`` (n,)
    in [0, 1] says how little is known of a candidate, 0 for those with a group; None where each has one.

    A Nadaraya-Watson vote with a fallback: similarities in units of their own spread (so one default serves every
    encoder), x = (s - mean) / deviation; V = sum of weight * (exp((x - x*) / h) - exp((FAR - x*) / h))+, divided by
    (1 + questions)^0.75, less twice what the document's overall share of rewards would explain (popularity is not
    evidence), of which ``UNKNOWN_KEPT`` * unknown * cold goes to candidates without a group, and the cold
    probabilities weighing as much as one question at x = ``NEAR``. O(m + n).
    """
    # most calls are about a handful of candidates, where numpy costs by the call: hence few calls, most in place
    mass = np.empty((len(BANDWIDTHS), len(similarity)), dtype=np.float32)
    narrow, middle, wide = mass  # each kernel is the square of the next wider one
    np.subtract(similarity, mean, out=wide)
    wide /= deviation
    top = max(NEAR, float(wide.max()))
    np.maximum(wide, FAR, out=wide)
    wide -= top
    np.exp(wide, out=wide)
    np.multiply(wide, wide, out=middle)
    np.multiply(middle, middle, out=narrow)
    floor, fallback = np.exp((_CUTS - top) / _WIDTHS)
    mass -= floor
    mass *= weight
    votes = np.add.reduceat(mass, starts, axis=1) * _CROWDING.take(remembered)
    kept = votes - POPULARITY_DISCOUNT * share * np.add.reduce(votes, axis=1, keepdims=True)
    np.maximum(kept, 0.0, out=kept)
    total = np.add.reduce(kept, axis=1, keepdims=True)
    belief: Array = fallback * cold
    if unknown is None:
        belief += kept
    else:
        spared = UNKNOWN_KEPT * unknown * cold
        belief += total * spared
        belief[:, columns] += (1.0 - np.add.reduce(spared)) * kept
    belief /= fallback + total
    belief += VOTE_FLOOR
    return np.log(belief, out=belief)


def unmoved(scores: Array, cold: Array) -> float:
    """Return the score that moves no chances between documents that have ``scores`` (k,) and documents that have none.

    ``cold`` (k,) are the cold probabilities of those that have. With it for all the others softmax(log cold + score)
    leaves to either side together what the cold order gave it. O(k).
    """
    top = float(scores.max())
    return top + float(np.log((cold @ np.exp(scores - top)) / cold.sum()))


def votes(similarity: Vector, weight: Vector, *, mean: float, deviation: float) -> Array:
    """Return what each remembered question contributes to ``association`` before the sums, (3, m). O(m)."""
    standard = (similarity - np.float32(mean)) / np.float32(deviation)
    top = max(NEAR, float(standard.max()))
    widths = np.array(BANDWIDTHS)[:, None]
    mass: Array = np.exp((np.maximum(standard, FAR) - top) / widths) - np.exp((FAR - top) / widths)
    return mass * weight


def refusals(similarity: Vector, weight: Vector, *, mean: float, deviation: float) -> Array:
    """Return what each remembered question contributes to ``rejection`` before the sums, (m,). O(m)."""
    standard = (similarity - mean) / deviation - NEAR
    mass: Array = weight * np.exp(2.0 * np.minimum(standard, 4.0))
    return mass


def rejection(
    similarity: Vector,
    weight: Vector,
    starts: npt.NDArray[np.int64],
    remembered: npt.NDArray[np.int64],
    *,
    mean: float,
    deviation: float,
) -> Array:
    """Return how strongly each group of questions that the document did not help speaks against it, (groups,) <= 0.

    Arguments as in ``association``; the kernel is the middle one, cut off far above ``NEAR``. O(m).
    """
    mass = similarity - (mean + NEAR * deviation)
    mass *= 2.0 / deviation
    np.minimum(mass, 8.0, out=mass)
    np.exp(mass, out=mass)
    mass *= weight
    against: Array = np.add.reduceat(mass, starts) * _CROWDING.take(remembered)
    np.log1p(against, out=against)
    np.negative(against, out=against)
    return against
