"""Decay, standing and votes: the vectorised formulas against the obvious ones."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralcache_plugins.core import signals
from neuralcache_plugins.settings import RerankSettings

DAY = 86_400.0


def test_credit_halves_every_half_life_and_reading_it_changes_nothing():
    value, written = np.array([1.0, -2.0]), np.array([0.0, 0.0])

    halved = value * signals.fade(written, 30 * DAY, half_life_seconds=30 * DAY)

    assert halved.tolist() == [0.5, -1.0]
    assert value.tolist() == [1.0, -2.0]


def test_a_clock_that_ran_backwards_never_amplifies():
    assert signals.fade(np.array([100.0]), 0.0, half_life_seconds=10.0).tolist() == [1.0]


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_standing_stays_between_minus_one_and_one_and_keeps_its_sign(credit, exposure):
    standing = float(signals.pheromone(np.array([credit]), np.array([exposure]))[0])

    assert -1.0 <= standing <= 1.0
    assert standing * credit >= 0


def test_fruitless_exposure_discounts_and_reward_recovers():
    fresh, stale, recovered = signals.pheromone(np.array([1.0, 1.0, 30.0]), np.array([0.0, 40.0, 40.0]))

    assert stale < fresh < recovered


def test_a_narrative_takes_small_steps_and_keeps_its_length():
    start = np.array([1.0, 0.0], dtype=np.float32)

    moved = signals.moved_towards(start, np.array([0.0, 1.0], dtype=np.float32), rate=0.1)

    assert moved[0] > 0.99
    assert np.linalg.norm(moved) == pytest.approx(1.0)
    assert signals.moved_towards(None, start, rate=0.1) is start


def slow_association(groups, share, cold, unknown, mean, deviation):
    """Follow the docstring's formula, candidate by candidate."""
    top = max([signals.NEAR, *((s - mean) / deviation for _, rows in groups for s, _ in rows)])
    columns = []
    for h in signals.BANDWIDTHS:
        votes = {
            c: (1 + len(rows)) ** -0.75 * sum(
                w * max(0.0, math.exp(((s - mean) / deviation - top) / h) - math.exp((signals.FAR - top) / h))
                for s, w in rows
            )
            for c, rows in groups
        }
        total = sum(votes.values())
        kept = {c: max(0.0, v - 2 * share[j] * total) for j, (c, v) in enumerate(votes.items())}
        fallback, whole = math.exp((signals.NEAR - top) / h), sum(kept.values())
        spared = [signals.UNKNOWN_KEPT * u * p for u, p in zip(unknown, cold, strict=True)]
        left = 1 - sum(spared)
        columns.append([
            math.log((fallback * p + whole * spared[c] + left * kept.get(c, 0.0)) / (fallback + whole)
                     + signals.VOTE_FLOOR)
            for c, p in enumerate(cold)
        ])
    return np.array(columns)


@given(st.integers(1, 6), st.integers(0, 10_000))
def test_fast_association_equals_the_formula_in_its_docstring(n, seed):
    rng = np.random.default_rng(seed)
    cold = rng.dirichlet(np.ones(n))
    chosen = sorted(rng.choice(n, size=int(rng.integers(1, n + 1)), replace=False).tolist())
    groups = [
        (c, [(float(rng.uniform(-0.2, 1)), float(rng.random())) for _ in range(int(rng.integers(1, 5)))])
        for c in chosen
    ]
    share = rng.random(len(groups)) * 0.3
    unknown = np.where(np.isin(np.arange(n), chosen), 0.0, rng.random(n))
    rows = [row for _, many in groups for row in many]
    sizes = [len(many) for _, many in groups]

    fast = signals.association(
        np.array([s for s, _ in rows], dtype=np.float32), np.array([w for _, w in rows], dtype=np.float32),
        np.cumsum([0, *sizes[:-1]]), np.array(chosen), np.array(sizes), share, cold, unknown,
        mean=0.2, deviation=0.15,
    )

    assert fast == pytest.approx(slow_association(groups, share, cold, unknown, 0.2, 0.15), abs=2e-3)


