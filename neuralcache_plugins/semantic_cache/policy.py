"""One namespace's decisions: parse, guards, features, score and certificate put together on arrays, without a store.

``decide`` reads, ``learn`` folds one judged pair into the state, in the order of the log. A label carries everything
that the fold needs (features, not texts), so the same labels give the same state again, in any process. The caller
gives the clock, the coin and the neighbours.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from neuralcache_plugins.contracts import Array, Matrix, Vector
from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.semantic_cache.certificate import (
    AIMS,
    Certificate,
    Drift,
    Move,
    RunningMean,
    Surprise,
    Trials,
    aimed_cuts,
    share_of_alpha,
)
from neuralcache_plugins.semantic_cache.features import (
    CANDIDATES,
    FEATURES,
    NEIGHBOURS,
    Neighbour,
    Rarity,
    expand,
    pair_features,
)
from neuralcache_plugins.semantic_cache.guards import differences
from neuralcache_plugins.semantic_cache.parsing import Question
from neuralcache_plugins.semantic_cache.score import Score
from neuralcache_plugins.settings import CacheSettings

FORMAT = 5
WINDOW = 3_000
"""Judged pairs from which cuts are aimed."""

NOT_CERTIFIED = "not certified yet: only exact repeats are answered"
RECUT_EVERY = 50
MOVES = 64
"""So many of the last changes of the rule that serves are remembered, for people."""

LOOSENED = 4.0

RATE_IN_DOUBT = 0.5
"""The audit rate after a wrong answer, or surprising ones, until it is clear what that means."""


@dataclass(frozen=True, slots=True, eq=False)
class Label:
    """One judged pair, and whether the cached answer would have been right for the question.

    ``features`` (f,) are those of the decision. ``coin`` is its draw from [0, 1) and ``rate`` the chance with which
    labels counted towards the certificate at that time (``Policy.rate``): 1 while nothing was live, else the audit
    rate. ``sampled`` is False for a report from outside, which teaches the score but proves nothing, because nobody
    knows what is not reported. ``at`` is the time of the judgement in seconds since the epoch, ``asked`` that of the
    decision: a label that was decided before the last alarm and comes after it is of a world that is over, and proves
    nothing either.
    """

    features: Vector
    right: bool
    served: bool
    coin: float
    rate: float
    at: float
    sampled: bool = True
    asked: float = math.inf


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """What to do with one question.

    ``entry`` is the entry whose answer may be served, or None; then ``reasons`` say why not. ``candidate`` is the entry
    that came nearest to being served: on a miss its answer should be judged against the fresh one, on a hit only when
    ``audit`` says so. ``score`` is the estimated probability that its answer is right, ``cut`` what it had to reach.
    """

    entry: int | None
    candidate: int | None
    score: float
    cut: float
    audit: bool
    reasons: tuple[str, ...]
    features: Vector
    coin: float
    rate: float
    asked: float = math.inf

    @property
    def judge(self) -> bool:
        """Return whether the candidate's answer should be compared with a fresh one."""
        return self.candidate is not None and (self.entry is None or self.audit)

    def label(self, *, right: bool, at: float, sampled: bool = True) -> Label:
        """Return the label to log and to learn from, once the candidate's answer has been judged."""
        return Label(self.features, right, self.entry is not None, self.coin, self.rate, at, sampled, self.asked)


