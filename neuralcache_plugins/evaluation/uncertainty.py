"""How sure a mean is: bootstrap intervals, the paired randomisation test, Holm's correction. Numpy alone, seeded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from neuralcache_plugins.errors import InvalidInputError

Array: TypeAlias = npt.NDArray[np.float64]

_CELLS = 2_000_000
"""Numbers drawn at a time: bounds the memory of a resampling to about 16 MB."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence interval; ``low`` and ``high`` are NaN where there is too little data for one."""

    value: float
    low: float
    high: float
    confidence: float = 0.95

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def signed(self) -> str:
        """Return the interval of a difference, with signs."""
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"

    @property
    def above_zero(self) -> bool:
        """Return whether the whole interval lies above 0; never without an interval."""
        return self.low > 0.0

    @property
    def below_zero(self) -> bool:
        """Return whether the whole interval lies below 0; never without an interval."""
        return self.high < 0.0

    def as_dict(self) -> dict[str, float | None]:
        """Return value, low and high for JSON, with None for NaN."""
        return {name: finite(getattr(self, name)) for name in ("value", "low", "high")}


NOTHING = Interval(math.nan, math.nan, math.nan)
"""The estimate from no data."""


def finite(value: float) -> float | None:
    """Return the number, or None where JSON has no word for it."""
    return float(value) if math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How intervals are made: the percentile bootstrap of Efron (Annals of Statistics 7, 1979), seeded.

    Whole ``clusters`` are drawn where given: rankings of one question are not independent of each other. Below ten
    clusters the interval is too narrow (for five, by about a quarter); below two there is none.
    """

    confidence: float = 0.95
    resamples: int = 2_000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.confidence < 1.0:
            raise InvalidInputError(f"confidence must be between 0 and 1, got {self.confidence}")
        if self.resamples < 1:
            raise InvalidInputError(f"resamples must be at least 1, got {self.resamples}")

    def mean(self, values: Any, clusters: Sequence[str] | None = None) -> Interval:
        """Return the mean of ``values`` (n,) with its interval; see ``ratio``."""
        numbers = np.asarray(values, dtype=np.float64)
        return self.ratio(numbers, np.ones_like(numbers), clusters)

    def ratio(self, over: Any, under: Any, clusters: Sequence[str] | None = None) -> Interval:
        """Return sum(over) / sum(under), arrays of shape (n,), with its interval. O(resamples * clusters)."""
        top, bottom = _sums(np.asarray(over, dtype=np.float64), np.asarray(under, dtype=np.float64), clusters)
        if not top.size or bottom.sum() == 0.0:
            return Interval(math.nan, math.nan, math.nan, self.confidence)
        value = float(top.sum() / bottom.sum())
        if top.size < 2:
            return Interval(value, math.nan, math.nan, self.confidence)
        low, high = self._ends(top, bottom, value)
        return Interval(value, low, high, self.confidence)

    def _ends(self, top: Array, bottom: Array, value: float) -> tuple[float, float]:
        rng = np.random.default_rng(self.seed)
        drawn: list[Array] = []
        for size in _chunks(self.resamples, top.size):
            chosen = rng.integers(top.size, size=(size, top.size))
            below = bottom[chosen].sum(axis=1)
            drawn.append(np.divide(top[chosen].sum(axis=1), below, out=np.full(size, value), where=below != 0))
        tail = (1.0 - self.confidence) / 2.0
        low, high = np.quantile(np.concatenate(drawn), [tail, 1.0 - tail])
        return float(low), float(high)


def randomisation_p(differences: Any, *, permutations: int = 10_000, seed: int = 0) -> float:
    """Return the two-sided p-value of a paired randomisation test of "the mean of ``differences`` (n,) is 0".

    Under the null each difference could as well have had the other sign (Fisher 1935; for retrieval: Smucker, Allan
    and Carterette, CIKM 2007). Exact where all 2^n signs are no more than ``permutations``; else
    (1 + as extreme) / (1 + drawn), which is never 0 and keeps the level (Phipson and Smyth 2010).
    """
    numbers = np.asarray(differences, dtype=np.float64)
    numbers = numbers[numbers != 0.0]  # a difference of nothing has no sign to flip
    size = numbers.size
    if size == 0:
        return 1.0
    observed = abs(float(numbers.sum())) * (1.0 - 1e-12)
    if size < 63 and 2**size <= permutations:
        return _exact_p(numbers, observed)
    rng = np.random.default_rng(seed)
    extreme = sum(
        int((np.abs((1.0 - 2.0 * rng.integers(2, size=(count, size))) @ numbers) >= observed).sum())
        for count in _chunks(permutations, size)
    )
    return (1 + extreme) / (1 + permutations)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number, in the given order.

    Holm (Scandinavian Journal of Statistics 6, 1979): the i-th smallest of m is multiplied by m - i + 1, and none may
    fall below a smaller one. The chance of any false alarm stays at the level whatever the dependence.
    """
    corrected = [0.0] * len(p_values)
    worst = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = worst
    return corrected


def _exact_p(numbers: Array, observed: float) -> float:
    places, extreme, start, every = np.arange(numbers.size), 0, 0, 1 << int(numbers.size)
    for count in _chunks(every, numbers.size):
        codes = np.arange(start, start + count, dtype=np.int64)[:, None]
        extreme += int((np.abs((1.0 - 2.0 * ((codes >> places) & 1)) @ numbers) >= observed).sum())
        start += count
    return extreme / every


def _sums(over: Array, under: Array, clusters: Sequence[str] | None) -> tuple[Array, Array]:
    if clusters is None:
        return over, under
    # numbered as they come: the keys may be random, the interval must not be
    number: dict[str, int] = {}
    member = np.array([number.setdefault(one, len(number)) for one in clusters], dtype=np.int64)
    top: Array = np.bincount(member, weights=over).astype(np.float64)
    bottom: Array = np.bincount(member, weights=under).astype(np.float64)
    return top, bottom


def _chunks(count: int, width: int) -> list[int]:
    size = max(1, _CELLS // max(1, width))
    return [min(size, count - start) for start in range(0, count, size)]
