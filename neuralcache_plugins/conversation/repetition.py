"""Whether a question was asked before: by its words, and by its vector where there is an encoder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from neuralcache_plugins.contracts import Vector
from neuralcache_plugins.conversation.folding import windows

FEWEST = 2
"""A question with fewer words that say something is not compared by its words, unless it comes verbatim."""

SHORTEST_STEM = 4
_ENDINGS = ("ing", "ed", "es", "en", "s", "e", "n")

_WORDS = re.compile(r"\w+")
_STOP = frozenset(_WORDS.findall(
    """a an the i me my we our you your he she it its they this that these those to of in on at for from by with as and
    or but so is are was were be been am do does did have has had can could will would should may might shall please
    much many there here about into then than just also really still again hi hello want need like know tell say ask
    der die das den dem des ein eine einen einem einer ich mich mir mein meine meinen meinem wir uns unser du dein sie
    er es ihr und oder aber in im an am auf zu zum zur von vom mit bei fur aus als ist sind war bin hat habe haben kann
    konnen soll will denn bitte noch nochmal doch auch man mochte will wissen
    el la los las lo un una unos unas yo me mi mis nos tu su sus se te y o pero de del en a al con por para es son esta
    estoy fue ha he hay puedo puede quiero saber favor"""
))
_QUESTIONING = frozenset(_WORDS.findall(
    """how what where when which who whom whose why wie was wo wann welche welcher wer warum wieso como que donde
    cuando cual quien cuanto cuanta"""
))


class Asked(NamedTuple):
    """A question: its words in order, those that say something, how it asks, and its vector."""

    words: tuple[str, ...]
    telling: frozenset[str]
    asking: frozenset[str]
    vector: Vector | None = None


def asked(text: str, vector: Vector | None = None) -> Asked:
    """Return what is compared of a question. O(1) in the length of the message."""
    words = tuple(word for window in windows(text) for word in _WORDS.findall(window.text))
    telling = frozenset(map(_stem, frozenset(words) - _STOP - _QUESTIONING))
    return Asked(words, telling, frozenset(words) & _QUESTIONING, vector)


def repeats(now: Asked, before: Sequence[Asked], *, lexical: float, vector: float) -> bool:
    """Return whether ``now`` asks what one of ``before`` asked.

    By words: all telling words of one are among the other's and are at least the share ``lexical`` of them. So a
    narrower question ("teams in the NFL", "teams in the NFL playoffs") is another one, and so are "when" and "where".
    By vectors, where words leave it open: their cosine is at least ``vector``, and it is not one word that stands in
    place of another ("reset my password", "reset my PIN").
    """
    return any(_same(now, one, lexical=lexical, vector=vector) for one in before)


def _stem(word: str) -> str:
    """Return a word without its commonest endings: "changing" and "change" are one."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= SHORTEST_STEM:
            return word[: -len(ending)]
    return word


def _same(now: Asked, before: Asked, *, lexical: float, vector: float) -> bool:
    if now.words and now.words == before.words:
        return len(now.telling) >= 1
    if not (now.asking <= before.asking or now.asking >= before.asking):
        return False  # subsets, since "was" asks in German and does not in English
    fewer, more = sorted((now.telling, before.telling), key=len)
    if len(fewer) < FEWEST:
        return False
    if fewer <= more:
        return len(fewer) >= lexical * len(more)
    if now.vector is None or before.vector is None or len(now.vector) != len(before.vector):
        return False
    swapped = len(fewer - more) == len(more - fewer) == 1 and fewer & more
    return not swapped and float(now.vector @ before.vector) >= vector
