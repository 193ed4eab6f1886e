"""What users implement (protocols) and what they get back (frozen results and events).

Arrays are numpy throughout: vectors are float32 and of unit length unless a name says otherwise.
"""

from __future__ import annotations

import hashlib
import html
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

Vector: TypeAlias = npt.NDArray[np.float32]
"""One float32 row, shape (d,), or one number per candidate, shape (n,)."""

Matrix: TypeAlias = npt.NDArray[np.float32]
"""float32 rows, shape (n, d)."""

Array: TypeAlias = npt.NDArray[np.float64]
"""float64 numbers: probabilities and their logarithms, where float32 would lose the tail."""

Positions: TypeAlias = npt.NDArray[np.int64]
"""Indices into the list that the caller passed."""

SIGNALS = ("prior", "dense", "lexical", "narrative", "pheromone", "association")
"""The names of the signals, in the order in which tables show them."""


@runtime_checkable
class Encoder(Protocol):
    """Turns texts into vectors; every LangChain ``Embeddings`` is one.

    Twins ``aembed_documents`` and ``aembed_query`` are awaited by the async methods where they exist, and
    ``embed_queries(texts)`` saves calls in batches. An attribute ``fingerprint: str`` overrides the identity that is
    otherwise made of class, model name and width.
    """

    def embed_documents(self, texts: list[str]) -> Sequence[Sequence[float]] | Matrix:
        """Return one vector per text, all of one width."""

    def embed_query(self, text: str) -> Sequence[float] | Vector:
        """Return the vector of a question."""


