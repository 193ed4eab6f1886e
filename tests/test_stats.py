"""What stats say of trust: where it stands, how it came there, and when the guard last changed its mind."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from neuralcache_plugins import Reranker, RerankSettings
from neuralcache_plugins.core.trust import BURDEN, FEATURES, Trust
from neuralcache_plugins.memory import Course
from neuralcache_plugins.memory.course import MOST_POINTS
from neuralcache_plugins.memory.snapshots import pack, unpack
from neuralcache_plugins.testing import HashingEncoder

TEXTS = ["Opening hours of our branches", "Reset the password", "Cards are delivered within a week", "Fees abroad"]
ASKED = ["when will my card arrive", "when will my new card arrive", "when does my card arrive at last"]
MONDAY = 1_767_603_600.0  # 2026-01-05 09:00 UTC


def watched(*evidence):
    """Return the course of a trust whose evidence (over cold, over avoidance) moves as given, an hour a step."""
    trust, course = Trust(), Course()
    for number, (over_cold, over_avoidance) in enumerate(evidence, start=1):
        trust.over_cold, trust.over_avoidance = np.full(6, over_cold), np.full(6, over_avoidance)
        trust.tests += 1
        course.observe(trust, feedback=number, at=MONDAY + 3600 * number)
    return course


def told(times, **options):
    clock = iter(MONDAY + 60.0 * step for step in range(10**6))
    reranker = Reranker(HashingEncoder(), store="memory://", clock=lambda: next(clock), **options)
    for turn in range(times):
        ranking = reranker.rerank(ASKED[turn % 3], TEXTS, ids=["hours", "reset", "cards", "fees"])
        reranker.feedback(ranking, helpful=["cards"])
    return reranker


def test_the_guard_decides_only_when_both_nulls_are_beaten():
    decision = watched((4.0, 1.0), (4.0, 2.9), (4.5, 3.1), (9.0, 9.0)).decision

    assert decision == (True, 3, MONDAY + 3 * 3600, 4.5, 3.1)


def test_a_withdrawal_is_a_decision_too_and_the_last_one_stands():
    decision = watched((4.0, 4.0), (2.0, 4.0), (1.0, 4.0)).decision

    assert (decision.counts, decision.feedback, decision.over_cold) == (False, 2, 2.0)
    assert watched((4.0, 4.0), (2.0, 4.0), (5.0, 4.0)).decision.feedback == 3
    assert watched((1.0, 4.0)).decision is None


@pytest.mark.parametrize("feedbacks", [1, MOST_POINTS, MOST_POINTS + 1, 1000, 4097])
def test_the_past_is_bounded_and_evenly_spread(feedbacks):
    points = watched(*[(1.0, 1.0)] * feedbacks).points
    numbers = [point.feedback for point in points]

    assert min(feedbacks, MOST_POINTS // 2) <= len(points) <= MOST_POINTS
    assert set(np.diff(numbers).tolist()) <= {numbers[0]}
    assert feedbacks - numbers[-1] < numbers[0]


def test_points_hold_the_weights_of_their_time():
    reranker = told(30)
    (guard,) = reranker.stats().namespace.guard.values()

    assert [point.feedback for point in guard.history] == list(range(1, 31))
    assert dict(zip(FEATURES, guard.history[-1].weights, strict=True)) == guard.weights
    assert guard.history[0].weights != guard.history[-1].weights


def test_verdicts_say_in_words_when_after_how_much_and_on_what_evidence():
    reranker = told(30)
    (guard,) = reranker.stats().namespace.guard.values()
    last = guard.decision

    assert last.counts
    assert last.over_cold > BURDEN < last.over_avoidance
    assert guard.verdict().startswith("the learned order counts since 2026-01-05 09:")
    assert f"after {last.feedback} feedbacks (evidence then: {last.over_cold:.1f} over the cold" in guard.verdict()


def test_without_proof_the_verdict_says_how_much_is_missing():
    (guard,) = told(3).stats().namespace.guard.values()

    assert guard.verdict() == (
        f"not proven yet, so the order is the cold one: evidence {guard.evidence:.1f} of 3.0 needed "
        f"(after {guard.tests} tests)")


def test_stats_as_text_and_in_notebooks_tell_the_same():
    stats = told(30).stats()
    shown = stats._repr_html_()

    for words in ("namespace 'default'", "feedback: 30, from 2026-01-05 09:", "the learned order counts since"):
        assert words in str(stats)
    assert "▁" in str(stats)
    assert shown.count("<table>") == shown.count("</table>") == 4
    assert "weight linear" in shown
    assert "history" not in repr(stats)


def test_names_of_users_are_escaped_in_notebooks():
    with Reranker(HashingEncoder(), store="memory://", namespace="<b>") as reranker:
        assert "&lt;b&gt;" in reranker.stats()._repr_html_()
        assert "<b>" not in reranker.stats()._repr_html_()


def test_learning_that_is_switched_off_is_said_to_be():
    assert "learning: switched off by its setting" in str(told(1, settings=RerankSettings(learning=False)).stats())


def test_a_young_namespace_has_little_to_tell_and_says_so():
    with Reranker(HashingEncoder(), store="memory://") as reranker:
        assert "feedback: 0, none yet" in str(reranker.stats())
        reranker.feedback(reranker.rerank("zebra", TEXTS), helpful=[0])
        assert "evidence 0.0 of 3.0 needed (no feedback could test it yet)" in str(reranker.stats())
        assert "now" in reranker.stats()._repr_html_()


def test_stats_can_be_written_as_json():
    written = json.dumps(asdict(told(30).stats()))

    assert '"decision": [true, ' in written


def test_the_past_and_the_last_decision_survive_a_snapshot():
    reranker = told(70)
    state = reranker._memory.state("default")
    (before,), (after,) = state.learners.values(), unpack(pack(state), state.settings).learners.values()

    assert before.course.decision is not None
    assert vars(after.course) == vars(before.course)
