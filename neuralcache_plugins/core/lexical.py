"""The lexical signal: which candidates say the words of the question, judged within the candidate set alone.

Nothing is remembered between calls: how rare a word is gets estimated from the candidates themselves, so that
equal calls give equal scores. A caller keeps one ``TokenStatistics`` per text, which makes a call cheap.
"""

from __future__ import annotations

import math
import re
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from neuralcache_plugins.contracts import Positions, Vector

_Floats: TypeAlias = npt.NDArray[np.float64]
_Ids: TypeAlias = npt.NDArray[np.uint32]

# every one of these sits in a wide plateau on the sets of benchmarks/cold_start.py
_SATURATION = 1.2
_LENGTH_WEIGHT = 0.75
_PAIRS_WEIGHT = 0.6
_COVERAGE_WEIGHT = 0.3
_SHARPNESS = 2.0
_HALF_TRUSTED_LENGTH = 30.0
_MAX_QUERY_TOKENS = 512
_BUCKETS = 4096

# scripts written without spaces: Thai and Lao, Myanmar, Khmer, kana, Han with its extensions, and Hangul
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u3007\u3041-\u3096\u3099-\u309f\u30a1-\u30fa\u30fc-\u318f"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
# marks that belong to the letter before them although \w misses them: Latin, Cyrillic, Hebrew, Arabic, Indic
_MARKS = (
    "\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u064b-\u065f\u0670"
    "\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u0900-\u0903\u093a-\u094f\u0951-\u0957\u0962\u0963\u0981-\u0983"
    "\u09bc\u09be-\u09cd\u0a01-\u0a03\u0a3c-\u0a4d\u0abc\u0abe-\u0acd\u0b3c\u0b3e-\u0b4d\u0bbe-\u0bcd\u0c3e-\u0c4d"
    "\u0cbc\u0cbe-\u0ccd\u0d3e-\u0d4d\u0dca-\u0ddf"
)
_LETTER = rf"[^\W_{_UNSPACED}]"
_WORDS = re.compile(rf"{_LETTER}++(?:[{_MARKS}]++{_LETTER}*+)*+|([{_UNSPACED}]++)")
_NEEDS_CARE = re.compile(rf"[{_UNSPACED}{_MARKS}]")
_PLAIN_WORDS = re.compile(r"[^\W_]+")
_ASCII_WORDS = re.compile(r"[a-z0-9]+")
_GENITIVE = re.compile(r"['\u2019]s\b")
# canonical ordering takes quadratic time in a run of combining marks; no script needs more than 30 (UAX 15, D4)
_MARK_RUN = re.compile(r"[^\w\s\x00-\x7f]{31,}+")


def tokens(text: str) -> list[str]:
    """Return the words of a text in order, composed (NFC), case-folded and without English endings.

    Scripts without spaces yield overlapping pairs of characters; a lone character stays as it is. Takes linear time.
    """
    if text.isascii():
        return [_without_ending(word) for word in _ASCII_WORDS.findall(_GENITIVE.sub("", text.lower()))]
    plain = _GENITIVE.sub("", unicodedata.normalize("NFC", _MARK_RUN.sub(" ", text)).casefold())
    if _NEEDS_CARE.search(plain) is None:
        return [_without_ending(word) for word in _PLAIN_WORDS.findall(plain)]
    return [token for match in _WORDS.finditer(plain) for token in _tokens_of(match)]


def content_tokens(text: str) -> list[str]:
    """Return the tokens of a text in order without the words of English grammar."""
    return [token for token in tokens(text) if token not in _FUNCTION_WORDS]


@dataclass(frozen=True, slots=True)
class TokenStatistics:
    """What the signal needs to know of one text: a stable 32-bit id per token, in the order of the text.

    Counts, length and neighbours can all be read from that order, at four bytes a token.
    """

    ids: bytes

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.ids) // 4


def token_statistics(text: str) -> TokenStatistics:
    """Return the statistics of a text; an id is the CRC-32 of its token, the same in every process. O(len(text)).

    The words of English grammar are left out: they are most of the hits and none of the evidence.
    """
    ids = [zlib.crc32(token.encode()) for token in content_tokens(text)]
    return TokenStatistics(np.array(ids, dtype=np.uint32).tobytes())


