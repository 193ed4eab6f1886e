"""What was shown lately: new ranking ids, and the vectors, texts and words that feedback and answers will ask for."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from neuralcache_plugins.contracts import FeedbackGiven, HalfVector, Matrix, RankingServed, Vector
from neuralcache_plugins.core.lexical import TokenStatistics, token_statistics
from neuralcache_plugins.memory.sources import configured

CAPACITY = 512
"""Rankings whose vectors, and sessions whose words, are kept."""

MOST_TEXTS = 4_096
"""Rankings whose texts are kept, if there is room for their characters."""

SPOKEN_DOCUMENTS = 3
SPOKEN_CHARACTERS = 8_000
"""A session's words are those of so many helpful documents, and from so many of their characters, at most."""

RANKS = 10


class RankingIds:
    """UUIDs of version 7 (RFC 9562): they sort by time, then by order within this process."""

    def __init__(self) -> None:
        self._tick = count()

    def new(self, now: float) -> str:
        """Return a new id for a ranking of the moment ``now``, in seconds since the epoch."""
        stamp = max(0, int(now * 1000)) & 0xFFFF_FFFF_FFFF
        head = stamp << 16 | 0x7000 | next(self._tick) & 0xFFF
        digits = (head.to_bytes(8) + os.urandom(8)).hex()
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-a{digits[17:20]}-{digits[20:]}"


class ShownVectors:
    """The vectors of the top documents of recent rankings, so that feedback can tell what helped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: OrderedDict[str, Matrix] = OrderedDict()

    def keep(self, ranking_id: str, rows: Matrix) -> None:
        """Remember the rows (k, d) of a ranking."""
        with self._lock:
            self._rows[ranking_id] = rows
            if len(self._rows) > CAPACITY:
                self._rows.popitem(last=False)

    def helpful(self, served: RankingServed, given: Sequence[tuple[str, float]]) -> HalfVector | None:
        """Return the unit mean of the vectors that helped, weighted by reward; None where they are not known.

        In the precision of stores: feedback waits for this, and each rounding costs it two microseconds.
        """
        rows = self._rows.get(served.ranking_id)
        mean = None if rows is None else self._mean(rows, served, given)
        return None if mean is None else mean.astype(np.float16)

    def _mean(self, rows: Matrix, served: RankingServed, given: Sequence[tuple[str, float]]) -> Vector | None:
        if len(given) == 1:
            (name, reward), names = given[0], served.document_ids[: len(rows)]
            return rows[names.index(name)] if reward > 0 and name in names else None
        rewards = dict(given)
        weights = [max(0.0, rewards.get(name, 0.0)) for name in served.document_ids[: len(rows)]]
        mean: Vector = np.array(weights, dtype=np.float32) @ rows
        length = float(np.sqrt(mean.dot(mean)))
        return mean / np.float32(length) if length > 0 else None

    def restart_after_fork(self) -> None:
        """Take a new lock in a forked child: another thread of the parent may have held the old one."""
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Drop everything."""
        with self._lock:
            self._rows.clear()


@dataclass(frozen=True, slots=True)
class Showing:
    """What one ranking showed: the question, and ids and texts in the order shown."""

    query: str
    ids: Sequence[str]
    texts: Sequence[str]

    @property
    def size(self) -> int:
        """Characters."""
        return len(self.query) + sum(map(len, self.texts))


class ShownTexts:
    """The texts that recent rankings showed, in memory only. Bounded by characters; the oldest ranking goes."""

    def __init__(self, characters: int) -> None:
        self._room = characters
        self._used = 0
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str], tuple[int, Showing]] = OrderedDict()

    def keep(self, namespace: str, ranking_id: str, showing: Showing) -> None:
        """Remember what a ranking showed; one that has not room enough alone is not kept."""
        size = showing.size
        if size > self._room:
            return
        with self._lock:
            self._known[namespace, ranking_id] = size, showing
            self._used += size
            while self._used > self._room or len(self._known) > MOST_TEXTS:
                self._used -= self._known.popitem(last=False)[1][0]

    def find(self, namespace: str, ranking_id: str) -> Showing | None:
        """Return what a ranking showed, if it is still known."""
        with self._lock:
            return self._known.get((namespace, ranking_id), (0, None))[1]

    def restart_after_fork(self) -> None:
        """Take a new lock in a forked child: another thread of the parent may have held the old one."""
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Drop everything."""
        with self._lock:
            self._known.clear()
            self._used = 0


class SessionWords:
    """The words of the documents that helped last in recent sessions: follow-up questions often leave them out.

    In memory only, of this process alone, as hashes in the order of the text; the oldest session goes.
    """

    def __init__(self, shown_texts: ShownTexts, source_weights: Mapping[str, float]) -> None:
        self._shown_texts = shown_texts
        self._source_weights = source_weights
        self._lock = threading.Lock()
        self._words: OrderedDict[tuple[str, str], TokenStatistics] = OrderedDict()

    def follow(self, event: FeedbackGiven) -> None:
        """Remember what helped, where the feedback is of a session and the texts are still known."""
        session = event.ranking.session
        if session is None:
            return
        helped = {name for name, reward in event.rewards if reward > 0}
        if not helped or configured(event.source, self._source_weights) == 0.0:
            return
        showing = self._shown_texts.find(event.namespace, event.ranking_id)
        if showing is None:
            return
        texts = [text for name, text in zip(showing.ids, showing.texts, strict=True) if name in helped]
        words = token_statistics(" ".join(texts[:SPOKEN_DOCUMENTS])[:SPOKEN_CHARACTERS])
        with self._lock:
            self._words.pop((event.namespace, session), None)
            self._words[event.namespace, session] = words
            if len(self._words) > CAPACITY:
                self._words.popitem(last=False)

    def of(self, namespace: str, session: str | None) -> TokenStatistics | None:
        """Return the words of what helped last in a session, if they are known."""
        return None if session is None else self._words.get((namespace, session))

    def restart_after_fork(self) -> None:
        """Take a new lock in a forked child: another thread of the parent may have held the old one."""
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Drop everything."""
        with self._lock:
            self._words.clear()
