"""Cached answers, what happens to them, and the stores that keep them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from neuralcache_plugins.contracts.telemetry import Head

AnswerKind: TypeAlias = Literal["text", "bytes", "json"]
"""How ``CachedAnswer.payload`` is to be read: UTF-8 text, plain bytes, or JSON as UTF-8 text."""

AnswerKey: TypeAlias = tuple[str, str]
"""Scope key and question key: what names an answer within a namespace."""

DocumentVersion: TypeAlias = tuple[str, str]
"""A document's id and the hash of its content."""


@dataclass(frozen=True, slots=True, eq=False)
class CachedAnswer:
    """One answer in the cache. ``scope`` and ``question_key`` are keyed hashes; question and payload are readable.

    ``documents`` are those that the answer came from. ``vector`` is the question's, of unit length, made by the encoder
    that ``encoder`` names. Times are in seconds since the epoch, UTC; ``expires_at=None`` means never. ``cost`` is in
    the user's unit, ``seconds`` is how long the computation took: what one hit saves. ``hits`` is counted by the store.
    """

    entry_id: str
    namespace: str
    scope: str
    question_key: str
    question: str
    kind: AnswerKind
    payload: bytes
    created_at: float
    expires_at: float | None = None
    documents: tuple[DocumentVersion, ...] = ()
    encoder: str = ""
    vector: npt.NDArray[np.float16] | None = None
    cost: float = 0.0
    seconds: float = 0.0
    hits: int = 0

    @property
    def key(self) -> AnswerKey:
        """What names it within its namespace."""
        return self.scope, self.question_key

    @property
    def digest(self) -> str:
        """A hash of kind and payload: equal answers have equal ones."""
        return hashlib.blake2b(self.payload, digest_size=12, person=self.kind.encode()).hexdigest()

    @property
    def size(self) -> int:
        """About how many bytes it takes."""
        documents = sum(len(name) + len(version) for name, version in self.documents)
        vector = 0 if self.vector is None else 2 * len(self.vector)
        return len(self.payload) + len(self.question) + documents + vector + 200


@dataclass(frozen=True, slots=True, eq=False)
class CachedQuestion:
    """What is needed of an answer to find it by its question. ``number`` rises from one stored answer to the next.

    ``answer`` is the ``CachedAnswer.digest``.
    """

    number: int
    entry_id: str
    scope: str
    question: str
    encoder: str
    vector: npt.NDArray[np.float16]
    documents: tuple[DocumentVersion, ...]
    created_at: float
    expires_at: float | None
    answer: str


@dataclass(frozen=True, slots=True)
class FoundAnswers:
    """Answers by key as of one moment, whose ``mark`` says which changes had been made by then.

    ``head`` tells where the log of events about answers stood, so that nobody has to ask for that as well.
    """

    answers: Mapping[AnswerKey, CachedAnswer]
    mark: int
    head: Head


@dataclass(frozen=True, slots=True)
class StoredAnswers:
    """What ``put_answers`` did: whether each was stored, the marks right before and after, how many others went."""

    stored: tuple[bool, ...]
    before: int
    mark: int
    evicted: int = 0


@dataclass(frozen=True, slots=True)
class AnswerBounds:
    """How much may be kept in the whole store; what expired before ``expired_before`` goes first."""

    max_entries: int
    max_bytes: int
    expired_before: float


@dataclass(frozen=True, slots=True)
class Removal:
    """Which answers of a namespace to remove; all fields that are set must hold.

    ``documents`` maps an id to the hash of its content now, or None where it is gone or nobody knows: answers bound to
    the id with any other hash are meant.
    """

    namespace: str
    documents: Mapping[str, str | None] | None = None
    scope: str | None = None
    older_than: float | None = None

    def concerns(self, answer: CachedAnswer) -> bool:
        """Return whether an answer is to go."""
        return self.namespace == answer.namespace and self.fits(answer)

    def fits(self, answer: CachedAnswer | CachedQuestion) -> bool:
        """Return whether an answer of the namespace is to go."""
        return (
            self.scope in (None, answer.scope)
            and (self.older_than is None or answer.created_at < self.older_than)
            and (self.documents is None
                 or any(name in self.documents and self.documents[name] != version
                        for name, version in answer.documents))
        )


@dataclass(frozen=True, slots=True)
class AnswerCached:
    """The event "this answer was put into the cache"."""

    entry_id: str
    namespace: str
    at: float
    scope: str
    cost: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class AnswerServed:
    """The event "this answer was given for a question": ``kind`` is "exact" or "semantic".

    ``features`` are finite numbers by name; ``propensity`` is the probability with which this very serving was to be
    checked against a fresh answer. ``cost`` and ``seconds`` are what computing the answer took: what this hit saved.
    """

    hit_id: str
    entry_id: str
    namespace: str
    at: float
    scope: str
    kind: str
    score: float = 1.0
    features: Mapping[str, float] = field(default_factory=dict)
    propensity: float = 0.0
    cost: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class AnswerMissed:
    """The event "no cached answer was given for a question". ``reason`` is one of a few sentences, without a word of
    the question.
    """

    missed_id: str
    namespace: str
    at: float
    scope: str
    reason: str

    @property
    def entry_id(self) -> str:
        """No entry: every event about answers has this field."""
        return ""


