"""From signals to worth: the cold order, before anything was learned.

The retriever's opinion leads; the encoder and the words move it by fixed weights. A signal that is missing, constant
or not finite is neutral: it changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from neuralcache_plugins.contracts import Vector

_Floats: TypeAlias = npt.NDArray[np.float64]

COLD_SHARPNESS = 1.75
_RANK_OFFSET = 3.0
_FLOOR = 1e-4
# values this close, relative to the largest, differ only by the rounding of float32
_ROUNDING = 4 * float(np.finfo(np.float32).eps)


def standardize(x: npt.ArrayLike) -> Vector:
    """Return z-scores of finite values, shape (n,); zeros when there are fewer than two or all are equal.

    Equal means up to the rounding of float32: the noise of a matrix product must not become a signal.
    """
    return _z(np.asarray(x, dtype=np.float64)).astype(np.float32)


def prior_signal(scores: Sequence[float | None] | npt.NDArray[np.floating] | None, n: int) -> Vector:
    """Return what the retriever thought of its n candidates, standardised, shape (n,).

    Without scores the order speaks: -ln(rank + 3). Equal scores say that the order means nothing: zeros. Among finite
    scores None, NaN and -inf count as the lowest of them and +inf as the highest.
    """
    if scores is None:
        return _prior_of_ranks(n)
    values = np.asarray(scores, dtype=np.float64)
    known = np.isfinite(values)
    if known.all():
        return standardize(values)
    if not known.any():
        return np.zeros(n, dtype=np.float32)
    lowest, highest = values[known].min(), values[known].max()
    return standardize(np.nan_to_num(values, nan=lowest, neginf=lowest, posinf=highest))


@lru_cache(maxsize=256)
def _prior_of_ranks(n: int) -> Vector:
    prior = standardize(-np.log(np.arange(1, n + 1) + _RANK_OFFSET))
    prior.flags.writeable = False
    return prior


def cold_worth(prior: Vector, dense: Vector | None, lexical: Vector | None, *,
               dense_weight: float, lexical_weight: float) -> Vector:
    """Return prior + dense_weight z(dense) + lexical_weight lexical, shape (n,), always finite.

    ``prior`` is what ``prior_signal`` returned; when it is silent, ``dense`` (unless switched off) takes its place with
    weight 1. ``lexical`` carries its confidence in its scale, so it is not standardised. None, and NaN or infinity of
    one document, are neutral. A linear sum of z-scores: Fox and Shaw (TREC-2, 1994) with weights. O(n).
    """
    worth: _Floats = prior.astype(np.float64)
    if dense is not None and dense_weight > 0:
        worth += (dense_weight if prior.any() else 1.0) * _known_z(dense)
    if lexical is not None:
        worth += lexical_weight * _known(lexical)
    return worth.astype(np.float32)


def cold_log_probabilities(worth: Vector, sharpness: float = COLD_SHARPNESS) -> Vector:
    """Return ln(softmax(sharpness * z(worth)) + 1e-4), shape (n,): the cold order as chances, none of them hopeless."""
    if not worth.size:
        return np.zeros(0, dtype=np.float32)
    logits = sharpness * _small_z(worth.astype(np.float64))
    logits -= np.maximum.reduce(logits)
    p = np.exp(logits)
    chances: _Floats = p / np.add.reduce(p)
    return np.log(chances + _FLOOR).astype(np.float32, copy=False)


def uncommon(dense: Vector, common: Vector, *, weight: float) -> Vector:
    """Return what each candidate wins if closeness that it has to any question does not count, (n,).

    ``dense`` and ``common`` (n,) are products of the candidates' vectors with the question and with the mean question;
    ``dense`` may hold NaN, which wins nothing. Some vectors are close to every question and others to none (hubs:
    Radovanovic et al., JMLR 11, 2010; taking the mean out is the remedy of Suzuki et al., EMNLP 2013). The unit is
    about that of the cold log-probabilities where ``dense`` alone makes them with ``weight``: deviations of both
    together, so that nothing grows large where ``dense`` hardly differs. The mean over the candidates is 0. O(n).
    """
    known = np.isfinite(dense)
    own, shared = (dense, common) if known.all() else (dense[known], common[known])
    if own.size < 2 or weight <= 0.0:
        return np.zeros_like(dense)
    spread = math.sqrt(float(own.var()) + float(shared.var()))
    if spread <= _ROUNDING:
        return np.zeros_like(dense)
    won: Vector = shared.mean() - common
    won *= np.float32(COLD_SHARPNESS * weight / spread)
    won[~known] = 0.0
    return won


def cold_terms(prior: Vector, dense: Vector | None, lexical: Vector | None, *,
               dense_weight: float, lexical_weight: float) -> dict[str, _Floats]:
    """Return the terms, (n,) each, whose sum ``cold_worth`` makes of the same arguments. O(n)."""
    terms = {name: np.zeros(prior.size) for name in ("prior", "dense", "lexical")}
    terms["prior"] += prior
    if dense is not None and dense_weight > 0:
        terms["dense"] += (dense_weight if prior.any() else 1.0) * _known_z(dense)
    if lexical is not None:
        terms["lexical"] += lexical_weight * _known(lexical)
    return terms


def cold_shares(terms: Mapping[str, _Floats], sharpness: float = COLD_SHARPNESS) -> dict[str, _Floats]:
    """Return what each term of the worth adds to the cold log-probabilities, (n,) each.

    Their sum is ``cold_log_probabilities`` of the summed terms, less that of a candidate with the mean of every term.
    The floor under the probabilities takes back the same part of each term of a candidate. O(terms * n).
    """
    worth: _Floats = np.sum(list(terms.values()), axis=0)
    z = _small_z(worth)
    if not z.any():
        return {name: np.zeros(worth.size) for name in terms}
    logits = sharpness * z
    peak = float(logits.max())
    # the floor as a logit: p + floor is proportional to e^logit + e^this
    floor = math.log(_FLOOR) + peak + math.log(float(np.exp(logits - peak).sum()))
    lift = np.logaddexp(logits, floor) - np.logaddexp(0.0, floor)
    flat = np.abs(logits) < 1e-9
    # at 0 the quotient is a slope
    kept = np.where(flat, math.exp(-np.logaddexp(0.0, floor)), lift / np.where(flat, 1.0, logits))
    scale = kept * sharpness / float(np.std(worth))
    return {name: scale * (term - term.mean()) for name, term in terms.items()}


def _z(values: _Floats) -> _Floats:
    if values.size < 2:
        return np.zeros(values.size)
    low, high = float(values.min()), float(values.max())
    # halves, because the difference of two huge numbers may not be representable
    half_range = high / 2 - low / 2
    if half_range <= _ROUNDING / 2 * max(-low, high):
        return np.zeros(values.size)
    centred: _Floats = (values / 2 - low / 2) / half_range
    centred -= float(centred.sum()) / values.size
    centred /= math.sqrt(float(centred @ centred) / values.size)
    return centred


def _small_z(values: _Floats) -> _Floats:
    """Return z-scores of finite values of ordinary size, as cosines and worths are, shape (n,)."""
    centred: _Floats = values - np.add.reduce(values) / values.size
    spread = math.sqrt(float(centred @ centred) / values.size)
    if spread <= _ROUNDING * max(1.0, abs(float(values[0]))):
        return np.zeros(values.size)
    centred /= spread
    return centred


def _known_z(signal: Vector) -> _Floats:
    """Return z-scores over the finite values and 0 for the others, shape (n,)."""
    values = signal.astype(np.float64)
    if np.isfinite(values).all():
        return _small_z(values)
    known = np.isfinite(signal)
    z = np.zeros(signal.size)
    z[known] = _z(signal[known].astype(np.float64))
    return z


def _known(signal: Vector) -> Vector | _Floats:
    if np.isfinite(signal).all():
        return signal
    return np.where(np.isfinite(signal), signal, 0.0)
