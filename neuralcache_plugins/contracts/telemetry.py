"""The log of what was served and told, and the stores that keep it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from neuralcache_plugins.contracts.arrays import HalfVector, Vector


@dataclass(frozen=True, slots=True, eq=False)
class RankingServed:
    """The event "these documents were shown for this question".

    All sequences have one entry per shown document, in the order shown. ``cold`` is the natural logarithm of
    the probability that the cold order (no learning) gave the document among all candidates: what later feedback
    is compared with. ``query_key`` is a keyed hash of the canonical question; texts are None unless the user
    opted in. ``at`` is in seconds since the epoch, UTC.
    """

    ranking_id: str
    namespace: str
    at: float
    query_key: str
    encoder: str
    query_vector: Vector | None
    document_ids: tuple[str, ...]
    positions: tuple[int, ...]
    scores: tuple[float, ...]
    cold: tuple[float, ...]
    signals: Mapping[str, tuple[float, ...]]
    propensities: tuple[float, ...]
    candidates: int
    trust: float = 0.0
    degraded: tuple[str, ...] = ()
    session: str | None = None
    run_id: str | None = None
    parent_run_id: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    query_text: str | None = None
    document_texts: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class FeedbackGiven:
    """The event "these shown documents helped, or did not".

    ``rewards`` pairs document ids with rewards in [-1, 1]. ``ranking`` is the ranking that the feedback is about;
    stores keep it once and hand it back with the event. ``document_vector`` is the unit mean of the vectors of the
    documents that helped, where they were known; float16 is what stores keep of it.
    """

    feedback_id: str
    ranking_id: str
    namespace: str
    at: float
    source: str
    rewards: tuple[tuple[str, float], ...]
    ranking: RankingServed
    document_vector: Vector | HalfVector | None = None


Event: TypeAlias = RankingServed | FeedbackGiven

PART = "\x1f"
"""Stands between a session's name and the number of its part (unit separator, which no sane name holds)."""


def session_part(session: str, number: int) -> str:
    """Return the name of a part of a session: the session itself for the first, one of its own for any other.

    A conversation that turns to something else goes on in a new part, with a narrative of its own; whoever erases the
    session erases all of its parts.
    """
    return session if number == 1 else f"{session}{PART}{number}"


def session_parts(session: str) -> tuple[str, str]:
    """Return two texts between which, by code points, the names of a session's further parts lie, and no others."""
    return session + PART, session + chr(ord(PART) + 1)


def in_session(name: str | None, session: str) -> bool:
    """Return whether ``name`` is the session or a part of it."""
    return name is not None and (name == session or name.startswith(session + PART))


class Recorded(NamedTuple):
    """An event and the position that the store gave it. Positions rise; gaps are allowed."""

    position: int
    event: Event


class Appended(NamedTuple):
    """What ``TelemetryStore.append`` did: one position per event handed in, and the signs before and after.

    They hold as long as nobody else wrote: only then will ``TelemetryStore.sign`` give ``sign``, and a reader that was
    level with the log at ``before`` misses nothing when it goes on from there. Where more was stored than was handed
    in (the ranking that feedback carried), ``before`` is None.
    """

    positions: tuple[int, ...]
    before: Hashable
    sign: Hashable


