"""The semantic tier around a decider: nearest entries in, one proposal out, labels folded in the order of the log.

**This is the place where the policy is plugged in**: ``decider_for`` returns what decides for one namespace. Until it
returns something, nothing is embedded or searched, and only exact answers are served.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from neuralcache_plugins.contracts import (
    AnswerJudged,
    AnswerStore,
    CachedAnswer,
    DocumentVersion,
    Vector,
)
from neuralcache_plugins.encoders import EncoderCache
from neuralcache_plugins.semantic_cache.keys import Asked
from neuralcache_plugins.semantic_cache.nearest import Near, NearestQuestions
from neuralcache_plugins.settings import CacheSettings

NOT_CERTIFIED = "not certified yet: exact answers only"


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

    def decide(self, question: str, near: Sequence[Near], *, documents: tuple[DocumentVersion, ...], now: float,
               coin: float) -> Proposal:
        """Return a proposal; changes nothing. ``near`` is nearest first; ``coin`` is uniform in [0, 1)."""

    def learn(self, label: AnswerJudged) -> None:
        """Fold one judged answer into the state; called once for each, in the order of the log."""

    def certificate(self, *, reused: int) -> object:
        """Return what may be said of the answers reused so far; ``str()`` of it is for people."""


def decider_for(settings: CacheSettings) -> Decider | None:
    """Return the decider of a namespace. None: only exact answers are served."""
    return None


@dataclass(frozen=True, slots=True)
class Found:
    """A proposal with the entries that it names, read from the store just now."""

    proposal: Proposal
    served: CachedAnswer | None = None
    candidate: CachedAnswer | None = None
    near: tuple[Near, ...] = ()


class SemanticTier:
    """Entries of one namespace by similarity, behind a decider."""

    def __init__(self, store: AnswerStore, namespace: str, *, encoders: EncoderCache, settings: CacheSettings,
                 epoch: Callable[[], int]) -> None:
        self._store = store
        self._namespace = namespace
        self._encoders = encoders
        self._settings = settings
        self._epoch_of_store = epoch
        self._nearest = NearestQuestions(store, namespace, most=settings.max_entries)
        self._lock = threading.Lock()
        self._decider = decider_for(settings)
        self._epoch: int | None = None
        self._position = 0

    @property
    def active(self) -> bool:
        """Whether there is a decider at all."""
        return self._decider is not None

    def vector(self, question: str) -> tuple[str, Vector | None]:
        """Return the encoder's fingerprint and the question's vector; ``EncoderError`` if the encoder fails."""
        if self._decider is None:
            return "", None
        row = self._encoders.question(question, namespace=self._namespace)
        return ("", None) if row is None else (self._encoders.fingerprint(len(row)), row)

    def find(self, asked: Asked, *, now: float, coin: float) -> Found:
        """Return what to serve and what to compare. Reads only; ``StoreError`` and ``EncoderError`` pass through."""
        if self._decider is None:
            return Found(Proposal(reasons=(NOT_CERTIFIED,)))
        encoder, row = self.vector(asked.question)
        if row is None:
            return Found(Proposal(reasons=("the question has no direction",)))
        while True:
            near = [each for each in self._nearest.find(np.asarray(row), scope=asked.scope, encoder=encoder)
                    if _is_usable(each, asked, now)]
            proposal = self._decide(asked, near, now, coin)
            named = {name for name in (proposal.serve, proposal.candidate) if name is not None}
            entries = self._store.get_answers(self._namespace, sorted(named)) if named else {}
            if gone := named - entries.keys():
                self._nearest.forget(gone)  # the index is behind the store: look again without them
                continue
            return Found(proposal, entries.get(proposal.serve or ""), entries.get(proposal.candidate or ""),
                         tuple(near))

    def certificate(self, *, reused: int) -> Any:
        """Return what may be said of what was served."""
        with self._lock:
            if self._decider is None:
                return NOT_CERTIFIED
            self._catch_up()
            return self._decider.certificate(reused=reused)

    def restart_after_fork(self) -> None:
        """Take new locks in a forked child."""
        self._lock = threading.Lock()
        self._nearest.restart_after_fork()
        self._encoders.restart_after_fork()

    def _decide(self, asked: Asked, near: Sequence[Near], now: float, coin: float) -> Proposal:
        with self._lock:
            self._catch_up()
            assert self._decider is not None
            return self._decider.decide(asked.question, near, documents=asked.documents, now=now, coin=coin)

    def _catch_up(self) -> None:
        """Fold the labels that any process has written since the last look; all anew after an erasure."""
        epoch = self._epoch_of_store()
        if epoch != self._epoch:
            self._epoch, self._position, self._decider = epoch, 0, decider_for(self._settings)
        assert self._decider is not None
        while found := self._store.read_answer_events(after=self._position, namespace=self._namespace,
                                                      kinds=[AnswerJudged]):
            for entry in found:
                if isinstance(entry.event, AnswerJudged):
                    self._decider.learn(entry.event)
            self._position = found[-1].position


def _is_usable(near: Near, asked: Asked, now: float) -> bool:
    """Return whether an entry is neither expired nor made from another version of a document that the caller has."""
    expires_at = near.cached.expires_at
    if expires_at is not None and expires_at <= now:
        return False
    known = dict(asked.documents)
    return all(known.get(name, version) == version for name, version in near.cached.documents)
