"""Proving rules on a log before anything is served: the offline half of the certificate.

Learn then Test (Angelopoulos, Bates, Candes, Jordan and Lei 2021) without a split: each judged pair first tests the
rules as the pairs before it have made them, and teaches only then. So no pair tests what has learned from it, and every
pair does both. A rule's would-be hits are a sequence of right and wrong, each met by the rule before it was seen; were
the chance of being wrong at least the allowed one at every one of them, given what came before, then no way of betting
on right at fair odds would multiply a capital by 1/alpha with a chance above alpha (Ville). That holds for logs of any
length, at every time, in whatever order questions come and however rules move, as online. It speaks of the log: that
what comes after is like it (exchangeable with it) is assumed, and audits and the alarm watch it.

The bets are not those of the test online, which does not know when it has to be ready. Here the end is known, and who
has so many hits left and wants 1/alpha by then does best to bet as if the capital were the chance of a binomial tail
(Dubins and Savage 1965, "How to gamble if you must"): with as many hits as were foreseen this is the binomial test, and
with more or fewer it is still fair. Rules are tested in a fixed order until one fails, which needs no correction for
their number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from neuralcache_plugins.contracts import Array
from neuralcache_plugins.semantic_cache.certificate import AIMS, ENOUGH, Counts, Flags
from neuralcache_plugins.semantic_cache.policy import RECUT_EVERY, Label, Policy

OFFLINE_SHARE = 2.0 / 3.0
"""What the proof takes of a share of alpha that nobody has begun to use; the test that goes on online has the rest."""

FIRST = ENOUGH
"""The rule that is tested first, from 1: a certificate online waits for it too. The stricter ones have too few hits in
a log for a proof, and never serve while a looser one does."""

FORESEEN = 0.9
"""So much of the hits that are to be expected is counted on: who is left with unspent hope has proved nothing."""

_WHOLE = 1.0 - 1e-9


class Tested(NamedTuple):
    """How one rule did on the log: its would-be hits, those wrong, and the p-value of "errs too often".

    The p-value holds at every time, and no smaller one than was asked for is ever found: then the bets end.
    """

    hits: int
    wrong: int
    p_value: float


@dataclass(frozen=True, slots=True)
class Proof:
    """What a log proved: ``rules[j]`` tells how rule j + 1 did, ``passed`` how many are certified
    by it.

    Testing began with rule ``first`` (from 1) and a p-value of at most ``alpha`` was asked for. ``changed`` is the
    place, among the judged pairs, at which candidates began to err more than others of their score had before: what had
    been proved until then counts for nothing.
    """

    rules: tuple[Tested, ...]
    first: int
    passed: int
    alpha: float
    changed: int | None = None


@dataclass(slots=True)
class Bettors:
    """One for each rule, who has ``alpha`` and wants 1 by the end of the log: capital now and at its best, (j,)."""

    limit: float
    alpha: float
    capital: Array = field(init=False)
    best: Array = field(init=False)
    hits: Counts = field(default_factory=lambda: np.zeros(len(AIMS), dtype=np.int64))
    wrong: Counts = field(default_factory=lambda: np.zeros(len(AIMS), dtype=np.int64))

    def __post_init__(self) -> None:
        self.capital = np.full(len(AIMS), self.alpha)
        self.best = self.capital.copy()

    def observe(self, hits: Flags, wrong: bool, foreseen: Array) -> None:
        """Bet on one pair in every rule that would have served it, ``hits`` (j,), with so many hits ``foreseen`` (j,)
        from now on. About 30 us a rule.
        """
        self.hits += hits
        self.wrong += hits & wrong
        for rule in (hits & (self.capital > 0.0) & (self.best < _WHOLE)).nonzero()[0].tolist():
            left = max(1, int(FORESEEN * foreseen[rule]))
            self.capital[rule] = after(float(self.capital[rule]), wrong, left=left, limit=self.limit)
        self.best = np.maximum(self.best, self.capital)

    def tested(self) -> tuple[Tested, ...]:
        """Return how each rule did so far."""
        return tuple(Tested(int(hits), int(wrong), min(1.0, self.alpha / float(best)))
                     for hits, wrong, best in zip(self.hits, self.wrong, self.best, strict=True))

    def give_up(self) -> None:
        """Bet no more and have proved nothing."""
        self.capital, self.best = np.zeros(len(AIMS)), np.full(len(AIMS), self.alpha)

    @property
    def passed(self) -> int:
        """Return how many rules are proved: those from the first on until one is not, and the stricter ones with it."""
        rule = FIRST - 1
        while rule < len(self.best) and self.best[rule] >= _WHOLE:
            rule += 1
        return rule if rule >= FIRST else 0


def prove(policy: Policy, judged: Sequence[Label], *, at: float = 0.0) -> Proof:
    """Test the policy on pairs in their order, teach it each of them, and certify what they prove.

    It takes the next unused share of alpha, so that all certifications together, offline and online, spend alpha. If
    the test online has not begun, the two divide the share; the pairs also count as its bets, and it goes on with them.
    Where candidates err more after something was proved, as would raise the alarm online, that is of a world that is
    over: nothing of it is certified, and the test online begins anew with the next share. ``at`` is the time of it, for
    the record. About 0.4 ms a pair.
    """
    before, proven = policy.tests.live, policy.tests.proven
    alpha = policy.take_share()
    if policy.alpha is None:
        policy.alpha = (1.0 - OFFLINE_SHARE) * alpha
        alpha *= OFFLINE_SHARE
    bettors, watch, changed = Bettors(policy.limit, alpha), policy.watch(), None
    share = policy.recut()
    for place, pair in enumerate(judged):
        proved = bettors.passed or policy.tests.proven
        score = policy.bet(pair)
        bettors.observe(score >= policy.cuts, not pair.right, share * (len(judged) - place))
        surprised = proved and watch.observe(score, not pair.right)
        policy.teach(pair)
        if surprised:
            policy.begin_anew()
            bettors.give_up()
            changed, watch = place, policy.watch()
        elif policy.labels % RECUT_EVERY == 0:
            share = policy.recut()
    policy.recut()
    # the test that goes on online may have proved what the bettors could not
    passed = max(bettors.passed, policy.tests.proven if policy.tests.proven > proven else 0)
    policy.tests.certify(passed)
    policy.calibrated += 1
    policy.note_move(before, at, "calibrated")
    return Proof(bettors.tested(), FIRST, passed, alpha, changed)


def after(capital: float, wrong: bool, *, left: int, limit: float) -> float:
    """Return what becomes of a capital in (0, 1) that is to be 1 once ``left`` more hits were judged, this one too.

    Bold play: the capital is held to be the chance that of ``left`` hits at most k are wrong, each with the chance
    ``limit``, with a share of those where k + 1 are; after this one it is that chance given how it was. So its mean is
    what it was. O(left * limit).
    """
    right = min(_after_right(capital, left, limit), capital / (1.0 - limit), 1.0)
    return max(0.0, (capital - (1.0 - limit) * right) / limit) if wrong else right


def _after_right(capital: float, left: int, limit: float) -> float:
    later = left - 1
    reach = min(later, int(later * limit + 10.0 * math.sqrt(later * limit) + 20.0))  # what is beyond has no weight
    mistakes = np.arange(1, reach + 1)
    ratios = np.log((later - mistakes + 1) / mistakes) + math.log(limit / (1.0 - limit))
    chances = np.exp(later * math.log1p(-limit) + np.concatenate([[0.0], np.cumsum(ratios)]))
    at_most = np.cumsum(chances)
    now = at_most - limit * chances  # P(Bin(left) <= k) = P(Bin(left - 1) <= k) - limit P(Bin(left - 1) = k)
    k = int(np.searchsorted(now, capital, side="right"))
    if k == len(now):
        return 1.0
    below, below_now = (float(at_most[k - 1]), float(now[k - 1])) if k else (0.0, 0.0)
    return below + (capital - below_now) / float(now[k] - below_now) * float(chances[k])
