"""Labels: a cached answer beside the fresh one, on misses whose fresh answer is there anyway and on audits of hits.

What cannot be judged leaves no label: a computation or a judge that fails, background work without room. The promise is
therefore about answers whose question could be answered afresh, and ``stats()`` counts the audits that failed. Two hits
of one question whose audits would run at once give one label: the second would only repeat the first.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

from neuralcache_plugins.contracts import AnswerJudged, CachedAnswer
from neuralcache_plugins.semantic_cache import values
from neuralcache_plugins.semantic_cache.background import Background
from neuralcache_plugins.semantic_cache.computing import AnyCompute, Compute, ComputeStage, Keep, Kept
from neuralcache_plugins.semantic_cache.counts import Counts
from neuralcache_plugins.semantic_cache.judges import Judge
from neuralcache_plugins.semantic_cache.looking import Look
from neuralcache_plugins.semantic_cache.proposals import Proposal
from neuralcache_plugins.semantic_cache.recording import AnswerRecorder
from neuralcache_plugins.semantic_cache.results import CacheHit, Sourced
from neuralcache_plugins.semantic_cache.semantic import SemanticTier


class JudgeStage:
    """Compares answers and records what came of it."""

    def __init__(self, namespace: str, computing: ComputeStage, recorder: AnswerRecorder, semantic: SemanticTier,
                 counts: Counts, background: Background, clock: Callable[[], float]) -> None:
        self._namespace = namespace
        self._computing = computing
        self._recorder = recorder
        self._semantic = semantic
        self._counts = counts
        self._background = background
        self._clock = clock

    def compare(self, missed: Look, judge: Judge, fresh: Any) -> None:
        """Judge the answer that was not served, now that the fresh one is there anyway."""
        if missed.found is None or missed.found.candidate is None or missed.answer is not None:
            return
        source = "miss" if missed.proposal.serve is None else "audit"
        work = partial(self._judge, missed.found.candidate, missed.proposal, judge, fresh, source=source)
        if not judge.quick:
            self._background.do(work)
            return
        try:
            work()
        except Exception as error:  # noqa: BLE001  # the user's judge, or a damaged entry: the fresh answer is there
            self._counts.without("background", error)

    def audit(self, look: Look, hit: CacheHit, compute: Compute, judge: Judge, keep: Keep) -> None:
        """Compute the served answer anew in the background, if it is its turn, and compare."""
        if not self._is_due(look):
            return

        def work() -> None:
            try:
                self._computing.run(look.asked, compute, partial(self._audited, look, hit, judge, keep))
            except Exception:
                self._counts.add("audits_failed")
                raise

        self._background.do(work)

    def aaudit(self, look: Look, hit: CacheHit, compute: AnyCompute, judge: Judge, keep: Keep) -> None:
        """Do what ``audit`` does, on the running event loop."""
        if not self._is_due(look):
            return

        async def work() -> None:
            try:
                await self._computing.arun(look.asked, compute, partial(self._audited, look, hit, judge, keep))
            except Exception:
                self._counts.add("audits_failed")
                raise

        self._background.ado(work())

    def _is_due(self, look: Look) -> bool:
        return look.is_semantic and look.proposal.audit and not self._computing.is_under_way(look.asked)

    def _audited(self, look: Look, hit: CacheHit, judge: Judge, keep: Keep, now: Look, fresh: Any,
                 seconds: float) -> Kept:
        kept = keep(now, fresh, seconds)
        assert look.answer is not None
        told = fresh.value if isinstance(fresh, Sourced) else fresh
        self._judge(look.answer, look.proposal, judge, told, source="audit", hit_id=hit.hit_id)
        return kept

    def _judge(self, cached: CachedAnswer, proposal: Proposal, judge: Judge, fresh: Any, *, source: str,
               hit_id: str | None = None) -> None:
        correct = judge(values.value_of(cached), fresh)
        self._recorder.note(AnswerJudged(
            judged_id=os.urandom(12).hex(), entry_id=cached.entry_id, namespace=self._namespace, at=self._clock(),
            scope=cached.scope, correct=correct, source=source, score=proposal.score, features=proposal.features,
            propensity=proposal.propensity, hit_id=hit_id,
        ))
        self._counts.add("judged")
        if self._semantic.snapshot_due():
            self._background.do(self._semantic.save_snapshot)
