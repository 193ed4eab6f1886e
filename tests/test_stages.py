"""How a session's narrative bends its questions."""

from __future__ import annotations

import numpy as np

from neuralcache_plugins.core.lexical import token_statistics
from neuralcache_plugins.reranker.stages import SHORT, Vectors, bent, cold_evidence, spoken_of
from neuralcache_plugins.settings import RerankSettings

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
