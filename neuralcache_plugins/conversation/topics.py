"""Whether a message turns to something else without saying so: by its words and its vector together.

Chosen on one half of mtrag's conversations (``benchmarks/markers.py`` shows both): most of those turns that are found
in the midst of a conversation do turn to something else there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from neuralcache_plugins.conversation.repetition import Asked

FEWEST = 3
"""A message with fewer words that say something may be about anything, also about what was said before."""

_REFERRING = frozenset(re.findall(r"\w+", """
    it its they them their theirs this that these those he she him his her hers there one ones any former latter same
    other others else instead
    es er ihn ihm ihnen dies diese dieser dieses diesem diesen jene jener davon dazu daruber dafur damit dort beide
    eso esto ese esa esos esas estos estas este esta ello ella ellos ellas alli ahi ambos
"""))


def turns_away(now: Asked, before: Sequence[Asked], answer: Asked | None, *, vector: float) -> bool:
    """Return whether ``now`` has nothing to do with the questions ``before`` and with the answer to the last of them.

    It stands for itself (``FEWEST`` telling words, none that refers to what was said), shares no telling word with any
    of them, and the cosine with each of these questions is less than ``vector``. Never where vectors are missing.
    """
    if not before or len(now.telling) < FEWEST or not _REFERRING.isdisjoint(now.words):
        return False
    if any(now.telling & one.telling for one in (*before, *([] if answer is None else [answer]))):
        return False
    return all(_cosine(now, one) < vector for one in before)


def _cosine(now: Asked, before: Asked) -> float:
    if now.vector is None or before.vector is None or len(now.vector) != len(before.vector):
        return 1.0  # not known to be another topic
    return float(now.vector @ before.vector)
