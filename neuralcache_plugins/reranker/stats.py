"""A reranker at a glance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from neuralcache_plugins.memory import LearnedState
from neuralcache_plugins.telemetry import RecorderStats


@dataclass(frozen=True, slots=True)
class NamespaceStats:
    """What one namespace has learned; times in seconds since the epoch, UTC.

    ``gain`` is the mean gain in reciprocal rank of the served over the retriever's order, among the documents shown,
    with its 95 % interval (None below 20 feedbacks). ``trust`` and ``weights`` are by encoder, since nothing learned
    with one encoder's vectors holds for another's.
    """

    namespace: str
    rankings: int
    feedback: int
    first_feedback_at: float | None
    last_feedback_at: float | None
    documents: int
    remembered_questions: int
    sessions: int
    gain: float
    gain_interval: tuple[float, float] | None
    trust: Mapping[str, float]
    weights: Mapping[str, Mapping[str, float]]

    @classmethod
    def of(cls, namespace: str, state: LearnedState) -> NamespaceStats:
        """Read the numbers off a state."""
        learners = state.learners.values()
        return cls(
            namespace=namespace,
            rankings=state.rankings,
            feedback=state.feedback,
            first_feedback_at=state.first_feedback_at,
            last_feedback_at=state.last_feedback_at,
            documents=len(state.documents),
            remembered_questions=sum(one.helped.total + one.failed.total for one in learners),
            sessions=sum(len(one.sessions) for one in learners),
            gain=state.gain.mean,
            gain_interval=state.gain.interval(),
            trust={encoder: one.trust.value for encoder, one in state.learners.items()},
            weights={encoder: one.trust.named_weights() for encoder, one in state.learners.items()},
        )


@dataclass(frozen=True, slots=True)
class RerankerStats:
    """Counts and health of a reranker. ``degraded`` counts rankings by what they had to do without."""

    store: str
    namespace: NamespaceStats
    recorder: RecorderStats
    encoder_calls: int
    vectors_found: int
    degraded: Mapping[str, int]
    unusable_vectors: int
