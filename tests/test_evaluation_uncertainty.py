"""Intervals and tests of significance, against the obvious versions."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.evaluation.uncertainty import Bootstrap, Interval, holm, randomisation_p

numbers = st.lists(st.integers(-8, 8).map(lambda n: n / 4), min_size=1, max_size=9)


def every_sign(differences: list[float]) -> float:
    """Return the exact two-sided p-value, one sign assignment after the other."""
    observed = abs(sum(differences))
    extreme = [abs(sum(sign * one for sign, one in zip(signs, differences, strict=True))) >= observed - 1e-9
               for signs in product((1, -1), repeat=len(differences))]
    return sum(extreme) / len(extreme)


@given(numbers)
def test_the_randomisation_test_is_exact_for_few_differences(differences: list[float]) -> None:
    assert randomisation_p(differences) == pytest.approx(every_sign(differences))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(-8, 8).map(lambda n: n / 4), min_size=6, max_size=7), st.integers(0, 3))
def test_drawn_signs_come_near_the_exact_p(differences: list[float], seed: int) -> None:
    """With fewer permutations than sign assignments, signs are drawn; 2,000 of them err by 0.06 at most."""
    drawn = randomisation_p(differences * 2, permutations=2_000, seed=seed)

    assert drawn == pytest.approx(randomisation_p(differences * 2, permutations=2**14), abs=0.06)


def test_a_drawn_p_is_never_zero_and_repeats() -> None:
    differences = np.ones(200)

    assert randomisation_p(differences, permutations=999) == 1 / 1000
    assert randomisation_p(differences - 0.93, seed=4) == randomisation_p(differences - 0.93, seed=4)


def test_no_difference_is_no_evidence() -> None:
    assert randomisation_p(np.zeros(50)) == 1.0


def test_the_randomisation_test_keeps_its_level() -> None:
    """Of 400 experiments without an effect about a twentieth fall below 0.05."""
    rng = np.random.default_rng(0)
    alarms = [randomisation_p(rng.standard_normal(12), permutations=200, seed=at) <= 0.05 for at in range(400)]

    assert np.mean(alarms) == pytest.approx(0.05, abs=0.035)


def test_holm_by_hand() -> None:
    """Smallest first: 0.01 * 4, 0.02 * 3, then 0.03 * 2 and 0.04 * 1 may not fall below 0.06."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_the_raw_p_and_bonferroni(p_values: list[float]) -> None:
    for raw, corrected in zip(p_values, holm(p_values), strict=True):
        assert raw <= corrected <= min(1.0, raw * len(p_values)) + 1e-12


def test_nine_of_ten_intervals_hold_the_mean() -> None:
    """Of 300 samples of 60 skewed numbers, the 90 % interval holds the true mean about as often as it says."""
    rng = np.random.default_rng(1)
    held = []
    for at in range(300):
        interval = Bootstrap(confidence=0.9, resamples=400, seed=at).mean(rng.exponential(size=60))
        held.append(interval.low <= 1.0 <= interval.high)

    assert np.mean(held) == pytest.approx(0.88, abs=0.05)


def test_clusters_widen_the_interval_of_what_repeats() -> None:
    """Ten questions asked twenty times each are ten observations, not two hundred."""
    values = np.repeat(np.random.default_rng(0).standard_normal(10), 20)
    clusters = [str(at // 20) for at in range(200)]

    alone, together = Bootstrap().mean(values), Bootstrap().mean(values, clusters)

    assert alone.value == pytest.approx(together.value)
    assert together.high - together.low > 3 * (alone.high - alone.low)


def test_an_interval_does_not_depend_on_the_names_of_the_clusters() -> None:
    values = np.random.default_rng(0).standard_normal(30)

    assert Bootstrap().mean(values, [f"{at % 7}" for at in range(30)]) == Bootstrap().mean(
        values, [f"{-(at % 7)}x" for at in range(30)])


def test_a_ratio_is_a_ratio_of_sums() -> None:
    interval = Bootstrap().ratio([1.0, 2.0, 6.0], [2.0, 2.0, 2.0])

    assert interval.value == 1.5
    assert interval.low <= 1.5 <= interval.high


def test_too_little_data_has_no_interval() -> None:
    none, one = Bootstrap().mean([]), Bootstrap().mean([0.5])

    assert math.isnan(none.value) and math.isnan(none.low)
    assert one.value == 0.5 and math.isnan(one.low)
    assert not one.above_zero and not one.below_zero
    assert one.as_dict() == {"value": 0.5, "low": None, "high": None}


def test_an_interval_reads_well() -> None:
    assert str(Interval(0.5, 0.25, 0.75)) == "0.500 [0.250, 0.750]"
    assert Interval(0.5, -0.25, 0.75).signed() == "+0.500 [-0.250, +0.750]"


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_confidence_is_a_share(confidence: float) -> None:
    with pytest.raises(InvalidInputError, match=rf"^confidence must be between 0 and 1, got {confidence}$"):
        Bootstrap(confidence=confidence)
