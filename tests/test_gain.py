"""The gain that stats report is that of the served order over the retriever's, and says when it cannot tell."""

import random
import statistics

import pytest

from neuralcache_plugins.memory.gain import Gain
from neuralcache_plugins.testing import make_ranking


def served(prior):
    n = len(prior)
    return make_ranking(document_ids=tuple(f"d{i}" for i in range(n)), positions=tuple(range(n)), scores=(0.5,) * n,
                        cold=(-1.0,) * n, signals={"prior": tuple(prior)}, propensities=(1.0,) * n)


def test_a_document_moved_from_third_to_first_place_gains_two_thirds():
    gain = Gain()
    gain.observe(served([0.1, 0.9, 0.5]), {"d0": 1.0})

    assert gain.mean == pytest.approx(1 - 1 / 3)
    assert gain.interval() is None


def test_the_running_mean_and_interval_are_those_of_all_observations():
    rng, gain, seen = random.Random(1), Gain(), []
    for _ in range(200):
        prior = [rng.random() for _ in range(5)]
        helped = rng.randrange(5)
        gain.observe(served(prior), {f"d{helped}": 1.0})
        seen.append(1 / (1 + helped) - 1 / (1 + sorted(range(5), key=lambda i: -prior[i]).index(helped)))

    low, high = gain.interval()
    assert gain.mean == pytest.approx(statistics.mean(seen))
    assert high - low == pytest.approx(2 * 1.96 * statistics.stdev(seen) / 200**0.5)


@pytest.mark.parametrize(
    ("prior", "rewards"), [([0.0, 0.0], {"d1": 1.0}), ([0.2, 0.1], {"d1": -1.0}), ([0.2, 0.1], {})]
)
def test_a_silent_retriever_and_feedback_without_help_say_nothing(prior, rewards):
    gain = Gain()
    gain.observe(served(prior), rewards)

    assert gain.count == 0