@dataclass(slots=True)
class Policy:
    """Decides for one namespace. ``rarity`` is the caller's to rebuild from its entries; all else is learned."""

    settings: CacheSettings = field(default_factory=CacheSettings)
    rarity: Rarity = field(default_factory=Rarity)
    score: Score = field(default_factory=Score)
    labels: int = 0
    audited: int = 0
    alarms: int = 0
    calibrated: int = 0
    moves: deque[Move] = field(default_factory=lambda: deque(maxlen=MOVES))
    spent: int = 0
    alpha: float | None = None
    last_alarm: float | None = None
    cuts: Array = field(default_factory=lambda: np.full(len(AIMS), np.inf))
    tests: Trials = field(init=False)
    drift: Drift = field(init=False)
    surprise: Surprise = field(init=False)
    served_mean: RunningMean = field(default_factory=RunningMean)
    window: _Window = field(default_factory=lambda: _Window())

    def __post_init__(self) -> None:
        self._start_certification()

    @property
    def limit(self) -> float:
        """Return the error that a judge may report at most: max_error (1 - judge_error).

        A judge that passes a share a of the wrong answers reports R (1 - a) for a true error R.
        """
        return self.settings.max_error * (1.0 - self.settings.judge_error)

    @property
    def quarantined_until(self) -> float:
        """Return the time of the last alarm: entries made until then are neither served nor worth searching."""
        return -math.inf if self.last_alarm is None else self.last_alarm

    @property
    def rate(self) -> float:
        """Return the chance with which a hit is audited now, and with which a label counts towards the certificate.

        While answers are in doubt every second one at least: not all, or a caller whose model is down would get none.
        """
        if not self.tests.live:
            return 1.0
        doubted = self.drift.in_doubt or self.surprise.in_doubt
        return max(self.settings.audit_rate, RATE_IN_DOUBT) if doubted else self.settings.audit_rate

    def decide(
        self, question: Question, neighbours: Sequence[Neighbour], *, now: float, coin: float,
        documents: Set[str] = frozenset(),
    ) -> Decision:
        """Return what to serve. About 0.1 ms.

        ``neighbours`` are the nearest entries, nearest first; the first 8 count. ``coin`` is uniform in [0, 1) and
        independent of everything else. Changes nothing.
        """
        live, rate, quarantined_until = self.tests.live, self.rate, self.quarantined_until
        near = [one for one in neighbours if one.created_at > quarantined_until][:NEIGHBOURS]
        if not near:
            return _nothing("no similar question is cached", coin=coin, rate=rate)
        told = [differences(question, one.question) for one in near[:CANDIDATES]]
        free = [at for at, found in enumerate(told) if not any(each.veto for each in found)]
        if not free:
            return _nothing(*(each.reason for each in told[0] if each.veto), coin=coin, rate=rate)
        rows = pair_features(question, near, told, rarity=self.rarity, documents=documents, now=now)
        rows = rows if len(free) == len(told) else rows[free]
        scores = self.score.of(expand(rows))
        best = int(scores.argmax())
        score, cut = float(scores[best]), float(self.cuts[live - 1]) if live else math.inf
        candidate = near[free[best]].entry
        reasons: tuple[str, ...]
        entry: int | None
        if score >= cut:
            entry, reasons = candidate, ()
        else:
            nearer = [each.reason for found in told[:free[best]] for each in found if each.veto]
            entry, reasons = None, (*_why_not(live, score, cut), *nearer, *(each.reason for each in told[free[best]]))
        return Decision(
            entry, candidate, _probability(score), _probability(cut), entry is not None and coin < rate, reasons,
            rows[best], coin, rate, now,
        )

    def learn(self, label: Label) -> bool:
        """Fold one judged pair into the state; return whether it raised the alarm. About 0.3 ms in the mean.

        Most of that is aiming the cuts, once in 50 labels. O(d^2) otherwise.
        """
        before = self.tests.live
        alarm = self._test(label) if self._counts(label) else ""
        self.teach(label)
        if alarm:
            self._retreat(label.at)
        elif self.labels % RECUT_EVERY == 0:
            self.recut()
        self.note_move(before, label.at, alarm or "certified")
        return bool(alarm)

    def note_move(self, before: int, at: float, why: str) -> None:
        """Remember that another rule serves now than ``before``, if it does."""
        if self.tests.live != before:
            self.moves.append(Move(at, before, self.tests.live, why))

    def teach(self, label: Label) -> None:
        """Let the score learn from one judged pair that is no evidence for the certificate."""
        row = expand(label.features[None])
        if self._counts(label):
            self.surprise.note(float(self.score.of(row)[0]), not label.right)
        self.score.learn(row[0], label.right)
        self.labels += 1
        if self._counts(label):
            self.window.add(label.features, wrong=not label.right, weight=1.0 / label.rate if label.served else 1.0)

    def take_share(self) -> float:
        """Return the next share of alpha, which is gone with that: all shares together are alpha."""
        self.spent += 1
        return share_of_alpha(1.0 - self.settings.confidence, self.spent - 1)

    def bet(self, label: Label) -> float:
        """Let a pair that was not served count for the test, without learning from it; return its score."""
        score = float(self.scores(label.features[None])[0])
        self._bet(score, label)
        return score

    def watch(self) -> Surprise:
        """Return a detector of rising errors that goes by what is known of each score, now and later."""
        return Surprise(self.limit, counts=self.surprise.counts, wrong=self.surprise.wrong)

    def recut(self) -> Array:
        """Aim the cuts anew, from the judged pairs in the window under the present score; return the share of these
        pairs that reaches each cut, (j,). About 10 ms.
        """
        rows, wrong, weights = self.window.filled()
        scores = self.score.held_out(expand(rows), 1.0 - wrong)
        self.cuts = aimed_cuts(scores, wrong, weights, np.array(AIMS) * self.limit)
        reached: Array = (scores[:, None] >= self.cuts).sum(axis=0) / max(len(scores), 1)
        return reached

    def begin_anew(self) -> None:
        """Take nothing as certified and trust the past less: a new test with its own share of alpha."""
        self.window = _Window()
        self.cuts = np.full(len(AIMS), np.inf)
        self.score.loosen(LOOSENED)
        self._start_certification()

    def scores(self, features: Matrix) -> Array:
        """Return the log-odds of being right for rows of features (n, f), shape (n,)."""
        return self.score.of(expand(features))

    def certificate(self, *, reused: int) -> Certificate:
        """Return what may be said of the ``reused`` answers that were served so far."""
        settings = self.settings
        return Certificate(
            max_error=settings.max_error, confidence=settings.confidence, reused=reused, audited=self.audited,
            rule=self.tests.live, rules=len(AIMS), alarms=self.alarms, last_alarm=self.last_alarm,
            measured=min(1.0, self.served_mean.upper(1.0 - settings.confidence) / (1.0 - settings.judge_error)),
            judged=self.labels, judge_error=settings.judge_error, calibrated=self.calibrated, moves=tuple(self.moves),
        )

    def pack(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """Return the learned state as a JSON-able header and plain arrays; ``unpack`` gives it back bit for bit."""
        header = {
            "format": FORMAT, "features": list(FEATURES), "aims": list(AIMS), "labels": self.labels,
            "audited": self.audited, "alarms": self.alarms, "last_alarm": self.last_alarm, "limit": self.limit,
            "calibrated": self.calibrated, "spent": self.spent, "alpha": self.alpha,
            "moves": [list(move) for move in self.moves],
            "tests": [self.tests.seen, self.tests.serves_from],
            "served": [self.served_mean.count, self.served_mean.wrong, self.served_mean.variance],
            "window": self.window.added,
        }
        arrays = {
            "weights": self.score.weights, "covariance": self.score.covariance, "cuts": self.cuts,
            "wealth": self.tests.logs, "starts": self.tests.starts, "certified": self.tests.certified,
            "drift": self.drift.statistics, "surprise": self.surprise.statistics,
            "surprise_counts": self.surprise.counts, "surprise_wrong": self.surprise.wrong,
            "window": self.window.rows, "window_wrong": self.window.wrong, "window_weights": self.window.weights,
        }
        return header, {name: array.copy() for name, array in arrays.items()}

    @classmethod
    def unpack(
        cls, header: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]], settings: CacheSettings | None = None
    ) -> Policy:
        """Return the policy that was packed; ``InvalidInputError`` when it was made with other features or limits."""
        policy = cls(settings or CacheSettings())
        expected = {"format": FORMAT, "features": list(FEATURES), "aims": list(AIMS), "limit": policy.limit}
        for name, value in expected.items():
            if header.get(name) != value:
                raise InvalidInputError(f"the packed policy has another {name}; fold the labels again")
        policy.labels, policy.audited, policy.alarms = header["labels"], header["audited"], header["alarms"]
        policy.last_alarm, policy.calibrated = header["last_alarm"], header["calibrated"]
        policy.spent, policy.alpha = header["spent"], header["alpha"]
        policy.moves.extend(Move(*move) for move in header["moves"])
        policy.served_mean = RunningMean(*header["served"])
        taken = {name: array.copy() for name, array in arrays.items()}
        policy.score = Score(taken["weights"], taken["covariance"])
        policy.cuts, policy.drift.statistics = taken["cuts"], taken["drift"]
        policy.surprise = Surprise(
            policy.limit, taken["surprise"], taken["surprise_counts"], taken["surprise_wrong"]
        )
        policy.tests = Trials(policy.limit, taken["wealth"], taken["starts"], taken["certified"], *header["tests"])
        policy.window = _Window(taken["window"], taken["window_wrong"], taken["window_weights"], header["window"])
        return policy

    def _test(self, label: Label) -> str:
        """Let one judged pair count as evidence; return which alarm it raised, "" for none.

        For the certificate misses must be as rare as audits, or a rule would be tested mostly on what it does not
        serve. What is usual at a score is asked at each score alone, so there all of them count.
        """
        score, live = float(self.scores(label.features[None])[0]), self.tests.live > 0
        surprised = live and self.surprise.observe(score, not label.right)
        drifted = label.coin < label.rate and self._weigh(score, label)
        return "alarm: audits" if drifted else "alarm: surprise" if surprised else ""

    def _weigh(self, score: float, label: Label) -> bool:
        self._bet(score, label)
        if not label.served:
            return False
        self.audited += 1
        self.served_mean.observe(not label.right)
        return self.tests.live > 0 and self.drift.observe(not label.right)

    def _counts(self, label: Label) -> bool:
        return label.sampled and (self.last_alarm is None or label.asked > self.last_alarm)

    def _bet(self, score: float, label: Label) -> None:
        if self.alpha is None:
            self.alpha = self.take_share()
        self.tests.observe(score >= self.cuts, not label.right, self.alpha)

    def _retreat(self, at: float) -> None:
        """Withdraw everything: exact answers only, older entries in quarantine."""
        self.alarms += 1
        self.last_alarm = at
        self.begin_anew()

    def _start_certification(self) -> None:
        self.tests, self.alpha = Trials(self.limit), None
        self.drift, self.surprise = Drift(self.limit), Surprise(self.limit)


