"""Proving rules on judged pairs that the score has not seen: the offline half of the certificate.

Learn then Test (Angelopoulos, Bates, Candes, Jordan and Lei 2021): what was learned is held still, and each pair of a
held-out set tells whether a rule would have been wrong there. If the pairs are independent of each other given what was
learned, the mistakes of a rule are binomial. Rules are tested in a fixed order until one fails, which needs no
correction for their number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from neuralcache_plugins.semantic_cache.certificate import AIMS
from neuralcache_plugins.semantic_cache.policy import Label, Policy

OFFLINE_SHARE = 2.0 / 3.0
"""What the proof takes of a share of alpha that nobody has begun to use; the test that goes on online has the rest."""


class Tested(NamedTuple):
    """How one rule did on the held-out part: its would-be hits, those wrong, and the p-value of "errs too often"."""

    hits: int
    wrong: int
    p_value: float


@dataclass(frozen=True, slots=True)
class Proof:
    """What held-out pairs proved: ``rules[j]`` tells how rule j + 1 did, ``passed`` how many are certified by it.

    Testing began with rule ``first`` (from 1) and a p-value of at most ``alpha`` was asked for.
    """

    rules: tuple[Tested, ...]
    first: int
    passed: int
    alpha: float


def prove(policy: Policy, held_out: Sequence[Label], *, at: float = 0.0) -> Proof:
    """Test the policy as it is on pairs that it has not learned from, and certify what they prove.

    It takes the next unused share of alpha, so that all certifications together, offline and online, spend alpha. If
    the test online has not begun, the two divide the share, and the held-out pairs also count as its first bets. Only
    afterwards are they learned from. ``at`` is the time of it, for the record. O(n d).
    """
    before = policy.tests.live
    policy.recut()
    alpha = policy.take_share()
    if policy.alpha is None:
        policy.alpha = (1.0 - OFFLINE_SHARE) * alpha
        alpha *= OFFLINE_SHARE
    rules, first = _tested(policy, held_out), _first(policy)
    passed = _passed(rules, first, alpha)
    policy.bet_all(held_out)
    policy.tests.certify(passed)
    policy.calibrated += 1
    policy.note_move(before, at, "calibrated")
    policy.teach_all(held_out)
    policy.recut()
    return Proof(rules, first + 1, passed, alpha)


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

    The strictest often has too few hits for any proof. Only what was learned has a say, not the held-out pairs.
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
    """Return how many rules are certified: those from ``first`` on until one fails.

    The stricter ones before it come along untested: they never serve while a looser one does.
    """
    passed = first
    while passed < len(rules) and rules[passed].p_value <= alpha:
        passed += 1
    return passed if passed > first else 0
