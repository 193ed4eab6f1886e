"""Learned state is a fold over the log: deterministic, rebuilt from snapshots, bounded, and only read by reading."""

import tempfile
from contextlib import ExitStack, closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralcache_plugins.contracts import Erasure, FeedbackGiven, Recorded
from neuralcache_plugins.core.trust import FEATURES, Trust
from neuralcache_plugins.errors import StoreError
from neuralcache_plugins.memory import LearnedState, Memory
from neuralcache_plugins.memory.changes import MOST_NOISE, Changes
from neuralcache_plugins.memory.documents import Documents
from neuralcache_plugins.memory.fruitless import MOST_FIRSTS, MOST_OTHERS, MOST_PENALTY, Fruitless
from neuralcache_plugins.memory.questions import Origin, Questions, Slopes
from neuralcache_plugins.memory.snapshots import fold_name, pack, unpack
from neuralcache_plugins.memory.state import LEAST_SILENCE, PATIENCE, REHEARSAL_NOISE
from neuralcache_plugins.memory.successors import MOST_DOCUMENTS, Successors
from neuralcache_plugins.settings import RerankSettings
from neuralcache_plugins.stores.memory import MemoryStore
from neuralcache_plugins.stores.sqlite import SqliteStore
from neuralcache_plugins.telemetry import Recorder
from neuralcache_plugins.testing import FailingStore, make_feedback, make_ranking

WIDTH = 8
UNCOMMON = FEATURES.index("uncommon")
SMALL = RerankSettings(questions_per_document=4, max_documents=6, max_sessions=2, max_questions=12)


def random_events(seed, size, *, encoder="one", namespaces=("default",)):
    """Rankings and feedback as a busy, partly silent deployment would log them."""
    rng = np.random.default_rng(seed)
    events = []
    for step in range(size):
        vector = rng.standard_normal(WIDTH).astype(np.float16).astype(np.float32)
        ids = tuple(f"d{i}" for i in rng.permutation(9)[:4])
        ranking = make_ranking(
            f"r{seed}-{step}", namespace=str(rng.choice(namespaces)), at=1e9 + step * 3600.0, encoder=encoder,
            query_vector=vector, document_ids=ids, positions=(0, 1, 2, 3), scores=(0.9, 0.5, 0.4, 0.1),
            cold=tuple(np.round(np.log(rng.dirichlet(np.ones(4))), 4).tolist()),
            signals={"narrative": tuple(rng.random(4).round(3).tolist())}
            | ({} if step % 3 else {"uncommon": tuple(rng.standard_normal(4).round(3).tolist())}),
            propensities=(1.0,) * 4, candidates=4,
            session=None if rng.random() < 0.5 else f"s{int(rng.integers(4))}",
        )
        events.append(ranking)
        if rng.random() < 0.7:
            reward = 1.0 if rng.random() < 0.8 else -1.0
            half = rng.standard_normal(WIDTH).astype(np.float16).astype(np.float32)
            events.append(make_feedback(
                ranking, feedback_id=f"f{seed}-{step}", at=ranking.at + 5,
                rewards=((str(rng.choice(ids)), reward),), document_vector=half / np.float32(np.linalg.norm(half)),
            ))
    return events


def folded(events, state=None):
    state = state or LearnedState(SMALL)
    for position, event in enumerate(events, start=1):
        state.fold(Recorded(position, event))
    return state


def same(one, other):
    """Equal to the last bit, apart from slot numbers: compared by what a snapshot says."""
    return pack(one) == pack(other)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.floats(0, 1))
def test_a_snapshot_and_the_tail_equal_the_full_fold(seed, size, cut):
    events = random_events(seed, size)
    middle = int(cut * len(events))

    half = unpack(pack(folded(events[:middle])), SMALL)
    for position, event in enumerate(events, start=1):
        half.fold(Recorded(position, event))  # what it knows already changes nothing

    assert same(half, folded(events))


def test_folding_the_same_log_twice_gives_the_same_state():
    assert same(folded(random_events(1, 50)), folded(random_events(1, 50)))


def test_reading_a_state_any_number_of_times_changes_nothing():
    state = folded(random_events(2, 60))
    before = pack(state)
    learner = state.learners["one"]
    question = np.ones(WIDTH, dtype=np.float32) / np.float32(np.sqrt(WIDTH))

    for now in (0.0, 1e9, 5e9):
        slots = state.documents.slots_of([f"d{i}" for i in range(12)])
        pheromone = state.documents.pheromones(slots, now)
        state.features(learner, question, slots, cold=np.log(np.full(12, 1 / 12)), pheromone=pheromone,
                       narrative=np.zeros(12), uncommon=np.zeros(12))
        state.narrative("one", "s1")

    assert pack(state) == before


def test_memory_is_bounded_by_what_the_settings_say():
    state = folded(random_events(3, 400))

    assert len(state.documents) <= SMALL.max_documents
    assert len(state.waiting) <= 64
    for learner in state.learners.values():
        assert len(learner.sessions) <= SMALL.max_sessions
        assert learner.helped.total + learner.failed.total <= SMALL.max_questions
        assert all(len(rows) <= SMALL.questions_per_document for _, rows, _, _ in learner.helped.groups())


