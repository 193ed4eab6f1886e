"""Features and score: what is compared, and how the score learns from judged pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralcache_plugins.semantic_cache.features import (
    FEATURES,
    WIDTH,
    Neighbour,
    Rarity,
    expand,
    pair_features,
)
from neuralcache_plugins.semantic_cache.guards import differences
from neuralcache_plugins.semantic_cache.parsing import parse
from neuralcache_plugins.semantic_cache.score import PRIOR_VARIANCE, Score

DAY = 86_400.0


def neighbour(text: str, cosine: float, answer: object = None, **more: object) -> Neighbour:
    return Neighbour(0, cosine, parse(text), answer if answer is not None else text, **more)


def row(question: str, *near: Neighbour, place: int = 0, **more: object) -> dict[str, float]:
    asked = parse(question)
    told = [differences(asked, one.question) for one in near[:place + 1]]
    values = pair_features(asked, near, told, rarity=more.pop("rarity", Rarity()), **more)[place]
    return dict(zip(FEATURES, values.tolist(), strict=True))


@given(st.text(max_size=80), st.lists(st.tuples(st.text(max_size=80), st.floats(-1, 1)), min_size=1, max_size=8))
def test_any_texts_give_finite_rows(question: str, near: list[tuple[str, float]]) -> None:
    asked = parse(question)
    entries = [neighbour(text, cosine) for text, cosine in sorted(near, key=lambda one: -one[1])]
    told = [differences(asked, one.question) for one in entries[:3]]

    rows = pair_features(asked, entries, told, rarity=Rarity())

    assert rows.shape == (len(told), len(FEATURES))
    assert rows.dtype == np.float32
    assert np.isfinite(expand(rows)).all()


def test_without_candidates_there_are_no_rows() -> None:
    assert pair_features(parse("a"), [], [], rarity=Rarity()).shape == (0, len(FEATURES))
    assert expand(np.zeros((0, len(FEATURES)), dtype=np.float32)).shape == (0, WIDTH)


def test_the_same_text_lacks_nothing() -> None:
    found = row("how do I reset my password", neighbour("how do I reset my password", 1.0))

    assert (found["missing"], found["left over"], found["overlap"], found["nothing missing"]) == (0, 0, 1, 1)


def test_what_is_missing_is_seen_on_the_side_where_it_is_missing() -> None:
    found = row("reset my password today", neighbour("reset my password", 0.9))

    assert found["missing"] > 0.2
    assert found["left over"] == 0.0


def test_a_word_taken_back_counts_apart_from_one_that_was_meant() -> None:
    repaired = row("what theory er what planet is it", neighbour("what planet is it", 0.9))
    meant = row("what planet er what theory is it", neighbour("what planet is it", 0.9))

    assert (repaired["missing"], repaired["missing before repair"] > 0) == (0.0, True)
    assert (meant["missing"] > 0, meant["found before repair"] > 0) == (True, True)


def test_rare_words_weigh_more_than_common_ones() -> None:
    rarity = Rarity()
    for number in range(50):
        rarity.note(parse(f"card payment number{number}"))

    never, once, always = rarity.weights(["never", "number7", "card"])
    assert never == 1.0
    assert always < 0.2 < once < 1.0


def test_neighbours_that_agree_are_seen() -> None:
    agreeing = [neighbour("a", 0.9, "x"), neighbour("b", 0.89, "x"), neighbour("c", 0.7, "y")]
    torn = [neighbour("a", 0.9, "x"), neighbour("b", 0.89, "y"), neighbour("c", 0.7, "y")]

    one, other = row("q", *agreeing), row("q", *torn)

    assert one["agreement"] > 0.95 > 0.6 > other["agreement"]
    assert one["margin"] == pytest.approx(0.2, abs=1e-6)
    assert other["margin"] == pytest.approx(0.01, abs=1e-6)


def test_documents_behind_both_answers_and_age_are_seen() -> None:
    near = neighbour("a", 0.9, documents=frozenset("xyz"), created_at=0.0)

    found = row("q", near, documents=frozenset("yz"), now=DAY)

    assert (found["documents known"], found["shared documents"]) == (1.0, pytest.approx(2 / 3))
    assert found["age"] > 0
    assert row("q", near)["documents known"] == 0.0


def test_hinges_are_zero_below_their_knot_and_one_at_the_top() -> None:
    low, high = np.zeros((1, len(FEATURES)), dtype=np.float32), np.ones((1, len(FEATURES)), dtype=np.float32)
    hinges = slice(1 + len(FEATURES), None)
    first = FEATURES.index("cosine")

    assert expand(low)[0, hinges].max() == 0.0
    assert expand(low)[0, 0] == 1.0
    assert expand(high)[0, hinges][:5] == pytest.approx(np.ones(5), abs=1e-5)
    assert expand(high)[0, 1 + first] == 1.0


def slow_newton(rows: np.ndarray, right: list[bool]) -> tuple[np.ndarray, np.ndarray]:
    """Keep the precision instead of the covariance and solve for every step."""
    precision, weights = np.eye(rows.shape[1]) / PRIOR_VARIANCE, np.zeros(rows.shape[1])
    for x, y in zip(rows, right, strict=True):
        p = 1 / (1 + np.exp(-x @ weights))
        precision += max(p * (1 - p), 1e-3) * np.outer(x, x)
        weights = weights + np.linalg.solve(precision, x * (y - p))
    return weights, np.linalg.inv(precision)


@given(st.integers(0, 2**32 - 1))
def test_the_fast_update_is_newtons_step(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, right = rng.normal(size=(12, 4)), (rng.random(12) < 0.5).tolist()
    score = Score(np.zeros(4), np.eye(4) * PRIOR_VARIANCE)

    for x, y in zip(rows, right, strict=True):
        score.learn(x, y)

    weights, covariance = slow_newton(rows, right)
    assert score.weights == pytest.approx(weights, abs=1e-8)
    assert score.covariance == pytest.approx(covariance, abs=1e-8)


def test_the_score_of_a_pair_learned_from_is_less_extreme_when_it_is_held_out() -> None:
    score, rng = Score(), np.random.default_rng(0)
    rows, right = rng.normal(size=(60, WIDTH)), rng.random(60) < 0.5
    for x, y in zip(rows, right.tolist(), strict=True):
        score.learn(x, y)

    towards = np.where(right, 1.0, -1.0)
    flattered, honest = towards * score.of(rows), towards * score.held_out(rows, right.astype(float))

    assert (honest < flattered).all()
    assert flattered.mean() > 1.0 > honest.mean()


def test_loosening_lets_new_labels_count_more_but_never_more_than_at_the_start() -> None:
    score = Score()
    for _ in range(50):
        score.learn(np.ones(WIDTH), True)
    before = score.covariance.copy()

    score.loosen(4.0)

    assert np.trace(score.covariance) >= np.trace(before) * 0.99
    assert score.covariance.diagonal().max() <= PRIOR_VARIANCE + 1e-9