class PairScorer(Protocol):
    """An expensive judge of (query, text) pairs, such as a cross-encoder. Higher is better."""

    def __call__(self, query: str, texts: Sequence[str], /) -> Sequence[float]:
        """Return one finite score per text."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """A question of the past that spoke for a document (``helped``), or against it.

    ``ranking_id`` is the ranking that was shown for it, ``text`` what was asked (None where texts are not stored),
    ``similarity`` the cosine to the question now, ``reward`` what the document got for it, in [-1, 1] (0: nobody said
    anything, which counts a little against what was shown). ``share`` in (0, 1] is its part of all that remembered
    questions said for the document, or against it.
    """

    ranking_id: str
    text: str | None
    similarity: float
    reward: float
    share: float
    helped: bool


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """What made a ranking, one entry per returned document.

    ``shares[signal]`` (k,) is what the signal added to the document's log-odds, over a candidate that is average in
    every signal; summed over the signals (``total``) it says how far the document was moved, and but for chance and
    diversity the order is that of the sums. To the names in ``SIGNALS`` come ``scorer``, ``rejection`` (questions
    that the document did not help) and ``linear`` (a linear model per document). ``learned`` in [0, 1] says how much
    the learned order counted for this question; its signals are shown with what that left of them. ``questions`` are
    the weightiest behind ``association`` and ``rejection``. ``notes`` are sentences on what else there is to know.
    """

    shares: Mapping[str, Array]
    candidates: int
    learned: float
    questions: tuple[tuple[Remembered, ...], ...]
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> Array:
        """The sum of all shares, (k,)."""
        total: Array = np.sum(list(self.shares.values()), axis=0)
        return total


class Explainer(Protocol):
    """Explains one ranking, later and at leisure."""

    def explanation(self, ranking: Ranking, /) -> Explanation:
        """Return why the ranking is as it is. Never raises because a store fails or the state has moved on."""


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """One answer of the reranker.

    ``positions[i]`` is the index, in the list that the caller passed, of the document at rank ``i``. ``scores``
    are in [0, 1] and never rise along the order. ``signals`` hold one number per returned document and signal.
    ``propensities[i]`` is the probability with which exploration put that document at that rank (1.0 without it).
    ``degraded`` names what was missing ("encoder", "store", "scorer"), empty when all went well. ``epoch`` is the
    store's when it was served: erasures since then may have taken it. ``explainer`` stays behind when a ranking is
    pickled.
    """

    ranking_id: str
    namespace: str
    positions: Positions
    ids: tuple[str, ...]
    scores: tuple[float, ...]
    signals: Mapping[str, Vector]
    propensities: tuple[float, ...]
    trust: float = 0.0
    degraded: tuple[str, ...] = ()
    served: RankingServed | None = field(default=None, repr=False)
    epoch: int = field(default=0, repr=False)
    explainer: Explainer | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def first(self, count: int) -> Ranking:
        """Return the first ``count`` ranks alone, for a shorter look; it is not another answer."""
        return replace(
            self, positions=self.positions[:count], ids=self.ids[:count], scores=self.scores[:count],
            propensities=self.propensities[:count],
            signals={name: values[:count] for name, values in self.signals.items()},
        )

    def explanation(self) -> Explanation | None:
        """Return each signal's share and the remembered questions; None for a ranking from another process.

        Worked out when called, in about a millisecond for ten documents, from what was known when it was ranked; only
        the texts and ids of remembered questions are looked up in the store, so what was erased since is not named.
        """
        return None if self.explainer is None or not self.ids else self.explainer.explanation(self)

    def explain(self) -> str:
        """Return ``explanation`` as plain text: a table with one line per returned document, and what moved it.

        A ranking from another process shows the values of its signals instead.
        """
        table = _Table.of(self)
        widths = [max(len(line[column]) for line in [table.header, *table.rows]) for column in range(len(table.header))]
        lines = [self._caption()]
        for cells, remarks in zip([table.header, *table.rows], [(), *table.remarks], strict=True):
            lines.append("  ".join(map(_placed, cells, widths, range(len(cells)))))
            lines += [f"      {remark}" for remark in remarks]
        return "\n".join([*lines, *table.notes])

    def _repr_html_(self) -> str:
        table = _Table.of(self)
        head = "".join(f"<th>{html.escape(name)}</th>" for name in table.header)
        aside = f'<tr><td></td><td colspan="{len(table.header) - 1}" style="text-align: left">'
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            + "".join(f"{aside}{html.escape(remark)}</td></tr>" for remark in remarks)
            for row, remarks in zip(table.rows, table.remarks, strict=True)
        )
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in table.notes)
        caption = html.escape(self._caption())
        return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"

    def _caption(self) -> str:
        degraded = f", degraded: {', '.join(self.degraded)}" if self.degraded else ""
        return f"ranking {self.ranking_id} in {self.namespace!r}: trust in learning {self.trust:.2f}{degraded}"


class _Table(NamedTuple):
    """A ranking for people: cells, remarks under each row, notes under all."""

    header: list[str]
    rows: list[list[str]]
    remarks: list[tuple[str, ...]]
    notes: list[str]

    @classmethod
    def of(cls, ranking: Ranking) -> _Table:
        explanation = ranking.explanation()
        return cls._of_signals(ranking) if explanation is None else cls._of_shares(ranking, explanation)

    @classmethod
    def _of_signals(cls, ranking: Ranking) -> _Table:
        names = [name for name in (*SIGNALS, "scorer") if name in ranking.signals]
        rows = [
            [*_place(ranking, rank), *(_number(float(ranking.signals[name][rank]), 3) for name in names)]
            for rank in range(len(ranking))
        ]
        notes = ["values of the signals, not their shares: those are known only where the ranking was made"]
        return cls([*_PLACE, *names], rows, [()] * len(rows), notes if rows else [])

    @classmethod
    def _of_shares(cls, ranking: Ranking, explanation: Explanation) -> _Table:
        shares, total = explanation.shares, explanation.total
        order = [name for name in (*SIGNALS, "scorer") if name in shares]
        order += [name for name in shares if name not in order]
        spoke = [name for name in order if np.abs(shares[name]).max() >= _SILENT]
        silent = [name for name in order if name not in spoke]
        rows = [
            [*_place(ranking, rank), _number(float(total[rank]), 2),
             *(_number(float(shares[name][rank]), 2) for name in spoke)]
            for rank in range(len(ranking))
        ]
        of = f"of {explanation.candidates} candidates"
        notes = [f"sum: log-odds over a document average in every signal ({of}), then shares in it"]
        notes += [f"less than {_SILENT}: {', '.join(silent)}"] if silent else []
        notes += [f"note: {note}" for note in explanation.notes]
        return cls([*_PLACE, "sum", *spoke], rows, [tuple(map(_remark, one)) for one in explanation.questions], notes)


_PLACE = ("rank", "id", "was", "score")
_SILENT = 0.02
_TEXT_LENGTH = 60


def _place(ranking: Ranking, rank: int) -> list[str]:
    return [str(rank + 1), ranking.ids[rank], str(int(ranking.positions[rank]) + 1), f"{ranking.scores[rank]:.3f}"]


def _placed(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if _PLACE[column : column + 1] in (("rank",), ("id",)) else cell.rjust(width)


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{round(value, digits) or 0.0:+.{digits}f}"


def _remark(one: Remembered) -> str:
    side = "for" if one.helped else "against"
    why = "nobody answered" if one.reward == 0 else f"reward {one.reward:+g}"
    text = "" if one.text is None else f' "{_short(one.text)}"'
    return f"{one.share:.0%} {side} it:{text} cosine {one.similarity:.2f}, {why}, ranking {one.ranking_id}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _TEXT_LENGTH else f"{line[: _TEXT_LENGTH - 3]}..."


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
    documents that helped, where they were known.
    """

    feedback_id: str
    ranking_id: str
    namespace: str
    at: float
    source: str
    rewards: tuple[tuple[str, float], ...]
    ranking: RankingServed
    document_vector: Vector | None = None