def test_vectors_of_another_encoder_are_set_aside_and_found_again():
    state = folded(random_events(4, 40), LearnedState(RerankSettings()))
    kept = state.learners["one"].helped.total
    size = state.position

    for offset, event in enumerate(random_events(5, 40, encoder="two"), start=1):
        state.fold(Recorded(size + offset, event))

    assert set(state.learners) == {"one", "two"}
    assert state.learners["one"].helped.total == kept > 0
    assert state.narrative("three", None) is None


def test_credit_is_brought_up_to_date_before_it_is_added_to():
    settings_ = RerankSettings(half_life_seconds=100.0)
    ranking = make_ranking(document_ids=("a",), positions=(0,), scores=(1.0,), cold=(0.0,), signals={},
                           propensities=(1.0,), at=0.0, query_vector=None)
    state = LearnedState(settings_)
    for position, at in ((1, 0.0), (2, 100.0)):
        state.fold(Recorded(position, make_feedback(ranking, feedback_id=f"f{position}", at=at, rewards=(("a", 1.0),))))

    assert state.documents.credit[state.documents.slots["a"]] == pytest.approx(1.5)


def test_the_nearest_remembered_question_makes_room_in_a_full_document():
    questions = Questions(width=2, capacity=2)
    for position, vector in enumerate(([1, 0], [0, 1], [0.9, 0.1])):
        origin = Origin(position, position)
        questions.add(7, np.array(vector, dtype=np.float32), 1.0, origin=origin)

    (slot, rows, _, origins), = questions.groups()
    assert slot == 7
    assert [origin.event for origin in origins] == [2, 1]
    assert rows == pytest.approx(np.array([[0.9, 0.1], [0.0, 1.0]]))
    assert questions.total == 2


def test_every_remembered_question_knows_the_event_that_it_is_from():
    events = random_events(12, 400)
    state = folded(events, LearnedState(RerankSettings()))
    (learner,) = state.learners.values()

    assert any(origin.learned > origin.event for *_, origins in learner.failed.groups() for origin in origins)
    for questions in (learner.helped, learner.failed):
        for slot, rows, _, origins in questions.groups():
            name = next(name for name, place in state.documents.slots.items() if place == slot)
            assert len(rows) == len(origins)
            for row, origin in zip(rows, origins, strict=True):
                event = events[origin.event - 1]
                ranking = getattr(event, "ranking", event)
                assert ranking.query_vector.tolist() == row.tolist()
                assert name in ranking.document_ids
                assert (origin.learned > origin.event) == (ranking is event)


def sure_of_itself(seed, steps):
    """Feedback as in ``topical``, always honest, to rankings that have the right document first."""
    rng = np.random.default_rng(seed)
    topics = np.linalg.qr(np.random.default_rng(5).normal(size=(WIDTH, 3)))[0].T
    events = []
    for step in range(steps):
        question = topics[step % 3] + rng.normal(0, 0.1, WIDTH)
        question = (question / np.linalg.norm(question)).astype(np.float16).astype(np.float32)
        shown = tuple(f"d{(step + place) % 3}" for place in range(3))
        events += told(1000 + step, question, shown[0], shown)
    return events


def told(number, vector, helpful, shown=("d0", "d1", "d2")):
    ranking = make_ranking(
        f"r{number}", at=1e9 + number, encoder="one", query_vector=vector, document_ids=shown,
        positions=tuple(range(len(shown))), scores=tuple(0.9 - 0.1 * rank for rank in range(len(shown))),
        cold=tuple(-1.0 - 0.1 * rank for rank in range(len(shown))),
        signals={}, propensities=(1.0,) * len(shown), candidates=len(shown),
    )
    return [ranking, make_feedback(ranking, feedback_id=f"f{number}", at=ranking.at + 1, rewards=((helpful, 1.0),))]


def test_feedback_that_contradicts_a_near_vote_weakens_it_and_a_far_one_hardly():
    near, far = np.eye(WIDTH, dtype=np.float32)[:2]
    events = [*told(0, near, "d0"), *told(1, far, "d0"), *told(2, near, "d1")]

    state = folded(events)

    helped = state.learners["one"].helped
    slots = state.documents.slots_of(["d0", "d1"])
    known = helped.near(slots, near)
    assert known.similarity.tolist() == [1.0, 0.0, 1.0]
    assert known.weight[0] < 0.9
    assert known.weight[1] == 1.0


def test_nearness_knows_by_how_much_the_nearest_document_leads():
    question, other = np.eye(WIDTH, dtype=np.float32)[:2]
    aside = np.float32(0.6) * question + np.float32(0.8) * other
    state = folded([*told(0, question, "d0"), *told(1, other, "d0"), *told(2, aside, "d1"), *told(3, other, "d2")])
    learner = state.learners["one"]

    def nearness(*names):
        return learner.nearness(learner.helped.near(state.documents.slots_of(names), question))

    unit = 1.0 - learner.spread.mean
    alone = (0.6 - learner.spread.mean) / unit
    assert nearness("d0", "d1") == pytest.approx((1.0, 1.0, 0.4 / unit))
    assert nearness("d1") == pytest.approx((alone, 1.0, alone))
    assert nearness("d0", "d1", "d2", "d9") == nearness("d1", "d0")