@dataclass(slots=True)
class _Window:
    """The last judged pairs in a ring: rows (w, f), whether wrong (w,), weights (w,), and how many were ever added."""

    rows: Matrix = field(default_factory=lambda: np.zeros((WINDOW, len(FEATURES)), dtype=np.float32))
    wrong: Array = field(default_factory=lambda: np.zeros(WINDOW))
    weights: Array = field(default_factory=lambda: np.zeros(WINDOW))
    added: int = 0

    def add(self, row: Vector, *, wrong: bool, weight: float) -> None:
        place = self.added % WINDOW
        self.rows[place], self.wrong[place], self.weights[place] = row, wrong, weight
        self.added += 1

    def filled(self) -> tuple[Matrix, Array, Array]:
        size = min(self.added, WINDOW)
        return self.rows[:size], self.wrong[:size], self.weights[:size]


def _nothing(*reasons: str, coin: float, rate: float) -> Decision:
    return Decision(None, None, 0.0, 1.0, False, reasons, np.zeros(len(FEATURES), dtype=np.float32), coin, rate)


def _why_not(live: int, score: float, cut: float) -> tuple[str, ...]:
    if not live:
        return (NOT_CERTIFIED,)
    return (f"score {_probability(score):.3f} is below the cut {_probability(cut):.3f}",)


def _probability(log_odds: float) -> float:
    return 1.0 / (1.0 + math.exp(-min(max(log_odds, -40.0), 40.0)))
