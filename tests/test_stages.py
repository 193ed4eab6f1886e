"""How a session's narrative bends its questions."""

from __future__ import annotations

import numpy as np

from neuralcache_plugins.reranker.stages import bent

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
