"""Whether people are served worse than before: a test that seldom cries wolf, folded from the log."""

import logging
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralcache_plugins import Reranker
from neuralcache_plugins.contracts import Recorded, SatisfactionFell
from neuralcache_plugins.memory import LearnedState
from neuralcache_plugins.memory.satisfaction import ALL, MOST_SOURCES, RUN_LENGTH, Satisfaction, Watch, reward_of
from neuralcache_plugins.memory.snapshots import pack, unpack
from neuralcache_plugins.settings import RerankSettings
from neuralcache_plugins.testing import FakeClock, HashingEncoder, make_feedback, make_ranking

TEXTS = ["Opening hours of our branches", "Reset the password", "Cards are delivered within a week"]
IDS = ["hours", "reset", "cards"]


def rewards(seed, *phases):
    """Return rewards of 1 or -1, by phases of (how many, share of 1)."""
    rng = np.random.default_rng(seed)
    return [1.0 if rng.random() < share else -1.0 for number, share in phases for _ in range(number)]


def first_alarm(stream):
    watch = Watch()
    return next((number for number, reward in enumerate(stream) if watch.observe(reward)), None)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.95, 1.0])
def test_while_nothing_falls_there_is_no_alarm_for_long(share):
    """In 20 runs of a fifth of the promised run length at most a fifth may alarm, and chance allows a few more."""
    alarms = [first_alarm(rewards(seed, (int(RUN_LENGTH / 5), share))) for seed in range(20)]

    assert sum(alarm is not None for alarm in alarms) <= 7


def test_learning_is_no_fall():
    rising = rewards(0, (500, 0.4), (500, 0.6), (500, 0.8), (500, 0.9))

    assert first_alarm(rising) is None


@pytest.mark.parametrize(("before", "after", "soon"), [(0.9, 0.5, 60), (0.9, 0.6, 120), (0.7, 0.3, 120)])
def test_a_fall_is_noticed_soon_and_not_before_it(before, after, soon):
    alarms = [first_alarm(rewards(seed, (300, before), (1000, after))) for seed in range(9)]

    assert all(alarm is not None and alarm >= 300 for alarm in alarms)
    assert np.median(alarms) <= 300 + soon


@given(st.lists(st.floats(-1, 1), max_size=150))
def test_the_bets_cannot_lose_more_than_they_have_and_the_bound_never_sinks(stream):
    watch, bound = Watch(), 0.0
    for reward in stream:
        watch.observe(reward)
        assert all(one >= 0 for one in watch.detectors)
        assert bound <= watch.bound <= 1.0
        bound = watch.bound
        assert 0.0 <= watch.evidence <= 1.0


def slow_bound(ys):
    """Return the highest predictable plug-in empirical Bernstein lower bound, as the paper writes it."""
    best = 0.0
    for t in range(1, len(ys) + 1):
        stakes, spread = [], 0.0
        for i in range(1, t + 1):
            means = [(0.5 + sum(ys[:k])) / (k + 1) for k in range(i)]
            squares = 0.25 + sum((ys[k] - (0.5 + sum(ys[: k + 1])) / (k + 2)) ** 2 for k in range(i - 1))
            stake = min(0.5, np.sqrt(2 * np.log(20) / (squares / i * i * np.log(1 + i))))
            stakes.append(stake)
            spread += (ys[i - 1] - means[i - 1]) ** 2 * (-np.log(1 - stake) - stake)
        weighted = sum(stake * y for stake, y in zip(stakes, ys, strict=False))
        best = max(best, (weighted - np.log(20) - spread) / sum(stakes))
    return best


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=25))
def test_the_bound_is_the_one_of_the_paper(stream):
    watch = Watch()
    for reward in stream:
        watch.observe(reward)

    assert watch.bound == pytest.approx(slow_bound([0.5 * (reward + 1) for reward in stream]), abs=1e-9)


def test_help_further_down_is_worth_less():
    ranking = make_ranking(documents=("a", "b", "c"))

    assert reward_of(make_feedback(ranking, rewards=(("a", 1.0),))) == 1.0
    assert reward_of(make_feedback(ranking, rewards=(("c", 1.0),))) == pytest.approx(1 / 3)
    assert reward_of(make_feedback(ranking, rewards=(("a", -1.0), ("c", 0.5)))) == pytest.approx(-5 / 6)
    assert reward_of(make_feedback(ranking, rewards=(("a", 1.0), ("b", 1.0)))) == 1.0


