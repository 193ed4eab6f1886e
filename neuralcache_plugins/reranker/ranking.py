"""From vectors to a ranking: signals, the scorer's verdict, what was learned, the choice, the record."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence

import numpy as np

from neuralcache_plugins.contracts import Array, Matrix, Ranking, RankingServed, Vector
from neuralcache_plugins.core import gating
from neuralcache_plugins.core.lexical import lexical_scores, token_statistics
from neuralcache_plugins.errors import StoreError
from neuralcache_plugins.memory import LearnedState, Memory
from neuralcache_plugins.reranker.border import Request, canonical
from neuralcache_plugins.reranker.explaining import Explainer, Sources
from neuralcache_plugins.reranker.health import Health
from neuralcache_plugins.reranker.scorers import CachedScorer
from neuralcache_plugins.reranker.shown import RANKS, RankingIds, SessionWords, Showing, ShownTexts, ShownVectors
from neuralcache_plugins.reranker.stages import (
    Chosen,
    Evidence,
    Vectors,
    choose,
    cold_evidence,
    learned_evidence,
    spoken_of,
)
from neuralcache_plugins.reranker.texts import TextCache
from neuralcache_plugins.settings import RerankSettings
from neuralcache_plugins.telemetry import Recorder


class RankStage:
    """Orders the candidates of a request whose vectors are known, and records what is shown."""

    def __init__(
        self,
        *,
        settings: RerankSettings,
        store_text: bool,
        memory: Memory,
        recorder: Recorder,
        texts: TextCache,
        scorer: CachedScorer | None,
        health: Health,
        ids: RankingIds,
        shown: ShownVectors,
        shown_texts: ShownTexts,
        words: SessionWords,
    ) -> None:
        self._settings = settings
        self._store_text = store_text
        self._memory = memory
        self._recorder = recorder
        self._texts = texts
        self._scorer = scorer
        self._health = health
        self._ids = ids
        self._shown = shown
        self._shown_texts = shown_texts
        self._words = words
        self._sources = Sources(weakref.ref(memory), settings)
        self._rng = np.random.default_rng(settings.seed)
        self._chance = threading.Lock()

    def rank(
        self, request: Request, names: Sequence[str], vectors: Vectors | None, degraded: tuple[str, ...], *, now: float
    ) -> Ranking:
        """Return the ranking of the request, as of ``now``."""
        if not request.texts:
            return Ranking(self._ids.new(now), request.namespace, np.zeros(0, dtype=np.int64), (), (), {}, ())
        lexical = spoken = None
        if request.asks:
            texts = self._texts.statistics(request.texts)
            lexical = lexical_scores(token_statistics(request.query), texts)
            if self._settings.learning:
                spoken = spoken_of(request.query, self._words.of(request.namespace, request.session), texts)
        with self._memory.lock:
            state, trouble = self.state(request.namespace)
            cold, signals = self._cold(request, state, vectors, lexical, spoken)
            if self._scorer is None or not request.asks:
                evidence = self._learned(request, names, state, vectors, cold, signals, now)
        degraded += trouble
        if self._scorer is not None and request.asks:
            # the scorer may take its time, and others rank meanwhile
            cold, failed = self._rescored(self._scorer, request, cold, signals)
            degraded += failed
            with self._memory.lock:
                evidence = self._learned(request, names, state, vectors, cold, signals, now)
        return self._answer(request, names, vectors, evidence, degraded, now)

    def restart_after_fork(self) -> None:
        """Begin anew in a forked child, with chances of its own: workers must not all explore alike."""
        self._chance = threading.Lock()
        self._rng = np.random.default_rng([self._settings.seed, os.getpid()])

    def state(self, namespace: str) -> tuple[LearnedState, tuple[str, ...]]:
        """Return what is learned, as far as the store can be asked. Hold the memory's lock."""
        try:
            return self._memory.state(namespace), ()
        except StoreError as error:
            return self._memory.last_known(namespace), self._health.without("store", error)

    def _cold(
        self, request: Request, state: LearnedState, vectors: Vectors | None, lexical: Vector | None,
        spoken: Vector | None,
    ) -> tuple[Array, dict[str, Vector]]:
        return cold_evidence(
            count=len(request.texts),
            prior_scores=request.prior_scores,
            lexical=lexical,
            vectors=vectors,
            narrative=None if vectors is None else state.narrative(vectors.encoder, request.session),
            in_session=request.session is not None,
            settings=self._settings,
            spoken=spoken,
        )

    def _learned(
        self,
        request: Request,
        names: Sequence[str],
        state: LearnedState,
        vectors: Vectors | None,
        cold: Array,
        signals: dict[str, Vector],
        now: float,
    ) -> Evidence:
        return learned_evidence(
            cold,
            signals,
            state=state,
            ids=names,
            vectors=vectors,
            in_session=request.session is not None,
            now=now,
            settings=self._settings,
        )

    def _rescored(
        self, scorer: CachedScorer, request: Request, cold: Array, signals: dict[str, Vector]
    ) -> tuple[Array, tuple[str, ...]]:
        head = gating.contenders(cold, budget=self._settings.scorer_budget)
        if len(head) < 2:
            return cold, ()
        scores = scorer.scores(request.query, [request.texts[position] for position in head.tolist()])
        if scores is None:
            return cold, self._health.without("scorer")
        signals["scorer"] = np.full(len(cold), np.nan, dtype=np.float32)
        signals["scorer"][head] = scores
        return gating.rescore(cold, head, scores, weight=self._settings.scorer_weight), ()

    def _answer(
        self,
        request: Request,
        names: Sequence[str],
        vectors: Vectors | None,
        evidence: Evidence,
        degraded: tuple[str, ...],
        now: float,
    ) -> Ranking:
        rows = None if vectors is None else vectors.rows
        with self._chance:
            chosen = choose(
                evidence,
                count=request.top_n,
                least=request.min_score,
                rows=rows,
                settings=self._settings,
                rng=self._rng,
            )
        # one table for all signals: a fancy index for each would cost more than the ranking itself
        table = np.array(list(evidence.signals.values()), dtype=np.float32)[:, chosen.positions]
        served = self._record(request, names, vectors, evidence, chosen, table, degraded, now)
        if rows is not None:
            self._shown.keep(served.ranking_id, rows[chosen.positions[:RANKS]])
        texts = [request.texts[position] for position in served.positions]
        self._shown_texts.keep(served.namespace, served.ranking_id, Showing(request.query, served.document_ids, texts))
        self._recorder.served(served)
        return Ranking(
            ranking_id=served.ranking_id,
            namespace=request.namespace,
            positions=chosen.positions,
            ids=served.document_ids,
            scores=chosen.scores,
            signals=dict(zip(evidence.signals, table, strict=True)),
            propensities=chosen.propensities,
            trust=evidence.trust,
            degraded=degraded,
            served=served,
            epoch=self._memory.known_epoch,
            explainer=Explainer(
                self._sources, evidence, () if vectors is None else vectors.unusable, request.session is not None
            ),
        )

    def _record(
        self,
        request: Request,
        names: Sequence[str],
        vectors: Vectors | None,
        evidence: Evidence,
        chosen: Chosen,
        table: Matrix,
        degraded: tuple[str, ...],
        now: float,
    ) -> RankingServed:
        picked = chosen.positions.tolist()
        texts = tuple([request.texts[position] for position in picked]) if self._store_text else None
        return RankingServed(
            ranking_id=self._ids.new(now),
            namespace=request.namespace,
            at=now,
            query_key=self._texts.key(canonical(request.query)),
            encoder="" if vectors is None else vectors.encoder,
            query_vector=None if vectors is None else vectors.question,
            document_ids=tuple([names[position] for position in picked]),
            positions=tuple(picked),
            scores=chosen.scores,
            cold=tuple(evidence.cold[chosen.positions].tolist()),
            # the scorer saw only some, and NaN has no place in the log
            signals={
                name: tuple(values)
                for name, values in zip(evidence.signals, table.tolist(), strict=True)
                if name != "scorer"
            },
            propensities=chosen.propensities,
            candidates=len(names),
            trust=evidence.trust,
            degraded=degraded,
            session=request.session,
            query_text=request.query if self._store_text else None,
            document_texts=texts,
            **request.trace,
        )
