"""The cold order: what each signal may do, and that a missing one does nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from neuralcache_plugins.core.fusion import (
    COLD_SHARPNESS,
    cold_log_probabilities,
    cold_shares,
    cold_terms,
    cold_worth,
    prior_signal,
    standardize,
    uncommon,
)

ANY = st.floats(width=32, allow_nan=True, allow_infinity=True)
SIGNAL = st.floats(-10, 10, width=32)


def worth(prior, dense=None, lexical=None, *, dense_weight=0.3, lexical_weight=1.0) -> np.ndarray:
    arrays = [None if values is None else np.array(values, dtype=np.float32) for values in (dense, lexical)]
    return cold_worth(np.array(prior, dtype=np.float32), *arrays,
                      dense_weight=dense_weight, lexical_weight=lexical_weight)


@given(st.lists(st.floats(-1e3, 1e3, allow_subnormal=False), min_size=2))
def test_standardized_values_have_mean_0_and_deviation_1_or_are_all_0(values: list[float]) -> None:
    z = standardize(values)

    if z.any():
        assert float(z.mean()) == pytest.approx(0, abs=1e-4)
        assert float(z.std()) == pytest.approx(1, abs=1e-4)
    else:
        assert max(values) - min(values) <= 1e-6 * max(map(abs, values))


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False)))
def test_standardizing_survives_numbers_of_any_size(values: list[float]) -> None:
    z = standardize(values)

    assert np.isfinite(z).all()
    assert (np.diff(z[np.argsort(values, kind="stable")]) >= 0).all()


@pytest.mark.parametrize("values", [[], [3.0], [0.5, 0.5, 0.5], [0.0, 0.0], [0.7, 0.7 + 1e-8]])
def test_values_without_a_difference_become_zeros(values: list[float]) -> None:
    assert standardize(values).tolist() == [0.0] * len(values)


def test_known_values() -> None:
    assert standardize([1.0, 3.0]).tolist() == [-1.0, 1.0]
    assert standardize([1, 2, 3]) == pytest.approx([-math.sqrt(1.5), 0, math.sqrt(1.5)])


def test_scores_given_are_the_prior() -> None:
    assert prior_signal([0.2, 0.9, 0.4], 3) == pytest.approx(standardize([0.2, 0.9, 0.4]))


def test_without_scores_the_order_is_the_prior() -> None:
    prior = prior_signal(None, 10)

    assert (np.diff(prior) < 0).all()
    assert prior == pytest.approx(standardize([-math.log(rank + 3) for rank in range(1, 11)]))


def test_equal_scores_are_a_silent_prior() -> None:
    assert prior_signal([0.5] * 4, 4).tolist() == [0.0] * 4


@pytest.mark.parametrize(("scores", "means"), [
    ([0.9, math.nan, 0.4], [0.9, 0.4, 0.4]),
    ([0.9, None, 0.4], [0.9, 0.4, 0.4]),
    ([0.9, -math.inf, 0.4], [0.9, 0.4, 0.4]),
    ([0.1, math.inf, 0.4], [0.1, 0.4, 0.4]),
    ([math.nan, None, math.inf], [0.0, 0.0, 0.0]),
    ([math.nan, 0.7, None], [0.0, 0.0, 0.0]),
])
def test_unusable_scores_count_as_the_nearest_usable_one(scores: list[float | None], means: list[float]) -> None:
    assert prior_signal(scores, 3) == pytest.approx(standardize(means))


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("given_scores", [True, False])
def test_none_or_one_candidate_has_no_prior(n: int, given_scores: bool) -> None:
    assert prior_signal([0.5] * n if given_scores else None, n).tolist() == [0.0] * n


def test_worth_is_the_weighted_sum() -> None:
    prior, dense, lexical = standardize([3, 2, 1]), [0.1, 0.5, 0.3], [0.2, -0.4, 0.2]

    expected = prior + 0.3 * standardize(dense) + 0.6 * np.array(lexical)
    assert worth(prior, dense, lexical, lexical_weight=0.6) == pytest.approx(expected, abs=1e-6)


def test_without_other_signals_worth_is_the_prior() -> None:
    prior = prior_signal([0.3, 0.1, 0.7], 3)

    assert worth(prior).tolist() == prior.tolist()


def test_when_the_prior_is_silent_the_encoder_leads() -> None:
    silent, dense, lexical = [0.0, 0.0, 0.0], [0.1, 0.9, 0.2], [0.5, 0.0, 0.0]

    expected = standardize(dense) + np.array(lexical)
    assert worth(silent, dense, lexical) == pytest.approx(expected, abs=1e-6)


def test_an_encoder_that_is_switched_off_never_leads() -> None:
    assert worth([0.0, 0.0], [0.1, 0.9], dense_weight=0.0).tolist() == [0.0, 0.0]


def test_words_alone_decide_when_nothing_else_speaks() -> None:
    assert worth([0.0, 0.0, 0.0], None, [0.1, 0.9, -1.0]).argmax() == 1


def test_a_document_without_a_vector_falls_back_to_its_other_signals() -> None:
    prior = standardize([4, 3, 2, 1])
    mixed = worth(prior, [0.1, math.nan, 0.5, 0.3])

    assert mixed[1] == prior[1]
    assert mixed[[0, 2, 3]] == pytest.approx(prior[[0, 2, 3]] + 0.3 * standardize([0.1, 0.5, 0.3]))


@given(st.integers(1, 20).flatmap(lambda n: st.tuples(*[
    st.lists(ANY, min_size=n, max_size=n), st.lists(ANY, min_size=n, max_size=n),
    st.lists(st.one_of(SIGNAL, st.just(math.nan), st.just(math.inf)), min_size=n, max_size=n)])))
@example(signals=([0.0, 0.0], [math.inf, -math.inf], [0.0, math.inf]))
def test_worth_and_chances_are_always_finite(signals: tuple[list[float], list[float], list[float]]) -> None:
    scores, dense, lexical = signals
    values = worth(prior_signal(scores, len(scores)), dense, lexical)

    assert np.isfinite(values).all()
    assert np.isfinite(cold_log_probabilities(values)).all()


@given(st.lists(st.tuples(SIGNAL, SIGNAL, SIGNAL), min_size=2, max_size=20), st.randoms(use_true_random=False))
def test_permuted_candidates_get_permuted_worth(rows: list[tuple[float, float, float]], random) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)

    assert _worth_of([rows[at] for at in order]) == pytest.approx(_worth_of(rows)[order], abs=1e-4)


def _worth_of(rows: list[tuple[float, float, float]]) -> np.ndarray:
    scores, dense, lexical = zip(*rows, strict=True)
    return worth(prior_signal(list(scores), len(scores)), dense, lexical)


@given(st.lists(SIGNAL, min_size=1, max_size=30))
def test_chances_follow_worth_and_sum_to_one(values: list[float]) -> None:
    logs = cold_log_probabilities(np.array(values, dtype=np.float32))

    assert float(np.sum(np.exp(logs.astype(float)) - 1e-4)) == pytest.approx(1, abs=1e-4)
    assert (np.diff(logs[np.argsort(values, kind="stable")]) >= 0).all()


def test_chances_of_candidates_that_are_alike_are_equal() -> None:
    assert cold_log_probabilities(np.zeros(4, dtype=np.float32)) == pytest.approx([math.log(0.25 + 1e-4)] * 4)
    assert cold_log_probabilities(np.zeros(0, dtype=np.float32)).tolist() == []


def test_a_sharper_view_raises_the_best_and_never_rules_out_the_rest() -> None:
    values = np.array([3.0, 1.0, 0.0, -1.0], dtype=np.float32)
    soft, sharp = cold_log_probabilities(values, 0.5), cold_log_probabilities(values, 50.0)

    assert sharp[0] > soft[0]
    assert sharp.min() == pytest.approx(math.log(1e-4), abs=1e-3)


def test_equal_worth_keeps_the_order_of_the_input() -> None:
    values = worth([0.0] * 5, None, [0.2, 0.5, 0.2, 0.5, 0.2])

    assert np.argsort(-values, kind="stable").tolist() == [1, 3, 0, 2, 4]


def test_inputs_are_left_as_they_were() -> None:
    prior, dense, lexical = (np.array([1.0, math.nan, 0.5], dtype=np.float32) for _ in range(3))
    prior[1] = 0.0
    copies = [array.copy() for array in (prior, dense, lexical)]

    cold_worth(prior, dense, lexical, dense_weight=0.3, lexical_weight=1.0)
    for array, copy in zip((prior, dense, lexical), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@given(st.integers(1, 40), st.integers(0, 1000), st.booleans(), st.booleans())
def test_the_terms_make_the_worth_and_their_shares_make_the_cold_order(
    n: int, seed: int, silent: bool, missing: bool,
) -> None:
    rng = np.random.default_rng(seed)
    prior = np.zeros(n, dtype=np.float32) if silent else rng.standard_normal(n).astype(np.float32)
    dense, lexical = rng.standard_normal(n).astype(np.float32), rng.random(n).astype(np.float32)
    if missing:
        dense[0] = np.nan
    weights = {"dense_weight": 0.3, "lexical_weight": 0.8}

    terms = cold_terms(prior, dense, lexical, **weights)
    summed = cold_worth(prior, dense, lexical, **weights)
    moved = sum(cold_shares(terms).values())

    assert sum(terms.values()) == pytest.approx(summed, abs=1e-5)
    assert np.ptp(cold_log_probabilities(summed) - moved) < 1e-3
    assert (moved * (summed - summed.mean()) >= -1e-6).all()


@given(st.integers(0, 10_000), st.integers(2, 12), st.sampled_from([0.3, 1.0]))
def test_what_is_uncommon_takes_the_mean_question_out_of_the_dense_signal(seed, count, weight) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, 6)).astype(np.float32)
    question, mean = rng.standard_normal((2, 6)).astype(np.float32)
    dense = rows @ question

    won = uncommon(dense, rows @ mean, weight=weight)
    unit = COLD_SHARPNESS * weight / np.hypot(dense.std(), (rows @ mean).std())
    left = unit * dense + won
    wanted = unit * (rows @ (question - mean))

    assert float(won.mean()) == pytest.approx(0, abs=1e-3)
    assert np.abs(won).max() <= COLD_SHARPNESS * weight * math.sqrt(count) * 1.001
    np.testing.assert_allclose(left - left.mean(), wanted - wanted.mean(), atol=2e-3, rtol=1e-3)


def test_a_document_without_a_vector_wins_nothing_and_changes_nothing_for_the_others() -> None:
    dense, common = (np.array(values, dtype=np.float32) for values in ([0.5, 0.2, 0.1], [0.3, 0.1, 0.2]))
    with_gap = uncommon(np.insert(dense, 1, np.nan), np.insert(common, 1, 0.0).astype(np.float32), weight=1.0)

    assert with_gap[1] == 0
    np.testing.assert_allclose(np.delete(with_gap, 1), uncommon(dense, common, weight=1.0), rtol=1e-5)


def test_where_nothing_is_known_or_the_dense_signal_has_no_weight_nothing_is_uncommon() -> None:
    common = np.array([0.3, 0.1, 0.2], dtype=np.float32)

    assert not uncommon(np.full(3, np.nan, dtype=np.float32), common, weight=1.0).any()
    assert not uncommon(np.full(3, 0.4, dtype=np.float32), np.full(3, 0.1, dtype=np.float32), weight=1.0).any()
    assert not uncommon(np.array([0.5, 0.2, 0.1], dtype=np.float32), common, weight=0.0).any()
