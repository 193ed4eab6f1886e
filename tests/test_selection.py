"""From worth to an order; the fast MMR against the paper's equation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralcache_plugins.core import gating, selection


def slow_diverse(worth, rows, count, diversity):
    """Carbonell & Goldstein 1998, eq. 1, as it stands."""
    picked = [int(np.argmax(worth))]
    while len(picked) < count:
        left = [i for i in range(len(worth)) if i not in picked]
        gain = {i: (1 - diversity) * worth[i] - diversity * max(float(rows[i] @ rows[j]) for j in picked) for i in left}
        picked.append(max(left, key=lambda i: (round(gain[i], 5), -i)))
    return picked


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0, 1), st.integers(0, 10_000))
def test_fast_mmr_equals_the_papers_equation(n, count, diversity, seed):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, 5)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    worth = rng.random(n).astype(np.float32)
    count = min(n, count)

    fast = selection.best_and_diverse(worth, rows, count=count, diversity=diversity).tolist()

    slow = slow_diverse(worth, rows, count, diversity)
    if diversity < 0.999:  # at pure novelty float32 and float64 may break near ties differently
        assert fast == slow
    assert sorted(set(fast)) == sorted(fast)


def test_ties_go_to_the_earlier_candidate():
    assert selection.best(np.array([0.5, 0.9, 0.5, 0.9]), 4).tolist() == [1, 3, 0, 2]


@given(st.integers(1, 8), st.floats(0, 1), st.integers(0, 100))
def test_exploration_shows_each_at_most_once_and_its_propensities_are_probabilities(n, probability, seed):
    order = np.arange(n)[::-1].copy()

    picked, propensities = selection.explore(order, count=n, probability=probability, rng=np.random.default_rng(seed))

    assert sorted(picked.tolist()) == list(range(n))
    assert ((propensities >= 0) & (propensities <= 1.0 + 1e-6)).all()


def test_propensities_are_the_frequencies_with_which_documents_get_a_rank():
    rng = np.random.default_rng(1)
    first = [selection.explore(np.arange(4), count=1, probability=0.4, rng=rng) for _ in range(8000)]

    for document, expected in enumerate([0.7, 0.1, 0.1, 0.1]):
        chosen = [chance[0] for picked, chance in first if picked[0] == document]
        assert len(chosen) / len(first) == pytest.approx(expected, abs=0.02)
        assert chosen[0] == pytest.approx(expected)


def test_without_exploration_the_order_stands():
    picked, propensities = selection.explore(
        np.array([2, 0, 1]), count=3, probability=0.0, rng=np.random.default_rng(0)
    )

    assert picked.tolist() == [2, 0, 1]
    assert propensities.tolist() == [1.0, 1.0, 1.0]


def test_sure_signals_send_fewer_candidates_to_the_scorer_than_unsure_ones():
    sure = np.log(np.array([0.994, 0.002, 0.002, 0.002]))
    unsure = np.log(np.array([0.3, 0.3, 0.2, 0.2]))

    assert gating.contenders(sure, budget=4).tolist() == [0]
    assert len(gating.contenders(unsure, budget=4)) == 4
    assert len(gating.contenders(unsure, budget=2)) == 2


def test_the_scorer_shares_out_only_the_mass_of_those_it_saw():
    before = np.log(np.array([0.4, 0.3, 0.2, 0.1]))
    head = np.array([0, 1, 2])

    after = gating.rescore(before, head, np.array([0.0, 1.0, 9.0], dtype=np.float32), weight=4.0)

    assert np.exp(after[head]).sum() == pytest.approx(0.9, abs=1e-3)
    assert after[3] == before[3]
    assert after.argmax() == 2
    assert after[0] < after[3]
