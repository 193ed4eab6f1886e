"""The one path that every adapter takes: rank, record, learn from feedback."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, cast

from neuralcache_plugins.contracts import (
    Appended,
    Attribution,
    Encoder,
    Erasure,
    FeedbackGiven,
    PairScorer,
    Ranking,
    Receipt,
    Recorded,
    Rewards,
    SatisfactionFell,
    StoredVector,
    TelemetryStore,
)
from neuralcache_plugins.encoders import EncoderCache
from neuralcache_plugins.errors import InvalidInputError, StoreError
from neuralcache_plugins.memory import Memory
from neuralcache_plugins.memory.retention import Retention
from neuralcache_plugins.reranker import border
from neuralcache_plugins.reranker.answers import AnswerStage, Texts
from neuralcache_plugins.reranker.background import Background
from neuralcache_plugins.reranker.encoding import VectorStage
from neuralcache_plugins.reranker.feedback import FeedbackStage, Telling, erasure
from neuralcache_plugins.reranker.health import Health
from neuralcache_plugins.reranker.ranking import RankStage
from neuralcache_plugins.reranker.scorers import CachedScorer
from neuralcache_plugins.reranker.shown import RankingIds, SessionWords, ShownTexts, ShownVectors
from neuralcache_plugins.reranker.stats import NamespaceStats, RerankerStats, TrustStats
from neuralcache_plugins.reranker.texts import TextCache
from neuralcache_plugins.settings import RerankSettings, StoreSettings, from_environment
from neuralcache_plugins.stores import open_store
from neuralcache_plugins.telemetry import Recorder

__all__ = ["NamespaceStats", "Reranker", "RerankerStats", "TrustStats"]

logger = logging.getLogger(__name__)

LAST_ANSWERS_SECONDS = 10.0
"""How long ``Reranker.close`` waits for those who are still looking at answers."""


class Reranker:
    """Orders retrieved texts, records what it showed, and learns from feedback which help for which questions.

    ``encoder`` is anything with ``embed_documents`` and ``embed_query``; None is the local one (extra ``local``).
    ``store`` is a store, a URL or None for the default place. ``scorer`` is an optional expensive judge of (query,
    texts), asked only about the contenders. ``on_drift`` is called, in a thread of its own, when this process learns
    that satisfaction fell in a namespace that it serves; a warning is logged too. Thread-safe; a context manager; one
    object serves many namespaces.
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
        on_drift: Callable[[SatisfactionFell], object] | None = None,
        clock: Callable[[], float] = time.time,  # noqa: TID251  # the one place where the wall clock comes in
    ) -> None:
        self._settings = settings or from_environment(RerankSettings)
        self._store_settings = store_settings or from_environment(StoreSettings)
        border.check_name("namespace", namespace)
        self._namespace = namespace
        self._clock = clock
        self._on_drift = on_drift
        self._owns_store = store is None or isinstance(store, str)
        self._store = open_store(
            store,
            default_url=self._store_settings.resolved_url(),
            synchronous=self._store_settings.synchronous,
            busy_timeout_seconds=self._store_settings.busy_timeout_seconds,
        )
        self._memory = Memory(
            self._store,
            settings=self._settings,
            snapshot_every=self._store_settings.snapshot_every,
            on_erased=self._erased,
            on_fall=self._fell,
        )
        self._recorder = Recorder(
            self._store,
            flush_interval_seconds=self._store_settings.flush_interval_seconds,
            buffer_rankings=self._store_settings.buffer_rankings,
            on_written=partial(_written, weakref.ref(self)),
        )
        key = self._store.hash_key()
        self._encoders = EncoderCache(
            encoder,
            store=self._store,
            hash_key=key,
            in_memory=self._store_settings.vectors_in_memory,
            on_disk=self._store_settings.vectors_on_disk,
            keep=self._keep_vectors,
        )
        self._texts = TextCache(hash_key=key, capacity=self._settings.texts_in_memory)
        self._health = Health()
        self._stage = VectorStage(self._encoders, self._health, timeout_seconds=self._settings.encoder_timeout_seconds)
        self._scorer = None if scorer is None else CachedScorer(scorer)
        self._shown = ShownVectors()
        self._shown_texts = ShownTexts(self._settings.shown_characters)
        self._words = SessionWords(self._shown_texts, self._settings.source_weights)
        ids = RankingIds()
        self._ranking = RankStage(
            settings=self._settings,
            store_text=self._store_settings.store_text,
            memory=self._memory,
            recorder=self._recorder,
            texts=self._texts,
            scorer=self._scorer,
            health=self._health,
            ids=ids,
            shown=self._shown,
            shown_texts=self._shown_texts,
            words=self._words,
        )
        self._feedback = FeedbackStage(
            self._store, self._recorder, ids=ids, shown=self._shown, key=self._texts.key, memory=self._memory,
            words=self._words,
        )
        self._answers = AnswerStage(
            self._shown_texts, self._encoders.encoder, feedback=self._feedback, key=self._texts.key
        )
        self._retention = Retention(self._store_settings.retention_seconds)
        self._closed = False
        _ALIVE.add(self)

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
        min_score: float | None = None,
        session: str | None = None,
        namespace: str | None = None,
        trace: Mapping[str, str] | None = None,
    ) -> Ranking:
        """Return the best ``top_n`` of ``texts`` (None: all of them), best first.

        ``ids`` name documents across calls; where None, a keyed hash of the text does. ``vectors`` (n, d), with None
        for missing rows, and ``query_vector`` (d,) save encoding; passing them says that they come from this
        reranker's encoder. ``prior_scores`` (n,) are the retriever's; without them the order of ``texts`` counts,
        and equal scores say that the order means nothing. What scores less than ``min_score`` is not shown.
        ``session`` names a conversation.

        Raises ``InvalidInputError`` (a ``ValueError``) for arguments that cannot be used. A failing encoder, scorer
        or store degrades the ranking instead, see ``Ranking.degraded``.
        """
        request = self._request(
            query,
            texts,
            ids=ids,
            top_n=top_n,
            query_vector=query_vector,
            vectors=vectors,
            prior_scores=prior_scores,
            min_score=min_score,
            session=session,
            namespace=namespace,
            trace=trace,
        )
        names = self._names(request)
        return self._ranking.rank(request, names, *self._stage.vectors(request, names), now=self._clock())

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
        min_score: float | None = None,
        session: str | None = None,
        namespace: str | None = None,
        trace: Mapping[str, str] | None = None,
    ) -> Ranking:
        """Do what ``rerank`` does: the encoder's coroutines are awaited, CPU work runs beside the event loop."""
        request = self._request(
            query,
            texts,
            ids=ids,
            top_n=top_n,
            query_vector=query_vector,
            vectors=vectors,
            prior_scores=prior_scores,
            min_score=min_score,
            session=session,
            namespace=namespace,
            trace=trace,
        )
        names = self._names(request)
        vectors, degraded = await self._stage.avectors(request, names)
        return await asyncio.to_thread(self._ranking.rank, request, names, vectors, degraded, now=self._clock())

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
        for name, values in (
            ("texts", texts),
            ("ids", ids),
            ("query_vectors", query_vectors),
            ("vectors", vectors),
            ("prior_scores", prior_scores),
        ):
            if values is not None and len(values) != size:
                raise InvalidInputError(f"{name} must have one entry per query: got {len(values)} for {size}")
        nothing: list[Any] = [None] * size
        requests = [
            self._request(
                query,
                own,
                ids=names,
                top_n=top_n,
                query_vector=asked,
                vectors=rows,
                prior_scores=prior,
                min_score=None,
                session=session,
                namespace=namespace,
                trace=None,
            )
            for query, own, names, asked, rows, prior in zip(
                queries,
                texts,
                ids or nothing,
                query_vectors or nothing,
                vectors or nothing,
                prior_scores or nothing,
                strict=True,
            )
        ]
        named = [self._names(request) for request in requests]
        self._stage.warm_up(requests, named)
        return [
            self._ranking.rank(request, names, *self._stage.vectors(request, names), now=self._clock())
            for request, names in zip(requests, named, strict=True)
        ]

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
        rewards: Rewards | None = None,
        value: float | None = None,
        used: Mapping[str, float] | None = None,
        answer: Any = None,
        source: str = "user",
        feedback_id: str | None = None,
        namespace: str | None = None,
    ) -> str:
        """Say which shown documents helped; durable when this returns. Returns the feedback's id.

        ``ranking`` is a ``Ranking`` or its id, from any process; or ``query`` names the latest ranking of that
        question in the namespace. ``helpful`` counts 1, ``unhelpful`` -1, ``rewards`` anything in [-1, 1]; documents
        are named by id or by position in the list that was ranked. Repeating a ``feedback_id`` changes nothing.

        ``value`` in [-1, 1] judges the answer instead, and is shared among the documents by how far each went into it:
        by ``used`` (document id to share in [0, 1]); else as ``observe_answer`` or a handler saw that it did; else as
        ``answer``, its text, shows; and where nobody knows, the first document shown gets all of it. An answer that
        used none of them says nothing of them: nothing is stored, and "" returned.

        Raises ``UnknownRankingError``, ``UnknownDocumentError``, ``InvalidInputError``, or ``StoreError`` when it
        could not be stored; in every case nothing was.
        """
        if value is not None:
            if helpful or unhelpful or rewards is not None:
                raise InvalidInputError("value judges the answer as a whole: give no documents with it")
            return self._answers.credit(
                ranking, value, query=query, used=used, answer=answer, namespace=self._place(namespace),
                explicit=namespace is not None, source=source, feedback_id=feedback_id, now=self._clock(),
            )
        if used is not None or answer is not None:
            raise InvalidInputError("used and answer say how to share value, which is missing")
        telling = Telling(
            ranking, query, self._place(namespace), namespace is not None, source, feedback_id, helpful, unhelpful,
            rewards,
        )
        return self._feedback.tell_all([telling], now=self._clock())[0]

    async def afeedback(
        self,
        ranking: Ranking | str | None = None,
        *,
        query: str | None = None,
        helpful: Iterable[str | int] = (),
        unhelpful: Iterable[str | int] = (),
        rewards: Rewards | None = None,
        value: float | None = None,
        used: Mapping[str, float] | None = None,
        answer: Any = None,
        source: str = "user",
        feedback_id: str | None = None,
        namespace: str | None = None,
    ) -> str:
        """Do what ``feedback`` does, beside the event loop."""
        return await asyncio.to_thread(
            self.feedback,
            ranking,
            query=query,
            helpful=helpful,
            unhelpful=unhelpful,
            rewards=rewards,
            value=value,
            used=used,
            answer=answer,
            source=source,
            feedback_id=feedback_id,
            namespace=namespace,
        )

    def judge(
        self,
        trace: str | Sequence[str],
        value: float,
        *,
        source: str,
        feedback_id: str | None = None,
        namespace: str | None = None,
        used: Mapping[str, float] | None = None,
    ) -> list[str]:
        """Say what an answer was worth, in [-1, 1], by an id that was recorded with its ranking. Returns feedback ids.

        ``trace`` is a run, parent run, trace or span id, or several: the first that some ranking has counts. Rankings
        whose own run or span it is are meant alone; else all below it, ``TRACED`` at most, the newest. In each it goes
        to documents by ``used`` (document id to share in [0, 1]), or without it as ``observe_answer`` or a handler
        saw that the answer used them. Where nobody saw it, nothing tells which of an agent's retrievals made the
        answer: the value is divided among the rankings, and goes to the first document of each.
        Repeating a ``feedback_id`` changes nothing. Raises as ``feedback`` does.
        """
        return self._feedback.judge(
            [trace] if isinstance(trace, str) else trace,
            value,
            self._place(namespace),
            source=source,
            feedback_id=feedback_id,
            used=used,
            seen=self._answers.seen,
            now=self._clock(),
        )

    async def ajudge(
        self,
        trace: str | Sequence[str],
        value: float,
        *,
        source: str,
        feedback_id: str | None = None,
        namespace: str | None = None,
        used: Mapping[str, float] | None = None,
    ) -> list[str]:
        """Do what ``judge`` does, beside the event loop."""
        return await asyncio.to_thread(
            self.judge, trace, value, source=source, feedback_id=feedback_id, namespace=namespace, used=used
        )

    def observe_answer(
        self,
        ranking: Ranking | str | Sequence[Ranking | str],
        answer: Any,
        *,
        texts: Texts | None = None,
        prompt: str | None = None,
        namespace: str | None = None,
    ) -> Attribution:
        """See which shown documents an answer used, and give that as feedback. Stores no text.

        ``ranking`` is a ``Ranking`` or its id; several where one answer was made from several rankings. ``answer`` is a
        str, or a mapping, list or pydantic model with text and the ids or numbers of its sources. Citations count first
        (feedback with source "citation"), else the words and sentences that answer and documents share
        ("context_use"). Only documents that the answer used in all likelihood are rewarded, by their probability; an
        answer that says it cannot answer gives no feedback. The same answer observed twice counts once. Several
        rankings are told with one write: all of them, or none.

        The texts of recent rankings are still in memory (``RerankSettings.shown_characters``); for others pass
        ``texts``: the list that was ranked, or texts by document id. ``prompt``, if given, tells which document ``[2]``
        is; without it that is the second one shown. Sentences are compared by the local encoder (extra ``local``) where
        it is installed. Takes milliseconds, beside a durable write per ranking.

        Raises ``InvalidInputError`` when the texts are not known, and what ``feedback`` raises.
        """
        several = list(ranking) if isinstance(ranking, list | tuple) else [ranking]
        return self._answers.observe(
            several, answer, texts=texts, prompt=prompt, namespace=self._place(namespace),
            explicit=namespace is not None, now=self._clock(),
        )

    async def aobserve_answer(
        self,
        ranking: Ranking | str | Sequence[Ranking | str],
        answer: Any,
        *,
        texts: Texts | None = None,
        prompt: str | None = None,
        namespace: str | None = None,
    ) -> Attribution:
        """Do what ``observe_answer`` does, beside the event loop."""
        return await asyncio.to_thread(
            self.observe_answer, ranking, answer, texts=texts, prompt=prompt, namespace=namespace
        )

    def has_texts(self, ranking_id: str, *, namespace: str | None = None) -> bool:
        """Return whether ``observe_answer`` can do without ``texts`` for this ranking."""
        return self._shown_texts.find(self._place(namespace), ranking_id) is not None

    def read_by(self, reader: Background) -> None:
        """Note who reads answers for this reranker in a thread: judgements of answers and ``close`` wait for it."""
        self._answers.read_by(reader)

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
        as a ``timedelta``, or an aware ``datetime``) erase within ``namespace``, or this reranker's own. A session goes
        with all of its parts (see ``ConversationMonitor.narrative``).
        """
        what = erasure(
            namespace=namespace,
            document_ids=document_ids,
            session=session,
            older_than=older_than,
            default_namespace=self._namespace,
            now=self._clock(),
        )
        return self._erase(what)

    # looking and leaving

    def stats(self, *, namespace: str | None = None) -> RerankerStats:
        """Return counts, trust and health of this reranker and of one namespace."""
        place = self._place(namespace)
        with self._memory.lock:
            learned = NamespaceStats.of(place, self._ranking.state(place)[0])
        return RerankerStats(
            store=self._store.url,
            namespace=learned,
            recorder=self._recorder.stats(),
            encoder_calls=self._encoders.calls,
            vectors_found=self._encoders.hits,
            degraded=self._health.degraded,
            unusable_vectors=self._health.unusable_vectors,
        )

    def flush(self) -> None:
        """Write everything that waits; ``StoreError`` if that fails."""
        self._recorder.flush()

    def close(self) -> None:
        """Flush, keep a snapshot of what was learned, and close the store if this object opened it.

        Handlers that are still looking at answers finish first, within ``LAST_ANSWERS_SECONDS``.

        ``StoreError`` when the rest cannot be written: nothing is lost yet, and closing can be tried again.
        """
        if self._closed:
            return
        self._answers.finish(LAST_ANSWERS_SECONDS)
        self._recorder.close()
        self._closed = True
        try:
            self._memory.save_snapshots(all_moved=True)
        finally:
            if self._owns_store:
                self._store.close()

    def __enter__(self) -> Reranker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(self, query: str, texts: Sequence[str], *, namespace: str | None, **rest: Any) -> border.Request:
        return border.request(query, texts, namespace=self._place(namespace), **rest)

    def _place(self, namespace: str | None) -> str:
        return self._namespace if namespace is None else namespace

    def _names(self, request: border.Request) -> Sequence[str]:
        if request.ids is None:
            return [self.document_id(text) for text in request.texts]
        if None not in request.ids:
            return cast("Sequence[str]", request.ids)
        return [
            self.document_id(text) if name is None else name
            for name, text in zip(request.ids, request.texts, strict=True)
        ]

    def _erase(self, what: Erasure) -> Receipt:
        self._recorder.flush()
        receipt = self._store.erase(what)
        self._recorder.discard(what)
        self._shown.forget()
        self._answers.forget()
        self._words.forget()
        self._encoders.forget()
        self._texts.forget()
        if self._scorer is not None:
            self._scorer.forget()
        self._memory.reset()
        return receipt

    def _erased(self) -> None:
        """Drop what another process may have erased: texts, and vectors whose places in a ranking may be others now."""
        self._recorder.forget_recent()
        self._shown.forget()
        self._answers.forget()
        self._words.forget()

    def _keep_vectors(self, namespace: str, encoder: str, rows: Sequence[StoredVector]) -> None:
        self._recorder.keep_vectors(
            namespace, encoder, rows, at=self._clock(), max_rows=self._store_settings.vectors_on_disk
        )

    def _written(self, recorded: Sequence[Recorded], appended: Appended) -> None:
        """Take in what the recorder wrote: at once from its own thread, later where feedback is waiting."""
        self._memory.absorb(recorded, appended)
        if isinstance(recorded[-1].event, FeedbackGiven):
            return
        self._memory.settle()
        old = self._retention.due(self._clock())
        if old is not None or self._memory.snapshots_due():
            # the recorder holds its turn while it calls, and both of these take a while
            threading.Thread(target=self._tidy, args=(old,), name="neuralcache-tidy", daemon=True).start()

    def _fell(self, fall: SatisfactionFell) -> None:
        logger.warning(
            "satisfaction fell in namespace %r%s: the mean reward was at least %.2f and is %.2f by feedback %d",
            fall.namespace, "" if fall.source is None else f" (source {fall.source})", fall.before, fall.after,
            fall.feedback,
        )
        if self._on_drift is not None:
            # the memory's lock is held here, and foreign code takes its time
            threading.Thread(target=self._on_drift, args=(fall,), name="neuralcache-drift", daemon=True).start()

    def _tidy(self, old: Erasure | None) -> None:
        try:
            if old is not None:
                self._erase(old)
            self._memory.save_snapshots()
        except StoreError as error:
            logger.warning("telemetry: tidying up failed and is tried again later: %s", error)

    def _restart_after_fork(self) -> None:
        parts = (
            self._memory, self._ranking, self._encoders, self._texts, self._health, self._shown, self._words,
            self._answers, self._retention,
        )
        for part in parts:
            part.restart_after_fork()
        if self._scorer is not None:
            self._scorer.restart_after_fork()


def _written(reranker: weakref.ref[Reranker], recorded: Sequence[Recorded], appended: Appended) -> None:
    # weakly: the recorder's thread would keep a reranker that nobody closed alive for ever
    alive = reranker()
    if alive is not None:
        alive._written(recorded, appended)


_ALIVE: weakref.WeakSet[Reranker] = weakref.WeakSet()


def _restart_after_fork() -> None:
    for reranker in list(_ALIVE):
        reranker._restart_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restart_after_fork)
