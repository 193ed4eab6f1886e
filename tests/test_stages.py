"""How a session's narrative bends its questions, and what learning takes out of the dense signal."""

from __future__ import annotations

import numpy as np

from neuralcache_plugins.contracts import Recorded
from neuralcache_plugins.core.lexical import token_statistics
from neuralcache_plugins.memory import LearnedState
from neuralcache_plugins.reranker.stages import (
    SHORT,
    Evidence,
    Vectors,
    bent,
    cold_evidence,
    learned_evidence,
    spoken_of,
)
from neuralcache_plugins.settings import RerankSettings
from neuralcache_plugins.testing import make_feedback, make_ranking

DENSE = np.array([0.5, 0.3, 0.1, 0.2], dtype=np.float32)
FIT = np.array([0.1, 0.9, 0.1, 0.1], dtype=np.float32)


def spread(fit: np.ndarray, *, overlap: float) -> float:
    """Return how far the narrative parts the candidates."""
    return float(np.ptp(bent(fit, DENSE, overlap=overlap)))


def test_a_question_that_says_nothing_by_itself_leans_on_what_helped_before():
    moved = bent(FIT, DENSE, overlap=0.0)

    assert moved.argmax() == 1
    assert moved[1] - moved[0] > 2.0, "in deviations of what the question says"


def test_a_question_about_the_same_subject_hardly_bends():
    assert spread(FIT, overlap=0.7) < 0.01 * spread(FIT, overlap=0.0)


def test_after_a_change_of_subject_no_candidate_fits_the_narrative_and_nothing_bends():
    assert spread(FIT * 0.2, overlap=0.0) < 0.01 * spread(FIT, overlap=0.0)


def test_candidates_that_all_fit_alike_are_left_alone():
    assert not bent(np.full(4, 0.9, dtype=np.float32), DENSE, overlap=0.0).any()


def test_where_the_question_says_nothing_there_is_no_unit_to_bend_by():
    assert not bent(FIT, np.full(4, 0.3, dtype=np.float32), overlap=0.0).any()


def test_opposites_do_not_count_as_a_fit_or_as_less_than_no_overlap():
    assert not bent(-FIT, DENSE, overlap=0.0).any()
    assert spread(FIT, overlap=-0.5) == spread(FIT, overlap=0.0)


TEXTS = [token_statistics(text) for text in (
    "Cards are delivered within five working days", "Exchange rates when you pay abroad by card",
    "Opening hours of our branches in town", "Rates for savings accounts and loans",
)]
HELPED = token_statistics("The exchange rates abroad are those of the day on which you pay")
ROWS = np.eye(4, dtype=np.float32)


def worth(
    narrative: np.ndarray, spoken: np.ndarray | None, *, in_session: bool = True, **settings: float
) -> np.ndarray:
    question = np.full(4, 0.5, dtype=np.float32)
    cold, signals = cold_evidence(
        count=4, prior_scores=[4.0, 3.0, 2.0, 1.0], lexical=np.zeros(4, dtype=np.float32),
        vectors=Vectors("e", question, ROWS, ()), narrative=narrative, in_session=in_session,
        settings=RerankSettings(**settings), spoken=spoken,
    )
    assert signals["lexical"].shape == (4,)
    return cold


def test_the_words_of_what_helped_speak_for_documents_that_share_them_where_the_narrative_fits():
    spoken = spoken_of("how much is it", HELPED, TEXTS)
    fits, changed = ROWS[1], -ROWS[1]

    assert spoken is not None
    assert spoken.argmax() == 1
    assert worth(fits, spoken)[1] > worth(fits, None)[1]
    np.testing.assert_array_equal(worth(changed, spoken), worth(changed, None))
    np.testing.assert_array_equal(worth(fits, spoken, in_session=False), worth(fits, None, in_session=False))
    np.testing.assert_array_equal(worth(fits, spoken, narrative_weight=0.0), worth(fits, None, narrative_weight=0.0))


def test_a_long_question_speaks_for_itself():
    short, long = (spoken_of(question, HELPED, TEXTS) for question in ("and why", "and why " * 12))

    assert short is not None
    assert long is not None
    np.testing.assert_allclose(long, short * SHORT / 24, rtol=1e-5)
    assert spoken_of("and why", None, TEXTS) is None


SETTINGS = RerankSettings()


def taught(*, earned: bool) -> tuple[LearnedState, np.ndarray]:
    """Return a state that has seen many questions around one mean, and the last of them, that "a" helped with."""
    rng = np.random.default_rng(3)
    state = LearnedState(SETTINGS)
    for number in range(40):
        question = (np.array([1.0, 0, 0, 0]) + 0.4 * rng.standard_normal(4)).astype(np.float16).astype(np.float32)
        question /= np.linalg.norm(question)
        served = make_ranking(f"r{number}", documents=("a", "b"), encoder="e", query_vector=question, signals={})
        state.fold(Recorded(1 + number, served))
    state.fold(Recorded(100, make_feedback(served)))
    if earned:
        trust = state.learners["e"].trust
        trust.over_cold = trust.over_avoidance = np.full_like(trust.over_cold, 20.0)
    return state, question


def order_of(*, earned: bool) -> Evidence:
    """Return the evidence on two documents as near to the question as each other, and "a", which has no vector.

    The first of them is as near to every question, the second to this one alone.
    """
    state, question = taught(earned=earned)
    own = question - question[0] * ROWS[0]
    rows = np.stack([ROWS[0], own * (question[0] / (own @ question)), np.zeros(4, dtype=np.float32)])
    vectors = Vectors("e", question, rows.astype(np.float32), (2,))
    cold, signals = cold_evidence(
        count=3, prior_scores=[1.0, 1.0, 1.0], lexical=None, vectors=vectors, narrative=None, in_session=False,
        settings=SETTINGS,
    )
    return learned_evidence(
        cold, signals, state=state, ids=["hub", "rare", "a"], vectors=vectors, in_session=False, now=1e9,
        settings=SETTINGS,
    )


def test_a_document_near_to_every_question_stands_behind_one_as_near_to_this_alone_once_trust_is_earned():
    evidence = order_of(earned=True)
    hub, rare, unusable = evidence.signals["uncommon"]

    assert rare > 0 > hub
    assert unusable == 0
    assert abs(evidence.cold[1] - evidence.cold[0]) < 1e-3
    assert evidence.final[1] > evidence.final[0] + 0.5


def test_before_trust_is_earned_nearness_to_every_question_changes_nothing():
    evidence = order_of(earned=False)

    assert "uncommon" not in evidence.signals
    np.testing.assert_array_equal(evidence.final, evidence.cold)


def test_what_was_uncommon_is_taken_from_a_log_where_the_vectors_are_not():
    live = order_of(earned=True)
    state, question = taught(earned=True)
    without = Vectors("e", question, np.zeros((0, 0), dtype=np.float32), ())

    again = learned_evidence(
        live.cold, dict(live.signals), state=state, ids=["hub", "rare", "a"], vectors=without, in_session=False,
        now=1e9, settings=SETTINGS,
    )

    np.testing.assert_array_equal(again.final, live.final)