Event: TypeAlias = RankingServed | FeedbackGiven


@dataclass(frozen=True, slots=True)
class Recorded:
    """An event and the position that the store gave it. Positions rise; gaps are allowed."""

    position: int
    event: Event


@dataclass(frozen=True, slots=True)
class Appended:
    """What ``TelemetryStore.append`` did: one position per event handed in, and the signs right before and after.

    A reader that knew ``before`` misses nothing when it goes on from ``sign``. Where the store cannot be sure of that,
    ``before`` equals no other sign.
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
    """What to forget. At least one field is set; all set fields must hold (they narrow each other)."""

    namespace: str | None = None
    document_ids: tuple[str, ...] | None = None
    session: str | None = None
    older_than: float | None = None

    def concerns(self, ranking: RankingServed) -> bool:
        """Return whether a ranking, or some document that it showed, is to go."""
        return (
            self.namespace in (None, ranking.namespace)
            and self.session in (None, ranking.session)
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
        """Return the namespaces that have events, sorted."""

    def health(self) -> StoreHealth:
        """Return facts for people; runs an integrity check, so not for hot paths."""

    def close(self) -> None:
        """Release everything. Later calls raise ``StoreClosedError``; closing twice is fine."""


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
    """Answers by key as of one moment, whose ``mark`` says which changes had been made by then."""

    answers: Mapping[AnswerKey, CachedAnswer]
    mark: int


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
        return (
            self.namespace == answer.namespace
            and self.scope in (None, answer.scope)
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
    checked against a fresh answer.
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


@dataclass(frozen=True, slots=True)
class AnswerJudged:
    """The event "this cached answer was, or would have been, right for a question".

    ``source`` says how that is known: "report" (somebody said so), "audit" (a served answer was compared with a fresh
    one) or "miss" (an answer that was not served was). ``hit_id`` names the serving, if there was one. ``propensity``
    is the probability with which this label was to be had; ``features`` are those at the time of the decision.
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


AnswerEvent: TypeAlias = AnswerCached | AnswerServed | AnswerJudged


@dataclass(frozen=True, slots=True)
class RecordedAnswer:
    """An event about an answer and the position that the store gave it. Positions rise; gaps are allowed."""

    position: int
    event: AnswerEvent


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
        """Return the answers under these keys, expired ones too, in one query."""

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

        An event whose id (``hit_id``, ``judged_id``, or the ``entry_id`` of ``AnswerCached``) the namespace already
        has is not stored again; its old position is returned. ``withdraw`` concerns the namespaces of the events.
        """

    def read_answer_events(self, *, after: int = 0, namespace: str | None = None,
                           kinds: Sequence[type[AnswerEvent]] | None = None,
                           limit: int = 1000) -> list[RecordedAnswer]:
        """Return up to ``limit`` events with ``position > after``, by position; a reader must never miss one."""

    def served_answer(self, hit_id: str, *, namespace: str) -> AnswerServed | None:
        """Return the serving with this id, or None."""

    def acquire_lease(self, name: str, owner: str, *, now: float, seconds: float) -> Lease:
        """Return the lease on ``name``: the caller's own for so long if nobody else holds it, else the holder's."""

    def release_lease(self, name: str, owner: str, *, failure: str | None = None, now: float = 0.0) -> None:
        """Give the lease up if it is ``owner``'s; a ``failure`` is kept for a minute, for those who wait."""

    def lease(self, name: str) -> Lease | None:
        """Return the lease on ``name`` as it was last written, expired or not."""


Rewards: TypeAlias = Mapping[str | int, float] | Iterable[tuple[str | int, float]]
