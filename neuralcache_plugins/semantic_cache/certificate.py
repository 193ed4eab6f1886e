"""The certificate: how much of what the score likes may be served, so that at most ``max_error`` of it is wrong.

A *rule* serves a candidate whose score reaches the rule's cut; rules run from strict to loose. Each rule has a betting
wealth against the hypothesis that its would-be hits are wrong at least as often as allowed, whatever came before. A
wealth is a nonnegative supermartingale under its hypothesis, so it ever reaches 1/alpha with probability at most alpha
(Ville): one may look after every label, and stop or go on at will. Rules are certified in fixed order, which needs no
correction for their number (Maurer, Hothorn and Lehmacher 1995; for bounded risks Angelopoulos et al., Learn then
Test, 2021).

What is rejected is "never better than allowed". The past says nothing of tomorrow, so two detectors watch
(Shiryaev-Roberts e-detectors: Shin, Ramdas and Rinaldo 2023): one whether the answers that are served err more than
allowed, from audits; one whether candidates err more than others of their score did before, from misses too, whose
labels are free. On alarm everything is withdrawn, and each new certification spends a smaller share of alpha, so that
all of them together spend alpha. What is short of an alarm puts the answers in doubt, and then more of them are
audited: a bet stays fair whenever it is placed, if what was seen before decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from neuralcache_plugins.contracts import Array

AIMS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""The error at which each rule's cut is aimed, as a share of the allowed one: a cut at the limit is never certified."""

STAKES = np.minimum(np.outer(AIMS, (0.4, 0.8, 1.05)), 0.95)
"""What each rule's bets believe its error to be, as shares of the allowed one (j, b), around what it aims at. All stay
below 1, or the bets would not be fair. No bet is on "no error at all": it would lose all with the first mistake."""

RESTART_BELOW = 0.05
"""A wealth that fell so low starts anew with part of what was held back: early labels graded a score that knew
nothing."""

FIRST_START = 0.95
"""The share of its capital with which a wealth starts; the rest is kept for starting anew."""

FIRST_SHARE = 0.85
"""The share of alpha that the first certification may spend; the rest is kept for those after alarms."""

SMOOTHED_OVER, SMOOTHED_WITHIN = 100, 0.5
ENOUGH, PATIENCE = 3, 200
"""A first certificate goes into service with three rules, or 200 labels later."""

ALARM_AT = 1_000.0
"""At the allowed error a false alarm comes after 1,000 audits in the mean, at half of it practically never."""

DRIFT_MULTIPLES, DRIFT_RATES = (2.0, 4.0), (0.3, 0.5)
"""The errors that the alarm from audits looks for: multiples of the allowed one, and rates."""

DOUBTED = 1.8
"""Answers are in doubt while what looks for the highest of these rates is so many times what it is where all answers
are right: one wrong answer begins that, five or six right ones in a row end it."""

SURPRISE_AT = 50_000.0
"""While candidates err no more than others of their score did, 50,000 labels pass in the mean before this alarm."""

SURPRISE_DOUBTED = 100.0
"""Here they are in doubt already: that costs a few audits."""

SURPRISE_SHARES = (0.1, 0.3, 0.5)
"""What it looks for: that so large a share of what used to be right has become wrong."""

SURPRISE_EDGES = np.arange(-4.0, 5.5, 0.5)
"""Scores, in log-odds of being right, between which candidates are alike."""

SURPRISE_PRIOR = 20.0
"""So many labels the score's own probability counts for in each of these strips."""

SURPRISE_FLOOR = 0.5
"""No candidate is expected to err less than this share of the allowed error: a rare mistake is no news."""

Flags = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]


def log_factors(alternatives: Array, limit: float) -> Array:
    """Return by what one label multiplies each bet, shape (2, ...), in logarithms: row 0 for right, row 1 for wrong.

    The likelihood ratio ((1-p) / (1-d)) or p/d, with p the bet's belief and d the limit: for p < d its mean is at most
    1 whenever the chance of being wrong is at least d (Waudby-Smith and Ramdas 2024, section 4: lambda = (d-p) / (d
    (1-d))); for p > d whenever it is at most d.
    """
    with np.errstate(divide="ignore"):
        return np.stack([np.log1p(-alternatives) - math.log1p(-limit), np.log(alternatives) - math.log(limit)])


