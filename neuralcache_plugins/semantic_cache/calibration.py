"""Start certified: test and learn on a log of questions and answers before the first answer is served.

The log is played through once, oldest first, as if it were asked of an empty cache that serves nothing: each question
looks for an answer among the lines before it, that pair is judged by the line's own answer, tests the rules as they are
at that time, and teaches (``proof.prove``). What is certified is what would have been certified online, had it been
known when to be ready: rules that, on lines they had not seen, erred less than allowed. That needs nothing of the order
of the log. That it holds for what is asked after the log needs that this is like the log: it is watched by audits, like
everything that is served.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from neuralcache_plugins.contracts import Array, DocumentVersion, Vector
from neuralcache_plugins.errors import DimensionMismatchError
from neuralcache_plugins.semantic_cache.certificate import AIMS
from neuralcache_plugins.semantic_cache.features import NEIGHBOURS, Neighbour
from neuralcache_plugins.semantic_cache.keys import canonical, is_made_from
from neuralcache_plugins.semantic_cache.parsing import parse
from neuralcache_plugins.semantic_cache.policy import Label, Policy
from neuralcache_plugins.semantic_cache.proof import Proof, prove
from neuralcache_plugins.settings import CacheSettings

_BLOCK = 500
_DEEP = 64


@dataclass(frozen=True, slots=True, eq=False)
class Logged:
    """One line of a log: a question with its unit vector (d,) and the answer it got, or anything equal for equal
    answers. Only answers of the same scope come into question.
    """

    question: str
    vector: Vector
    answer: Hashable
    documents: tuple[DocumentVersion, ...] = ()
    scope: str = ""


class Played(NamedTuple):
    """What asking line ``place`` gave: the line whose answer came nearest to being served, and the judged pair."""

    place: int
    cached: int
    score: float
    label: Label


@dataclass(frozen=True, slots=True)
class Calibration:
    """A policy that starts with what the log proved, the judged pairs that tested and taught it, and the proof."""

    policy: Policy
    questions: int
    judged: tuple[Played, ...]
    proof: Proof

    def __str__(self) -> str:
        live, proof = self.policy.tests.live, self.proof
        said = f"rule {live} of {len(AIMS)} may serve" if live else "nothing certified, a longer log is needed"
        hits, wrong, p = proof.rules[max(live, proof.first) - 1]
        return f"{self.questions:,} questions; {said}: {wrong} of {hits:,} answers would be wrong, p = {p:.2g}"


def calibrate(
    log: Sequence[Logged], settings: CacheSettings | None = None, *,
    same: Callable[[Hashable, Hashable], bool] | None = None, policy: Policy | None = None, known: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> Calibration:
    """Return a policy that has learned from a log, oldest first, and is certified as far as the log proves.

    ``same(cached, fresh)`` says whether one answer may stand for another; equality by default. Repeats of a question
    belong to the exact tier and are skipped. ``policy`` is one to go on with, which is changed; the first ``known``
    lines were part of an earlier calibration, so they only fill the cache. ``progress(done, total)`` is told of lines.
    ``DimensionMismatchError`` if the vectors differ in width. O(n^2 d) for the neighbours, 5 s for 5,000 questions of
    width 256.
    """
    policy = Policy(settings or CacheSettings()) if policy is None else policy
    player = _Player(log, same or (lambda cached, fresh: cached == fresh), progress)
    known = min(known, len(log))
    learner = copy.deepcopy(policy)  # which candidate comes first depends on what was learned on the way
    player.fill(learner, range(known))
    judged = []
    for played in player.play(learner, range(known, len(log))):
        learner.teach(played.label)
        judged.append(played)
    policy.rarity = learner.rarity
    proof = prove(policy, [played.label for played in judged])
    return Calibration(policy, len(log) - known, tuple(judged), proof)


class _Player:
    """Asks each question of the log of a cache that holds the lines before it and serves nothing."""

    def __init__(self, log: Sequence[Logged], same: Callable[[Hashable, Hashable], bool],
                 progress: Callable[[int, int], object] | None) -> None:
        widths = {len(line.vector) for line in log}
        if len(widths) > 1:
            raise DimensionMismatchError("a vector of the log", got=max(widths), expected=min(widths))
        self.log, self.same, self.progress = log, same, progress
        self.vectors = np.array([line.vector for line in log], dtype=np.float32)
        self.questions = [parse(line.question) for line in log]
        self.repeats = _repeats(log)
        self.entries: dict[str, list[int]] = {}

    def fill(self, policy: Policy, places: Iterable[int]) -> None:
        """Put the next part of the log into the cache, each text once."""
        for place in places:
            if place not in self.repeats:
                self.entries.setdefault(self.log[place].scope, []).append(place)
                policy.rarity.note(self.questions[place])

    def play(self, policy: Policy, places: range) -> Iterator[Played]:
        """Yield what asking these questions gives, each put into the cache then; nothing where no answer comes into
        question.
        """
        for start in range(places.start, places.stop, _BLOCK):
            block = [at for at in range(start, min(start + _BLOCK, places.stop)) if at not in self.repeats]
            near = self._near(block)
            for place in block:
                found = self._ask(policy, place, near[place])
                if found is not None:
                    yield found
                policy.rarity.note(self.questions[place])
            if self.progress is not None:
                self.progress(min(start + _BLOCK, places.stop), len(self.log))

    def _ask(self, policy: Policy, place: int, near: Sequence[Neighbour]) -> Played | None:
        line = self.log[place]
        names = frozenset(name for name, _ in line.documents)
        decision = policy.decide(self.questions[place], near, now=0.0, coin=0.0, documents=names)
        if decision.candidate is None:
            return None
        right = self.same(self.log[decision.candidate].answer, line.answer)
        # nothing was served here, whatever the policy would do: every pair was to be judged
        label = Label(decision.features, right, served=False, coin=0.0, rate=1.0, at=0.0)
        return Played(place, decision.candidate, decision.score, label)

    def _near(self, places: Sequence[int]) -> dict[int, list[Neighbour]]:
        """Put lines into the cache and return the nearest entries before each that may serve it."""
        found: dict[int, list[Neighbour]] = {}
        for scope in dict.fromkeys(self.log[place].scope for place in places):
            mine = [place for place in places if self.log[place].scope == scope]
            entries = self.entries.setdefault(scope, [])
            earlier = range(len(entries), len(entries) + len(mine))
            entries += mine
            cosines = self.vectors[mine] @ self.vectors[entries].T
            found.update({place: self._nearest(place, row[:before])
                          for place, row, before in zip(mine, cosines, earlier, strict=True)})
        return found

    def _nearest(self, place: int, cosines: Array) -> list[Neighbour]:
        line, near = self.log[place], []
        entries = self.entries[line.scope]
        for at in _falling(cosines):
            if is_made_from(self.log[entries[at]].documents, line.documents):
                near.append(self._neighbour(entries[at], float(cosines[at])))
                if len(near) == NEIGHBOURS:
                    break
        return near

    def _neighbour(self, entry: int, cosine: float) -> Neighbour:
        line = self.log[entry]
        names = frozenset(name for name, _ in line.documents)
        # made just now: an alarm before the calibration does not concern these
        return Neighbour(entry, cosine, self.questions[entry], line.answer, names, created_at=np.inf)


def _falling(values: Array) -> Iterator[int]:
    """Yield the places of values (n,), the highest first; the first 64 without sorting all."""
    deep = min(_DEEP, len(values))
    top = np.argpartition(-values, deep - 1)[:deep] if deep else np.zeros(0, dtype=np.int64)
    yield from top[np.lexsort((top, -values[top]))].tolist()
    if deep < len(values):
        yield from np.argsort(-values, kind="stable")[deep:].tolist()


def _repeats(log: Sequence[Logged]) -> set[int]:
    """Return the places of lines whose question was asked before in their scope."""
    first: dict[tuple[str, str], int] = {}
    return {place for place, line in enumerate(log)
            if first.setdefault((line.scope, canonical(line.question)), place) != place}