def events(stream, *, source="user", start=0):
    for number, reward in enumerate(stream, start=start):
        ranking = make_ranking(f"r{number}", at=1e9 + number, width=None)
        yield make_feedback(ranking, feedback_id=f"f{number}", source=source, rewards=(("a", reward),))


def test_an_alarm_tells_whose_feedback_fell_from_what_to_what_and_the_test_begins_anew():
    satisfaction, falls = Satisfaction(), []
    for number, event in enumerate(events(rewards(1, (300, 0.9), (100, 0.2)), source="click:web"), start=1):
        falls += satisfaction.observe(event, number=number)

    assert [fall.source for fall in falls] == [None, "click"]
    assert isinstance(falls[0], SatisfactionFell)
    assert falls[0].namespace == "default"
    assert 300 < falls[0].feedback <= 340
    assert falls[0].at == 1e9 + falls[0].feedback - 1 + 1.0
    assert falls[0].before > 0.5 > falls[0].after
    assert (satisfaction.falls, satisfaction.last) == (2, falls[0])
    assert satisfaction.watches[ALL].count == 400 - falls[0].feedback


def test_one_source_falls_and_another_does_not():
    satisfaction, falls = Satisfaction(), []
    mixed = zip(events(rewards(2, (250, 0.95), (40, 0.1)), source="marker:x"), events([1.0] * 290, start=1000),
                strict=True)
    for number, event in enumerate((one for pair in mixed for one in pair), start=1):
        falls += satisfaction.observe(event, number=number)

    assert "marker" in {fall.source for fall in falls}
    assert "user" not in {fall.source for fall in falls}


def test_kinds_of_sources_are_bounded_and_the_whole_is_never_dropped():
    satisfaction = Satisfaction()
    for number in range(100):
        satisfaction.observe(make_feedback(source=f"s{number}"), number=number)

    assert len(satisfaction.watches) == MOST_SOURCES
    assert satisfaction.watches[ALL].count == 100


def test_a_snapshot_in_the_midst_of_a_fall_changes_nothing():
    settings = RerankSettings()
    log = list(events(rewards(3, (150, 0.9), (60, 0.3))))
    whole, half = LearnedState(settings), LearnedState(settings)
    expected = [fall for position, event in enumerate(log, 1) for fall in whole.fold(Recorded(position, event))]
    found = []
    for position, event in enumerate(log, 1):
        if position % 20 == 0:
            half = unpack(pack(half), settings)
        found += half.fold(Recorded(position, event))

    assert expected
    assert found == expected
    assert pack(half) == pack(whole)


def serve(reranker, stream):
    for reward in stream:
        ranking = reranker.rerank("when are you open", TEXTS, ids=IDS)
        reranker.feedback(ranking, rewards={ranking.ids[0]: reward})
    reranker.flush()


def test_a_reranker_calls_back_warns_and_shows_it(caplog):
    fallen, called = [], threading.Event()
    with Reranker(HashingEncoder(), store="memory://", clock=FakeClock(),
                  on_drift=lambda fall: (fallen.append(fall), called.set())) as reranker:
        serve(reranker, rewards(4, (120, 1.0)))
        assert fallen == []
        with caplog.at_level(logging.WARNING):
            serve(reranker, rewards(4, (40, 0.1)))
            stats = reranker.stats().namespace
        assert called.wait(5.0)

    assert stats.falls == 2
    assert stats.last_fall in fallen
    assert "satisfaction fell in namespace 'default': the mean reward was at least" in caplog.text
    assert "satisfaction fell: 2 times, last at 2027-01-15 08:00 UTC: from at least +" in str(stats)
    assert "satisfaction: mean reward -" in str(stats)
    assert "satisfaction fell" in stats._repr_html_()


def test_what_happened_before_this_process_began_is_shown_and_not_called_back(tmp_path):
    url = f"sqlite:///{tmp_path / 'telemetry.db'}"
    with Reranker(HashingEncoder(), store=url, clock=FakeClock()) as before:
        serve(before, rewards(4, (120, 1.0), (40, 0.1)))
    fallen = []
    with Reranker(HashingEncoder(), store=url, clock=FakeClock(), on_drift=fallen.append) as after:
        assert after.stats().namespace.falls == 2

    assert fallen == []