def test_a_reward_is_novel_where_nothing_was_remembered_for_its_document(monkeypatch):
    seen = []
    learn = Trust.test_and_learn
    monkeypatch.setattr(Trust, "test_and_learn", lambda trust, *arrays, **rest: (
        seen.append(rest["novel"]), learn(trust, *arrays, **rest))[1])
    question = np.eye(WIDTH, dtype=np.float32)[0]

    folded([event for number, name in enumerate(("d0", "d1", "d0", "d2"))
            for event in told(number, question, name)])

    assert seen == [1.0, 1.0, 0.0, 1.0]


def test_feedback_teaches_what_was_uncommon_when_its_ranking_was_served(monkeypatch):
    seen = []
    learn = Trust.test_and_learn
    monkeypatch.setattr(Trust, "test_and_learn", lambda trust, table, *arrays, **rest: (
        seen.append(table[:, UNCOMMON].tolist()), learn(trust, table, *arrays, **rest))[1])
    events = random_events(9, 30)

    folded(events)

    told = [event.ranking.signals.get("uncommon", (0.0,) * 4) for event in events
            if isinstance(event, FeedbackGiven) and event.rewards[0][1] > 0]
    assert seen == [list(one) for one in told]
    assert any(map(any, seen))


def test_rankings_that_wait_keep_what_was_uncommon_in_a_snapshot():
    state = folded(random_events(10, 30))
    kept = [one.uncommon for one in unpack(pack(state), SMALL).waiting.values()]

    assert kept == [one.uncommon for one in state.waiting.values()]
    assert {len(one) for one in kept} == {0, 4}


def test_a_linear_model_says_nothing_about_what_all_questions_share():
    rng = np.random.default_rng(0)
    shared = np.eye(WIDTH, dtype=np.float32)[0]
    questions = [shared + rng.normal(0, 0.2, WIDTH).astype(np.float32) for _ in range(60)]
    questions = [one / np.float32(np.linalg.norm(one)) for one in questions]

    state = folded([event for step, one in enumerate(questions) for event in told(step, one, f"d{step % 3}")])

    spread = state.learners["one"].spread
    assert np.dot(spread.centre, shared) > 0.7
    assert np.abs(state.learners["one"].slopes.scores([0, 1, 2], shared - spread.centre)).max() < 0.5


def test_a_linear_model_is_moved_by_its_errors_and_forgotten_with_its_document():
    slopes, question = Slopes(2), np.array([0.6, 0.8], dtype=np.float32)

    slopes.move([3, 40], question, np.array([0.5, -0.5]))

    assert slopes.scores([40, -1, 3, 999], question) == pytest.approx([-0.5, 0.0, 0.5, 0.0])
    slopes.fade(3, 0.5), slopes.fade(999, 0.5)
    assert slopes.scores([40, 3], question) == pytest.approx([-0.5, 0.25])
    slopes.drop(40), slopes.drop(999)
    assert slopes.scores([40, 3], question) == pytest.approx([0.0, 0.25])


def test_a_document_shown_too_far_down_to_have_a_slot_moves_no_linear_model():
    question, shown = np.eye(WIDTH, dtype=np.float32)[0], tuple(f"d{rank}" for rank in range(12))

    state = folded(told(0, question, "d9", shown), LearnedState(RerankSettings()))

    assert state.documents.slots_of(shown) == [*range(10), -1, -1]
    rows = state.learners["one"].slopes.rows
    assert np.flatnonzero(rows.any(axis=1)).tolist() == [9]


@pytest.mark.parametrize("count", [1, 3])
def test_a_rehearsal_is_one_step_for_every_question_on_its_own(count):
    rng = np.random.default_rng(count)
    slots, rates = [7, 2, 5][:count], rng.random(count).astype(np.float32)
    questions = rng.standard_normal((count, WIDTH)).astype(np.float32)
    slopes = Slopes(WIDTH)
    slopes.move(list(range(8)), questions[0], rng.standard_normal(8))
    expected = slopes.rows.astype(np.float64)
    for place, question in enumerate(questions):
        chances = np.exp(slopes.scores(slots, question))
        chances /= chances.sum()
        for slot, chance, own in zip(slots, chances, np.arange(count) == place, strict=True):
            expected[slot] += rates[place] * (own - chance) * question

    slopes.rehearse(slots, questions, rates)

    np.testing.assert_allclose(slopes.rows, expected, rtol=1e-4, atol=1e-5)


def test_two_linear_models_are_told_apart_by_steps_of_logistic_regression():
    rng = np.random.default_rng(2)
    questions = rng.standard_normal((3, WIDTH)).astype(np.float32)
    slopes = Slopes(WIDTH)
    slopes.move(list(range(4)), questions[0], rng.standard_normal(4))
    expected = slopes.rows.astype(np.float64)
    for question in questions:
        wrongly = 1.0 / (1.0 + np.exp((expected[3] - expected[1]) @ question))
        expected[3] += 0.5 * wrongly * question
        expected[1] -= 0.5 * wrongly * question

    slopes.tell_apart(3, 1, questions, 0.5)

    np.testing.assert_allclose(slopes.rows, expected, rtol=1e-4, atol=1e-5)
    slopes.tell_apart(99, 1, questions, 0.5)
    assert slopes.scores([99], questions[0])[0] > 0, "that one had learned nothing before"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=6), st.integers(0, 10))
