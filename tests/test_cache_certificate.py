"""The certificate: fair bets, cuts that aim, alarms, and the sentence that is printed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralcache_plugins.semantic_cache.certificate import (
    AIMS,
    ALARM_AT,
    STAKES,
    Certificate,
    Drift,
    RunningMean,
    Surprise,
    Trials,
    aimed_cuts,
    bet,
    log_factors,
    mixed,
    share_of_alpha,
    smoothed,
    start_capital,
)

RULES = len(AIMS)


@pytest.mark.parametrize("limit", [0.01, 0.05, 0.3])
def test_no_bet_gains_in_the_mean_while_the_error_is_at_the_limit_or_above(limit: float) -> None:
    right, wrong = np.exp(log_factors(limit * STAKES, limit))

    for error in np.linspace(limit, 1.0, 20):
        assert (error * wrong + (1 - error) * right).max() <= 1.0 + 1e-12
    assert (limit / 4 * wrong + (1 - limit / 4) * right).min() > 1.0


def false_certifications(error: float, *, runs: int, labels: int, limit: float, alpha: float, seed: int) -> float:
    """Let every rule err equally often and return the share of runs that ever certify one."""
    rng = np.random.default_rng(seed)
    logs, starts = np.zeros((runs, *STAKES.shape)), np.zeros((runs, RULES), dtype=np.int64)
    ever = np.zeros((runs, RULES), dtype=bool)
    for _ in range(labels):
        hits = rng.random((runs, RULES)) < 0.7
        logs, starts, reached = bet(logs, starts, hits, rng.random(runs) < error, limit=limit, alpha=alpha)
        ever |= reached
    return float(ever[:, 0].mean())


def test_a_rule_that_errs_at_the_limit_is_certified_no_more_often_than_alpha() -> None:
    share = false_certifications(0.1, runs=2_000, labels=600, limit=0.1, alpha=0.1, seed=1)

    assert 0.0 < share < 0.1 + 3 * math.sqrt(0.1 * 0.9 / 2_000)


def test_a_rule_that_errs_less_is_certified() -> None:
    assert false_certifications(0.04, runs=50, labels=600, limit=0.1, alpha=0.1, seed=2) > 0.95


def test_the_wealth_is_worth_no_more_in_the_mean_than_at_the_start_and_so_is_a_restart() -> None:
    rng, runs = np.random.default_rng(3), 20_000
    logs, starts = np.zeros((runs, *STAKES.shape)), np.zeros((runs, RULES), dtype=np.int64)
    everything = np.ones((runs, RULES), dtype=bool)
    for _ in range(40):
        logs, starts, _ = bet(logs, starts, everything, rng.random(runs) < 0.3, limit=0.3, alpha=0.05)

    worth = start_capital(starts) * np.exp(mixed(logs))
    assert starts.max() >= 1
    assert worth.mean(axis=0).max() < 0.9 + 4 * worth.std() / math.sqrt(runs)


def test_all_starts_share_one_capital_and_all_certifications_one_alpha() -> None:
    assert start_capital(np.arange(100_000)).sum() == pytest.approx(1.0, abs=1e-3)
    assert sum(share_of_alpha(0.05, earlier) for earlier in range(100_000)) == pytest.approx(0.05, abs=1e-4)


def test_rules_are_certified_in_order_and_the_first_waits_for_the_others() -> None:
    tests = Trials(0.05)
    tests.certified[[0, 2]] = True

    assert tests.proven == 1
    tests.seen, tests.serves_from = 100, 120
    assert tests.live == 0
    tests.seen = 120
    assert tests.live == 1
    tests.certified[:4] = True
    tests.seen = 100
    assert tests.live == 4


def test_one_label_moves_only_the_rules_that_would_have_served_it() -> None:
    tests, hits = Trials(0.05), np.arange(RULES) >= 2

    tests.observe(hits, False, 0.05)

    assert (tests.logs[:2] == 0).all()
    assert (tests.logs[2:] > 0).all()


def slow_smoothed(values: list[float], scores: list[float]) -> list[float]:
    n, found = len(values), []
    for at in range(n):
        reach = min(at // 6, n - 1 - at, 100)
        near = [values[to] for to in range(at - reach, at + reach + 1) if abs(scores[to] - scores[at]) <= 0.5]
        found.append(sum(near) / len(near))
    return found


@given(st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=60))
def test_smoothing_is_the_mean_over_those_around(pairs: list[tuple[int, bool]]) -> None:
    ordered = sorted(pairs, reverse=True)
    scores, values = [pair[0] / 8 for pair in ordered], [float(pair[1]) for pair in ordered]

    assert smoothed(np.array(values), np.array(scores)).tolist() == pytest.approx(slow_smoothed(values, scores))


def test_where_right_and_wrong_are_far_apart_the_cut_lies_between() -> None:
    scores, wrong = np.repeat([4.0, -4.0], 300), np.repeat([0.0, 1.0], 300)

    assert aimed_cuts(scores, wrong, np.ones(600), np.array([0.01])).tolist() == [4.0]


def slow_cuts(scores: list[int], wrong: list[bool], weights: list[float], risks: list[float]) -> list[float]:
    order = sorted(range(len(scores)), key=lambda at: -scores[at])
    means = slow_smoothed([float(wrong[at]) for at in order], [float(scores[at]) for at in order])
    fitted = dict(zip(order, means, strict=True))
    found = []
    for risk in risks:
        fine = [
            cut for cut in set(scores)
            if (1 + sum(weights[at] * fitted[at] for at in order if scores[at] >= cut))
            / (2 + sum(weights[at] for at in order if scores[at] >= cut)) <= risk + 1e-12
        ]
        found.append(min(fine, default=math.inf))
    return found


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.sampled_from([1.0, 10.0])), max_size=14))
def test_cuts_are_the_lowest_scores_whose_estimate_is_within_the_risk(pairs: list[tuple[int, bool, float]]) -> None:
    scores, wrong, weights = ([pair[at] for pair in pairs] for at in range(3))
    risks = [0.051, 0.123, 0.301, 0.617]

    cuts = aimed_cuts(np.array(scores, float), np.array(wrong, float), np.array(weights), np.array(risks))

    assert cuts.tolist() == slow_cuts(scores, wrong, weights, risks)
    assert (np.diff(cuts[np.isfinite(cuts)]) <= 0).all()


def audits_until_alarm(error: float, *, limit: float, seed: int, most: int = 20_000) -> int:
    rng, drift = np.random.default_rng(seed), Drift(limit)
    return next((at for at in range(1, most) if drift.observe(bool(rng.random() < error))), most)


def test_the_alarm_comes_soon_after_a_shift_and_hardly_ever_without_one() -> None:
    after = [audits_until_alarm(0.4, limit=0.05, seed=seed) for seed in range(50)]
    within = [audits_until_alarm(0.025, limit=0.05, seed=seed, most=2_000) for seed in range(20)]

    assert np.median(after) <= 15
    assert np.mean(np.array(within) < 2_000) <= 0.1


@given(limit=st.floats(0.001, 0.2), right=st.integers(10, 400))
def test_one_wrong_answer_puts_the_next_ones_in_doubt_and_right_ones_clear_them(limit: float, right: int) -> None:
    drift = Drift(limit)
    for _ in range(right):
        drift.observe(False)
        assert not drift.in_doubt
    drift.observe(True)
    assert drift.in_doubt
    cleared = 0
    while drift.in_doubt:
        drift.observe(False)
        cleared += 1

    assert 3 <= cleared <= 12


def test_where_as_many_as_every_second_may_be_wrong_nothing_is_in_doubt() -> None:
    drift = Drift(0.5)
    for wrong in (True, False) * 5:
        drift.observe(wrong)

    assert not drift.in_doubt


def test_surprises_short_of_an_alarm_put_the_answers_in_doubt() -> None:
    surprise = Surprise(0.05)
    while not surprise.in_doubt:
        assert not surprise.observe(3.0, wrong=True)
    for _ in range(20):
        surprise.observe(3.0, wrong=False)

    assert not surprise.in_doubt


def test_at_the_limit_false_alarms_are_a_thousand_audits_apart() -> None:
    assert np.mean([audits_until_alarm(0.05, limit=0.05, seed=seed) for seed in range(60)]) > ALARM_AT


def labels_until_surprise(*, shift: bool, seed: int, most: int = 2_000) -> int:
    """Ask of a world where a score says the truth for 1,000 labels; then half of what was right is wrong, or not."""
    rng, surprise = np.random.default_rng(seed), Surprise(0.05)
    for at in range(1_000 + most):
        score = float(rng.normal(0.0, 2.0))
        wrong = bool(rng.random() > 1.0 / (1.0 + math.exp(-score)) or (shift and at >= 1_000 and rng.random() < 0.5))
        if surprise.observe(score, wrong):
            return at - 1_000
        surprise.note(score, wrong)
    return most


def test_misses_alone_tell_soon_that_the_world_shifted_and_hardly_ever_that_it_did_when_it_did_not() -> None:
    after = [labels_until_surprise(shift=True, seed=seed) for seed in range(20)]
    without = [labels_until_surprise(shift=False, seed=seed) for seed in range(20)]

    assert min(after) >= 0
    assert max(after) <= 100
    assert np.mean(np.array(without) < 2_000) <= 0.1


@given(score=st.floats(-50.0, 50.0), right=st.integers(0, 500), wrong=st.integers(0, 500), share=st.floats(0.0, 1.0))
def test_a_bet_on_a_surprise_wins_nothing_in_the_mean_while_errors_are_as_expected(
    score: float, right: int, wrong: int, share: float
) -> None:
    def after(was_wrong: bool) -> np.ndarray:
        surprise = Surprise(0.05)
        for outcome, count in ((False, right), (True, wrong)):
            surprise.counts += count
            surprise.wrong += count * outcome
        surprise.observe(score, was_wrong)
        expected.append(surprise.expected(score))
        return surprise.statistics

    expected: list[float] = []
    bad, good = after(True), after(False)
    error = share * expected[0]

    assert 0.5 * 0.05 <= expected[0] <= 0.99
    assert (error * bad + (1.0 - error) * good <= 1.0 + 1e-9).all()


def test_the_bound_on_the_running_mean_holds_at_all_times_at_once() -> None:
    rng, missed = np.random.default_rng(5), 0
    for _ in range(200):
        chances = rng.choice([0.0, 0.1, 0.3], size=200)
        mean = RunningMean()
        missed += any(
            mean.observe(bool(rng.random() < chance)) or mean.upper(0.1) < chances[: at + 1].mean()
            for at, chance in enumerate(chances)
        )

    assert missed / 200 <= 0.1 + 3 * math.sqrt(0.09 / 200)


def test_the_bound_narrows_with_audits() -> None:
    mean = RunningMean()
    assert mean.upper(0.05) == 1.0
    for _ in range(400):
        mean.observe(False)

    assert mean.upper(0.05) < 0.025


CERTIFICATE = Certificate(
    max_error=0.02, confidence=0.95, reused=3_412, audited=412, rule=4, rules=8, alarms=0, last_alarm=None,
    measured=0.018, judged=9_000,
)


def test_a_certificate_says_what_it_promises() -> None:
    assert str(CERTIFICATE) == (
        "3,412 answers reused; at most 2 % wrong at 95 % confidence; 412 audited; rule 4 of 8; last alarm never"
    )


def test_without_a_rule_it_says_that_nothing_is_certified() -> None:
    bare = Certificate(
        max_error=0.02, confidence=0.95, reused=0, audited=0, rule=0, rules=8, alarms=1, last_alarm=86_400.0,
        measured=1.0, judged=212, judge_error=0.1,
    )

    assert not bare.live
    assert str(bare) == (
        "0 answers reused; not certified yet for at most 2 % wrong at 95 % confidence, so only exact repeats are "
        "answered; 212 judged; rule 0 of 8; last alarm 1970-01-02 00:00; judge misses 10 %, allowed for"
    )
