"""What a source of feedback counts: as the settings say, and as far as explicit feedback bears it out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralcache_plugins import Reranker, RerankSettings
from neuralcache_plugins.contracts import Recorded
from neuralcache_plugins.memory import LearnedState
from neuralcache_plugins.memory.snapshots import fold_name, pack, unpack
from neuralcache_plugins.memory.sources import MOST_RANKINGS, MOST_SOURCES, Sources, configured, is_explicit
from neuralcache_plugins.testing import FakeClock, HashingEncoder, make_feedback, make_ranking

DOCUMENTS = ("a", "b", "c", "d")


def feedback(number, source, **rewards):
    return make_feedback(make_ranking(f"r{number}", documents=DOCUMENTS, width=None), feedback_id=f"{source}-{number}",
                         source=source, rewards=tuple(rewards.items()))


def weigh(sources, *events):
    return [sources.weigh(event) for event in events][-1]


@pytest.mark.parametrize(
    ("source", "expected"),
    [("marker", 0.5), ("marker:gratitude", 0.5), ("marker:praise", 0.9), ("marker:praise:loud", 0.9), ("markers", 1.0),
     ("user", 1.0)],
)
def test_the_longest_name_that_fits_gives_the_weight(source, expected):
    assert configured(source, {"marker": 0.5, "marker:praise": 0.9}) == expected


def test_explicit_is_what_people_say_of_documents():
    assert [is_explicit(name) for name in ("user", "user:stars", "users", "marker:user")] == [True, True, False, False]


@given(st.lists(st.tuples(st.integers(0, 20), st.sampled_from(DOCUMENTS), st.floats(-1, 1)), max_size=60),
       st.sampled_from(["user", "marker:x"]))
def test_one_source_alone_counts_in_full_whatever_it_says(told, source):
    sources = Sources({})

    assert all(sources.weigh(feedback(number, source, **{name: value})) == 1.0 for number, name, value in told)


def test_a_source_that_agrees_counts_in_full_and_one_that_contradicts_counts_less_and_less():
    sources = Sources({})
    weights = []
    for number in range(30):
        sources.weigh(feedback(number, "user", a=1.0, b=-1.0))
        assert sources.weigh(feedback(number, "click", a=0.3)) == 1.0
        weights.append(sources.weigh(feedback(number, "critic", b=1.0)))

    assert weights == sorted(weights, reverse=True)
    assert weights[0] < 1.0
    assert weights[-1] == 0.0


def test_it_does_not_matter_who_speaks_first():
    first, last = Sources({}), Sources({})
    for number in range(8):
        weigh(first, feedback(number, "user", a=1.0), feedback(number, "critic", a=-1.0))
        weigh(last, feedback(number, "critic", a=-1.0), feedback(number, "user", a=1.0))

    assert first.reliability("critic") == last.reliability("critic") == pytest.approx(2 * 10 / 18 - 1)


def test_praise_of_other_documents_is_half_a_disagreement_and_silence_is_none():
    sources = Sources({})
    weigh(sources, feedback(1, "user", a=1.0), feedback(1, "praiser", b=1.0))
    weigh(sources, feedback(2, "user", a=1.0), feedback(2, "faultfinder", b=-1.0))
    weigh(sources, feedback(3, "user", a=1.0), feedback(4, "stranger", a=-1.0))

    assert sources.compared["praiser"] == (0.0, 0.5)
    assert "faultfinder" not in sources.compared
    assert "stranger" not in sources.compared


def test_a_comparison_counts_once_shared_by_what_both_speak_of():
    sources = Sources({})
    weigh(sources, feedback(1, "user", a=1.0, b=-1.0, c=-0.2), feedback(1, "judge", a=0.6, b=0.2, d=1.0))

    assert sources.compared["judge"] == pytest.approx((0.75, 0.25))


def test_a_source_can_mend_its_ways():
    sources = Sources({})
    for number in range(1000):
        weigh(sources, feedback(number, "user", a=1.0), feedback(number, "critic", a=-1.0 if number < 200 else 1.0))

    assert sources.reliability("critic") > 0.7


def test_a_source_switched_off_is_as_if_it_had_never_been_told():
    settings = RerankSettings(source_weights={"marker": 0.0})
    state, quiet = LearnedState(settings), LearnedState(settings)
    for position in range(1, 40):
        ranking = make_ranking(f"r{position}", documents=DOCUMENTS)
        noise = feedback(position, "marker:x", d=1.0)
        for number, event in enumerate([ranking, noise, make_feedback(ranking, feedback_id=f"f{position}")]):
            state.fold(Recorded(3 * position + number, event))
            if event is not noise:
                quiet.fold(Recorded(3 * position + number, event))

    assert state.feedback == 2 * quiet.feedback
    assert state.documents.credit == quiet.documents.credit
    np.testing.assert_array_equal(
        state.learners["hashing-8"].trust.weights, quiet.learners["hashing-8"].trust.weights)


def test_a_weight_scales_credit_and_evidence():
    def learned(weight):
        state = LearnedState(RerankSettings(source_weights={"user": weight}))
        rng = np.random.default_rng(0)
        for position in range(60):
            vector = rng.standard_normal(8).astype(np.float32)
            vector /= np.linalg.norm(vector)
            ranking = make_ranking(f"r{position}", documents=DOCUMENTS, at=1e9, query_vector=vector, encoder="e")
            helped = DOCUMENTS[int(vector[0] > 0)]
            state.fold(Recorded(position + 1, make_feedback(
                ranking, feedback_id=f"f{position}", at=1e9, rewards=((helped, 1.0),))))
        return state

    full, half = learned(1.0), learned(0.5)

    assert np.array(half.documents.credit) == pytest.approx(0.5 * np.array(full.documents.credit))
    assert 0 < half.learners["e"].trust.value < full.learners["e"].trust.value
    assert half.learners["e"].trust.over_cold.max() < 0.7 * full.learners["e"].trust.over_cold.max()
    assert np.abs(half.learners["e"].slopes.of([0])).sum() < np.abs(full.learners["e"].slopes.of([0])).sum()


def test_what_is_remembered_for_comparisons_is_bounded():
    sources = Sources({})
    for number in range(1000):
        sources.weigh(feedback(number % 600, f"source-{number}", a=1.0))
        sources.weigh(feedback(number % 600, "user", a=-1.0))

    assert len(sources.told) <= MOST_RANKINGS
    assert len(sources.compared) <= MOST_SOURCES


def test_a_snapshot_between_two_sources_changes_nothing():
    settings = RerankSettings(source_weights={"b": 0.5, "a": 0.25})
    whole, half = LearnedState(settings), LearnedState(settings)
    for number in range(40):
        for part, event in enumerate([feedback(number, "user", a=1.0), feedback(number, "a:x", b=1.0)]):
            recorded = Recorded(2 * number + part + 1, event)
            whole.fold(recorded)
            half.fold(recorded)
            half = unpack(pack(half), settings)

    assert pack(half) == pack(whole)
    assert half.sources.reliability("a:x") < 1.0


def test_snapshots_of_other_weights_have_another_name_and_the_order_of_names_is_none():
    one = fold_name(RerankSettings(source_weights={"a": 0.5, "b": 0.2}))

    assert one == fold_name(RerankSettings(source_weights={"b": 0.2, "a": 0.5}))
    assert one != fold_name(RerankSettings())


def test_stats_tell_what_a_source_counts():
    with Reranker(HashingEncoder(), store="memory://", clock=FakeClock(),
                  settings=RerankSettings(source_weights={"critic": 0.5})) as reranker:
        for _ in range(5):
            ranking = reranker.rerank("when are you open", ["open at nine", "closed"], ids=["open", "closed"])
            reranker.feedback(ranking, helpful=["open"])
            reranker.feedback(ranking, unhelpful=["open"], source="critic:x")
        stats = reranker.stats().namespace

    assert stats.sources["critic:x"].reliability == pytest.approx(2 * 10 / 15 - 1)
    assert stats.sources["critic:x"].weight == pytest.approx(0.5 * (2 * 10 / 15 - 1))
    assert ("source critic:x: counts 0.17 (reliability 0.33: explicit feedback agreed 0 times, disagreed 5)"
            in str(stats))