def test_what_was_learned_before_a_position_can_be_taken_away(learned, before):
    questions = Questions(width=2, capacity=8)
    for number, position in enumerate(learned):
        vector = np.array([number, 1.0], dtype=np.float32)
        questions.add(3, vector, 1.0 + number, origin=Origin(number, position))

    rows, origins = questions.take(3, before=before)

    old = [number for number, position in enumerate(learned) if position < before]
    left = [number for number, position in enumerate(learned) if position >= before]
    assert rows[:, 0].tolist() == old
    assert [origin.event for origin in origins] == old
    assert questions.rows(3)[:, 0].tolist() == left
    assert [(weights.tolist(), [one.event for one in kept]) for _, _, weights, kept in questions.groups()] == (
        [([1.0 + number for number in left], left)] if left else []
    )
    assert questions.total == len(left)


class PlainQuestions:
    """``Questions`` the obvious way: for each document a list of [vector, weight, origin]."""

    def __init__(self, capacity):
        self.capacity, self.known = capacity, {}

    def add(self, slot, vector, weight, origin):
        rows = self.known.setdefault(slot, [])
        if len(rows) == self.capacity:
            rows[max(range(len(rows)), key=lambda place: rows[place][0] @ vector)] = [vector, weight, origin]
        else:
            rows.append([vector, weight, origin])

    def fade(self, slot, kept, before):
        for row in self.known.get(slot, []):
            row[1] *= kept if row[2].learned < before else 1.0

    def take(self, slot, before):
        rows = self.known.pop(slot, [])
        if left := [row for row in rows if row[2].learned >= before]:
            self.known[slot] = left
        return [row[2] for row in rows if row[2].learned < before]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 20))
def test_remembered_questions_are_kept_as_in_plain_lists_whatever_comes_and_goes(seed, capacity):
    rng = np.random.default_rng(seed)
    questions, plain = Questions(width=3, capacity=capacity), PlainQuestions(capacity)
    for step in range(120):
        slot, vector = int(rng.integers(6)), rng.standard_normal(3).astype(np.float32)
        match rng.choice(["add", "fade", "take", "drop", "reweigh"], p=[0.7, 0.08, 0.06, 0.06, 0.1]):
            case "add":
                questions.add(slot, vector, step / 8, origin=Origin(step, step))
                plain.add(slot, vector, step / 8, Origin(step, step))
            case "fade":
                questions.fade(slot, 0.5, before=step - 20)
                plain.fade(slot, 0.5, step - 20)
            case "take":
                assert questions.take(slot, before=step - 20)[1] == plain.take(slot, step - 20)
            case "drop":
                questions.drop(slot)
                plain.known.pop(slot, None)
            case "reweigh":
                near = questions.near([slot, 5], vector)
                if near is not None:
                    questions.reweigh(near, near.weight * 2)
                    for row in [row for one in {slot, 5} for row in plain.known.get(one, [])]:
                        row[1] *= 2

    slots = rng.permutation(8).tolist()
    near = questions.near(slots, vector)
    known = [(column, plain.known[slot]) for column, slot in enumerate(slots) if slot in plain.known]
    assert {slot: list(origins) for slot, _, _, origins in questions.groups()} == {
        slot: [row[2] for row in rows] for slot, rows in plain.known.items()}
    if known:
        rows = [row for _, rows in known for row in rows]
        assert near.columns.tolist() == [column for column, _ in known]
        assert near.remembered.tolist() == [len(rows) for _, rows in known]
        assert near.starts.tolist() == [sum(near.remembered[:at]) for at in range(len(known))]
        assert near.weight.tolist() == [row[1] for row in rows]
        assert near.similarity == pytest.approx(np.array([row[0] @ vector for row in rows]), abs=1e-5)
    assert questions.total == sum(map(len, plain.known.values()))


@given(st.lists(st.integers(-1, 40), min_size=1, max_size=40))
def test_linear_models_score_alike_whether_few_or_many_are_asked(slots):
    slopes, question = Slopes(2), np.array([0.6, 0.8], dtype=np.float32)
    slopes.move(list(range(30)), question, [0.1 * slot for slot in range(30)])

    assert slopes.scores(slots, question) == pytest.approx([0.1 * slot if 0 <= slot < 30 else 0.0 for slot in slots])


