"""The optional expensive scorer, asked once for each (query, text)."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from neuralcache_plugins.contracts import PairScorer, Vector

logger = logging.getLogger(__name__)

CAPACITY = 50_000


class CachedScorer:
    """A ``PairScorer`` whose answers are kept in memory, the least recently used going first."""

    def __init__(self, scorer: PairScorer, *, capacity: int = CAPACITY) -> None:
        self._scorer = scorer
        self._capacity = capacity
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str], float] = OrderedDict()

    def scores(self, query: str, texts: Sequence[str]) -> Vector | None:
        """Return one score per text, or None when the scorer failed or returned something unusable."""
        found = {text: self._recall(query, text) for text in texts}
        missing = [text for text, score in found.items() if score is None]
        if missing:
            fresh = self._ask(query, missing)
            if fresh is None:
                return None
            found.update(zip(missing, fresh, strict=True))
            self._remember(query, missing, fresh)
        return np.array([found[text] for text in texts], dtype=np.float32)

    def restart_after_fork(self) -> None:
        """Take a new lock in a forked child: another thread of the parent may have held the old one."""
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Empty the memory."""
        with self._lock:
            self._known.clear()

    def _recall(self, query: str, text: str) -> float | None:
        with self._lock:
            score = self._known.get((query, text))
            if score is not None:
                self._known.move_to_end((query, text))
            return score

    def _ask(self, query: str, texts: list[str]) -> list[float] | None:
        try:
            scores = [float(score) for score in self._scorer(query, texts)]
        except Exception:  # foreign code: whatever it raises must not end a retrieval
            logger.exception("the scorer failed; the ranking goes on without it")
            return None
        if len(scores) != len(texts) or not np.isfinite(scores).all():
            logger.error("the scorer must return %d finite scores, got %r", len(texts), scores[:5])
            return None
        return scores

    def _remember(self, query: str, texts: list[str], scores: list[float]) -> None:
        with self._lock:
            for text, score in zip(texts, scores, strict=True):
                self._known[query, text] = score
            while len(self._known) > self._capacity:
                self._known.popitem(last=False)