def lexical_scores(query: TokenStatistics, documents: Sequence[TokenStatistics]) -> Vector:
    """Return how well each document matches the words of the query, shape (n,); zeros when that says nothing.

    z(z(bm25) + .6 z(pairs) + .3 z(coverage)) times a confidence in [0, 1]: pairs are neighbouring words of the query
    that are neighbours in the document, coverage is the share of the query's words, each word weighted by its rarity
    among the candidates. Only the first 512 tokens of a query count. Costs O(all tokens + distinct words * n).
    """
    n = len(documents)
    terms = _query_terms(query)
    if n < 2 or not terms.ids.size:
        return np.zeros(n, dtype=np.float32)
    texts = [document.ids for document in documents]
    lengths = np.fromiter(map(len, texts), dtype=np.float64, count=n) * 0.25
    hits = _find(terms.ids, texts, lengths)
    if not hits.place.size:
        return np.zeros(n, dtype=np.float32)
    # one cell for every word that a document has
    counts = np.bincount(hits.term * n + hits.document, minlength=terms.ids.size * n)
    cells = counts.nonzero()[0]
    term, document = np.divmod(cells, n)
    rarity = _rarity(np.bincount(term, minlength=terms.ids.size), n)
    mean_length = float(np.add.reduce(lengths)) / n
    saturated = _saturated(counts[cells], lengths[document], mean_length)
    bm25 = _added_up((terms.counts * rarity)[term] * saturated, document, n)
    coverage = _added_up(rarity[term], document, n)
    worth = _standardize(bm25) + _COVERAGE_WEIGHT * _standardize(coverage)
    pairs = _pair_scores(hits, terms, rarity, n)
    if pairs is not None:
        worth += _PAIRS_WEIGHT * _standardize(pairs)
    z = _standardize(worth)
    return (_confidence(z, mean_length) * z).astype(np.float32)


class _Terms(NamedTuple):
    """The distinct words of a query by rising id, shape (t,), and its words in order as indices into them."""

    ids: _Ids
    counts: Positions
    order: list[int]


class _Hits(NamedTuple):
    """Every place where a word of the query stands, by rising place in the joined documents."""

    place: Positions
    term: Positions
    document: Positions


def _tokens_of(match: re.Match[str]) -> list[str]:
    word = match.group()
    if match.lastindex is None:
        return [_without_ending(word)]
    return [word[at:at + 2] for at in range(max(len(word) - 1, 1))]


def _query_terms(query: TokenStatistics) -> _Terms:
    # a query has a dozen words: plain Python beats the fixed cost of numpy's set functions
    ids = np.frombuffer(query.ids, dtype=np.uint32, count=min(query.length, _MAX_QUERY_TOKENS)).tolist()
    index = {term: at for at, term in enumerate(sorted(set(ids)))}
    order = [index[term] for term in ids]
    return _Terms(np.array(list(index), dtype=np.uint32), np.bincount(order, minlength=len(index)), order)


def _find(terms: _Ids, texts: Sequence[bytes], lengths: _Floats) -> _Hits:
    ids = np.frombuffer(b"".join(texts), dtype=np.uint32)
    # one look into a small table drops nearly all tokens before anything is compared exactly
    table = np.zeros(_BUCKETS, dtype=np.bool_)
    table[terms & (_BUCKETS - 1)] = True
    place = table.take(ids & (_BUCKETS - 1), mode="clip").nonzero()[0]  # none is out of bounds
    found = ids[place]
    term = terms[:-1].searchsorted(found)
    exact = (terms[term] == found).nonzero()[0]
    place = place[exact]
    return _Hits(place, term[exact], lengths.cumsum().searchsorted(place, side="right"))


def _rarity(having: Positions, n: int) -> _Floats:
    """Return ln(1 + (n - df + .5) / (df + .5)) per term, with df counted among the candidates, shape (t,).

    Robertson and Zaragoza, Foundations and Trends in Information Retrieval 3 (2009), eq. 3.3, with the usual 1 inside
    that keeps it positive. A background over earlier calls gained nothing and would make calls depend on each other.
    """
    rarity: _Floats = np.log((n + 1.0) / (having + 0.5))
    return rarity