@given(st.lists(st.integers(-1, 5), min_size=1, max_size=60), st.floats(0, 4000))
def test_few_documents_have_the_pheromones_that_they_have_among_many(slots, now):
    rng = np.random.default_rng(0)
    documents = Documents(capacity=10, half_life_seconds=1e3)
    for at in range(200):
        documents.pay(f"d{rng.integers(6)}", at=10.0 * at, credit=float(rng.uniform(-1, 1)), exposure=rng.random() * 3)

    many = documents.pheromones([*slots, *range(6)] * 3, now)

    assert documents.pheromones(slots, now) == pytest.approx(many[: len(slots)], rel=1e-5)
    assert np.concatenate([documents.pheromones([slot], now) for slot in slots]) == pytest.approx(
        many[: len(slots)], rel=1e-5)


def topical(seed, steps, mistaken):
    """Feedback on questions about three topics, each of which has a right document; some of it names the next one."""
    rng = np.random.default_rng(seed)
    topics = np.linalg.qr(rng.normal(size=(WIDTH, 3)))[0].T
    events = []
    for step in range(steps):
        question = topics[step % 3] + rng.normal(0, 0.1, WIDTH)
        question = (question / np.linalg.norm(question)).astype(np.float16).astype(np.float32)
        events += told(step, question, f"d{(step + mistaken(rng, step)) % 3}")
    return events


def newest_weight(state, name):
    groups = {slot: (weights, origins) for slot, _, weights, origins in state.learners["one"].helped.groups()}
    weights, origins = groups[state.documents.slots[name]]
    return float(weights[max(range(len(origins)), key=lambda place: origins[place].event)])


def test_a_vote_against_what_is_known_counts_less_the_more_of_the_feedback_is_noise():
    last = 150  # about the first topic, but names the second one's document

    def honest(rng, step):
        return step == last

    def noisy(rng, step):
        return step == last or rng.random() < 0.4

    quiet = folded(topical(3, last + 1, honest), LearnedState(RerankSettings()))
    loud = folded(topical(3, last + 1, noisy), LearnedState(RerankSettings()))

    assert quiet.learners["one"].changes.noise < 0.01 < 0.1 < loud.learners["one"].changes.noise
    assert newest_weight(loud, "d1") < 0.8
    assert newest_weight(quiet, "d1") > newest_weight(loud, "d1") + 0.1


def test_where_much_is_noise_old_questions_are_rehearsed_and_a_snapshot_goes_on_in_the_same_way():
    events = topical(4, 120, lambda rng, step: rng.random() < 0.4)
    settings = RerankSettings()
    state = folded(events[:200], LearnedState(settings))
    assert state.learners["one"].changes.noise > REHEARSAL_NOISE

    half = unpack(pack(state), settings)
    for position, event in enumerate(events, start=1):
        half.fold(Recorded(position, event))

    assert same(half, folded(events, LearnedState(settings)))


def silent(events, every):
    """Return the same rankings, but only every so many of them with feedback."""
    asked = [(event, events[place + 1]) for place, event in enumerate(events) if place % 2 == 0]
    return [event for step, pair in enumerate(asked) for event in pair[: 2 if step % every == 0 else 1]]


def from_silence(state):
    origins = [one for _, _, _, origins in state.learners["one"].helped.groups() for one in origins]
    return [one for one in origins if one.learned > one.event]


def test_where_hardly_anybody_answers_memory_remembers_what_it_was_sure_of():
    answered = topical(5, 30, lambda rng, step: False)
    later = silent(sure_of_itself(6, 400), 8)
    settings = RerankSettings(questions_per_document=128)

    state = folded([*answered, *later], LearnedState(settings))

    supposed = from_silence(state)
    assert supposed
    events = [*answered, *later]
    helped = state.learners["one"].helped
    for slot, rows, weights, origins in helped.groups():
        name = next(name for name, one in state.documents.slots.items() if one == slot)
        for row, weight, origin in zip(rows, weights, origins, strict=True):
            if origin in supposed:
                assert events[origin.event - 1].document_ids[0] == name
                assert events[origin.event - 1].query_vector.tolist() == row.tolist()
                assert 0 < weight < 1
    assert same(unpack(pack(state), settings), state)


def test_beyond_its_share_of_the_room_what_is_supposed_only_takes_the_place_of_something_weaker():
    questions, rows = Questions(width=3, capacity=4), np.eye(3, dtype=np.float32)
    for number, weight in enumerate((0.4, 0.2, 0.9)):
        questions.suppose(7, rows[number], weight, origin=Origin(number, 10), share=0.75)

    questions.suppose(7, rows[0], 0.1, origin=Origin(3, 11), share=0.75)
    questions.suppose(7, rows[0], 0.3, origin=Origin(4, 12), share=0.75)
    questions.add(7, rows[2], 1.0, origin=Origin(5, 13))

    (_, kept, weights, origins), = questions.groups()
    assert [origin.event for origin in origins] == [0, 4, 2, 5]
    assert weights.tolist() == pytest.approx([0.4, 0.3, 0.9, 1.0])
    assert kept.tolist() == rows[[0, 0, 2, 2]].tolist()


def test_a_document_is_the_better_known_the_more_feedback_passed_it_over():
    documents = Documents(capacity=10, half_life_seconds=1e6)
    assert documents.unknown([-1]).tolist() == [1.0]

    for name, times in (("seldom", 1), ("often", 5)):
        documents.pay(name, at=1.0, exposure=1.0)
        for _ in range(times):
            documents.pass_over(documents.slots[name], 0.6)

    slots = documents.slots_of(["seldom", "often", "never"])
    assert documents.unknown(slots) == pytest.approx([2 / 2.6, 2 / 5, 1.0])


