"""The semantic tier around a decider: nearest entries in, one proposal out, labels folded in the order of the log.

``decider_for`` returns what decides for one namespace. Where that is nobody, nothing is embedded or searched, and only
exact answers are served.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from neuralcache_plugins.contracts import (
    AnswerJudged,
    AnswerStore,
    CachedAnswer,
    CachedQuestion,
    Head,
    Removal,
    Snapshot,
    TelemetryStore,
    Vector,
)
from neuralcache_plugins.encoders import EncoderCache
from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.semantic_cache.deciding import PolicyDecider
from neuralcache_plugins.semantic_cache.keys import Asked, is_made_from
from neuralcache_plugins.semantic_cache.nearest import Near, NearestQuestions
from neuralcache_plugins.semantic_cache.policy import Policy
from neuralcache_plugins.semantic_cache.proposals import Decider, Proposal
from neuralcache_plugins.settings import CacheSettings

logger = logging.getLogger(__name__)

SNAPSHOT_EVERY = 1_000
"""Labels between two snapshots: folding so many takes about 0.3 s."""

NOTED = 2_000
"""So many of the newest questions tell how rare a word is: reading all of a large cache would take seconds."""

ROUNDS = 8
"""After so many looks in one search that found entries which went, the index is read anew."""

EXACT_ONLY = "only exact repeats are answered: CacheSettings.semantic is off"


def decider_for(settings: CacheSettings, learned: bytes | None = None) -> Decider | None:
    """Return the decider of a namespace, with what it learned before; None: only exact answers are served.

    ``InvalidInputError`` if that cannot be read.
    """
    if not settings.semantic:
        return None
    return PolicyDecider(settings) if learned is None else PolicyDecider.unpack(learned, settings)


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
                 snapshots: TelemetryStore) -> None:
        self._store = store
        self._snapshots = snapshots
        self._namespace = namespace
        self._encoders = encoders
        self._settings = settings
        self._nearest = NearestQuestions(store, namespace, most=settings.max_entries,
                                         index=settings.index if settings.semantic else "exact",
                                         ann_threshold=settings.ann_threshold)
        self._lock = threading.Lock()
        self._decider = decider_for(settings)
        self._head: Head | None = None
        self._position = 0
        self._unsaved = 0

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

    def vectors(self, questions: Sequence[str]) -> tuple[str, list[Vector | None]]:
        """Return the encoder's fingerprint ("" if there is no vector) and the questions' vectors, in one call of the
        encoder where it can.
        """
        rows = self._encoders.questions(questions, namespace=self._namespace)
        width = next((len(row) for row in rows if row is not None), None)
        return "" if width is None else self._encoders.fingerprint(width), rows

    def rehearsal(self, encoder: str) -> Policy:
        """Return a copy of what was learned with an encoder; there must be a decider."""
        with self._lock:
            self._fold()
            assert self._decider is not None
            return self._decider.rehearsal(encoder)

    def find(self, asked: Sequence[Asked], *, now: float, coins: Sequence[float], mark: int, head: Head | None,
             shows: bool = False) -> list[Found]:
        """Return what to serve and what to compare for each question, with as many queries as for one.

        ``mark`` and ``head`` say where the store stood just now, head None if nobody asked; what is not known here is
        read first. With ``shows`` all that is near is still in the store, not only what is served or compared. Reads
        only; ``StoreError`` and ``EncoderError`` pass through.
        """
        if self._decider is None:
            return [Found(Proposal(reasons=(EXACT_ONLY,)))] * len(asked)
        rows = self._encoders.questions([each.question for each in asked], namespace=self._namespace)
        self._catch_up(mark, head)
        found = [Found(Proposal(reasons=("the question has no direction",)))] * len(asked)
        left = [place for place, row in enumerate(rows) if row is not None]
        rounds = 0
        while left:
            proposed = {place: self._propose(asked[place], rows[place], now, coins[place]) for place in left}
            needed = {place: _named(proposal) | ({one.cached.entry_id for one in near} if shows else set())
                      for place, (proposal, near) in proposed.items()}
            named = set().union(*needed.values())
            entries = self._store.get_answers(self._namespace, sorted(named)) if named else {}
            # the index may be behind the store: what went is looked for again without it
            left = [place for place, names in needed.items() if names - entries.keys()]
            rounds += 1
            if left and rounds % ROUNDS == 0:
                self._nearest.restart()  # most of it went: to read it anew takes less than to find out one by one
                self._nearest.catch_up()
            else:
                self.forget(named - entries.keys())
            for place in proposed.keys() - left:
                proposal, near = proposed[place]
                found[place] = Found(proposal, entries.get(proposal.serve or ""), entries.get(proposal.candidate or ""),
                                     near)
        return found

    @property
    def newest(self) -> int:
        """The number of the newest entry that is known here."""
        return self._nearest.last

    def remove(self, what: Removal, *, until: int) -> None:
        """Keep nothing in memory of entries that were removed, of those up to the number ``until``."""
        self.forget(self._nearest.concerned(what, until=until))

    def forget(self, gone: Collection[str]) -> None:
        """Keep nothing in memory of entries that went, by their ids."""
        self._nearest.forget(gone)
        with self._lock:
            if self._decider is not None:
                self._decider.forget(gone)

    def certificate(self, *, reused: int) -> Any:
        """Return what may be said of what was served."""
        if self._decider is None:
            return EXACT_ONLY
        with self._lock:
            self._fold()
            return self._decider.certificate(reused=reused)

    def snapshot_due(self) -> bool:
        """Return whether so much was learned since the last snapshot that another one is worth its while."""
        return self._unsaved >= SNAPSHOT_EVERY

    def save_snapshot(self) -> None:
        """Write what was learned, so that the next process need not fold all labels; ``StoreError`` if that fails."""
        with self._lock:
            if self._decider is None or self._head is None or not self._unsaved:
                return
            name, snapshot = self._decider.name, Snapshot(self._head.epoch, self._position, self._decider.pack())
            self._unsaved = 0
        self._snapshots.save_snapshot(self._namespace, name, snapshot)

    def close(self) -> None:
        """Leave what is done in the background."""
        self._nearest.close()

    def restart_after_fork(self) -> None:
        """Take new locks in a forked child, and fold anew: another thread may have been in the middle of a label."""
        self._lock = threading.Lock()
        self._head = None
        self._nearest.restart_after_fork()
        self._encoders.restart_after_fork()

    def _propose(self, asked: Asked, row: Vector | None, now: float, coin: float) -> tuple[Proposal, tuple[Near, ...]]:
        encoder = self._encoders.fingerprint(len(np.asarray(row)))
        with self._lock:
            assert self._decider is not None
            made_after = self._decider.quarantined_until(encoder)
        near = tuple(self._nearest.find(np.asarray(row), scope=asked.scope, encoder=encoder, now=now,
                                        made_after=made_after, usable=lambda cached: _is_usable(cached, asked)))
        with self._lock:
            return self._decider.decide(asked.question, near, encoder=encoder, documents=asked.documents, now=now,
                                        coin=coin), near

    def _catch_up(self, mark: int, head: Head | None) -> None:
        """Take in the questions and labels that any process has written."""
        with self._lock:
            self._fold(head)
            assert self._decider is not None
            self._decider.note(self._nearest.catch_up(mark)[-NOTED:])

    def _fold(self, head: Head | None = None) -> None:
        """Fold the labels that any process has written; all anew after an erasure. The lock is held."""
        if head is None or self._head is None or head.epoch != self._head.epoch:
            # another thread may have looked later, and have folded what came after an erasure
            head = self._store.find_answers(self._namespace, ()).head
        if head == self._head:
            return
        if self._head is None or head.epoch != self._head.epoch:
            self._decider, self._position = self._begun(head.epoch)
            self._head, self._unsaved = Head(head.epoch, 0), 0
            self._nearest.restart()
        self._read_labels()
        self._head = head

    def _read_labels(self) -> None:
        assert self._decider is not None
        while found := self._store.read_answer_events(after=self._position, namespace=self._namespace,
                                                      kinds=[AnswerJudged]):
            for entry in found:
                # first: no label counts twice, whatever happens to it
                self._position, self._unsaved = entry.position, self._unsaved + 1
                if isinstance(entry.event, AnswerJudged):
                    self._decider.learn(entry.event)

    def _begun(self, epoch: int) -> tuple[Decider | None, int]:
        """Return a decider with what a snapshot holds, and the position from which to read on."""
        fresh = decider_for(self._settings)
        if fresh is None:
            return None, 0
        snapshot = self._snapshots.load_snapshot(self._namespace, fresh.name)
        if snapshot is None or snapshot.epoch != epoch:
            return fresh, 0
        try:
            return decider_for(self._settings, snapshot.state), snapshot.position
        except InvalidInputError as error:
            logger.warning("the snapshot of the cache of namespace %r cannot be read and is made anew: %s",
                           self._namespace, error)
            return fresh, 0


def _named(proposal: Proposal) -> set[str]:
    return {name for name in (proposal.serve, proposal.candidate) if name is not None}


def _is_usable(cached: CachedQuestion, asked: Asked) -> bool:
    """Return whether an entry is another question's, and made from nothing that the caller knows otherwise.

    The very same question is the exact tier's, which asks more of its documents: what it refused stays refused.
    """
    return cached.question != asked.question and is_made_from(cached.documents, asked.documents)