def _saturated(counts: Positions, lengths: _Floats, mean_length: float) -> _Floats:
    """Return tf / (tf + k1 (1 - b + b length / mean length)) per cell: Robertson and Zaragoza 2009, eq. 3.15."""
    scale = _SATURATION * _LENGTH_WEIGHT / max(mean_length, 1.0)
    saturated: _Floats = counts / (counts + (lengths * scale + _SATURATION * (1 - _LENGTH_WEIGHT)))
    return saturated


def _pair_scores(hits: _Hits, terms: _Terms, rarity: _Floats, n: int) -> _Floats | None:
    """Return, per document, the rarity of all neighbouring words that are neighbours in the query too, shape (n,).

    None when there are none at all, as with most questions of few words.
    """
    beside = ((hits.place[1:] - hits.place[:-1]) == 1).nonzero()[0]
    if not beside.size:
        return None
    follows = np.zeros((terms.ids.size, terms.ids.size), dtype=np.bool_)
    follows[terms.order[:-1], terms.order[1:]] = True
    first, second, document = hits.term[beside], hits.term[beside + 1], hits.document[beside]
    same = follows[first, second] & (document == hits.document[beside + 1])
    return _added_up(same * (rarity[first] + rarity[second]), document, n)


def _added_up(worth: _Floats, document: Positions, n: int) -> _Floats:
    """Return the sum for each of n documents, in the same order for all: equal texts keep exactly equal scores."""
    return np.bincount(document, weights=worth, minlength=n).astype(np.float64, copy=False)


def _standardize(values: _Floats) -> _Floats:
    """Return z-scores, shape (n,); zeros where the values are equal up to rounding."""
    centred: _Floats = values - float(np.add.reduce(values)) / values.size
    spread = math.sqrt(float(centred.dot(centred)) / values.size)
    # equal values leave only rounding behind, which must not be blown up
    centred *= 1.0 / spread if spread > 1e-9 else 0.0
    return centred


def _confidence(z: _Floats, mean_length: float) -> float:
    """Return how much a set of scores deserves to be heard, in [0, 1].

    1 - entropy of softmax(2 z) / ln n is near 1 when one candidate stands out. The second factor is half at 30 words
    a candidate: in a one-line label a missing word means little, because hardly any word of the question fits in.
    """
    logits = _SHARPNESS * (z - np.maximum.reduce(z))
    p = np.exp(logits)
    total = float(np.add.reduce(p))
    entropy = math.log(total) - float(p.dot(logits)) / total
    return max(1.0 - entropy / math.log(z.size), 0.0) * mean_length / (mean_length + _HALF_TRUSTED_LENGTH)


def _without_ending(word: str) -> str:
    """Fold plural, -ed, -ing and a last -e of English words; the few false friends rarely meet in one question.

    In the spirit of steps 1a and 1b of Porter (Program 14, 1980).
    """
    size = len(word)
    if size > 3 and word[-1] == "s" and word[-2] not in "su":
        word = word[:-3] + "y" if word.endswith("ies") and size > 4 else word[:-1]
        size = len(word)
    if size > 5 and word.endswith("ing"):
        return _without_double(word[:-3])
    if size > 4 and word.endswith("ed"):
        return _without_double(word[:-2])
    return word[:-1] if size > 4 and word[-1] == "e" else word


def _without_double(stem: str) -> str:
    return stem[:-1] if stem[-1] == stem[-2] and stem[-1] not in "lsz" else stem.removesuffix("e")


# words of English grammar, which rarity among a few passages misjudges wherever one happens to lack "which"
_FUNCTION_WORDS = frozenset(_without_ending(word) for word in _ASCII_WORDS.findall("""
    a about after again all also am an and any are as at be been before being between both but by can could did do
    does done down during each few for from further had has have having he her here him his how i if in into is it
    its just me might more most much must my no nor not of off on once only or other our out over own s same shall
    she should so some such t than that the their them then there these they this those through to under until up
    us very was we were what when where which while who whom whose why will with would you your
"""))
