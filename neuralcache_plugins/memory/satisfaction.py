"""Whether people are served worse than before: a sequential test of rewards, by namespace and by kind of source.

The reward of one feedback is the sum of the rewards told, each divided by the document's rank (from 1), cut to
[-1, 1]: what helped at the third place satisfies less than what helped at the first.

The test is an e-detector of Shiryaev and Roberts (Shin, Ramdas & Rinaldo, "E-detectors", 2022) that bets on rewards
below what they were. With rewards y in [0, 1] and L a lower bound of their mean, each of a few bets b makes

    M <- (M + 1) (1 + b (L - y))

and the alarm comes when their mean reaches ``RUN_LENGTH``. While the mean of y never falls, no factor has an
expectation above 1, so that on average at least ``RUN_LENGTH`` feedbacks pass until a false alarm, whatever the
distribution of rewards. L is the highest value so far of the predictable plug-in empirical Bernstein bound
(Waudby-Smith & Ramdas 2024, theorem 2), which holds at all times together with probability ``1 - RISK``; the promise is
given that it holds. After an alarm the test begins anew, with what is usual from then on.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

from neuralcache_plugins.contracts import FeedbackGiven, SatisfactionFell

RUN_LENGTH = 10_000.0
RISK = 0.05
_SURE = math.log(1.0 / RISK)

BETS = (0.25, 0.5, 1.0)
"""Sizes of fall that are bet on; 1 is the largest that cannot ruin whoever bets."""

MOST_SOURCES = 32
"""Kinds of sources watched; the one heard of least recently goes."""

RECENT = 0.05
"""Weight of one feedback in the recent mean."""

ALL = ""
"""Stands for all sources together."""


def reward_of(event: FeedbackGiven) -> float:
    """Return the reward of one feedback in [-1, 1]; O(k) for each document named."""
    shown = event.ranking.document_ids
    total = sum([reward / (1.0 + shown.index(name)) for name, reward in event.rewards if name in shown])
    return min(1.0, max(-1.0, total))


def kind_of(source: str) -> str:
    """Return what kind of source it is: "marker" for "marker:gratitude"."""
    return source.partition(":")[0]


class Watch:
    """The test of one stream of rewards. O(1) in time and memory for each."""

    def __init__(self) -> None:
        self.count = 0
        self.recent = 0.0
        self.total = 0.0
        self.squares = 0.25
        self.stakes = 0.0
        self.staked = 0.0
        self.spread = 0.0
        self.bound = 0.0
        self.detectors = [0.0] * len(BETS)

    @property
    def before(self) -> float:
        """Return what the mean reward was at least, in [-1, 1]."""
        return 2.0 * self.bound - 1.0

    @property
    def evidence(self) -> float:
        """Return the state of the test as a share of the alarm, on a logarithmic scale: 0 nothing, 1 alarm."""
        return min(1.0, math.log1p(sum(self.detectors) / len(BETS)) / math.log1p(RUN_LENGTH))

    def observe(self, reward: float) -> bool:
        """Take in one more reward in [-1, 1]; return whether the alarm is due."""
        y = 0.5 * (reward + 1.0)
        fall = self.bound - y
        self.detectors = [(one + 1.0) * (1.0 + bet * fall) for one, bet in zip(self.detectors, BETS, strict=True)]
        self._raise_bound(y)
        self.recent += max(RECENT, 1.0 / self.count) * (reward - self.recent)
        return sum(self.detectors) >= RUN_LENGTH * len(BETS)

    def _raise_bound(self, y: float) -> None:
        self.count += 1
        mean = (0.5 + self.total) / self.count  # of those before
        variance = self.squares / self.count
        stake = min(0.5, math.sqrt(2.0 * _SURE / (variance * self.count * math.log1p(self.count))))
        self.stakes += stake
        self.staked += stake * y
        self.spread += (y - mean) ** 2 * (-math.log1p(-stake) - stake)
        self.total += y
        self.squares += (y - (0.5 + self.total) / (self.count + 1)) ** 2
        self.bound = max(self.bound, (self.staked - _SURE - self.spread) / self.stakes)


class Satisfaction:
    """One watch for all feedback of a namespace and one for each kind of source."""

    def __init__(self) -> None:
        self.watches: OrderedDict[str, Watch] = OrderedDict()
        self.last: SatisfactionFell | None = None
        self.falls = 0

    def observe(self, event: FeedbackGiven, *, number: int) -> tuple[SatisfactionFell, ...]:
        """Take in one feedback, the ``number``-th; return the alarms that it sets off. O(k) for k documents named."""
        reward = reward_of(event)
        if reward == 0.0:
            return ()
        falls: tuple[SatisfactionFell, ...] = ()
        for name in (ALL, kind_of(event.source)):
            watch = self._watch(name)
            if watch.observe(reward):
                self.watches[name] = Watch()
                falls += (SatisfactionFell(
                    event.namespace, name or None, number, event.at, watch.before, watch.recent
                ),)
        if falls:
            self.last = falls[0]
            self.falls += len(falls)
        return falls

    def table(self) -> dict[str, Any]:
        """Return all of it as JSON values, for ``restore``."""
        last = self.last
        return {
            "watches": [[name, vars(watch)] for name, watch in self.watches.items()],
            "last": last and [last.namespace, last.source, last.feedback, last.at, last.before, last.after],
            "falls": self.falls,
        }

    def restore(self, table: dict[str, Any]) -> None:
        """Put back what ``table`` gave."""
        for name, numbers in table["watches"]:
            vars(self._watch(name)).update(numbers)
        self.last = None if table["last"] is None else SatisfactionFell(*table["last"])
        self.falls = table["falls"]

    def _watch(self, name: str) -> Watch:
        watch = self.watches.get(name)
        if watch is None:
            watch = self.watches[name] = Watch()
            if len(self.watches) > MOST_SOURCES:
                del self.watches[next(one for one in self.watches if one != ALL)]
        self.watches.move_to_end(name)
        return watch