def mixed(logs: Array) -> Array:
    """Return the logarithm of the mean of bets given in logarithms, over the last axis."""
    top = logs.max(axis=-1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        mean: Array = np.log(np.exp(logs - top).mean(axis=-1)) + top[..., 0]
    return mean


def share_of_alpha(alpha: float, earlier: int) -> float:
    """Return what a certification may spend: f alpha the first time, f = .85, the k-th again 6 (1-f) alpha / (pi k)^2.

    All of them together spend alpha.
    """
    return FIRST_SHARE * alpha if earlier == 0 else (1.0 - FIRST_SHARE) * 6.0 * alpha / (math.pi * earlier) ** 2


def start_capital(starts: Counts) -> Array:
    """Return the share of the capital with which the k-th start of a wealth begins (k from 0): .95, then .05 in all."""
    later = (1.0 - FIRST_START) * 6.0 / (math.pi * np.maximum(starts, 1)) ** 2
    return np.where(starts == 0, FIRST_START, later)


def aimed_cuts(scores: Array, wrong: Array, weights: Array, risks: Array) -> Array:
    """Return the lowest cut per risk whose estimated share of wrong answers is within it, shape (j,); inf for none.

    The estimate at a cut is (1 + sum of u w) / (2 + sum of u) over the candidates that reach it, with u = 1 / the
    chance of having been judged and w whether wrong, averaged over candidates of nearly the same score. Without that
    average one audited mistake counts as ten in a row and the cut jumps; an isotonic fit instead flatters, because its
    steps end where mistakes happen to be few. ``risks`` (j,) rise, cuts fall. O(n log n). A poor estimate costs hits,
    never validity.
    """
    order = np.argsort(-scores, kind="stable")
    sorted_scores, chances = scores[order], weights[order]
    estimate = (1.0 + np.cumsum(chances * smoothed(wrong[order], sorted_scores))) / (2.0 + np.cumsum(chances))
    # of equal scores only the last may be a cut: a rule cannot tell them apart
    estimate[:-1][sorted_scores[:-1] == sorted_scores[1:]] = np.inf
    cuts = np.full(len(risks), np.inf)
    for rule, risk in enumerate(risks):
        within = (estimate <= risk).nonzero()[0]
        if within.size:
            cuts[rule] = sorted_scores[within[-1]]
    return cuts


def smoothed(values: Array, scores: Array) -> Array:
    """Return the mean of each value (n,) and those around it; ``scores`` (n,) fall. O(n log n).

    Around means within 1/2 in score, and within 1/6 of the place in the order, at most 100, to either side: a world
    where right and wrong are far apart stays sharp.
    """
    places, last = np.arange(len(values)), len(values) - 1
    reach = np.minimum(np.minimum(places // 6, last - places), SMOOTHED_OVER)
    first = np.maximum(places - reach, np.searchsorted(-scores, -scores - SMOOTHED_WITHIN))
    end = np.minimum(places + reach + 1, np.searchsorted(-scores, -scores + SMOOTHED_WITHIN, side="right"))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    means: Array = (sums[end] - sums[first]) / (end - first)
    return means


def bet(
    logs: Array, starts: Counts, hits: Flags, wrong: Flags, *, limit: float, alpha: float
) -> tuple[Array, Counts, Flags]:
    """Return the wealth of all rules after one more label: logs (..., j, b), starts (..., j), and who reached 1/alpha.

    ``hits`` (..., j) says which rules would have served it, ``wrong`` (...) whether that would have been a mistake; a
    label that a rule would not have served is no bet. A wealth that has all but lost starts anew with capital that was
    set aside: the sum over starts of capital times wealth is a supermartingale, and what is left behind is not counted.
    """
    factors = log_factors(limit * STAKES, limit)
    logs = logs + np.where(wrong[..., None, None], factors[1], factors[0]) * hits[..., None]
    wealth = mixed(logs)
    reached = wealth + np.log(start_capital(starts)) >= -math.log(alpha)
    lost = wealth < math.log(RESTART_BELOW)
    return np.where(lost[..., None], 0.0, logs), starts + lost, reached


@dataclass(slots=True)
class Trials:
    """The wealth of every rule: logs (j, b), how often each started anew (j,), and which were ever certified (j,).

    ``seen`` counts labels; ``serves_from`` is the count from which a certified rule serves, -1 before the first one.
    """

    limit: float
    logs: Array = field(default_factory=lambda: np.zeros(STAKES.shape))
    starts: Counts = field(default_factory=lambda: np.zeros(len(AIMS), dtype=np.int64))
    certified: Flags = field(default_factory=lambda: np.zeros(len(AIMS), dtype=np.bool_))
    seen: int = 0
    serves_from: int = -1

    def observe(self, hits: Flags, wrong: bool, alpha: float) -> None:
        """Bet on one label in every rule that would have served it, ``hits`` (j,). O(j b), about 30 us."""
        self.seen += 1
        self.logs, self.starts, reached = bet(
            self.logs, self.starts, hits, np.array(wrong), limit=self.limit, alpha=alpha
        )
        self.certified |= reached
        if self.serves_from < 0 and self.certified[0]:
            self.serves_from = self.seen + PATIENCE

    def certify(self, rules: int) -> None:
        """Take the ``rules`` strictest as certified by a test outside, and let them serve at once."""
        self.certified[:rules] = True
        self.serves_from = 0 if rules else self.serves_from

    @property
    def proven(self) -> int:
        """Return how many rules are certified, in order from the strictest."""
        return [*self.certified.tolist(), False].index(False)

    @property
    def live(self) -> int:
        """Return the number of the rule that serves, from 1; 0 for none.

        Once a rule serves, only audits count, and the looser rules take ten times as long. So the first one waits a
        little for the others, while every label still counts.
        """
        proven = self.proven
        return proven if proven >= ENOUGH or 0 <= self.serves_from <= self.seen else 0


@dataclass(slots=True)
class Drift:
    """Watches audited answers for an error above the limit: one Shiryaev-Roberts statistic per alternative, (a,)."""

    limit: float
    statistics: Array = field(default_factory=lambda: np.zeros(len(DRIFT_MULTIPLES) + len(DRIFT_RATES)))

    def observe(self, wrong: bool) -> bool:
        """Take one audited answer in and return whether it is time for an alarm.

        R <- (1 + R) likelihood ratio. While the error stays within the limit, R minus the number of audits is a
        supermartingale, so 1,000 is not reached before 1,000 audits in the mean.
        """
        alternatives = np.minimum(np.array([*(self.limit * by for by in DRIFT_MULTIPLES), *DRIFT_RATES]), 0.95)
        factors = np.exp(log_factors(alternatives, self.limit)[int(wrong)])
        self.statistics = np.minimum((1.0 + self.statistics) * factors, 1e12)
        return float(self.statistics.mean()) >= ALARM_AT

    @property
    def in_doubt(self) -> bool:
        """Return whether a wrong answer was found so lately that the next ones should show what it meant.

        While all answers are right R tends to f / (1 - f) with f = (1-p) / (1-d), which is (1-p) / (p-d).
        """
        highest = DRIFT_RATES[-1]
        return float(self.statistics[-1]) * (highest - self.limit) > DOUBTED * (1.0 - highest)


@dataclass(slots=True)
class Surprise:
    """Watches whether candidates err more than those of their score did before, whether they were served or not.

    Counts of labels and of wrong ones in strips of the score, (s,) each, and one Shiryaev-Roberts statistic per
    alternative, (a,). It may be wrong where errors at a score rise without any shift: that costs hits, until the rules
    are certified again, and never validity, because a certification may be ended for any reason.
    """

    limit: float
    statistics: Array = field(default_factory=lambda: np.zeros(len(SURPRISE_SHARES)))
    counts: Array = field(default_factory=lambda: np.zeros(len(SURPRISE_EDGES) + 1))
    wrong: Array = field(default_factory=lambda: np.zeros(len(SURPRISE_EDGES) + 1))

    def observe(self, score: float, wrong: bool) -> bool:
        """Bet on one label, before ``note`` counts it, and return whether it is time for an alarm. About 10 us.

        R <- (1 + R) likelihood ratio, of "a share t of what used to be right is now wrong", q + t (1-q), against the
        expected error q. While the error stays within q, R minus the number of labels is a supermartingale, so 50,000
        is not reached before 50,000 labels in the mean.
        """
        expected, shares = self.expected(score), np.array(SURPRISE_SHARES)
        factors = (expected + shares * (1.0 - expected)) / expected if wrong else 1.0 - shares
        self.statistics = np.minimum((1.0 + self.statistics) * factors, 1e12)
        return float(self.statistics.mean()) >= SURPRISE_AT

    @property
    def in_doubt(self) -> bool:
        """Return whether so much speaks for a rise that audits should decide."""
        return float(np.add.reduce(self.statistics)) >= SURPRISE_DOUBTED * len(self.statistics)

    def note(self, score: float, wrong: bool) -> None:
        """Count one label among those of its score."""
        strip = int(np.searchsorted(SURPRISE_EDGES, score))
        self.counts[strip] += 1.0
        self.wrong[strip] += wrong

    def expected(self, score: float) -> float:
        """Return what error a candidate of this score may have at most without being news.

        The share of wrong ones in its strip, with what the score itself says as 20 labels more, and one standard error
        on top; at least half of the allowed error.
        """
        strip = int(np.searchsorted(SURPRISE_EDGES, score))
        says = 1.0 / (1.0 + math.exp(min(max(score, -30.0), 30.0)))
        total = float(self.counts[strip]) + SURPRISE_PRIOR
        share = (float(self.wrong[strip]) + SURPRISE_PRIOR * says) / total
        return min(max(share + math.sqrt(share * (1.0 - share) / total), SURPRISE_FLOOR * self.limit), 0.99)


@dataclass(slots=True)
class RunningMean:
    """A bound on the mean chance of being wrong over all audited answers so far, valid at every time at once."""

    count: int = 0
    wrong: float = 0.0
    variance: float = 0.0

    def observe(self, wrong: bool) -> None:
        """Take one audited answer in."""
        guess = (self.wrong + 0.01) / (self.count + 1)
        self.variance += (wrong - guess) ** 2
        self.count += 1
        self.wrong += wrong

    def upper(self, alpha: float) -> float:
        """Return the bound: 1 without audits.

        Empirical Bernstein (Howard, Ramdas, McAuliffe and Sekhon 2021, theorem 4) for the mean of conditional means:
        (sum + (ln(1/alpha) + psi(l) V) / l) / n, psi(l) = -ln(1-l) - l, best of a grid of l that shares alpha.
        """
        if not self.count:
            return 1.0
        grid = (0.1, 0.2, 0.35, 0.5, 0.7)
        spent = math.log(len(grid) / alpha)
        bounds = ((spent + (-math.log1p(-each) - each) * self.variance) / each for each in grid)
        return min(1.0, (self.wrong + min(bounds)) / self.count)


class Move(NamedTuple):
    """That another rule serves, from the strictest, 1, on; 0 is none.

    ``why``: "certified", "calibrated", "alarm: audits" (the reused answers erred) or "alarm: surprise" (candidates of
    all scores erred more than they used to).
    """

    at: float
    before: int
    after: int
    why: str


@dataclass(frozen=True, slots=True)
class Certificate:
    """What may be said of the answers that were reused because a question was similar; ``str()`` says it in words.

    It speaks of one namespace and encoder, and of the answers reused in all its scopes taken together: in one of them
    more may be wrong, in others fewer. Who needs the promise for one kind of question alone gives it a namespace.

    ``reused`` counts what the log holds of all processes. ``rule`` is 0 while nothing is certified: then only the very
    same question gets a cached answer. ``measured`` bounds the mean error over all audited answers so far, at the same
    confidence. ``calibrated`` counts logs that were read, ``moves`` tells when the rule changed and why, the last 64.
    Times are seconds since the epoch, UTC.
    """

    max_error: float
    confidence: float
    reused: int
    audited: int
    rule: int
    rules: int
    alarms: int
    last_alarm: float | None
    measured: float
    judged: int
    judge_error: float = 0.0
    calibrated: int = 0
    moves: tuple[Move, ...] = ()

    @property
    def live(self) -> bool:
        """Return whether answers are reused for similar questions at all."""
        return self.rule > 0

    def __str__(self) -> str:
        allowed = f"at most {_percent(self.max_error)} wrong at {_percent(self.confidence)} confidence"
        said = allowed if self.live else f"not certified yet for {allowed}, so only exact repeats are answered"
        alarm = "never" if self.last_alarm is None else _minute(self.last_alarm)
        audits = f"{self.audited:,} audited" if self.live or self.audited else f"{self.judged:,} judged"
        noisy = f"; judge misses {_percent(self.judge_error)}, allowed for" if self.judge_error else ""
        rule = f"rule {self.rule} of {self.rules}"
        logs = f"; calibrated on {'a log' if self.calibrated == 1 else f'{self.calibrated} logs'}"
        return (f"{self.reused:,} answers reused; {said}; {audits}; {rule}; last alarm {alarm}{noisy}"
                f"{logs if self.calibrated else ''}")

    def history(self) -> list[tuple[str, str]]:
        """Return when the rule changed, and how and why, in words."""
        return [(_minute(move.at), f"rule {move.before} to {move.after}: {move.why}") for move in self.moves]


def _minute(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M}"


def _percent(share: float) -> str:
    return f"{100.0 * share:.4g} %"
