"""Evidence that an answer was made from a document: shared words, phrases, numbers and names, and sentences alike.

Everything is judged among the documents that were shown together: a word that all of them have tells little.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from neuralcache_plugins.contracts import Array, Matrix
from neuralcache_plugins.core.lexical import content_tokens

Encode = Callable[[list[str]], Matrix]
"""Texts -> unit rows (n, d), zeros where a text has no direction."""

WORDS = ("lead", "added words", "own words", "phrases", "longest run", "best sentence", "coverage")
"""What words tell of a document. ``lead``: the share of the answer's words that it has, over the best other's.
``added words``: how much of what it has is not in the document that has most, and says least besides; 1 for that one.
``own words``: the words that only it and few others have, over the most that one has. ``phrases``: the share of
neighbouring words that are neighbours in it too, its square root. ``longest run``: the most words in a row that both
have, of those that the document has, or of a dozen. ``best sentence``: the largest share of one sentence.
``coverage``: how much of the document the answer says."""

MEANING = ("likeness",)
"""The cosine of each sentence of the answer to the nearest one of the document, as a mean."""

_ASKED = 0.3
_KEY = 2.0
_HALF_COVERED = 0.15
_SHORTEST_SENTENCE = 3
_LONG_RUN = 12
_MAX_WORDS = 2_000
_MAX_SENTENCES = 60
_MAX_CHARACTERS = 40_000
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]{0,2}\s+|(?<=[\u3002\uff01\uff1f])|\n+")
_NAME_OR_NUMBER = re.compile(r"(?<!^)\b[^\W\d_a-z]\w+|\b[^\W\d]*+\d\w*")


def sentences(text: str) -> list[str]:
    """Return the sentences of a text; a line's end ends a sentence. Linear in the text, of which a long tail is cut."""
    return [part for part in map(str.strip, _SENTENCE_END.split(text[:_MAX_CHARACTERS])) if part]


def features(said: Sequence[str], texts: Sequence[str], *, query: str = "", encode: Encode | None = None) -> Array:
    """Return (n, f): one row per document, one column per name in ``WORDS`` and, with ``encode``, in ``MEANING``.

    ``said`` are the sentences of the answer. Words of the question count little, numbers and names count double.
    O(all tokens + n * distinct words of the answer), and one call of ``encode`` with all sentences.
    """
    said = said[:_MAX_SENTENCES]
    found = _Words([content_tokens(part)[:_MAX_WORDS] for part in said],
                   [content_tokens(text[:_MAX_CHARACTERS])[:_MAX_WORDS] for text in texts])
    if not found.words or not texts:
        return np.zeros((len(texts), len(WORDS if encode is None else (*WORDS, *MEANING))))
    asked = set(content_tokens(query))
    weights = found.weights(asked=asked, keys=_keys(said))
    share = found.has @ weights / weights.sum()
    own = (found.has / np.maximum(found.holders, 1)) @ [float(word not in asked) for word in found.words]
    coverage = found.coverage()
    columns = [_lead(share), found.added(weights, share, coverage), own / max(own.max(), 1e-9),
               np.sqrt(found.phrases()), found.longest_run(), found.best_sentence(weights, share),
               coverage / (coverage + _HALF_COVERED)]
    if encode is not None:
        columns += _likeness(said, texts, encode)
    return np.array(columns).T


def weighed(table: Array) -> Array:
    """Return the evidence as it is weighed: what a document alone has counts as far as any holds what was said.

    Of documents that the answer is not from, one has the most words in common all the same. So "added words" and "own
    words" are multiplied by the mean of the best sentence and the longest run of all documents. (n, f) -> (n, f).
    """
    found = table.copy()
    if len(found):
        held = table[:, [WORDS.index("best sentence"), WORDS.index("longest run")]].max(axis=0).mean()
        found[:, [WORDS.index("added words"), WORDS.index("own words")]] *= held
    return found


class _Words:
    """The distinct content words of an answer (t), and which of the n documents has which."""

    def __init__(self, said: list[list[str]], documents: list[list[str]]) -> None:
        self.said = said
        self.documents = documents
        self.sets = [set(document) for document in documents]
        self.words = sorted({word for part in said for word in part})
        self.has = np.array([[word in own for word in self.words] for own in self.sets], dtype=float)
        self.holders = self.has.sum(axis=0)

    def weights(self, *, asked: set[str], keys: set[str]) -> Array:
        n = len(self.sets)
        rarity = 1.0 + np.log1p((n - self.holders + 0.5) / (self.holders + 0.5))
        factors = [(_ASKED if word in asked else 1.0) * (_KEY if word in keys else 1.0) for word in self.words]
        weights: Array = rarity * np.array(factors)
        return weights

    def added(self, weights: Array, share: Array, coverage: Array) -> Array:
        best = int(np.lexsort((coverage, share))[-1])
        rest = self.has * (1.0 - self.has[best])
        added: Array = (rest @ weights) / np.maximum(self.has @ weights, 1e-9)
        return np.where((share == share[best]) & (coverage == coverage[best]), 1.0, added)

    def best_sentence(self, weights: Array, otherwise: Array) -> Array:
        """Return the largest share of a sentence's words; short sentences are no evidence of their own."""
        place = {word: at for at, word in enumerate(self.words)}
        rows = [sorted({place[word] for word in part}) for part in self.said if len(part) >= _SHORTEST_SENTENCE]
        if not rows:
            return otherwise
        shares = [self.has[:, row] @ weights[row] / weights[row].sum() for row in rows]
        best: Array = np.max(shares, axis=0)
        return best

    def phrases(self) -> Array:
        wanted = {pair for part in self.said for pair in pairwise(part)}
        if not wanted:
            return np.zeros(len(self.documents))
        pairs = [set(pairwise(document)) for document in self.documents]
        return np.array([len(wanted & own) / len(wanted) for own in pairs])

    def longest_run(self) -> Array:
        found = np.zeros(len(self.documents))
        for length in range(1, _LONG_RUN + 1):
            said = {run for part in self.said for run in _runs(part, length)}
            alive = [at for at in range(len(found)) if found[at] == length - 1 and not said.isdisjoint(
                _runs(self.documents[at], length))]
            if not alive:
                break
            found[alive] = length
        return found / [min(_LONG_RUN, max(1, len(document))) for document in self.documents]

    def coverage(self) -> Array:
        words = set(self.words)
        return np.array([len(own & words) / max(1, len(own)) for own in self.sets])


def _runs(words: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(length)), strict=False)


def _keys(said: Sequence[str]) -> set[str]:
    return {token for part in said for match in _NAME_OR_NUMBER.findall(part) for token in content_tokens(match)}


def _lead(share: Array) -> Array:
    """Return how far each is over the best other; of one alone, nothing can be said."""
    if len(share) < 2:
        return np.zeros(len(share))
    second, first = np.sort(share)[-2:]
    lead: Array = np.where(share == first, share - second, share - first)
    return lead


def _likeness(said: Sequence[str], texts: Sequence[str], encode: Encode) -> list[Array]:
    parts = [sentences(text)[:_MAX_SENTENCES] or [text] for text in texts]
    rows = encode([*said, *(part for own in parts for part in own)])
    cosines = rows[len(said) :] @ rows[: len(said)].T
    starts = np.cumsum([0, *map(len, parts[:-1])])
    nearest = np.asarray(np.maximum.reduceat(cosines, starts, axis=0), dtype=np.float64)
    return [nearest.mean(axis=1)]