def test_silence_supposes_nothing_before_trust_is_earned_nor_where_most_answer():
    settings = RerankSettings()
    young = folded(silent(sure_of_itself(6, 400), 150), LearnedState(settings))
    busy = folded(silent(sure_of_itself(6, 400), 2), LearnedState(settings))

    assert young.answer_rate**2 < LEAST_SILENCE <= busy.answer_rate**2
    assert not young.learners["one"].trust.earned
    assert busy.learners["one"].trust.earned
    assert not from_silence(young)
    assert not from_silence(busy)


def test_a_document_that_stops_being_right_is_noticed_once_and_begins_anew():
    changes = Changes()
    for _ in range(30):
        assert not changes.observe(1, missed=False, at=1)

    alarms = [changes.observe(1, missed=True, at=2) for _ in range(5)]

    assert sum(alarms) == 1
    assert not any(changes.observe(1, missed=step % 2 == 0, at=3) for step in range(10))


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_noise_that_was_there_all_along_is_no_change(share):
    rng = np.random.default_rng(0)
    changes = Changes()

    alarms = sum(changes.observe(step % 20, missed=bool(rng.random() < share), at=step) for step in range(2000))

    assert alarms <= 2


def test_noise_is_what_is_missed_beyond_a_learners_own_errors_once_there_is_evidence():
    def after(share, claims):
        rng, changes = np.random.default_rng(0), Changes()
        for step in range(claims):
            changes.observe(step % 20, missed=bool(rng.random() < share), at=step)
        return changes.noise

    assert after(0.1, 1000) == 0.0
    assert after(0.4, 1000) == pytest.approx(0.24, abs=0.06)
    assert after(1.0, 5000) == MOST_NOISE
    assert after(0.4, 20) == 0.0


def changing(successors):
    """Return the state after feedback on three topics, of which d0's and d1's change their right documents."""
    rng, width = np.random.default_rng(1), 64
    topics = np.linalg.qr(rng.normal(size=(width, 3)))[0].T
    shown = tuple(f"d{number}" for number in range(8))

    def asked(number, topic, helpful):
        question = topics[topic] + rng.normal(0, 0.15, width)
        question = (question / np.linalg.norm(question)).astype(np.float16).astype(np.float32)
        return told(number, question, helpful, shown)

    before = [event for step in range(90) for event in asked(step, step % 3, f"d{step % 3}")]
    after = [
        event for step in range(90, 120) for event in asked(step, step % 3, successors[step % 3][step % 4])
    ]
    state = folded([*before, *after], LearnedState(RerankSettings()))
    assert same(unpack(pack(state), RerankSettings()), state)
    return state, topics


def votes_by_topic(state, name, topics):
    """Return the weight of what a document remembers of each topic."""
    groups = {slot: (rows, weights) for slot, rows, weights, _ in state.learners["one"].helped.groups()}
    rows, weights = groups[state.documents.slots[name]]
    nearest = (rows @ topics.T).argmax(axis=1)
    return [float(weights[nearest == topic].sum()) for topic in range(len(topics))]


def test_a_document_that_changed_hands_over_what_it_knew_to_the_one_that_took_its_place():
    state, topics = changing((["d1"] * 4, ["d0"] * 4, ["d2"] * 4))
    slopes = state.learners["one"].slopes
    slots = state.documents.slots_of(["d0", "d1", "d2"])

    for name, topic in (("d0", 1), ("d1", 0), ("d2", 2)):
        votes = votes_by_topic(state, name, topics)
        assert votes[topic] > 15
        assert sum(votes) - votes[topic] < 0.1 * sum(votes)
    for topic, right in ((0, 1), (1, 0), (2, 2)):
        question = topics[topic].astype(np.float32) - state.learners["one"].spread.centre
        assert slopes.scores(slots, question).argmax() == right


def test_what_was_learned_of_a_document_that_changed_hardly_counts_where_no_other_took_its_place():
    state, topics = changing((["d3", "d4", "d5", "d6"], ["d7", "d6", "d5", "d4"], ["d2"] * 4))

    assert max(votes_by_topic(state, "d0", topics)[0], votes_by_topic(state, "d1", topics)[1]) < 3 + 3
    assert votes_by_topic(state, "d2", topics)[2] > 30


def test_a_handed_over_question_is_from_its_event_and_learned_later():
    state, _ = changing((["d1"] * 4, ["d0"] * 4, ["d2"] * 4))

    handed = [one for _, _, _, origins in state.learners["one"].helped.groups() for one in origins
              if one.learned > one.event]
    assert len(handed) > 30
    assert all(one.event <= 180 < one.learned <= state.position for one in handed)


