"""What stands between the semantic tier and whoever decides for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from neuralcache_plugins.contracts import AnswerJudged, CachedQuestion, DocumentVersion
from neuralcache_plugins.semantic_cache.nearest import Near
from neuralcache_plugins.semantic_cache.policy import Policy


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a decider says to one question.

    ``serve`` is the id of the entry to serve, or None, and then ``reasons`` say why not. ``candidate`` is the entry
    that came nearest to it: on a miss its answer is compared with the fresh one, on a hit when ``audit`` says so.
    ``features`` are finite numbers, with all that ``Decider.learn`` will need; ``propensity`` is the chance with which
    this label is collected.
    """

    serve: str | None = None
    candidate: str | None = None
    score: float = 0.0
    audit: bool = False
    reasons: tuple[str, ...] = ()
    features: Mapping[str, float] = field(default_factory=dict)
    propensity: float = 1.0


class Decider(Protocol):
    """Decides for one namespace. Called by one thread at a time."""

    @property
    def name(self) -> str:
        """What snapshots of it go by: those of another fold or other limits are not this one's."""

    def quarantined_until(self, encoder: str) -> float:
        """Return the time until which entries were made that are not to be looked at."""

    def note(self, cached: Sequence[CachedQuestion]) -> None:
        """Take note of questions that were put into the cache."""

    def forget(self, gone: Collection[str]) -> None:
        """Drop what is kept of questions of entries, by id, that are cached no longer."""

    def decide(self, question: str, near: Sequence[Near], *, encoder: str, documents: tuple[DocumentVersion, ...],
               now: float, coin: float) -> Proposal:
        """Return a proposal; changes nothing. ``near`` is nearest first; ``coin`` is uniform in [0, 1)."""

    def learn(self, label: AnswerJudged) -> None:
        """Fold one judged answer into the state; called once for each, in the order of the log."""

    def rehearsal(self, encoder: str) -> Policy:
        """Return a copy of what was learned with this encoder, to try a log of questions and answers on."""

    def certificate(self, *, reused: int) -> object:
        """Return what may be said of the answers reused so far; ``str()`` of it is for people."""

    def pack(self) -> bytes:
        """Return what was learned, for a snapshot."""