@dataclass(frozen=True, slots=True)
class Head:
    """Where a log stands: ``epoch`` changes whenever something is erased, ``position`` is the newest event's."""

    epoch: int
    position: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Learned state of one namespace as of ``position``; valid only within the same ``epoch``."""

    epoch: int
    position: int
    state: bytes


@dataclass(frozen=True, slots=True)
class Erasure:
    """What to forget. At least one field is set; all set fields must hold (they narrow each other).

    ``session`` stands for all of its parts, see ``session_part``.
    """

    namespace: str | None = None
    document_ids: tuple[str, ...] | None = None
    session: str | None = None
    older_than: float | None = None

    def concerns(self, ranking: RankingServed) -> bool:
        """Return whether a ranking, or some document that it showed, is to go."""
        return (
            self.namespace in (None, ranking.namespace)
            and (self.session is None or in_session(ranking.session, self.session))
            and (self.older_than is None or ranking.at < self.older_than)
            and (self.document_ids is None or not set(self.document_ids).isdisjoint(ranking.document_ids))
        )


@dataclass(frozen=True, slots=True)
class Receipt:
    """What an erasure removed or rewrote, in rows."""

    rankings: int = 0
    feedback: int = 0
    shown_documents: int = 0
    vectors: int = 0
    snapshots: int = 0
    answers: int = 0
    answer_events: int = 0


@dataclass(frozen=True, slots=True)
class StoredVector:
    """One row of the embedding cache: ``key`` is a keyed hash of role and text."""

    key: str
    vector: npt.NDArray[np.float16]
    document_id: str | None = None


StoreHealth: TypeAlias = Mapping[str, Any]
"""Facts about a store for people: kind, place (without secrets), schema version, rows, bytes, integrity."""


@runtime_checkable
class TelemetryStore(Protocol):
    """Keeps the event log, snapshots of learned state and the embedding cache.

    Every method may be called from any thread, raises only ``StoreError`` (or a subclass) for trouble of its own,
    and is atomic: all of it happens or nothing. ``neuralcache_plugins.testing.StoreConformance`` checks all this.
    """

    @property
    def url(self) -> str:
        """The place, fit for logs: secrets are masked."""

    def hash_key(self) -> bytes:
        """Return the store's own random key (32 bytes) for hashing texts; the same in every process."""

    def append(self, events: Sequence[Event], *, epoch: int | None = None) -> Appended:
        """Append durably, in order, in one transaction.

        With ``epoch`` given, only while that is the store's: ``ErasedMeanwhileError`` otherwise, and nothing is stored.

        An event whose ``feedback_id`` (or, for rankings, ``ranking_id``) is already stored is not stored again;
        its old position is returned; ids are unique within a namespace. Appending feedback also stores its ranking
        when that is missing (before it).
        A reader that follows ``read(after=...)`` must never miss an event, however writers interleave.
        """

    def read(self, *, after: int = 0, upto: int | None = None, namespace: str | None = None,
             limit: int = 1000) -> list[Recorded]:
        """Return up to ``limit`` events with ``after < position <= upto``, by position."""

    def head(self) -> Head:
        """Return the epoch and the newest position (0 when empty)."""

    def sign(self) -> Hashable:
        """Return a value that changes whenever anyone appends or erases. Cheap, and it never waits for a writer.

        After an ``append`` of this object, the sign equals ``Appended.sign`` until somebody writes again.
        """

    def ranking(self, ranking_id: str, *, namespace: str | None = None) -> RankingServed | None:
        """Return the ranking with this id (and, if given, in this namespace), or None."""

    def latest_ranking(self, query_key: str, *, namespace: str) -> RankingServed | None:
        """Return the newest ranking of this question in the namespace, or None."""

    def traced_rankings(self, trace: str, *, namespace: str, limit: int = 100) -> list[RankingServed]:
        """Return the newest rankings whose run, parent run, trace or span id is ``trace``, newest first."""

    def load_snapshot(self, namespace: str, fold: str) -> Snapshot | None:
        """Return the snapshot written for this namespace by this fold (a name that includes its settings)."""

    def save_snapshot(self, namespace: str, fold: str, snapshot: Snapshot) -> None:
        """Replace the snapshot of this namespace and fold; ignored when ``snapshot.epoch`` is no longer current."""

    def get_vectors(self, namespace: str, encoder: str, keys: Sequence[str]) -> dict[str, npt.NDArray[np.float16]]:
        """Return the cached vectors among ``keys``, in one query."""

    def put_vectors(self, namespace: str, encoder: str, vectors: Sequence[StoredVector], *, at: float,
                    max_rows: int) -> None:
        """Add vectors in one transaction; beyond ``max_rows`` in the whole store the oldest go."""

    def erase(self, what: Erasure) -> Receipt:
        """Erase for good and start a new epoch; snapshots of the namespaces concerned go as well.

        ``document_ids`` are cut out of rankings (their lists shrink), of feedback and of the embedding cache; an
        event left without documents goes, and so does feedback whose ranking goes. ``older_than`` erases what has
        ``at < older_than``. An erasure that finds nothing keeps the epoch.

        A store that is an ``AnswerStore`` too erases cached answers with it: by namespace, by ``created_at``, and all
        that are bound to one of the documents; the events about an answer go with it. Answers know no sessions.
        """

    def namespaces(self) -> list[str]:
        """Return the namespaces that have events, about rankings or answers, or cached answers, sorted."""

    def health(self) -> StoreHealth:
        """Return facts for people; runs an integrity check, so not for hot paths."""

    def close(self) -> None:
        """Release everything. Later calls raise ``StoreClosedError``; closing twice is fine."""


Rewards: TypeAlias = Mapping[str | int, float] | Iterable[tuple[str | int, float]]
