"""The one path that every adapter takes: rank, record, learn from feedback."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import count
from typing import Any

import numpy as np

from neuralcache_plugins.contracts import (
    Appended,
    Encoder,
    Erasure,
    FeedbackGiven,
    Matrix,
    PairScorer,
    Ranking,
    RankingServed,
    Receipt,
    Recorded,
    StoredVector,
    TelemetryStore,
    Vector,
)
from neuralcache_plugins.core import gating
from neuralcache_plugins.core.lexical import lexical_scores, token_statistics
from neuralcache_plugins.core.vectors import unit_rows, unit_vector, width_of
from neuralcache_plugins.encoders import Encoded, EncoderCache
from neuralcache_plugins.errors import (
    DimensionMismatchError,
    EncoderError,
    InvalidInputError,
    StoreError,
    UnknownRankingError,
)
from neuralcache_plugins.memory import LearnedState, Memory
from neuralcache_plugins.reranker import border
from neuralcache_plugins.reranker.scorers import CachedScorer
from neuralcache_plugins.reranker.stages import Evidence, Vectors, choose, cold_evidence, learned_evidence
from neuralcache_plugins.reranker.texts import TextCache
from neuralcache_plugins.settings import RerankSettings, StoreSettings
from neuralcache_plugins.stores import open_store
from neuralcache_plugins.telemetry import Recorder, RecorderStats

__all__ = ["NamespaceStats", "Reranker", "RerankerStats"]

logger = logging.getLogger(__name__)

RECENT_RANKINGS = 512
NARRATED = 10
DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class NamespaceStats:
    """What one namespace has learned; times in seconds since the epoch, UTC."""

    namespace: str
    rankings: int
    feedback: int
    first_feedback_at: float | None
    last_feedback_at: float | None
    documents: int
    remembered_questions: int
    sessions: int
    trust: Mapping[str, float]
    weights: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class RerankerStats:
    """A reranker at a glance. ``degraded`` counts rankings by what they had to do without."""

    store: str
    namespace: NamespaceStats
    recorder: RecorderStats
    encoder_calls: int
    vectors_found: int
    degraded: Mapping[str, int]
    unusable_vectors: int


class Reranker:
    """Orders retrieved texts, records what it showed, and learns from feedback which help for which questions.

    ``encoder`` is anything with ``embed_documents`` and ``embed_query``; None is the local one (extra ``local``).
    ``store`` is a store, a URL or None for the default place. ``scorer`` is an optional expensive judge of (query,
    texts), asked only about the contenders. Thread-safe; a context manager; one object serves many namespaces.
    """

    def __init__(
        self,
        encoder: Encoder | None = None,
        *,
        store: TelemetryStore | str | None = None,
        namespace: str = "default",
        settings: RerankSettings | None = None,
        store_settings: StoreSettings | None = None,
        scorer: PairScorer | None = None,
        clock: Callable[[], float] = time.time,  # noqa: TID251  # the one place where the wall clock comes in
    ) -> None:
        self._settings = settings or RerankSettings()
        self._store_settings = store_settings or StoreSettings()
        self._namespace = namespace
        self._clock = clock
        self._owns_store = store is None or isinstance(store, str)
        self._store = open_store(
            store,
            default_url=self._store_settings.resolved_url(),
            synchronous=self._store_settings.synchronous,
            busy_timeout_seconds=self._store_settings.busy_timeout_seconds,
        )
        key = self._store.hash_key()
        self._memory = Memory(
            self._store, settings=self._settings, snapshot_every=self._store_settings.snapshot_every
        )
        self._recorder = Recorder(
            self._store,
            flush_interval_seconds=self._store_settings.flush_interval_seconds,
            buffer_rankings=self._store_settings.buffer_rankings,
            on_written=self._written,
        )
        self._encoders = EncoderCache(
            encoder,
            store=self._store,
            hash_key=key,
            in_memory=self._store_settings.vectors_in_memory,
            on_disk=self._store_settings.vectors_on_disk,
            keep=self._keep_vectors,
        )
        self._texts = TextCache(hash_key=key, capacity=self._settings.texts_in_memory)
        self._scorer = None if scorer is None else CachedScorer(scorer)
        self._rng = np.random.default_rng(self._settings.seed)
        self._tick = count()
        self._lock = threading.Lock()
        self._degraded: Counter[str] = Counter()
        self._unusable = 0
        self._shown_rows: OrderedDict[str, Matrix] = OrderedDict()
        self._retired_at = float("-inf")
        self._closed = False

    @property
    def encoder(self) -> Encoder:
        """The encoder in use."""
        return self._encoders.encoder

    @property
    def namespace(self) -> str:
        """The namespace of calls that name none."""
        return self._namespace

    @property
    def settings(self) -> RerankSettings:
        """How candidates are ordered."""
        return self._settings

    @property
    def store(self) -> TelemetryStore:
        """Where telemetry goes."""
        return self._store

    # ranking

    def rerank(
        self,
        query: str,
        texts: Sequence[str],
        *,
        ids: Sequence[str | None] | None = None,
        top_n: int | None = None,
        query_vector: Any = None,
        vectors: Any = None,
        prior_scores: Sequence[float | None] | None = None,
        session: str | None = None,
        namespace: str | None = None,
        trace: Mapping[str, str] | None = None,
    ) -> Ranking:
        """Return the best ``top_n`` of ``texts`` (None: all of them), best first.

        ``ids`` name documents across calls; where None, a keyed hash of the text does. ``vectors`` (n, d), with None
        for missing rows, and ``query_vector`` (d,) save encoding; passing them says that they come from this
        reranker's encoder. ``prior_scores`` (n,) are the retriever's; without them the order of ``texts`` counts,
        and equal scores say that the order means nothing. ``session`` names a conversation.

        Raises ``InvalidInputError`` (a ``ValueError``) for arguments that cannot be used. A failing encoder, scorer
        or store degrades the ranking instead, see ``Ranking.degraded``.
        """
        request = self._request(
            query, texts, ids=ids, top_n=top_n, query_vector=query_vector, vectors=vectors,
            prior_scores=prior_scores, session=session, namespace=namespace, trace=trace,
        )
        names = self._names(request)
        return self._rank(request, names, *self._encode(request, names))

    async def arerank(
        self,
        query: str,
        texts: Sequence[str],
        *,
        ids: Sequence[str | None] | None = None,
        top_n: int | None = None,
        query_vector: Any = None,
        vectors: Any = None,
        prior_scores: Sequence[float | None] | None = None,
        session: str | None = None,
        namespace: str | None = None,
        trace: Mapping[str, str] | None = None,
    ) -> Ranking:
        """Do what ``rerank`` does: the encoder's coroutines are awaited, CPU work runs beside the event loop."""
        request = self._request(
            query, texts, ids=ids, top_n=top_n, query_vector=query_vector, vectors=vectors,
            prior_scores=prior_scores, session=session, namespace=namespace, trace=trace,
        )
        names = self._names(request)
        encoded = await self._aencode(request, names)
        return await asyncio.to_thread(self._rank, request, names, *encoded)

    def rerank_many(
        self,
        queries: Sequence[str],
        texts: Sequence[Sequence[str]],
        *,
        ids: Sequence[Sequence[str | None] | None] | None = None,
        top_n: int | None = None,
        query_vectors: Sequence[Any] | None = None,
        vectors: Sequence[Any] | None = None,
        prior_scores: Sequence[Sequence[float | None] | None] | None = None,
        session: str | None = None,
        namespace: str | None = None,
    ) -> list[Ranking]:
        """Rank several questions, each with its own candidates, with one call of the encoder for all unseen texts."""
        size = len(queries)
        for name, values in (("texts", texts), ("ids", ids), ("query_vectors", query_vectors), ("vectors", vectors),
                             ("prior_scores", prior_scores)):
            if values is not None and len(values) != size:
                raise InvalidInputError(f"{name} must have one entry per query: got {len(values)} for {size}")
        nothing: list[Any] = [None] * size
        requests = [
            self._request(query, own, ids=names, top_n=top_n, query_vector=asked, vectors=rows, prior_scores=prior,
                          session=session, namespace=namespace, trace=None)
            for query, own, names, asked, rows, prior in zip(
                queries, texts, ids or nothing, query_vectors or nothing, vectors or nothing,
                prior_scores or nothing, strict=True)
        ]
        named = [self._names(request) for request in requests]
        self._warm_up(requests, named)
        return [self._rank(request, names, *self._encode(request, names))
                for request, names in zip(requests, named, strict=True)]

    def document_id(self, text: str) -> str:
        """Return the id of a document that has none: a keyed hash of its text, stable for one store."""
        return f"text-{self._texts.key(text)}"

    # feedback and erasure

    def feedback(
        self,
        ranking: Ranking | str | None = None,
        *,
        query: str | None = None,
        helpful: Iterable[str | int] = (),
        unhelpful: Iterable[str | int] = (),
        rewards: Mapping[str | int, float] | None = None,
        source: str = "user",
        feedback_id: str | None = None,
        namespace: str | None = None,
    ) -> str:
        """Say which shown documents helped; durable when this returns. Returns the feedback's id.

        ``ranking`` is a ``Ranking`` or its id, from any process; or ``query`` names the latest ranking of that
        question in the namespace. ``helpful`` counts 1, ``unhelpful`` -1, ``rewards`` anything in [-1, 1]; documents
        are named by id or by position in the list that was ranked. Repeating a ``feedback_id`` changes nothing.

        Raises ``UnknownRankingError``, ``UnknownDocumentError``, ``InvalidInputError``, or ``StoreError`` when it
        could not be stored; in every case nothing was.
        """
        place = self._namespace if namespace is None else namespace
        served = self._find(ranking, query, place, explicit=namespace is not None)
        given = border.rewards(served, helpful=helpful, unhelpful=unhelpful, rewards=rewards)
        event = FeedbackGiven(
            feedback_id=feedback_id or self._new_id(),
            ranking_id=served.ranking_id,
            namespace=served.namespace,
            at=self._clock(),
            source=source,
            rewards=given,
            ranking=served,
            document_vector=self._helpful_vector(served, given),
        )
        self._recorder.told(event)
        return event.feedback_id

    async def afeedback(self, ranking: Ranking | str | None = None, **given: Any) -> str:
        """Do what ``feedback`` does, beside the event loop."""
        return await asyncio.to_thread(self.feedback, ranking, **given)

    def forget(
        self,
        *,
        namespace: str | None = None,
        document_ids: Iterable[str] | None = None,
        session: str | None = None,
        older_than: float | timedelta | datetime | None = None,
    ) -> Receipt:
        """Erase for good, and unlearn: the state is folded anew without it. Returns what was removed.

        ``namespace`` alone erases all of it. ``document_ids``, ``session`` and ``older_than`` (an age in seconds or
        as a ``timedelta``, or an aware ``datetime``) erase within ``namespace``, or this reranker's own.
        """
        if namespace is None and document_ids is None and session is None and older_than is None:
            raise InvalidInputError("forget needs namespace, document_ids, session or older_than")
        if isinstance(document_ids, str):
            document_ids = [document_ids]
        what = Erasure(
            namespace=self._namespace if namespace is None else namespace,
            document_ids=None if document_ids is None else tuple(document_ids),
            session=session,
            older_than=None if older_than is None else _moment(older_than, now=self._clock()),
        )
        return self._erase(what)

    # looking and leaving

    def stats(self, *, namespace: str | None = None) -> RerankerStats:
        """Return counts, trust and health of this reranker and of one namespace."""
        place = self._namespace if namespace is None else namespace
        with self._memory.lock:
            state, _ = self._state(place)
            learned = NamespaceStats(
                namespace=place,
                rankings=state.rankings,
                feedback=state.feedback,
                first_feedback_at=state.first_feedback_at,
                last_feedback_at=state.last_feedback_at,
                documents=len(state.slots),
                remembered_questions=sum(one.helped.total + one.failed.total for one in state.learners.values()),
                sessions=sum(len(one.sessions) for one in state.learners.values()),
                trust={name: one.trust.value for name, one in state.learners.items()},
                weights={name: one.trust.named_weights() for name, one in state.learners.items()},
            )
        return RerankerStats(
            store=self._store.url,
            namespace=learned,
            recorder=self._recorder.stats(),
            encoder_calls=self._encoders.calls,
            vectors_found=self._encoders.hits,
            degraded=dict(self._degraded),
            unusable_vectors=self._unusable,
        )

    def flush(self) -> None:
        """Write everything that waits; ``StoreError`` if that fails."""
        self._recorder.flush()

    def close(self) -> None:
        """Flush, keep a snapshot of what was learned, and close the store if this object opened it."""
        if self._closed:
            return
        self._closed = True
        try:
            self._recorder.close()
            self._memory.save_snapshots(all_moved=True)
        finally:
            if self._owns_store:
                self._store.close()

    def __enter__(self) -> Reranker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # the stages of one call

    def _request(self, query: str, texts: Sequence[str], *, namespace: str | None, **rest: Any) -> border.Request:
        return border.request(query, texts, namespace=self._namespace if namespace is None else namespace, **rest)

    def _names(self, request: border.Request) -> list[str]:
        if request.ids is not None and None not in request.ids:
            return list(request.ids)  # type: ignore[arg-type]  # None was just ruled out
        given = request.ids or [None] * len(request.texts)
        return [self.document_id(text) if name is None else name
                for name, text in zip(given, request.texts, strict=True)]

    def _encode(self, request: border.Request, names: Sequence[str]) -> tuple[Vectors | None, tuple[str, ...]]:
        """Return the vectors of the call, and what went missing on the way."""
        if not request.asks or not request.texts:
            return None, ()
        try:
            question = self._given_question(request)
            if question is None:
                question = self._encoders.question(request.query, namespace=request.namespace)
            if question is None:
                return None, ()
            given, wanted = self._given_rows(request, len(question))
            encoded = given
            if wanted is None or wanted:
                encoded = self._encoders.documents(
                    request.texts, ids=names, width=len(question), namespace=request.namespace, wanted=wanted
                )
        except (EncoderError, DimensionMismatchError) as error:
            return self._without_encoder(error, request)
        return self._vectors(question, given, encoded), ()

    async def _aencode(self, request: border.Request, names: Sequence[str]) -> tuple[Vectors | None, tuple[str, ...]]:
        if not request.asks or not request.texts:
            return None, ()
        limit = self._settings.encoder_timeout_seconds
        try:
            question = self._given_question(request)
            if question is None:
                question = await self._encoders.aquestion(
                    request.query, namespace=request.namespace, timeout_seconds=limit
                )
            if question is None:
                return None, ()
            given, wanted = self._given_rows(request, len(question))
            encoded = given
            if wanted is None or wanted:
                encoded = await self._encoders.adocuments(
                    request.texts, ids=names, width=len(question), namespace=request.namespace, wanted=wanted,
                    timeout_seconds=limit,
                )
        except (EncoderError, DimensionMismatchError) as error:
            return self._without_encoder(error, request)
        return self._vectors(question, given, encoded), ()

    def _given_question(self, request: border.Request) -> Vector | None:
        if request.query_vector is None:
            return None
        width = None if request.vectors is None else width_of(request.vectors)
        question = unit_vector(request.query_vector, name="query_vector")
        if width is not None and width != len(question) and _same_width(request.vectors):
            raise DimensionMismatchError("query_vector", got=len(question), expected=width)
        return question

    def _given_rows(self, request: border.Request, width: int) -> tuple[Encoded | None, list[int] | None]:
        """Return the caller's rows and the positions that the encoder must still fill (None: all of them)."""
        if request.vectors is None:
            return None, None
        given = Encoded(*unit_rows(request.vectors, count=len(request.texts), width=width))
        if not given.unusable:
            return given, []
        return given, [position for position in given.unusable if request.vectors[position] is None]

    def _vectors(self, question: Vector, given: Encoded | None, encoded: Encoded | None) -> Vectors:
        """Put the caller's rows and the encoder's together; rows that neither has stay zeros."""
        parts = [part for part in (given, encoded) if part is not None]
        rows, unusable = parts[-1]
        if len(parts) == 2 and parts[0] is not parts[1]:
            rows = rows + parts[0].rows
            unusable = sorted(set(unusable) & set(parts[0].unusable))
        if unusable:
            self._count_unusable(len(unusable))
        return Vectors(self._encoders.fingerprint(len(question)), question, rows, unusable)

    def _rank(
        self, request: border.Request, names: list[str], vectors: Vectors | None, degraded: tuple[str, ...]
    ) -> Ranking:
        if not request.texts:
            return Ranking(self._new_id(), request.namespace, np.zeros(0, dtype=np.int64), (), (), {}, ())
        now = self._clock()
        lexical = None
        if request.asks:
            lexical = lexical_scores(token_statistics(request.query), self._texts.statistics(request.texts))
        with self._memory.lock:
            state, trouble = self._state(request.namespace)
            in_session = request.session is not None
            narrative = None if vectors is None else state.narrative(vectors.encoder, request.session)
            cold, signals = cold_evidence(
                count=len(request.texts), prior_scores=request.prior_scores, lexical=lexical, vectors=vectors,
                narrative=narrative, in_session=in_session, settings=self._settings,
            )
            if self._scorer is None or not request.asks:
                evidence = learned_evidence(
                    cold, signals, state=state, ids=names, vectors=vectors, in_session=in_session, now=now,
                    settings=self._settings,
                )
        degraded += trouble
        if self._scorer is not None and request.asks:
            # outside the lock: the scorer may take its time
            cold, failed = self._rescore(request, cold, signals)
            degraded += failed
            with self._memory.lock:
                evidence = learned_evidence(
                    cold, signals, state=state, ids=names, vectors=vectors, in_session=in_session, now=now,
                    settings=self._settings,
                )
        return self._answer(request, names, vectors, evidence, degraded, now)

    def _rescore(
        self, request: border.Request, cold: Any, signals: dict[str, Vector]
    ) -> tuple[Any, tuple[str, ...]]:
        if self._scorer is None:
            return cold, ()
        head = gating.contenders(cold, budget=self._settings.scorer_budget)
        if len(head) < 2:
            return cold, ()
        scores = self._scorer.scores(request.query, [request.texts[position] for position in head.tolist()])
        if scores is None:
            self._note_degraded("scorer")
            return cold, ("scorer",)
        signals["scorer"] = np.zeros(len(cold), dtype=np.float32)
        signals["scorer"][head] = scores
        return gating.rescore(cold, head, scores, weight=self._settings.scorer_weight), ()

    def _answer(
        self,
        request: border.Request,
        names: list[str],
        vectors: Vectors | None,
        evidence: Evidence,
        degraded: tuple[str, ...],
        now: float,
    ) -> Ranking:
        rows = None if vectors is None else vectors.rows
        with self._lock:
            chosen = choose(evidence, count=request.top_n, rows=rows, settings=self._settings, rng=self._rng)
        positions = chosen.positions
        picked = positions.tolist()
        ids = tuple([names[position] for position in picked])
        # one table for all signals: a fancy index for each would cost more than the ranking itself
        table = np.array(list(evidence.signals.values()), dtype=np.float32)[:, positions]
        signals = dict(zip(evidence.signals, table, strict=True))
        served = RankingServed(
            ranking_id=self._new_id(now),
            namespace=request.namespace,
            at=now,
            query_key=self._query_key(request.query),
            encoder="" if vectors is None else vectors.encoder,
            query_vector=None if vectors is None else vectors.question,
            document_ids=ids,
            positions=tuple(picked),
            scores=chosen.scores,
            cold=tuple(evidence.cold[positions].tolist()),
            signals=dict(zip(signals, map(tuple, table.tolist()), strict=True)),
            propensities=chosen.propensities,
            candidates=len(names),
            trust=evidence.trust,
            degraded=degraded,
            session=request.session,
            query_text=request.query if self._store_settings.store_text else None,
            document_texts=tuple([request.texts[position] for position in picked])
            if self._store_settings.store_text else None,
            **request.trace,
        )
        if rows is not None:
            self._remember_rows(served.ranking_id, rows[positions[:NARRATED]])
        self._recorder.served(served)
        return Ranking(
            ranking_id=served.ranking_id,
            namespace=request.namespace,
            positions=positions,
            ids=ids,
            scores=chosen.scores,
            signals=signals,
            propensities=chosen.propensities,
            trust=evidence.trust,
            degraded=degraded,
            served=served,
        )

    # helpers of the stages

    def _state(self, namespace: str) -> tuple[LearnedState, tuple[str, ...]]:
        try:
            return self._memory.state(namespace), ()
        except StoreError as error:
            self._note_degraded("store", error)
            return self._memory.last_known(namespace), ("store",)

    def _without_encoder(self, error: Exception, request: border.Request) -> tuple[None, tuple[str, ...]]:
        if isinstance(error, DimensionMismatchError) and request.query_vector is not None:
            raise error  # the caller's own vector does not fit, and the caller can mend it
        self._note_degraded("encoder", error)
        return None, ("encoder",)

    def _note_degraded(self, what: str, error: Exception | None = None) -> None:
        with self._lock:
            self._degraded[what] += 1
            first = self._degraded[what] == 1
        if first:
            logger.warning("ranking without the %s from now on until it recovers (logged once): %s", what, error)

    def _count_unusable(self, number: int) -> None:
        with self._lock:
            first = self._unusable == 0
            self._unusable += number
        if first:
            logger.warning("%d documents have no usable vector and are ranked by their other signals (logged once)",
                           number)

    def _warm_up(self, requests: Sequence[border.Request], named: Sequence[Sequence[str]]) -> None:
        """Encode all unseen texts of a batch in one call."""
        open_ones = [(request, names) for request, names in zip(requests, named, strict=True)
                     if request.asks and request.vectors is None and request.texts]
        asking = [request.query for request in requests if request.asks and request.query_vector is None]
        if not requests:
            return
        namespace = requests[0].namespace
        try:
            questions = self._encoders.questions(asking, namespace=namespace) if asking else []
            given = [self._given_question(request) for request, _ in open_ones]
            width = next((len(one) for one in [*questions, *given] if one is not None), None)
            if open_ones and width is not None:
                self._encoders.documents(
                    [text for request, _ in open_ones for text in request.texts],
                    ids=[name for _, names in open_ones for name in names],
                    width=width,
                    namespace=namespace,
                )
        except (EncoderError, DimensionMismatchError):
            return  # met again, and counted, one by one

    def _find(self, ranking: Ranking | str | None, query: str | None, namespace: str, *, explicit: bool
              ) -> RankingServed:
        if (ranking is None) == (query is None):
            raise InvalidInputError("feedback needs a ranking (or its id), or the query that was asked; one of them")
        if isinstance(ranking, Ranking):
            if ranking.served is None:
                raise UnknownRankingError("an empty ranking showed nothing, so nothing can have helped")
            if explicit and ranking.namespace != namespace:
                raise UnknownRankingError(
                    f"ranking {ranking.ranking_id} is of namespace {ranking.namespace!r}, not {namespace!r}")
            return ranking.served
        if isinstance(ranking, str):
            found = (
                self._recorder.recent(ranking, namespace)
                or self._store.ranking(ranking, namespace=namespace)
            )
            if found is None:
                raise UnknownRankingError(f"no ranking {ranking!r} in namespace {namespace!r} of {self._store.url}")
            return found
        if not isinstance(query, str):
            raise InvalidInputError(
                f"ranking must be a Ranking or its id, and query a str; got {type(ranking).__name__} and "
                f"{type(query).__name__}")
        key = self._query_key(query)
        found = self._recorder.latest_pending(key, namespace) or self._store.latest_ranking(key, namespace=namespace)
        if found is None:
            raise UnknownRankingError(f"no ranking of this question in namespace {namespace!r} of {self._store.url}")
        return found

    def _helpful_vector(self, served: RankingServed, given: Sequence[tuple[str, float]]) -> Vector | None:
        with self._lock:
            rows = self._shown_rows.get(served.ranking_id)
        if rows is None:
            return None
        rewards = dict(given)
        weights = [max(0.0, rewards.get(name, 0.0)) for name in served.document_ids[: len(rows)]]
        mean = np.array(weights, dtype=np.float32) @ rows
        length = float(np.sqrt(mean.dot(mean)))
        if length == 0.0:
            return None
        mean /= np.float32(length)
        return mean

    def _remember_rows(self, ranking_id: str, rows: Matrix) -> None:
        with self._lock:
            self._shown_rows[ranking_id] = rows
            if len(self._shown_rows) > RECENT_RANKINGS:
                self._shown_rows.popitem(last=False)

    def _query_key(self, query: str) -> str:
        return self._texts.key(border.canonical(query))

    def _new_id(self, now: float | None = None) -> str:
        """Return a UUID of version 7: ids sort by time, then by order within this process."""
        milliseconds = max(0, int((self._clock() if now is None else now) * 1000)) & 0xFFFF_FFFF_FFFF
        tail = os.urandom(8).hex()
        stamp = f"{milliseconds:012x}"
        return f"{stamp[:8]}-{stamp[8:]}-7{next(self._tick) & 0xFFF:03x}-{'89ab'[int(tail[0], 16) & 3]}{tail[1:4]}-{tail[4:]}"

    def _erase(self, what: Erasure) -> Receipt:
        self._recorder.discard(what)
        with self._lock:
            self._shown_rows.clear()
        self._encoders.forget()
        self._texts.forget()
        receipt = self._store.erase(what)
        self._memory.reset()
        return receipt

    def _keep_vectors(self, namespace: str, encoder: str, rows: Sequence[StoredVector]) -> None:
        self._recorder.keep_vectors(namespace, encoder, rows, at=self._clock(),
                                    max_rows=self._store_settings.vectors_on_disk)

    def _written(self, recorded: Sequence[Recorded], appended: Appended) -> None:
        self._memory.absorb(recorded, appended)
        if isinstance(recorded[-1].event, FeedbackGiven):
            return  # somebody waits for this feedback to be durable, nobody for the fold
        self._memory.settle()
        if self._memory.snapshots_due():
            threading.Thread(target=self._snapshot, name="neuralcache-snapshot", daemon=True).start()

    def _snapshot(self) -> None:
        try:
            self._memory.save_snapshots()
        except StoreError as error:
            logger.warning("no snapshot was kept; the log is whole and will be folded instead: %s", error)


def _moment(older_than: float | timedelta | datetime, *, now: float) -> float:
    if isinstance(older_than, datetime):
        if older_than.tzinfo is None:
            raise InvalidInputError("older_than must be an aware datetime, got one without a time zone")
        return older_than.timestamp()
    age = older_than.total_seconds() if isinstance(older_than, timedelta) else float(older_than)
    if age < 0:
        raise InvalidInputError(f"older_than must not be negative, got {older_than!r}")
    return now - age


def _same_width(vectors: Any) -> bool:
    return len({len(row) for row in vectors if row is not None}) == 1
