"""What is known of "may this cached answer serve that question?", as one row of numbers per candidate.

Three kinds: where the candidate stands among its neighbours (similarity, margin, whether neighbours agree on the
answer), what the two texts differ in (guards, and content words missing on either side, weighted by rarity and by
where they stand), and what is known beside the texts (documents behind both answers, age). ``expand`` adds hinges, so
that a linear score can bend.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence, Set
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from neuralcache_plugins.contracts import Array, Matrix
from neuralcache_plugins.semantic_cache.guards import GUARDS, Difference
from neuralcache_plugins.semantic_cache.parsing import Question

NEIGHBOURS = 8
"""How many nearest entries are looked at."""

CANDIDATES = 3
"""How many of them may serve: among near misses the right one is often second."""

_MOST_WORDS = 100_000
_SHARP, _FLAT = 20.0, 8.0


class Neighbour(NamedTuple):
    """A cached entry near the question; ``answer`` is equal for equal answers, such as a hash of them.

    ``entry`` is the caller's own handle. ``cosine`` is in [-1, 1], ``created_at`` in seconds since the epoch.
    """

    entry: int
    cosine: float
    question: Question
    answer: Hashable
    documents: Set[str] = frozenset()
    created_at: float = 0.0


@dataclass(slots=True)
class Rarity:
    """How rare words are among the questions of the cached entries; rebuilt from the entries, never stored."""

    questions: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    def note(self, question: Question) -> None:
        """Count the words of a question that was put into the cache. O(words)."""
        self.questions += 1
        for word in question.content:
            self.counts[word] = self.counts.get(word, 0) + 1
        if len(self.counts) > _MOST_WORDS:
            # a word seen once weighs nearly as much as one never seen
            self.counts = {word: count for word, count in self.counts.items() if count > 1}

    def weights(self, words: Iterable[str]) -> list[float]:
        """Return ln((n + 1) / (df + .5)) over its value for an unseen word: 1 for that, .05 for the commonest."""
        log, size, get = math.log, math.log(2.0 * self.questions + 2.0), self.counts.get
        return [max(0.05, 1.0 - log(2.0 * count + 1.0) / size) if (count := get(word, 0)) else 1.0 for word in words]


FEATURES = (
    # among the neighbours
    "cosine", "margin", "lead", "agreement", "wide agreement", "agreeing", "density", "above density", "second",
    "third",
    # words that one text lacks, as shares of the other's weight, and the heaviest of them
    "missing", "left over", "missing before repair", "left over before repair", "heaviest missing",
    "heaviest left over", "number missing", "number left over", "found before repair", "left found before repair",
    "overlap", "nothing missing", "unlike missing", "unlike left over", "pairs", "pairs left over", "first word",
    "last word", "missing early", "left over early", "grammar", "length ratio", "length", "repairs",
    "repairs left over",
    # guards, and what only one side mentions
    *GUARDS, "number on one side", "date on one side", "name on one side", "kind on one side", "more negations", "no",
    # beside the texts
    "documents known", "shared documents", "age",
)
"""The columns of a row."""

_HINGES: dict[str, tuple[float, ...]] = {
    "cosine": (0.6, 0.7, 0.8, 0.88, 0.94), "margin": (0.0, 0.03, 0.08, 0.15), "lead": (0.0, 0.05),
    "agreement": (0.3, 0.6, 0.85), "wide agreement": (0.3, 0.6, 0.85), "agreeing": (0.3, 0.7),
    "density": (0.5, 0.65, 0.8), "above density": (0.05, 0.12, 0.2),
    "missing": (0.05, 0.15, 0.3, 0.5), "left over": (0.05, 0.15, 0.3, 0.5),
    "heaviest missing": (0.3, 0.6), "heaviest left over": (0.3, 0.6),
    "overlap": (0.25, 0.5, 0.7, 0.85), "unlike missing": (0.05, 0.2), "unlike left over": (0.05, 0.2),
    "pairs": (0.3, 0.6), "pairs left over": (0.3, 0.6), "grammar": (0.3,), "length": (0.4, 0.6),
    "missing before repair": (0.15, 0.3), "left over before repair": (0.15, 0.3),
}
_TOPS = {"margin": 0.4, "lead": 0.3, "above density": 0.4}
"""Where a hinge reaches 1: elsewhere at 1."""

_COLUMNS = np.array([FEATURES.index(name) for name, knots in _HINGES.items() for _ in knots])
_KNOTS = np.array([knot for knots in _HINGES.values() for knot in knots], dtype=np.float32)
_SLOPES = np.array(
    [1.0 / (_TOPS.get(name, 1.0) - knot) for name, knots in _HINGES.items() for knot in knots], dtype=np.float32
)
WIDTH = 1 + len(FEATURES) + len(_KNOTS)
"""Width of an expanded row."""


def pair_features(
    question: Question, neighbours: Sequence[Neighbour], told: Sequence[Sequence[Difference]], *,
    rarity: Rarity, documents: Set[str] = frozenset(), now: float = 0.0,
) -> Matrix:
    """Return one row per candidate, shape (c, f), float32, for the first ``len(told)`` neighbours.

    ``neighbours`` are the nearest entries, nearest first; ``told`` holds the guards' differences of each candidate.
    About 20 us a candidate.
    """
    ours = _Side.of(question, rarity)
    rows = [
        [*beside, *_texts(ours, _Side.of(one.question, rarity)), *_guards(question, one.question, differences),
         *_outside(one, documents, now)]
        for one, differences, beside in zip(neighbours, told, _surroundings(neighbours, len(told)), strict=False)
    ]
    return np.array(rows, dtype=np.float32).reshape(len(told), len(FEATURES))


def expand(rows: Matrix) -> Array:
    """Return rows (n, f) with a constant before and hinges (x - knot)+ / (top - knot) behind, shape (n, ``WIDTH``)."""
    wide = np.empty((len(rows), WIDTH))
    wide[:, 0] = 1.0
    wide[:, 1:len(FEATURES) + 1] = rows
    hinges = (rows[:, _COLUMNS] - _KNOTS) * _SLOPES
    np.maximum(hinges, 0.0, out=wide[:, len(FEATURES) + 1:])
    return wide


def _surroundings(neighbours: Sequence[Neighbour], count: int) -> list[list[float]]:
    """Return, per candidate, where it stands among its neighbours."""
    cosines, answers = [one.cosine for one in neighbours], [one.answer for one in neighbours]
    ordered = sorted(cosines, reverse=True)
    top, mean = ordered[0] if ordered else 0.0, sum(cosines) / max(len(cosines), 1)
    sharp = [math.exp(_SHARP * (cosine - top)) for cosine in cosines]
    flat = [math.exp(_FLAT * (cosine - top)) for cosine in cosines]
    all_sharp, all_flat = sum(sharp), sum(flat)
    found = []
    for place, (cosine, answer) in enumerate(zip(cosines[:count], answers, strict=False)):
        same = [at for at, other in enumerate(answers) if other == answer]
        rival = max([cosines[at] for at, other in enumerate(answers) if other != answer], default=cosine - 0.4)
        next_one = cosine - 0.3 if len(ordered) == 1 else ordered[1] if cosine == top else top
        found.append([
            cosine, min(cosine - rival, 0.4), min(cosine - next_one, 0.3),
            sum([sharp[at] for at in same]) / all_sharp, sum([flat[at] for at in same]) / all_flat,
            len(same) / NEIGHBOURS, mean, cosine - mean, float(place == 1), float(place > 1),
        ])
    return found


class _Side(NamedTuple):
    """The content of one question with its weights, ready to be compared."""

    question: Question
    content: tuple[str, ...]
    weights: list[float]
    total: float
    known: frozenset[str]
    grammar: frozenset[str]
    beginnings: frozenset[str]
    pairs: frozenset[tuple[str, str]]

    @classmethod
    def of(cls, question: Question, rarity: Rarity) -> _Side:
        content = question.content
        weights, known = rarity.weights(content), frozenset(content)
        return cls(
            question, content, weights, sum(weights) or 1.0, known, frozenset(question.words) - known,
            frozenset([word[:4] for word in content if len(word) > 3]), frozenset(pairwise(content)),
        )


class _Gap(NamedTuple):
    """What one side has that the other lacks, as shares of its weight."""

    after: float
    before: float
    heaviest: float
    number: float
    found_before: float
    unlike: float
    early: float
    shared: float


def _gap(one: _Side, other: _Side) -> _Gap:
    after = before = heaviest = found_before = unlike = early = shared = 0.0
    count, kept_from, half = 0, one.question.kept_from, len(one.content) / 2
    for place, (word, weight) in enumerate(zip(one.content, one.weights, strict=True)):
        if word in other.known:
            shared += weight
            found_before += weight if place < kept_from else 0.0
        elif place < kept_from:
            before += weight
        else:
            after += weight
            count += 1
            heaviest = max(heaviest, weight)
            unlike += 0.0 if word[:4] in other.beginnings else weight
            early += weight if place < half else 0.0
    total = one.total
    return _Gap(after / total, before / total, heaviest, min(count, 6) / 4, found_before / total, unlike / total,
                early / total, shared)


def _texts(ours: _Side, theirs: _Side) -> list[float]:
    missing, left = _gap(ours, theirs), _gap(theirs, ours)
    common = len(ours.pairs & theirs.pairs)
    said, cached = ours.question.words, theirs.question.words
    return [
        missing.after, left.after, missing.before, left.before, missing.heaviest, left.heaviest,
        missing.number, left.number, missing.found_before, left.found_before,
        missing.shared / (ours.total + theirs.total - missing.shared),
        float(not missing.number and not left.number), missing.unlike, left.unlike,
        common / max(len(ours.pairs), 1), common / max(len(theirs.pairs), 1),
        _same(ours.content[:1], theirs.content[:1]), _same(ours.content[-1:], theirs.content[-1:]),
        missing.early, left.early, _grammar(ours, theirs),
        abs(math.log((len(said) + 1) / (len(cached) + 1))), math.log(len(said) + 1) / 5,
        min(ours.question.repairs, 2) / 2, min(theirs.question.repairs, 2) / 2,
    ]


def _same(ours: tuple[str, ...], theirs: tuple[str, ...]) -> float:
    return float(ours == theirs)


def _grammar(ours: _Side, theirs: _Side) -> float:
    """Return the overlap (Jaccard) of the words that carry no content of their own."""
    shared = len(ours.grammar & theirs.grammar)
    return shared / (len(ours.grammar) + len(theirs.grammar) - shared or 1)


def _guards(ours: Question, theirs: Question, told: Iterable[Difference]) -> list[float]:
    fired = {difference.guard for difference in told}
    return [
        *(float(name in fired) for name in GUARDS),
        float(bool(ours.numbers) != bool(theirs.numbers)), float(bool(ours.dates) != bool(theirs.dates)),
        float(ours.names != theirs.names and (ours.names <= theirs.names or theirs.names <= ours.names)),
        float(bool(ours.kind) != bool(theirs.kind)), min(abs(ours.negations - theirs.negations), 2) / 2,
        float(("no" in ours.words) != ("no" in theirs.words)),
    ]


def _outside(one: Neighbour, documents: Set[str], now: float) -> list[float]:
    known = bool(documents) and bool(one.documents)
    shared = len(documents & one.documents) / len(documents | one.documents) if known else 0.0
    return [float(known), shared, math.log1p(max(now - one.created_at, 0.0) / 86_400.0) / 7.0]