@dataclass(frozen=True, slots=True)
class AnswerJudged:
    """The event "this cached answer was, or would have been, right for a question".

    ``source`` says how that is known: "report" (somebody said so), "audit" (a served answer was compared with a fresh
    one), "miss" (an answer that was not served was), or "tested" and "calibrated" (a line of a log that was
    read, which tested and taught, and the log's end; then ``entry_id`` may be of an entry that was never put).
    ``hit_id`` names the serving, if there was one. ``propensity`` is the probability with which this label was to be
    had; ``features`` are those at the time of the decision.
    """

    judged_id: str
    entry_id: str
    namespace: str
    at: float
    scope: str
    correct: bool
    source: str
    score: float = 1.0
    features: Mapping[str, float] = field(default_factory=dict)
    propensity: float = 1.0
    hit_id: str | None = None


AnswerEvent: TypeAlias = AnswerCached | AnswerServed | AnswerJudged | AnswerMissed


@dataclass(frozen=True, slots=True)
class RecordedAnswer:
    """An event about an answer and the position that the store gave it. Positions rise; gaps are allowed."""

    position: int
    event: AnswerEvent


@dataclass(frozen=True, slots=True)
class AnswerTotals:
    """What the log holds of one namespace up to ``position``, counted: answers put, servings by kind and what they
    saved, misses by reason, judgements by source and how many of them were "wrong".
    """

    position: int = 0
    put: int = 0
    served: Mapping[str, int] = field(default_factory=dict)
    missed: Mapping[str, int] = field(default_factory=dict)
    judged: Mapping[str, int] = field(default_factory=dict)
    wrong: Mapping[str, int] = field(default_factory=dict)
    cost_saved: float = 0.0
    seconds_saved: float = 0.0

    def __add__(self, later: AnswerTotals) -> AnswerTotals:
        return AnswerTotals(
            max(self.position, later.position), self.put + later.put, _sums(self.served, later.served),
            _sums(self.missed, later.missed), _sums(self.judged, later.judged), _sums(self.wrong, later.wrong),
            self.cost_saved + later.cost_saved, self.seconds_saved + later.seconds_saved,
        )


def _sums(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in {**one, **other}}


@dataclass(frozen=True, slots=True)
class Lease:
    """Somebody's right to compute an answer, until ``expires_at``. With a ``failure`` it holds nothing any more."""

    owner: str
    expires_at: float
    failure: str | None = None


@runtime_checkable
class AnswerStore(Protocol):
    """Keeps cached answers, the events about them, and leases on computations. Nothing crosses a namespace.

    A ``TelemetryStore`` may be this too; the cache needs both. As there, every method may be called from any thread,
    raises only ``StoreError`` for trouble of its own, and is atomic. Reads never write. The events about answers have
    positions of their own, so that who follows rankings need not wade through cache traffic.
    ``neuralcache_plugins.testing.AnswerStoreConformance`` checks all this.
    """

    def put_answers(self, answers: Sequence[CachedAnswer], *, bounds: AnswerBounds,
                    mark: int | None = None) -> StoredAnswers:
        """Store answers durably, each instead of an earlier one with the same key, with their ``AnswerCached`` events.

        An answer is not stored when ``remove_answers`` has been told of another version of one of its documents; nor,
        with ``mark`` given, when one of its documents, its scope or all of its namespace was removed after that mark
        (unless the removal named this very version), or anything was erased; nor when it alone exceeds ``max_bytes``.

        Beyond the bounds the least worthy others go: worth is (1 + hits) * cost / (age + an hour), with a small
        constant added to the cost.
        """

    def find_answers(self, namespace: str, keys: Sequence[AnswerKey]) -> FoundAnswers:
        """Return the answers under these keys, expired ones too, with mark and head, in one query.

        Without keys these two alone. The head's position is that of the newest event about answers, of any namespace.
        """

    def get_answers(self, namespace: str, entry_ids: Sequence[str]) -> dict[str, CachedAnswer]:
        """Return the answers with these ids, expired ones too, in one query."""

    def read_questions(self, namespace: str, *, after: int = 0, limit: int = 10_000) -> list[CachedQuestion]:
        """Return up to ``limit`` questions that have a vector and ``number > after``, by number."""

    def answers_mark(self) -> int:
        """Return the mark: it rises whenever an answer is stored or removed by anyone. Never waits for a writer."""

    def remove_answers(self, what: Removal) -> int:
        """Remove answers and return how many; what was removed cannot be put back by who read before (see ``mark``)."""

    def record_answers(self, events: Sequence[AnswerEvent], *, withdraw: Sequence[str] = ()) -> tuple[int, ...]:
        """Append events durably and count hits; return positions. In the same step the entries ``withdraw`` go.

        An event whose id (``hit_id``, ``judged_id``, ``missed_id``, or the ``entry_id`` of ``AnswerCached``) the
        namespace already has is not stored again; its old position is returned. ``withdraw`` concerns the namespaces of
        the events.
        """

    def read_answer_events(self, *, after: int = 0, namespace: str | None = None,
                           kinds: Sequence[type[AnswerEvent]] | None = None,
                           limit: int = 1000) -> list[RecordedAnswer]:
        """Return up to ``limit`` events with ``position > after``, by position; a reader must never miss one."""

    def answer_totals(self, namespace: str, *, after: int = 0) -> AnswerTotals:
        """Return the events with ``position > after`` counted, in one query; without any, the position is ``after``."""

    def served_answer(self, hit_id: str, *, namespace: str) -> AnswerServed | None:
        """Return the serving with this id, or None."""

    def acquire_lease(self, name: str, owner: str, *, now: float, seconds: float) -> Lease:
        """Return the lease on ``name``: the caller's own for so long if nobody else holds it, else the holder's."""

    def release_lease(self, name: str, owner: str, *, failure: str | None = None, now: float = 0.0) -> None:
        """Give the lease up if it is ``owner``'s; a ``failure`` is kept for a minute, for those who wait."""

    def lease(self, name: str) -> Lease | None:
        """Return the lease on ``name`` as it was last written, expired or not."""