def test_the_successor_is_what_took_most_of_the_last_few_claims():
    successors = Successors()
    for right in ["a"] * 20 + ["b"]:
        successors.observe("a", {right: 1.0})
    assert successors.of("a") is None, "once is chance"

    successors.observe("a", {"b": 1.0}), successors.observe("a", {"b": 1.0})
    assert successors.of("a") == "b"
    assert successors.of("b") is None

    for number in range(20):
        successors.observe("a", {f"d{number % 5}": 1.0})
    assert successors.of("a") is None, "nothing has the place to itself"
    successors.drop("a")
    assert successors.table() == []


def test_watching_documents_for_successors_is_bounded():
    successors = Successors()
    for number in range(MOST_DOCUMENTS + 5):
        for step in range(40):
            successors.observe(f"d{number}", {f"e{step}": 1.0})

    rows = successors.table()
    assert len(rows) == MOST_DOCUMENTS
    assert rows[-1][0] == f"d{MOST_DOCUMENTS + 4}"
    assert max(len(row) for _, row in rows) <= 14


def test_silence_is_heard_after_as_many_later_rankings_however_many_people_answer():
    def heard(answered):
        events = topical(7, 20, lambda rng, step: False)
        events += topical(8, 1, lambda rng, step: False)[:1]
        later = sure_of_itself(6, 80)
        state = LearnedState(RerankSettings())
        for position, event in enumerate(events, start=1):
            state.fold(Recorded(position, event))
        for count, ranking in enumerate(later[::2], start=1):
            state.fold(Recorded(state.position + 1, ranking))
            if state.learners["one"].failed.total:
                return count
            if answered:
                state.fold(Recorded(state.position + 1, later[2 * count - 1]))
        return None

    assert heard(answered=True) == heard(answered=False) == PATIENCE


def test_what_stood_behind_a_first_document_in_vain_loses_until_something_is_found_there():
    fruitless, names = Fruitless(), ["a", "b", "c", "d"]
    assert not fruitless.knows("a")

    fruitless.silent(["a", "b", "c"], weight=0.5)
    fruitless.silent(["a", "c"], weight=1.0)

    assert fruitless.penalties(names, 0) == pytest.approx([0.0, -1.0, -3.0, 0.0])
    assert fruitless.penalties(names, 1) == pytest.approx([0.0, 0.0, 0.0, 0.0]), "other questions know nothing of it"

    fruitless.told("a", ["c"], weight=1.0)
    assert fruitless.penalties(names, 0) == pytest.approx([0.0, -0.7, 0.0, 0.0])

    for _ in range(20):
        fruitless.silent(["a", "d"], weight=1.0)
    assert fruitless.penalties(names, 0).min() == -MOST_PENALTY
    for _ in range(20):
        fruitless.told("a", ["a"], weight=1.0)
    assert not fruitless.knows("a")


def test_what_is_remembered_as_fruitless_is_bounded():
    fruitless = Fruitless()
    for number in range(MOST_FIRSTS + 5):
        fruitless.silent([f"d{number}", "b"], weight=1.0)
    for number in range(MOST_OTHERS + 5):
        fruitless.silent(["a", "b", f"e{number}"], weight=1.0)

    rows = dict(fruitless.table())
    assert len(rows) == MOST_FIRSTS
    assert len(rows["a"]) == MOST_OTHERS
    assert dict(rows["a"])["b"] == MOST_OTHERS + 5


@pytest.mark.parametrize("junk", [b"", b"not a snapshot", b"PK\x03\x04 broken"])
def test_a_broken_snapshot_is_a_value_error(junk):
    with pytest.raises(ValueError, match="snapshot"):
        unpack(junk, SMALL)


def test_snapshots_of_other_settings_have_another_name():
    assert fold_name(SMALL) == fold_name(SMALL.model_copy(update={"diversity": 0.5}))
    assert fold_name(SMALL) != fold_name(SMALL.model_copy(update={"half_life_seconds": 1.0}))


class Spy(MemoryStore):
    """Notes the reads of the log."""

    def __init__(self):
        super().__init__()
        self.reads_after = []

    def read(self, **where):
        self.reads_after.append(where.get("after"))
        return super().read(**where)


def attached(store, **options):
    memory = Memory(store, settings=SMALL, snapshot_every=options.get("snapshot_every", 1000))
    recorder = Recorder(store, flush_interval_seconds=60.0, buffer_rankings=1000, on_written=memory.absorb)
    return memory, recorder


def log(recorder, events):
    for event in events:
        recorder.served(event) if hasattr(event, "query_key") else recorder.told(event)
    recorder.flush()


def test_what_a_process_wrote_itself_is_not_read_again():
    store = Spy()
    memory, recorder = attached(store)
    memory.state("default")
    store.reads_after.clear()

    log(recorder, random_events(6, 30))

    assert memory.state("default").position == store.head().position
    assert store.reads_after == []
    recorder.close()


def test_two_processes_on_one_store_end_in_the_same_state():
    store = MemoryStore()
    (one, first), (two, second) = attached(store), attached(store)
    one.state("default"), two.state("default")

    for start in range(0, 40, 5):
        log(first, random_events(100 + start, 5))
        log(second, random_events(200 + start, 5))

    assert same(one.state("default"), two.state("default"))
    fresh, third = attached(store)
    assert same(fresh.state("default"), one.state("default"))
    for recorder in (first, second, third):
        recorder.close()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sampled_from(["serve", "tell", "look", "forget"])), max_size=40))
