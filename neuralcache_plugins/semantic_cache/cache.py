"""A cache of answers: exact within a scope, semantic under a certificate, bound to the documents they came from."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import numpy as np

from neuralcache_plugins.contracts import (
    AnswerJudged,
    AnswerKey,
    AnswerMissed,
    AnswerServed,
    AnswerStore,
    AnswerTotals,
    CachedAnswer,
    DocumentVersion,
    Encoder,
    Removal,
    TelemetryStore,
)
from neuralcache_plugins.encoders import EncoderCache
from neuralcache_plugins.errors import (
    InvalidInputError,
    StoreClosedError,
    StoreError,
    UnknownHitError,
)
from neuralcache_plugins.memory.retention import Retention
from neuralcache_plugins.semantic_cache import values
from neuralcache_plugins.semantic_cache.background import Background
from neuralcache_plugins.semantic_cache.calibrating import (
    CalibrateStage,
    check_scopes,
    report_of,
)
from neuralcache_plugins.semantic_cache.certificate import Certificate
from neuralcache_plugins.semantic_cache.computing import (
    AnyCompute,
    Compute,
    ComputeStage,
    Keep,
    Kept,
    outcome_of,
)
from neuralcache_plugins.semantic_cache.counts import Counts
from neuralcache_plugins.semantic_cache.exact import ExactTier
from neuralcache_plugins.semantic_cache.flights import Outcome
from neuralcache_plugins.semantic_cache.judges import Judge, as_judge
from neuralcache_plugins.semantic_cache.judging import JudgeStage
from neuralcache_plugins.semantic_cache.keeping import KeepStage, checked_ttl
from neuralcache_plugins.semantic_cache.keys import Asked, Documents, Keys, Scope, checked_documents, checked_namespace
from neuralcache_plugins.semantic_cache.leases import Leases
from neuralcache_plugins.semantic_cache.looking import Look, LookStage
from neuralcache_plugins.semantic_cache.proposals import Proposal
from neuralcache_plugins.semantic_cache.recording import AnswerRecorder
from neuralcache_plugins.semantic_cache.records import Record, checked_lines
from neuralcache_plugins.semantic_cache.report import CalibrationReport
from neuralcache_plugins.semantic_cache.results import CacheHit, CacheStats, Explanation, Sourced
from neuralcache_plugins.semantic_cache.semantic import SemanticTier
from neuralcache_plugins.semantic_cache.threads import Threads
from neuralcache_plugins.semantic_cache.totals import Totals
from neuralcache_plugins.settings import CacheSettings, StoreSettings, from_environment
from neuralcache_plugins.stores import open_store

_PATIENCE_SECONDS = 5.0
_MISSED = 4096


class SemanticCache:
    """Answers that were given before, for questions asked again within the same scope.

    ::

        with SemanticCache(store="sqlite:///telemetry.db") as cache:
            answer = cache.get_or_compute("How do I reset my password?", ask, scope={"model": "m", "prompt": 3})

    An answer is a str, bytes or a JSON value. ``scope`` holds everything that must be equal before an answer may be
    reused: model, prompt template, tools, corpus. ``documents`` are (id, content hash) pairs of what the answer came
    from; with them an answer is served only if it was made from exactly these.

    ``encoder`` is anything with ``embed_query``; None is the local one (extra ``local``). ``store`` is a store that is
    an ``AnswerStore`` too, a URL, or None for the default place; it may be the reranker's. Thread-safe; a context
    manager; one namespace (tenant) per object: nothing crosses it.
    """

    def __init__(
        self,
        encoder: Encoder | None = None,
        *,
        store: TelemetryStore | str | None = None,
        namespace: str = "default",
        settings: CacheSettings | None = None,
        store_settings: StoreSettings | None = None,
        clock: Callable[[], float] = time.time,  # noqa: TID251  # the one place where the wall clock comes in
        seed: int | None = None,
    ) -> None:
        self._settings = settings or from_environment(CacheSettings)
        self._store_settings = store_settings or from_environment(StoreSettings)
        self._namespace = checked_namespace(namespace)
        self._clock = clock
        self._seed = seed
        self._owns_store = store is None or isinstance(store, str)
        opened = open_store(
            store,
            default_url=self._store_settings.resolved_url(),
            synchronous=self._store_settings.synchronous,
            busy_timeout_seconds=self._store_settings.busy_timeout_seconds,
        )
        self._store = _answer_store(opened)
        self._close_store = opened.close
        self.url = opened.url
        """The store's place, without secrets."""
        key = opened.hash_key()
        self._keys = Keys(key, namespace)
        self._counts = Counts()
        self._recorder = AnswerRecorder(
            self._store,
            flush_interval_seconds=self._store_settings.flush_interval_seconds,
            room=self._store_settings.buffer_rankings,
        )
        encoders = EncoderCache(encoder, store=opened, hash_key=key, in_memory=self._store_settings.vectors_in_memory,
                                on_disk=0, keep=lambda *_: None)
        self._exact = ExactTier(self._store, namespace, in_memory=self._settings.answers_in_memory)
        self._semantic = SemanticTier(self._store, namespace, encoders=encoders, settings=self._settings,
                                      snapshots=opened)
        self._looks = LookStage(self._exact, self._semantic, self._counts, stale_seconds=self._settings.stale_seconds)
        self._leases = Leases(self._store, self._counts, clock, seconds=self._settings.lease_seconds)
        self._threads = Threads()
        self._computing = ComputeStage(self._keys, self._looks, self._leases, self._counts, self._threads, clock)
        self._background = Background(self._counts)
        self._judging = JudgeStage(namespace, self._computing, self._recorder, self._semantic, self._counts,
                                   self._background, clock)
        self._keeping = KeepStage(namespace, self._exact, self._semantic, self._counts, self._settings, clock)
        self._calibrating = CalibrateStage(self._store, namespace, self._semantic, clock)
        self._totals = Totals(self._store, opened, namespace)
        self._retention = Retention(self._store_settings.retention_seconds)
        self._log = opened
        self._lock = threading.Lock()
        self._coins = np.random.default_rng(seed)
        self._missed: OrderedDict[AnswerKey, Look] = OrderedDict()
        self._closed = False
        _ALIVE.add(self)

    @property
    def namespace(self) -> str:
        """The tenant that this object serves."""
        return self._namespace

    @property
    def settings(self) -> CacheSettings:
        """How long and how much is kept."""
        return self._settings

    # answers

    def lookup(self, question: str, *, scope: Scope, documents: Documents = ()) -> CacheHit | None:
        """Return the cached answer to a question within a scope, or None.

        With ``documents`` an exact answer must have been made from exactly these versions. Reads only; a failing store
        or encoder is a miss, counted in ``stats()``. A similar question's answer whose turn it is to be audited is not
        returned: the ``put`` of a fresh one compares the two. ``InvalidInputError`` for arguments that cannot be used.
        """
        return self.lookup_many([question], scope=scope, documents=documents)[0]

    def lookup_many(self, questions: Sequence[str], *, scope: Scope,
                    documents: Documents = ()) -> list[CacheHit | None]:
        """Look several questions of one scope up with one query."""
        self._check_open()
        asked = [self._keys.asked(question, scope, documents) for question in questions]
        looks = [look.withheld() for look in self._look(asked)]
        for look in looks:
            self._remember(look)
        return [self._hit(look) for look in looks]

    def put(self, question: str, answer: Any, *, scope: Scope, documents: Documents = (),
            ttl: float | timedelta | None = None, cost: float | None = None, seconds: float = 0.0,
            since: int | None = None, judge: Callable[[Any, Any], bool] | None = None) -> str | None:
        """Keep an answer, durably when this returns, and return its entry's id.

        None if it is not kept: one of its documents, its scope or the namespace was invalidated since ``since`` (a
        ``moment()``; without it, since this object looked the question up in vain), or a document is known to have
        another version, or the answer alone is larger than ``max_bytes``. ``ttl`` in seconds beats the settings.
        ``cost`` and ``seconds`` are what computing it took. After a ``lookup`` in vain ``judge(cached, fresh) -> bool``
        compares the answer that came nearest to being returned with this one, as in ``get_or_compute``.
        Raises ``InvalidInputError`` for what cannot be an answer, ``StoreError`` when it cannot be stored.
        """
        self._check_open()
        judged = self._checked(as_judge(judge))
        asked = self._keys.asked(question, scope, documents)
        with self._lock:
            missed = self._missed.pop(asked.key, None)
        mark = since if since is not None or missed is None else missed.mark
        self._erase_old()
        entry_id, _ = self._keeping.put(asked, answer, mark=mark, ttl=ttl, cost=cost, seconds=seconds)
        if missed is not None:
            self._judging.compare(missed, judged, answer)
        return entry_id

    def get_or_compute(self, question: str, compute: Compute, *, scope: Scope, documents: Documents = (),
                       judge: Callable[[Any, Any], bool] | None = None, ttl: float | timedelta | None = None) -> Any:
        """Return the cached answer, or compute it once for all who ask the same meanwhile, in any thread or process.

        A ``compute`` that finds the documents itself returns ``Sourced(answer, documents)``, which binds the answer.
        A failed computation is raised to all who waited for it (in other processes as ``ComputationError``) and nothing
        is kept. ``judge(cached, fresh) -> bool`` compares answers where the semantic tier asks for it. A store that
        fails costs hits, never the answer.
        """
        self._check_open()
        asked = self._keys.asked(question, scope, documents)
        judged = self._checked(as_judge(judge))
        while True:
            (look,) = self._look([asked])
            keep = partial(self._keep, look, judged, ttl)
            if look.answer is None and look.stale is not None:
                self._refresh(asked, compute, keep)
                return self._served(look, look.stale, "stale").value
            hit = self._hit(look)
            if hit is not None:
                self._judging.audit(look, hit, compute, judged, keep)
                return hit.value
            outcome = self._computing.run(asked, compute, keep)
            if not outcome.again:
                return outcome.value()

    def moment(self) -> int | None:
        """Return a moment for ``put(since=...)``: take it before the answer is begun. None if the store fails."""
        self._check_open()
        try:
            return self._store.answers_mark()
        except StoreError as error:
            self._counts.without("store", error)
            return None

    def report(self, hit_id: str, correct: bool) -> None:
        """Say whether a served answer was right; a wrong one is removed for good. Durable when this returns.

        Raises ``UnknownHitError`` for a hit that is not known here, ``StoreError`` when it could not be stored.
        """
        self._check_open()
        served = self._recorder.served(hit_id) or self._store.served_answer(hit_id, namespace=self._namespace)
        if served is None:
            raise UnknownHitError(f"no hit {hit_id!r} in namespace {self._namespace!r} of {self.url}")
        event = AnswerJudged(
            judged_id=f"report-{hit_id}", entry_id=served.entry_id, namespace=self._namespace, at=self._clock(),
            scope=served.scope, correct=bool(correct), source="report", score=served.score, features=served.features,
            propensity=served.propensity, hit_id=hit_id,
        )
        self._recorder.tell(event, withdraw=() if correct else (served.entry_id,))
        self._counts.add("judged")
        if not correct:
            self._exact.forget()
            self._semantic.forget({served.entry_id})
            self._counts.add("reported_wrong")

    def invalidate(self, *, documents: Iterable[str | DocumentVersion] | None = None,
                   scope: Scope | None = None, older_than: float | timedelta | None = None) -> int:
        """Remove answers, here and for every process, and return how many; what is being computed is not put back.

        Exactly one of: ``documents``, each as an id (it went, or changed somehow) or as a pair of id and new content
        hash (answers made from that very version stay, others are refused from now on); ``scope``; ``older_than``, an
        age in seconds.
        """
        self._check_open()
        given = [name for name, value in (("documents", documents), ("scope", scope), ("older_than", older_than))
                 if value is not None]
        if len(given) != 1:
            raise InvalidInputError("invalidate needs exactly one of documents, scope and older_than, got "
                                    f"{' and '.join(given) or 'none'}")
        return self._remove(Removal(
            self._namespace,
            documents=None if documents is None else _versions(documents),
            scope=None if scope is None else self._keys.scope(scope),
            older_than=None if older_than is None else self._clock() - _seconds(older_than),
        ))

    def clear(self) -> int:
        """Remove all answers of the namespace and return how many there were."""
        self._check_open()
        return self._remove(Removal(self._namespace))

    # starting certified

    def calibrate(self, records: Iterable[Record], *, scope: Scope | None = None, put: bool = True,
                  judge: Callable[[Any, Any], bool] | None = None, ttl: float | timedelta | None = None,
                  progress: Callable[[int, int], object] | None = None) -> CalibrationReport:
        """Certify as far as a log of questions and answers proves, so that similar questions are answered at once.

        ``records`` are mappings with ``question``, ``answer`` and perhaps ``scope`` and ``documents``, or (question,
        answer) pairs, in the order in which they were asked; ``scope`` is for those that name none. Each
        question is asked of the lines before it: whether the best answer found there would have been right tests the
        rules as they are at that time, and then teaches (see ``proof``). Give it questions that this cache has not been
        asked: what it has learned from must not test it. Lines up to the last one that an earlier calibration of this
        namespace used only fill, so a log that grew can be given again. ``judge(cached, fresh)`` is to be the one that
        the cache is used with; it is asked once for a question.

        What is certified, at ``confidence``, is what tests online certify: it is refuted that the chance of being
        wrong, among the answers that the rule would have reused, was ``max_error`` or more at every line of the log,
        each line met by the rule as the lines before it had made it. That assumes nothing of the log's order and holds
        for logs of any length. That what is asked from now on is like the log (exchangeable with it) is assumed, and
        watched: audits go on, an alarm withdraws. If similar questions began to have other answers within the log,
        nothing of it is certified.

        All that is learned goes to the store's log in one step: every process on the store starts certified, at once
        and after a restart. It spends the next share of alpha (``certificate.share_of_alpha``; .57 of all in a new
        namespace), so that all certifications together keep the confidence. With ``put`` the answers are put into the
        cache too, the latest for each question, to live ``ttl`` seconds or as the settings say: without them the cache
        is certified and empty. What an alarm quarantined stays there; what is put now is new.

        Raises ``InvalidInputError`` for arguments that cannot be used, before anything is stored, ``EncoderError`` and
        ``StoreError``. O(n^2 d) beside encoder and judge.
        """
        self._check_open()
        if not self._semantic.active:
            raise InvalidInputError("there is nothing to certify: CacheSettings.semantic is off")
        judged = self._checked(as_judge(judge))
        lifetime = None if ttl is None else checked_ttl(ttl)
        lines = checked_lines(records, keys=self._keys, scope=scope)
        if put:
            check_scopes(lines)
        prepared = self._calibrating.prepare(lines)
        self._recorder.flush()
        found, known = self._calibrating.run(prepared, judged, progress=progress)
        stored = self._keeping.put_all(lines, prepared, lifetime) if put else 0
        self._semantic.save_snapshot()
        return report_of(prepared, found, known=known, judge=judged, stored=stored, namespace=self._namespace,
                         certificate=self.certificate())

    # the same, without blocking the event loop

    async def alookup(self, question: str, *, scope: Scope, documents: Documents = ()) -> CacheHit | None:
        """Do what ``lookup`` does."""
        return await self._threads.quickly(self.lookup, question, scope=scope, documents=documents)

    async def alookup_many(self, questions: Sequence[str], *, scope: Scope,
                           documents: Documents = ()) -> list[CacheHit | None]:
        """Do what ``lookup_many`` does."""
        return await self._threads.quickly(self.lookup_many, questions, scope=scope, documents=documents)

    async def aput(self, question: str, answer: Any, *, scope: Scope, documents: Documents = (),
                   ttl: float | timedelta | None = None, cost: float | None = None, seconds: float = 0.0,
                   since: int | None = None, judge: Callable[[Any, Any], bool] | None = None) -> str | None:
        """Do what ``put`` does."""
        return await self._threads.quickly(self.put, question, answer, scope=scope, documents=documents, ttl=ttl,
                                           cost=cost, seconds=seconds, since=since, judge=judge)

    async def aget_or_compute(self, question: str, compute: AnyCompute, *, scope: Scope, documents: Documents = (),
                              judge: Callable[[Any, Any], bool] | None = None,
                              ttl: float | timedelta | None = None) -> Any:
        """Do what ``get_or_compute`` does; ``compute`` may be a coroutine function, others run in a thread."""
        self._check_open()
        asked = self._keys.asked(question, scope, documents)
        judged = self._checked(as_judge(judge))
        while True:
            (look,) = await self._threads.quickly(self._look, [asked])
            keep = partial(self._keep, look, judged, ttl)
            if look.answer is None and look.stale is not None:
                self._arefresh(asked, compute, keep)
                return self._served(look, look.stale, "stale").value
            hit = self._hit(look)
            if hit is not None:
                self._judging.aaudit(look, hit, compute, judged, keep)
                return hit.value
            outcome = await self._computing.arun(asked, compute, keep)
            if not outcome.again:
                return outcome.value()

    async def acalibrate(self, records: Iterable[Record], *, scope: Scope | None = None, put: bool = True,
                         judge: Callable[[Any, Any], bool] | None = None, ttl: float | timedelta | None = None,
                         progress: Callable[[int, int], object] | None = None) -> CalibrationReport:
        """Do what ``calibrate`` does; ``judge`` and ``progress`` are called in a thread."""
        return await self._threads.slowly(self.calibrate, records, scope=scope, put=put, judge=judge, ttl=ttl,
                                          progress=progress)

    async def areport(self, hit_id: str, correct: bool) -> None:
        """Do what ``report`` does."""
        await self._threads.quickly(self.report, hit_id, correct)

    async def ainvalidate(self, *, documents: Iterable[str | DocumentVersion] | None = None,
                          scope: Scope | None = None, older_than: float | timedelta | None = None) -> int:
        """Do what ``invalidate`` does."""
        return await self._threads.quickly(self.invalidate, documents=documents, scope=scope, older_than=older_than)

    async def aclear(self) -> int:
        """Do what ``clear`` does."""
        return await self._threads.quickly(self.clear)

    # looking and leaving

    def certificate(self) -> Any:
        """Return what is known of the error of the answers served; ``str()`` of it is for people."""
        self._check_open()
        if not self._semantic.active:
            return self._semantic.certificate(reused=0)
        written = self._totals.read().served.get("semantic", 0)
        return self._semantic.certificate(reused=written + self._recorder.unwritten("semantic"))

    def explain(self, question: str, scope: Scope, *, documents: Documents = ()) -> Explanation:
        """Say why a question would be answered from the cache now, or would not. Counts and records nothing."""
        self._check_open()
        asked, now = self._keys.asked(question, scope, documents), self._clock()
        (look,) = self._looks.everywhere([asked], now=now, coins=[1.0], shows=True)
        near = look.found.near[0] if look.found is not None and look.found.near else None
        told = tuple(each for each in look.proposal.reasons if each != look.reason)
        reasons = (look.reason, *told) if look.answer is None else (
            "the same question was asked in this scope" if not look.is_semantic else "a similar question was asked",)
        return Explanation(
            question=asked.question, hit=look.answer is not None,
            kind=None if look.answer is None else ("semantic" if look.is_semantic else "exact"),
            reasons=reasons if look.answer is not None or self._semantic.active else (*reasons, self.certificate()),
            nearest=None if near is None else near.cached.question,
            similarity=None if near is None else near.similarity,
            score=None if look.found is None or look.proposal.candidate is None else look.proposal.score,
            age_seconds=None if look.answer is None else now - look.answer.created_at,
            features=None if look.found is None else look.proposal.features,
        )

    def stats(self) -> CacheStats:
        """Return the counts of this object, and what the log holds of all processes."""
        number = self._counts.number
        logged, certificate = self._of_all_processes()
        return CacheStats(
            store=self.url, namespace=self._namespace, exact_hits=number("exact"), semantic_hits=number("semantic"),
            stale_hits=number("stale"), misses=self._counts.misses(), stored=number("stored"),
            refused=number("refused"), computed=number("computed"), shared=number("shared"), failed=number("failed"),
            judged=number("judged"), audits_failed=number("audits_failed"), left_undone=number("left_undone"),
            reported_wrong=number("reported_wrong"),
            seconds_saved=self._counts.seconds_saved, cost_saved=self._counts.cost_saved,
            degraded=self._counts.degraded(), recorder=self._recorder.stats(), logged=logged, certificate=certificate,
        )

    def _of_all_processes(self) -> tuple[AnswerTotals | None, Certificate | str | None]:
        try:
            return self._totals.read(), self.certificate()
        except StoreError as error:
            self._counts.without("store", error)
            return None, None

    def flush(self) -> None:
        """Write what waits to be recorded; ``StoreError`` if that fails."""
        self._recorder.flush()

    def close(self) -> None:
        """Let what runs in the background finish (for a few seconds), flush, and close the store if it was opened here.

        ``StoreError`` when the rest cannot be written: closing can be tried again.
        """
        if self._closed:
            return
        self._background.close(_PATIENCE_SECONDS)
        self._recorder.close()
        self._closed = True
        self._threads.close()
        self._semantic.close()
        try:
            self._semantic.save_snapshot()
        except StoreError as error:
            self._counts.without("store", error)  # the labels are written: the next process folds them
        finally:
            if self._owns_store:
                self._close_store()

    def __enter__(self) -> SemanticCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError("the cache is closed")

    def _checked(self, judge: Judge) -> Judge:
        if self._settings.semantic and judge.error_rate > self._settings.judge_error:
            raise InvalidInputError(
                f"the judge {judge.name!r} says that it passes {judge.error_rate:.4g} of the wrong answers, but "
                f"CacheSettings.judge_error is {self._settings.judge_error:.4g}: the certificate would promise too much"
            )
        return judge

    def _look(self, asked: Sequence[Asked]) -> list[Look]:
        with self._lock:
            coins = self._coins.random(len(asked)).tolist()
        return self._looks.everywhere(asked, now=self._clock(), coins=coins)

    def _hit(self, look: Look) -> CacheHit | None:
        """Return the hit to hand out, counted and noted; a miss is counted."""
        if look.answer is None:
            self._counts.miss(look.reason)
            self._recorder.note(AnswerMissed(os.urandom(12).hex(), self._namespace, self._clock(), look.asked.scope,
                                             look.reason))
            return None
        return self._served(look, look.answer, "semantic" if look.is_semantic else "exact")

    def _served(self, look: Look, answer: CachedAnswer, counted_as: str) -> CacheHit:
        hit_id, now = os.urandom(12).hex(), self._clock()
        kind: Literal["exact", "semantic"] = "semantic" if look.is_semantic else "exact"
        proposal = look.proposal if look.is_semantic else Proposal(score=1.0, propensity=0.0)
        self._recorder.note(AnswerServed(hit_id, answer.entry_id, self._namespace, now, answer.scope, kind,
                                         proposal.score, proposal.features, proposal.propensity, answer.cost,
                                         answer.seconds))
        self._counts.hit(counted_as, seconds=answer.seconds, cost=answer.cost)
        return CacheHit(hit_id, kind, values.value_of(answer), answer.question, proposal.score)

    def _remember(self, look: Look) -> None:
        """Remember when a question was found missing, for the put that may follow: it must not come too late."""
        if look.mark is None or look.answer is not None:
            return
        with self._lock:
            # the earlier look counts: nobody knows which of them the put will be for
            self._missed.setdefault(look.asked.key, look)
            while len(self._missed) > _MISSED:
                self._missed.popitem(last=False)

    # keeping answers

    def _keep(self, first: Look, judge: Judge, ttl: float | timedelta | None, look: Look, answer: Any,
              seconds: float) -> Kept:
        """Keep what was computed. ``first`` is the look that missed, ``look`` the one right before the computation."""
        asked = look.asked
        if isinstance(answer, Sourced):
            asked, answer = replace(asked, documents=checked_documents(answer.documents)), answer.value
        outcome = outcome_of(answer)
        self._judging.compare(first, judge, answer)
        if look.mark is None:
            return Kept(outcome, outcome)
        self._erase_old()
        try:
            _, late = self._keeping.put(asked, answer, mark=look.mark, ttl=ttl, cost=None, seconds=seconds)
        except StoreError as error:
            self._counts.without("store", error)
            late = False
        # somebody who asked after a document changed may be waiting for what was made before it
        return Kept(outcome, Outcome() if late else outcome)

    def _remove(self, what: Removal) -> int:
        newest = self._semantic.newest  # what is put from now on may be another answer
        removed = self._store.remove_answers(what)
        self._exact.forget()
        self._semantic.remove(what, until=newest)
        return removed

    def _erase_old(self) -> None:
        """Erase what is older than the store's retention, now and then, beside whoever puts an answer."""
        old = self._retention.due(self._clock())
        if old is not None:
            self._background.do(partial(self._log.erase, old))

    # what is done after the answer was given

    def _refresh(self, asked: Asked, compute: Compute, keep: Keep) -> None:
        if not self._computing.is_under_way(asked):
            self._background.do(lambda: self._computing.run(asked, compute, keep))

    def _arefresh(self, asked: Asked, compute: AnyCompute, keep: Keep) -> None:
        if not self._computing.is_under_way(asked):
            self._background.ado(self._computing.arun(asked, compute, keep))

    def _restart_after_fork(self) -> None:
        self._lock = threading.Lock()
        self._coins = np.random.default_rng(None if self._seed is None else [self._seed, os.getpid()])
        for part in (self._counts, self._recorder, self._exact, self._semantic, self._computing, self._threads,
                     self._background, self._totals, self._retention):
            part.restart_after_fork()


def _answer_store(store: TelemetryStore) -> AnswerStore:
    if not isinstance(store, AnswerStore):
        raise InvalidInputError(
            f"{type(store).__name__} ({store.url}) keeps no answers: it has to be a "
            "neuralcache_plugins.contracts.AnswerStore as well; SQLite and memory stores are"
        )
    return store


def _versions(documents: Iterable[str | DocumentVersion]) -> dict[str, str | None]:
    if isinstance(documents, str):
        raise InvalidInputError("documents must be ids or (id, content hash) pairs, got a str")
    found: dict[str, str | None] = {}
    for each in documents:
        if isinstance(each, str):
            found[each] = None
            continue
        try:
            ((name, version),) = checked_documents([each])
        except InvalidInputError:
            raise InvalidInputError(f"a document must be an id or an (id, content hash) pair, got {each!r}") from None
        found[name] = version
    return found


def _seconds(duration: float | timedelta) -> float:
    return duration.total_seconds() if isinstance(duration, timedelta) else float(duration)


_ALIVE: weakref.WeakSet[SemanticCache] = weakref.WeakSet()


def _restart_after_fork() -> None:
    for cache in list(_ALIVE):
        cache._restart_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restart_after_fork)