def test_far_questions_leave_the_cold_order_as_it_is():
    cold = np.array([0.7, 0.2, 0.1])

    evidence = signals.association(
        np.array([0.0], dtype=np.float32), np.ones(1, dtype=np.float32), np.array([0]), np.array([2]), np.array([1]),
        np.zeros(1), cold, np.ones(3), mean=0.2, deviation=0.15,
    )

    assert np.exp(evidence) - signals.VOTE_FLOOR == pytest.approx(np.tile(cold, (3, 1)), abs=0.001)


def test_however_many_far_questions_agree_they_say_nothing():
    cold, many = np.array([0.7, 0.2, 0.1]), 64

    evidence = signals.association(
        np.full(many, 0.3, dtype=np.float32), np.ones(many, dtype=np.float32), np.array([0]), np.array([2]),
        np.array([many]), np.zeros(1), cold, np.ones(3), mean=0.2, deviation=0.15,
    )

    assert np.exp(evidence) - signals.VOTE_FLOOR == pytest.approx(np.tile(cold, (3, 1)), abs=0.001)


def test_votes_leave_a_document_the_more_of_its_cold_chances_the_less_is_known_of_it():
    cold = np.array([0.5, 0.3, 0.2])

    evidence = signals.association(
        np.array([1.0], dtype=np.float32), np.ones(1, dtype=np.float32), np.array([0]), np.array([2]), np.array([1]),
        np.zeros(1), cold, np.array([1.0, 0.5, 0.0]), mean=0.2, deviation=0.15,
    )

    kept = signals.UNKNOWN_KEPT * cold[:2] * [1.0, 0.5]
    narrow = np.exp(evidence[0]) - signals.VOTE_FLOOR
    assert narrow == pytest.approx([*kept, 1 - kept.sum()], abs=1e-4)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 1000))
def test_the_score_that_moves_nothing_leaves_to_both_sides_what_the_cold_order_gave_them(known, others, seed):
    rng = np.random.default_rng(seed)
    cold = rng.dirichlet(np.ones(known + others))
    scores = rng.normal(0, 3, known)

    neutral = signals.unmoved(scores, cold[:known])

    chances = cold * np.exp(np.append(scores, np.full(others, neutral)))
    assert chances[:known].sum() / chances.sum() == pytest.approx(cold[:known].sum())


def test_refused_questions_speak_against_a_document_the_more_the_nearer_they_are():
    near, far = (
        signals.rejection(np.array([s], dtype=np.float32), np.ones(1, dtype=np.float32), np.array([0]), np.array([1]),
                          mean=0.2, deviation=0.15)[0]
        for s in (0.95, 0.3)
    )

    assert near < far <= 0


def test_single_votes_add_up_to_the_association_and_single_refusals_to_the_rejection():
    rng = np.random.default_rng(5)
    similarity, weight = rng.uniform(0, 1, 12).astype(np.float32), rng.uniform(0, 1, 12).astype(np.float32)
    starts, columns, remembered = np.array([0, 5, 8]), np.arange(3), np.array([5, 3, 4])
    spread = {"mean": 0.2, "deviation": 0.15}
    cold = np.full(3, 1 / 3)

    votes = signals.votes(similarity, weight, **spread)
    none = np.zeros(3)
    evidence = signals.association(similarity, weight, starts, columns, remembered, none, cold, none, **spread)
    mass = np.add.reduceat(votes, starts, axis=1) * (1 + remembered) ** -signals.SHARE_EXPONENT
    top = max(signals.NEAR, (similarity.max() - 0.2) / 0.15)
    fallback = np.exp((signals.NEAR - top) / np.array(signals.BANDWIDTHS))[:, None]
    belief = fallback * cold
    belief[:, columns] += mass
    refusals = signals.refusals(similarity, weight, **spread)

    assert evidence == pytest.approx(np.log(belief / belief.sum(axis=1, keepdims=True) + signals.VOTE_FLOOR), rel=1e-4)
    assert signals.rejection(similarity, weight, starts, remembered, **spread) == pytest.approx(
        -np.log1p(np.add.reduceat(refusals, starts) * (1 + remembered) ** -signals.SHARE_EXPONENT), rel=1e-4)


def test_no_document_may_remember_more_questions_than_votes_are_prepared_for():
    assert RerankSettings(questions_per_document=signals.MOST_REMEMBERED)
    with pytest.raises(ValueError, match="questions_per_document"):
        RerankSettings(questions_per_document=signals.MOST_REMEMBERED + 1)
