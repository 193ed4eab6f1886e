"""What the cache hands back: hits, explanations, counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from neuralcache_plugins.semantic_cache.keys import Documents
from neuralcache_plugins.telemetry import RecorderStats


@dataclass(frozen=True, slots=True)
class CacheHit:
    """A cached answer. ``question`` is the cached one; ``score`` is the estimated probability that it is right here.

    ``hit_id`` is for ``report``, from any process, once the hit is written (within ``flush_interval_seconds``).
    """

    hit_id: str
    kind: Literal["exact", "semantic"]
    value: Any
    question: str
    score: float = 1.0


@dataclass(frozen=True, slots=True)
class Sourced:
    """What a computation may return when it is it that finds the documents: the answer, and what it came from."""

    value: Any
    documents: Documents


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a question is answered from the cache, or is not. ``str()`` of it is for people."""

    question: str
    hit: bool
    kind: Literal["exact", "semantic"] | None
    reasons: tuple[str, ...]
    nearest: str | None = None
    similarity: float | None = None
    score: float | None = None
    age_seconds: float | None = None
    features: Mapping[str, float] | None = None

    def __str__(self) -> str:
        verdict = f"answered from the cache ({self.kind})" if self.hit else "not answered from the cache"
        lines = [f"{self.question!r}: {verdict}", *(f"  {reason}" for reason in self.reasons)]
        if self.nearest is not None and self.similarity is not None:
            lines.append(f"  nearest cached question: {self.nearest!r}, cosine {self.similarity:.3f}")
        if self.score is not None:
            lines.append(f"  estimated probability that its answer is right: {self.score:.3f}")
        if self.age_seconds is not None:
            lines.append(f"  put {self.age_seconds:.0f} s ago")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What one cache object did so far. ``misses`` are by reason; ``shared`` waited for somebody else's computation.

    ``seconds_saved`` and ``cost_saved`` add up what the answers served had taken when they were computed.
    ``audits_failed`` could not be computed or judged, ``left_undone`` found no room in the background.
    ``degraded`` counts what the cache had to do without ("store", "encoder").
    """

    store: str
    namespace: str
    exact_hits: int
    semantic_hits: int
    stale_hits: int
    misses: Mapping[str, int]
    stored: int
    refused: int
    computed: int
    shared: int
    failed: int
    judged: int
    audits_failed: int
    left_undone: int
    reported_wrong: int
    seconds_saved: float
    cost_saved: float
    degraded: Mapping[str, int]
    recorder: RecorderStats

    @property
    def hits(self) -> int:
        """All answers that were served from the cache."""
        return self.exact_hits + self.semantic_hits + self.stale_hits
