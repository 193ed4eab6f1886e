"""Start certified: learn and test on a log of questions and answers before the first answer is served.

Learn then Test (Angelopoulos, Bates, Candes, Jordan and Lei 2021): one half of the log fills a cache and teaches the
score, which is then held still; each question of the other half is asked of that cache. Given the first half these are
independent trials if the log is, so the mistakes of a rule are binomial. Rules are tested from strict to loose until
one fails. It counts as the first certification, so what is tested later spends from the rest of alpha.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from neuralcache_plugins.contracts import Vector
from neuralcache_plugins.errors import DimensionMismatchError
from neuralcache_plugins.semantic_cache.certificate import AIMS, FIRST_SHARE
from neuralcache_plugins.semantic_cache.features import NEIGHBOURS, Neighbour
from neuralcache_plugins.semantic_cache.parsing import parse
from neuralcache_plugins.semantic_cache.policy import Label, Policy
from neuralcache_plugins.settings import CacheSettings

TEACHING_SHARE = 0.5
"""Share of the log that teaches; the rest tests."""


@dataclass(frozen=True, slots=True, eq=False)
class Logged:
    """One line of a log: a question with its unit vector (d,) and the answer it got, or anything equal for equal
    answers.
    """

    question: str
    vector: Vector
    answer: Hashable
    documents: Set[str] = frozenset()


class Tested(NamedTuple):
    """How one rule did on the held-out part: its would-be hits, those wrong, and the p-value."""

    hits: int
    wrong: int
    p_value: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """A policy that starts with what the log proved, and the proof: ``rules[j]`` tells how rule j + 1 did."""

    policy: Policy
    questions: int
    rules: tuple[Tested, ...]

    def __str__(self) -> str:
        live = self.policy.tests.live
        said = f"rule {live} of {len(AIMS)} may serve" if live else "nothing certified, a longer log is needed"
        hits, wrong, p = self.rules[max(live - 1, 0)]
        return f"{self.questions:,} questions; {said}: {wrong} of {hits:,} held-out answers wrong, p = {p:.2g}"


def calibrate(
    log: Sequence[Logged], settings: CacheSettings | None = None, *,
    same: Callable[[Hashable, Hashable], bool] | None = None,
) -> Calibration:
    """Return a policy that has learned from a log, oldest first, and is certified as far as the log proves.

    ``same(cached, fresh)`` says whether one answer may stand for another; equality by default. Repeats of a question
    belong to the exact tier and are skipped. ``DimensionMismatchError`` if the vectors differ in width. O(n^2 d) for
    the neighbours, 1 s for 5,000 questions of width 256.
    """
    policy, player = Policy(settings or CacheSettings()), _Player(log, same or (lambda cached, fresh: cached == fresh))
    teaching = range(int(TEACHING_SHARE * len(log)))
    player.fill(policy, teaching)
    for place in teaching:
        policy.teach_all(player.labels(policy, [place]))
    policy.recut()
    held_out = player.labels(policy, range(len(teaching), len(log)))
    rules = _tested(policy, held_out)
    first = _first(policy)
    policy.teach_all(held_out)
    policy.recut()
    policy.tests.certify(_passed(rules, first, FIRST_SHARE * (1.0 - policy.settings.confidence)))
    policy.calibrated = 1
    player.fill(policy, range(len(teaching), len(log)))
    return Calibration(policy, len(log), rules)


def binomial_p_value(wrong: int, hits: int, limit: float) -> float:
    """Return P(Binomial(hits, limit) <= wrong): how likely so few mistakes are if the error is at the limit.
    O(wrong).
    """
    if not hits:
        return 1.0
    places = np.arange(wrong + 1)
    choose = np.array([math.lgamma(hits + 1) - math.lgamma(k + 1) - math.lgamma(hits - k + 1) for k in places.tolist()])
    terms = choose + places * math.log(limit) + (hits - places) * math.log1p(-limit)
    return min(1.0, float(np.exp(terms - terms.max()).sum()) * math.exp(float(terms.max())))


def _first(policy: Policy) -> int:
    """Return the rule to test first: the one most likely to pass if its error is what it aims at.

    The strictest often has too few hits for any proof. Only the teaching half has a say.
    """
    rows, _, _ = policy.window.filled()
    hits = (policy.scores(rows)[:, None] >= policy.cuts).sum(axis=0)
    aims = np.array(AIMS)
    return int(np.argmax(hits * (aims - 1.0 - np.log(aims))))


def _tested(policy: Policy, held_out: Sequence[Label]) -> tuple[Tested, ...]:
    if not held_out:
        return (Tested(0, 0, 1.0),) * len(AIMS)
    scores = policy.scores(np.stack([label.features for label in held_out]))
    wrong = np.array([not label.right for label in held_out])
    counts = [(int((scores >= cut).sum()), int(wrong[scores >= cut].sum())) for cut in policy.cuts]
    return tuple(Tested(hits, bad, binomial_p_value(bad, hits, policy.limit)) for hits, bad in counts)


def _passed(rules: Sequence[Tested], first: int, alpha: float) -> int:
    """Return how many rules are certified: those from ``first`` on until one fails, with the stricter ones before."""
    passed = first
    while passed < len(rules) and rules[passed].p_value <= alpha:
        passed += 1
    return passed if passed > first else 0


class _Player:
    """Asks questions of the log of a cache that was filled from another part of it and serves nothing."""

    def __init__(self, log: Sequence[Logged], same: Callable[[Hashable, Hashable], bool]) -> None:
        widths = {len(line.vector) for line in log}
        if len(widths) > 1:
            raise DimensionMismatchError("a vector of the log", got=max(widths), expected=min(widths))
        self.log, self.same = log, same
        self.vectors = np.array([line.vector for line in log], dtype=np.float32)
        self.questions = [parse(line.question) for line in log]
        self.entries = np.zeros(0, dtype=np.int64)

    def fill(self, policy: Policy, places: Iterable[int]) -> None:
        """Put part of the log into the cache, each text once."""
        known = {self.questions[entry].canonical for entry in self.entries.tolist()}
        for place in places:
            if self.questions[place].canonical not in known:
                known.add(self.questions[place].canonical)
                self.entries = np.append(self.entries, place)
                policy.rarity.note(self.questions[place])

    def labels(self, policy: Policy, places: Iterable[int]) -> list[Label]:
        """Return the labels that asking these questions gives; none where nothing comes into question."""
        return [label for place in places if (label := self._label(policy, place)) is not None]

    def _label(self, policy: Policy, place: int) -> Label | None:
        line = self.log[place]
        decision = policy.decide(self.questions[place], self._near(place), now=0.0, coin=0.0, documents=line.documents)
        if decision.candidate is None:
            return None
        return decision.label(right=self.same(self.log[decision.candidate].answer, line.answer), at=0.0)

    def _near(self, place: int) -> list[Neighbour]:
        """Return the nearest entries without the question itself, which the exact tier would answer."""
        cosines = self.vectors[self.entries] @ self.vectors[place]
        top = np.argsort(-cosines, kind="stable")[:NEIGHBOURS + 1]
        near = [
            Neighbour(entry, cosine, self.questions[entry], self.log[entry].answer, self.log[entry].documents)
            for entry, cosine in zip(self.entries[top].tolist(), cosines[top].tolist(), strict=True)
            if self.questions[entry].canonical != self.questions[place].canonical
        ]
        return near[:NEIGHBOURS]