def test_whoever_writes_between_whom_all_processes_end_in_the_state_of_the_log(steps):
    """Each vouches only for its own events: what the other wrote before, between and after them is not missed."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as open_:
        stores = [open_.enter_context(closing(SqliteStore(f"{folder}/t.db"))) for _ in range(3)]
        pairs = [attached(store) for store in stores]
        events = random_events(14, len(steps))
        rankings = [event for event in events if hasattr(event, "query_key")]
        feedback = [event for event in events if not hasattr(event, "query_key")]
        for number, (second, what) in enumerate(steps):
            memory, recorder = pairs[second]
            if what == "serve":
                log(recorder, rankings[number : number + 1])
            elif what == "tell" and feedback:
                recorder.told(feedback.pop())
            elif what == "look":
                memory.state("default")
            elif what == "forget" and number % 5 == 0:
                stores[second].erase(Erasure(session="s1"))
        states = [memory.state("default") for memory, _ in pairs]
        assert same(states[0], states[2])
        assert same(states[1], states[2])


def test_namespaces_learn_apart():
    store = MemoryStore()
    memory, recorder = attached(store)
    log(recorder, random_events(7, 40, namespaces=("a", "b")))

    alone = MemoryStore()
    other, lonely = attached(alone)
    log(lonely, [event for event in random_events(7, 40, namespaces=("a", "b")) if event.namespace == "a"])

    def numbers(state):
        return state.rankings, state.feedback, sorted(state.documents.slots), sum(state.documents.credit)

    assert numbers(memory.state("a")) == numbers(other.state("a"))
    recorder.close(), lonely.close()


def test_a_start_from_a_snapshot_reads_only_the_tail():
    store = Spy()
    memory, recorder = attached(store, snapshot_every=10)
    memory.state("default")
    log(recorder, random_events(8, 40))
    assert memory.snapshots_due()
    memory.save_snapshots()
    assert not memory.snapshots_due()
    log(recorder, random_events(9, 3))

    later, _ = attached(store, snapshot_every=10)

    assert same(later.state("default"), memory.state("default"))
    recorder.close()


def test_a_process_far_behind_goes_on_from_the_snapshot_of_another():
    store, other = Spy(), random_events(15, 60, namespaces=("a", "b"))
    memory, recorder = attached(store, snapshot_every=10)
    sleeper, _ = attached(store, snapshot_every=10)
    log(recorder, other[:20])
    for name in ("a", "b"):
        memory.state(name), sleeper.state(name)
    log(recorder, other[20:])
    memory.state("a")
    memory.save_snapshots(all_moved=True)
    log(recorder, random_events(16, 2, namespaces=("a", "b")))
    saved = min(store.load_snapshot(name, fold_name(SMALL)).position for name in ("a", "b"))
    store.reads_after.clear()

    woken = [sleeper.state(name) for name in ("a", "b")]

    assert store.reads_after == [saved]
    assert all(map(same, woken, map(memory.state, ("a", "b"))))
    recorder.close()


def test_a_fall_that_was_leapt_over_is_told_once():
    store, told_of = MemoryStore(), []
    memory, recorder = attached(store, snapshot_every=10)
    sleeper = Memory(store, settings=SMALL, snapshot_every=10, on_fall=told_of.append)
    sleeper.state("default")
    rankings = [event for event in random_events(17, 400) if hasattr(event, "query_key")]
    for number, ranking in enumerate(rankings):
        best = ((ranking.document_ids[0], 1.0 if number < 200 else -1.0),)
        log(recorder, [ranking, make_feedback(ranking, feedback_id=f"x{number}", rewards=best)])
    falls = memory.state("default").satisfaction.falls
    memory.save_snapshots()

    sleeper.state("default")

    assert falls >= 1
    assert told_of == [memory.state("default").satisfaction.last]
    recorder.close()


def test_what_was_erased_is_unlearned_everywhere():
    store = MemoryStore()
    memory, recorder = attached(store)
    witness, _ = attached(store)
    log(recorder, random_events(10, 30))
    memory.state("default"), witness.state("default")

    store.erase(Erasure(namespace="default", document_ids=("d1",)))

    for one in (memory, witness):
        assert "d1" not in one.state("default").documents.slots
    recorder.close()


def test_an_event_is_found_by_its_position_in_its_own_namespace_alone():
    store = MemoryStore()
    memory, recorder = attached(store)
    log(recorder, random_events(13, 5))
    (first, *_) = store.read()

    assert memory.event(first.position, "default") is first.event
    assert memory.event(first.position, "other") is None
    assert memory.event(10**6, "default") is None
    recorder.close()


def test_a_store_in_trouble_leaves_what_was_known():
    store = FailingStore(MemoryStore())
    memory, recorder = attached(store)
    log(recorder, random_events(11, 20))
    known = memory.state("default").position
    store.fail()

    with pytest.raises(StoreError):
        memory.state("default")

    assert memory.last_known("default").position == known
    assert memory.last_known("never seen").position == 0
    store.recover()
    recorder.close()
