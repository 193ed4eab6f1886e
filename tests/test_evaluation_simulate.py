"""``simulate``: repeatable to the last digit, and every kind of simulated person does what it says."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralcache_plugins import RerankSettings
from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.evaluation import FeedbackModel, JudgedSet, Simulation, Stream, lexical_run, simulate
from neuralcache_plugins.evaluation.curves import CURVES
from neuralcache_plugins.evaluation.drawing import moving_mean
from neuralcache_plugins.evaluation.feedback_model import nearest_swaps
from neuralcache_plugins.testing import HashingEncoder

SHOWN = [4, 2, 7, 1, 9]


@pytest.fixture(scope="module")
def stream() -> Stream:
    return Stream.synthetic(questions=400, documents=20, width=16)


@pytest.fixture(scope="module")
def learned(stream: Stream) -> Simulation:
    return simulate(stream, seeds=2)


def times(model: FeedbackModel, right: tuple[int, ...] = (7,)) -> dict[int | None, float]:
    """Return how often each document was rewarded, and (None) how often none was; document 9 is the one pushed."""
    n = 4_000
    rng = np.random.default_rng(0)
    counts: dict[int | None, float] = {}
    for _ in range(n):
        for one in model.rewarded(SHOWN, right, pushed=9, rng=rng) or [None]:
            counts[one] = counts.get(one, 0.0) + 1 / n
    return counts


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {7: 1.0}),
        ({"click_probability": 0.25}, {7: 0.25, None: 0.75}),
        ({"noise": 0.4}, {7: 0.6, 4: 0.1, 2: 0.1, 1: 0.1, 9: 0.1}),
        ({"position_bias": 1.0}, {7: 1 / 3, None: 2 / 3}),
        ({"adversary_share": 1.0, "adversary": "random"}, dict.fromkeys(SHOWN, 0.2)),
        ({"adversary_share": 1.0, "adversary": "wrong"}, {4: 0.25, 2: 0.25, 1: 0.25, 9: 0.25}),
        ({"adversary_share": 0.5, "adversary": "topmost"}, {4: 0.5, 7: 0.5}),
        ({"adversary_share": 0.1, "adversary": "push"}, {9: 0.1, 7: 0.9}),
    ],
    ids=["honest", "few", "noise", "position", "random", "wrong", "topmost", "push"],
)
def test_people_react_as_the_model_says(options: dict[str, Any], expected: dict[int | None, float]) -> None:
    counts = times(FeedbackModel(**options))

    assert counts == pytest.approx(expected, abs=0.03)


def test_every_right_document_that_is_shown_is_rewarded() -> None:
    assert times(FeedbackModel(), right=(7, 1, 99)) == pytest.approx({7: 1.0, 1: 1.0})
    assert times(FeedbackModel(), right=(99,)) == pytest.approx({None: 1.0})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": 1.5}, r"^noise must be in \[0, 1\], got 1\.5$"),
        ({"drift_at": -0.1}, r"^drift_at must be in \[0, 1\], got -0\.1$"),
        ({"delay": -1}, r"^position_bias and delay must not be negative, got 0\.0 and -1$"),
        ({"adversary": "evil"}, r"^adversary must be one of random, wrong, topmost, push, got 'evil'$"),
    ],
)
def test_a_model_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        FeedbackModel(**options)


@given(st.integers(2, 30), st.floats(0, 1), st.integers(0, 5))
def test_meanings_are_swapped_in_pairs(documents: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((documents, 4)).astype(np.float32)

    meaning = nearest_swaps(rows, share, rng)

    assert [meaning[meaning[one]] for one in range(documents)] == list(range(documents))
    assert sum(meaning[one] != one for one in range(documents)) <= share * documents + 2


def test_equal_arguments_give_equal_figures(stream: Stream) -> None:
    """To the last digit, with everything that is drawn at random in play."""
    model = FeedbackModel(click_probability=0.6, noise=0.1, position_bias=0.5, delay=7, adversary_share=0.1,
                          drift_at=0.5)
    settings = RerankSettings(exploration=0.1)

    once, again = (simulate(stream, model, settings=settings, seeds=(3, 5), limit=150) for _ in range(2))
    other = simulate(stream, model, settings=settings, seeds=(4,), limit=150)

    for name in CURVES:
        assert np.array_equal(getattr(once, name), getattr(again, name))
    assert not np.array_equal(once.ndcg[0], other.ndcg[0])


def test_honest_feedback_is_learned_from(learned: Simulation) -> None:
    assert learned.first.shape == (2, 400)
    assert learned.mean("first", last=100) > learned.mean("cold_first", last=100) + 0.1
    assert learned.mean("trust", last=1) > 0.9
    assert learned.trust[:, 0].tolist() == [0.0, 0.0]


def test_without_learning_the_order_is_the_cold_one(stream: Stream) -> None:
    found = simulate(stream, settings=RerankSettings(learning=False), seeds=1)

    assert np.array_equal(found.first, found.cold_first)
    assert np.array_equal(found.ndcg, found.cold_ndcg)


def test_without_feedback_the_order_is_the_cold_one(stream: Stream) -> None:
    found = simulate(stream, FeedbackModel(click_probability=0.0), seeds=1)

    assert np.array_equal(found.first, found.cold_first)
    assert found.trust.max() < 0.5


def test_what_is_delayed_beyond_the_end_never_arrives(stream: Stream) -> None:
    late = simulate(stream, FeedbackModel(delay=1_000), seeds=1, limit=100)
    soon = simulate(stream, FeedbackModel(delay=40), seeds=1)

    assert np.array_equal(late.first, late.cold_first)
    assert soon.trust[0, :41].max() < 0.5
    assert soon.trust[0, -1] > 0.5


def test_drift_moves_what_is_right(stream: Stream) -> None:
    """Up to the drift nothing differs; after it the cold order is right about less."""
    steady, drifting = (simulate(stream, FeedbackModel(drift_at=at), seeds=1) for at in (None, 0.5))

    assert np.array_equal(steady.first[:, :200], drifting.first[:, :200])
    assert drifting.cold_first[:, 200:].mean() < steady.cold_first[:, 200:].mean() - 0.1


def test_a_judged_set_becomes_a_stream() -> None:
    judged = JudgedSet(
        name="toy", ids=("reset", "fees", "card", "odd"), query_ids=("a", "b"),
        texts=("reset the password", "fees for transfers", "a lost card", "unrelated words"),
        queries=("password reset", "transfer fees"), qrels={"a": {"reset": 1, "card": 0}, "b": {"fees": 2}},
    )
    stream = Stream.of_judged(judged, lexical_run(judged, candidates=2), candidates=2, encoder=HashingEncoder())

    found = simulate(stream, seeds=1, shown=2)

    assert stream.ids[stream.right[1][0]] == "fees"
    assert all(len(one) == 2 for one in stream.candidates or ())
    assert found.first.tolist() == [[1.0, 1.0]]
    assert found.ndcg.tolist() == [[1.0, 1.0]]


def test_a_stream_that_does_not_fit_together_is_refused(stream: Stream) -> None:
    with pytest.raises(InvalidInputError, match=r"^texts of stream 'stream' must have 1 entries, got 2$"):
        Stream.of(["q"], [0], ["a", "b"], ids=["one"], question_vectors=np.eye(2)[:1], document_vectors=np.eye(2))
    with pytest.raises(InvalidInputError, match=r"^seeds must be at least one$"):
        simulate(stream, seeds=())
    with pytest.raises(InvalidInputError, match=r"^shown and limit must be at least 1, got 0 and None$"):
        simulate(stream, shown=0)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=12), st.integers(1, 15))
def test_a_moving_mean_is_the_mean_of_the_last(values: list[float], window: int) -> None:
    slow = [np.mean(values[max(0, at + 1 - window):at + 1]) for at in range(len(values))]

    np.testing.assert_allclose(moving_mean(np.array(values), window), slow, atol=1e-9)


def test_what_people_and_programs_see(learned: Simulation, tmp_path: Path) -> None:
    learned.to_csv(tmp_path / "all.csv")
    learned.to_json(tmp_path / "all.json")
    figure = learned.plot()

    with (tmp_path / "all.csv").open() as file:
        rows = list(csv.DictReader(file))
    content = json.loads((tmp_path / "all.json").read_text())
    assert len(rows) == 2 * 400
    assert float(rows[0]["first"]) == learned.first[0, 0]
    assert content["figures"]["first"]["all"] == learned.mean("first")
    assert len(content["curves"]["trust"]["median"]) == 400
    assert [axes.get_xlabel() for axes in figure.axes][-1] == "questions asked (count)"
    assert all(axes.get_ylabel() for axes in figure.axes)
    assert "right document first, no learning" in learned._repr_html_()


def test_progress_counts_to_its_end(stream: Stream) -> None:
    steps: list[tuple[int, int]] = []

    simulate(stream, seeds=2, limit=30, progress=lambda done, total: steps.append((done, total)))

    assert steps == [(at, 460) for at in range(1, 461)]


def test_a_curve_that_is_not_there_is_named(learned: Simulation) -> None:
    with pytest.raises(InvalidInputError, match=r"^no curve 'recall'; there are: first, ndcg, "):
        learned.curve("recall")
