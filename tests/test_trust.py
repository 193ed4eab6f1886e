"""Trust is earned by honest feedback and by nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralcache_plugins.core.trust import (
    BURDEN,
    CLEAR_LEAD,
    COST,
    DISPUTE,
    EVIDENCE_KNOTS,
    FEATURES,
    LOANS,
    SHARPNESS,
    START,
    UNIFORM_SHARE,
    WEIGHT_KNOTS,
    Nearness,
    Trust,
    hats,
    log_softmax,
    plausibility,
    softmax,
)

SHOWN = 5
NEAR, FAR = Nearness(0.95, 1.0), Nearness(0.0, 0.0)


def features(cold, hint):
    """Features of a memory that points at ``hint`` (or at nothing)."""
    table = np.zeros((SHOWN, len(FEATURES)))
    table[:, 0] = cold
    belief = np.exp(cold) if hint is None else np.where(np.arange(SHOWN) == hint, 0.96, 0.01)
    table[:, 1:4] = np.log(belief / belief.sum() + 0.003)[:, None]
    return table


def stream(trust, rng, events, *, reward, hint):
    highest = 0.0
    for _ in range(events):
        cold = log_softmax(1.5 * rng.standard_normal(SHOWN))
        right = int(rng.choice(SHOWN, p=np.exp(cold)))
        rewarded = reward(rng, right)
        trust.test_and_learn(features(cold, hint(rng, right)), np.eye(SHOWN)[rewarded], nearness=NEAR)
        highest = max(highest, trust.value)
    return highest


def any_one(rng, right):
    return int(rng.integers(SHOWN))


def wrong_one(rng, right):
    return int(rng.choice([i for i in range(SHOWN) if i != right]))


def test_trust_starts_below_a_half_and_then_the_order_is_exactly_the_cold_one():
    trust = Trust()
    cold = log_softmax(np.array([1.0, 2.0, 3.0, 0.0, 0.5]))

    assert trust.value < 0.5
    assert trust.order(features(cold, 0), cold, nearness=NEAR) is cold


def test_at_the_start_far_from_what_is_known_a_memory_without_hints_predicts_what_the_cold_order_predicts():
    assert START[0, :4].sum() == pytest.approx(1.0)


def test_a_memory_that_is_right_earns_trust_within_ten_tests():
    trust = Trust()

    stream(trust, np.random.default_rng(0), 10, reward=lambda _, right: right, hint=lambda _, right: right)

    assert trust.value > 0.75
    assert trust.share(NEAR) == 1.0
    cold = log_softmax(np.zeros(SHOWN))
    assert trust.order(features(cold, 3), cold, nearness=NEAR).argmax() == 3
    assert trust.order(features(cold, 3), cold, nearness=FAR) is cold


@pytest.mark.parametrize("seed", range(5))
def test_random_feedback_never_earns_trust(seed):
    rng = np.random.default_rng(seed)

    highest = stream(Trust(), rng, 3000, reward=any_one, hint=any_one)

    assert highest < 0.5


@pytest.mark.parametrize("seed", range(5))
def test_always_rewarding_a_wrong_document_never_earns_trust(seed):
    rng = np.random.default_rng(seed)

    highest = stream(Trust(), rng, 3000, reward=wrong_one, hint=wrong_one)

    assert highest < 0.5


def test_feedback_that_rewards_everything_shown_says_nothing():
    trust = Trust()

    trust.test_and_learn(features(np.zeros(SHOWN), 1), np.ones(SHOWN), nearness=NEAR)

    assert trust.tests == 0
    assert (trust.weights == START).all()


def test_what_memory_made_no_claim_about_is_not_counted_as_evidence():
    trust = Trust()

    trust.test_and_learn(features(np.zeros(SHOWN), None), np.eye(SHOWN)[0], nearness=FAR)

    assert not trust.over_cold.any() and not trust.over_avoidance.any()


def test_weights_never_turn_negative():
    trust = Trust()
    rng = np.random.default_rng(3)

    stream(trust, rng, 500, reward=any_one, hint=any_one)

    assert (trust.weights >= 0).all()
    assert set(trust.named_weights()) == set(FEATURES)


def test_lost_trust_comes_back_only_beyond_the_burden():
    trust = Trust()
    stream(trust, np.random.default_rng(0), 40, reward=lambda _, right: right, hint=lambda _, right: right)
    earned = trust.over_avoidance[-1]

    stream(trust, np.random.default_rng(1), 400, reward=wrong_one, hint=lambda _, right: right)

    assert earned > BURDEN > trust.over_avoidance[-1]


@pytest.mark.parametrize(("place", "expected"), [
    (-1.0, [1, 0, 0, 0]), (0.6, [1, 0, 0, 0]), (0.675, [0.5, 0.5, 0, 0]), (0.85, [0, 0, 1, 0]), (2.0, [0, 0, 0, 1]),
])
def test_a_place_between_two_knots_belongs_to_both(place, expected):
    assert hats(place, EVIDENCE_KNOTS[2:]) == pytest.approx(np.array(expected))


def at(knot):
    return Nearness(EVIDENCE_KNOTS[knot], 1.0)


def test_a_near_region_without_evidence_borrows_and_its_own_losses_use_that_up():
    trust = Trust()
    trust.over_cold[-1] = trust.over_avoidance[-1] = 50.0
    assert trust.share(at(3)) > 0.5

    trust.over_cold[3] = 1.0 - LOANS[3]

    assert trust.share(at(3)) == 0.0
    assert trust.share(at(5)) == 1.0


def test_nothing_is_lent_before_trust_is_earned_somewhere():
    trust = Trust()
    trust.over_cold[-1] = trust.over_avoidance[-1] = BURDEN - 0.1
    assert trust.share(at(3)) == trust.share(at(5)) == 0.0

    trust.over_cold[-1] = trust.over_avoidance[-1] = BURDEN + 0.1

    assert trust.share(at(3)) > 0.5


def test_a_far_region_has_to_prove_itself_whatever_was_proven_close_by():
    trust = Trust()
    trust.over_cold[2:] = trust.over_avoidance[2:] = 50.0
    assert trust.share(at(1)) == 0.0

    trust.over_cold[1] = trust.over_avoidance[1] = 2 * BURDEN

    assert trust.share(at(1)) > 0.5


@pytest.mark.parametrize(("knot", "times"), [(0, 3.0), (2, 3.0), (5, 1.0)])
def test_a_loss_counts_more_where_what_was_right_had_no_memory_and_memory_was_far(knot, times):
    cold = log_softmax(np.array([2.0, 1.0, 0.5, 0.2, 0.1]))
    known, new = Trust(), Trust()
    for trust, novel in ((known, 0.0), (new, 1.0)):
        trust.test_and_learn(features(cold, 3), np.eye(SHOWN)[0], nearness=at(knot), novel=novel)

    loss = known.over_cold[knot] + COST
    assert loss < 0
    assert new.over_cold[knot] + COST == pytest.approx(times * loss)


def test_a_gain_counts_the_same_whether_what_was_right_had_memory_or_not():
    cold = log_softmax(np.array([2.0, 1.0, 0.5, 0.2, 0.1]))
    known, new = Trust(), Trust()
    for trust, novel in ((known, 0.0), (new, 1.0)):
        trust.test_and_learn(features(cold, 3), np.eye(SHOWN)[3], nearness=at(0), novel=novel)

    assert known.over_cold[0] > 0
    assert new.over_cold.tolist() == known.over_cold.tolist()


def test_what_is_far_keeps_its_own_weights():
    trust = Trust()

    stream(trust, np.random.default_rng(0), 50, reward=lambda _, right: right, hint=lambda _, right: right)

    assert trust.weights[0].tolist() == START[0].tolist()
    assert (trust.weights[1:] != START[1:]).any(axis=1).all()
    assert trust.weights_at(Nearness(1.0, 1.0)).tolist() == trust.weights[-1].tolist()


@pytest.mark.parametrize("lead", [0.0, CLEAR_LEAD / 2, CLEAR_LEAD, 1.0])
def test_where_another_document_comes_as_near_the_weights_are_those_of_farther_away(lead):
    trust = Trust()
    trust.weights[:] = np.arange(len(WEIGHT_KNOTS))[:, None]
    trust.over_cold[:], trust.over_avoidance[:] = np.arange(len(EVIDENCE_KNOTS)), 10.0
    disputed = Nearness(0.9, 1.0, lead)

    as_if_at = Nearness(0.9 - DISPUTE * max(0.0, CLEAR_LEAD - lead), 1.0)
    assert trust.weights_at(disputed).tolist() == trust.weights_at(as_if_at).tolist()
    assert (as_if_at.place < disputed.place) == (lead < CLEAR_LEAD)
    assert trust.share(disputed) == trust.share(Nearness(0.9, 1.0)), "evidence is kept by how near memory comes"


@pytest.mark.parametrize("weight", [0.5, 0.1])
def test_feedback_that_counts_less_is_less_evidence_and_less_of_a_lesson(weight):
    cold = log_softmax(np.array([2.0, 1.0, 0.5, 0.2, 0.1]))
    full, less = Trust(), Trust()
    for trust, counts in ((full, 1.0), (less, weight)):
        trust.squares[:] = 1e6  # so that steps are as long as gradients, without a memory of their own
        trust.test_and_learn(features(cold, 3), np.eye(SHOWN)[3], nearness=NEAR, weight=counts)

    for name in ("over_cold", "over_avoidance", "sharpness_evidence"):
        np.testing.assert_allclose(getattr(less, name), weight * getattr(full, name), err_msg=name)
    np.testing.assert_allclose(less.weights - START, weight * (full.weights - START), rtol=1e-3, atol=1e-12)
    assert full.over_cold.max() > 0
    assert np.abs(full.weights - START).max() > 0


def test_feedback_is_as_plausible_as_label_noise_would_have_it():
    chances, helped = np.array([0.7, 0.2, 0.1]), np.array([False, True, False])

    # right with 0.8 of 0.2, or one of the two others right and this one named by mistake
    assert plausibility(chances, helped, noise=0.2) == pytest.approx(0.16 / (0.16 + 0.1 * 0.8))
    assert plausibility(chances, ~helped, noise=0.2) == pytest.approx(0.64 / (0.64 + 0.2 * 0.2))
    assert plausibility(chances, helped, noise=0.0) == 1.0


def test_feedback_for_everything_shown_accuses_nothing_and_for_the_impossible_is_not_believed():
    assert plausibility(np.array([0.9, 0.1]), np.ones(2, dtype=bool), noise=0.5) == 1.0
    assert plausibility(np.array([1.0, 0.0]), np.array([False, True]), noise=0.0) == 0.0


@given(st.integers(0, 10_000), st.integers(3, 12))
def test_the_evidence_of_one_test_is_what_the_definitions_say(seed, shown):
    rng = np.random.default_rng(seed)
    table = rng.normal(0, 2, (shown, len(FEATURES)))
    table[:, 0] = log_softmax(table[:, 0])
    rewards = rng.random(shown) * (np.arange(shown) < rng.integers(1, shown))
    target = rewards / rewards.sum()
    trust = Trust()

    predicted = trust.test_and_learn(table, rewards, nearness=NEAR)

    learned = target @ np.log((1 - UNIFORM_SHARE) * np.exp(predicted) + UNIFORM_SHARE / shown)
    readings = [target @ log_softmax(sharpness * table[:, 0]) for sharpness in SHARPNESS]
    from_cold = np.log(np.mean(np.exp(readings)))
    avoided = np.log(max(2, shown - np.count_nonzero(rewards)))
    assert trust.over_cold[-1] == pytest.approx(max(-10.0, learned - from_cold - COST))
    assert trust.over_avoidance[-1] == pytest.approx(max(-10.0, learned + avoided - COST))
    assert trust.sharpness_evidence == pytest.approx(0.999 * np.array(readings))
    assert softmax(predicted) == pytest.approx(np.exp(predicted))
