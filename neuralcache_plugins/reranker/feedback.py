"""The way of feedback: find the ranking that it is about, check it, make it durable.

Anybody may erase meanwhile. So feedback names the epoch in which its ranking was found, and the store refuses it once
that is over; then the ranking is looked for again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from numbers import Real
from typing import Any, NamedTuple

from neuralcache_plugins.contracts import Erasure, FeedbackGiven, Ranking, RankingServed, TelemetryStore
from neuralcache_plugins.core.credit import checked_shares, shared
from neuralcache_plugins.errors import ErasedMeanwhileError, InvalidInputError, StoreBusyError, UnknownRankingError
from neuralcache_plugins.memory import Memory
from neuralcache_plugins.reranker import border
from neuralcache_plugins.reranker.shown import RankingIds, SessionWords, ShownVectors
from neuralcache_plugins.telemetry import Recorder

ATTEMPTS = 3

TRACED = 16
"""A judgement about a trace concerns its newest rankings, so many at most."""


class Telling(NamedTuple):
    """One feedback, as the caller gave it; ``explicit`` tells whether the namespace was named."""

    ranking: Any
    query: Any
    namespace: str
    explicit: bool
    source: Any
    feedback_id: Any
    helpful: Any = ()
    unhelpful: Any = ()
    rewards: Any = None


Shares = Callable[[RankingServed], Mapping[str, float] | None]
"""Returns how far each document of a ranking went into the answer; None where nobody knows."""


class FeedbackStage:
    """Turns what a caller says about a ranking into one durable event."""

    def __init__(
        self,
        store: TelemetryStore,
        recorder: Recorder,
        *,
        ids: RankingIds,
        shown: ShownVectors,
        key: Callable[[str], str],
        memory: Memory,
        words: SessionWords,
    ) -> None:
        self._memory = memory
        self._store = store
        self._recorder = recorder
        self._ids = ids
        self._shown = shown
        self._words = words
        self._key = key

    def tell_all(self, tellings: Sequence[Telling], *, now: float) -> list[str]:
        """Store feedback with one append, all or none, and return the ids in order; ``StoreError`` if none was."""
        for one in tellings:
            border.check_name("source", one.source)
            border.check_name("feedback_id", one.feedback_id, optional=True)
            check_meant(one.ranking, one.query)
        named = [(one, one.feedback_id or self._ids.new(now)) for one in tellings]
        for _ in range(ATTEMPTS):
            epoch = self._memory.known_epoch or self._memory.epoch()
            events = [self._event(one, name, epoch, now) for one, name in named]
            try:
                self._recorder.told_all(events, epoch=epoch)
            except ErasedMeanwhileError:
                self._memory.epoch()  # look again: a ranking, or what it showed, may be gone
            else:
                for event in events:
                    self._words.follow(event)
                return [name for _, name in named]
        raise StoreBusyError(f"{self._store.url}: others erased whenever feedback was to be stored; try again later")

    def _event(self, one: Telling, name: str, epoch: int, now: float) -> FeedbackGiven:
        served = self._find(one.ranking, one.query, one.namespace, explicit=one.explicit, epoch=epoch)
        given = border.rewards(served, helpful=one.helpful, unhelpful=one.unhelpful, rewards=one.rewards)
        vector = self._shown.helpful(served, given)
        return FeedbackGiven(name, served.ranking_id, served.namespace, now, one.source, given, served, vector)

    def judge(
        self,
        traces: Any,
        value: Any,
        namespace: str,
        *,
        source: str,
        feedback_id: str | None,
        used: Mapping[str, float] | None,
        seen: Shares,
        now: float,
    ) -> list[str]:
        """Store what an answer was worth as feedback on the rankings of a trace; see ``Reranker.judge``."""
        worth = checked_value(value)
        if not isinstance(traces, Sequence) or not traces or not all(isinstance(one, str) and one for one in traces):
            raise InvalidInputError(f"trace must be one or more non-empty str, got {traces!r}")
        used = checked_shares(used)
        rankings = self._traced(traces, namespace)
        feedback_id = feedback_id or self._ids.new(now)
        tellings = []
        for ranking in rankings:
            known = seen(ranking) if used is None else None
            # what an answer used tells the rankings apart too; else nothing does
            rewards = shared(ranking.document_ids, worth / len(rankings) if known is None else worth,
                             used=used if known is None else known)
            if rewards:
                tellings.append(Telling(ranking.ranking_id, None, namespace, True, source,
                                        f"{feedback_id}:{ranking.ranking_id}", rewards=rewards))
        return self.tell_all(tellings, now=now) if tellings else []

    def _traced(self, traces: Sequence[str], namespace: str) -> list[RankingServed]:
        self._recorder.flush()
        for trace in traces:
            found = self._store.traced_rankings(trace, namespace=namespace, limit=TRACED)
            if found:
                return [one for one in found if trace in (one.run_id, one.span_id)] or found
        raise UnknownRankingError(f"no ranking of {' or '.join(map(repr, traces))} in namespace {namespace!r} of "
                                  f"{self._store.url}")

    def find(self, ranking: Any, namespace: str, explicit: bool, query: Any = None) -> RankingServed:
        """Return the ranking that is meant; ``UnknownRankingError`` if there is none."""
        check_meant(ranking, query)
        epoch = self._memory.known_epoch or self._memory.epoch()
        return self._find(ranking, query, namespace, explicit=explicit, epoch=epoch)

    def _find(self, ranking: Any, query: Any, namespace: str, *, explicit: bool, epoch: int) -> RankingServed:
        if isinstance(ranking, Ranking):
            return self._in_hand(ranking, namespace if explicit else ranking.namespace, epoch=epoch)
        if isinstance(ranking, str):
            found = self._recorder.recent(ranking, namespace) or self._store.ranking(ranking, namespace=namespace)
            if found is None:
                raise UnknownRankingError(f"no ranking {ranking!r} in namespace {namespace!r} of {self._store.url}")
            return found
        if not isinstance(query, str):
            what = type(query if ranking is None else ranking).__name__
            raise InvalidInputError(f"ranking must be a Ranking or its id, and query a str; got {what}")
        key = self._key(border.canonical(query))
        found = self._recorder.latest_pending(key, namespace) or self._store.latest_ranking(key, namespace=namespace)
        if found is None:
            raise UnknownRankingError(f"no ranking of this question in namespace {namespace!r} of {self._store.url}")
        return found

    def _in_hand(self, ranking: Ranking, namespace: str, *, epoch: int) -> RankingServed:
        if ranking.served is None:
            raise UnknownRankingError("an empty ranking showed nothing, so nothing can have helped")
        if ranking.namespace != namespace:
            raise UnknownRankingError(
                f"ranking {ranking.ranking_id} is of namespace {ranking.namespace!r}, not {namespace!r}"
            )
        if ranking.epoch == epoch:
            return self._recorder.recent(ranking.ranking_id, namespace) or ranking.served
        left = self._recorder.pending(ranking.ranking_id, namespace) or self._store.ranking(
            ranking.ranking_id, namespace=namespace
        )
        if left is None:
            raise UnknownRankingError(f"ranking {ranking.ranking_id} has been erased")
        return left


def checked_value(value: Any) -> float:
    """Return what an answer was worth; ``InvalidInputError`` unless that is in [-1, 1]."""
    if isinstance(value, bool) or not isinstance(value, Real) or not -1.0 <= float(value) <= 1.0:
        raise InvalidInputError(f"value must be a number in [-1, 1], got {value!r}")
    return float(value)


def check_meant(ranking: Any, query: Any) -> None:
    """Raise ``InvalidInputError`` unless feedback names its ranking in one way."""
    if (ranking is None) == (query is None):
        raise InvalidInputError("feedback needs a ranking (or its id), or the query that was asked; one of them")


def erasure(
    *,
    namespace: str | None,
    document_ids: Any,
    session: str | None,
    older_than: float | timedelta | datetime | None,
    default_namespace: str,
    now: float,
) -> Erasure:
    """Return what ``Reranker.forget`` was asked to erase; ``InvalidInputError`` when it was asked nothing."""
    if namespace is None and document_ids is None and session is None and older_than is None:
        raise InvalidInputError("forget needs namespace, document_ids, session or older_than")
    if isinstance(document_ids, str):
        document_ids = [document_ids]
    if document_ids is not None:
        document_ids = list(document_ids)
        if not document_ids or not all(isinstance(one, str) for one in document_ids):
            raise InvalidInputError(f"document_ids must be one or more str, got {document_ids!r}")
    return Erasure(
        namespace=default_namespace if namespace is None else namespace,
        document_ids=None if document_ids is None else tuple(document_ids),
        session=session,
        older_than=None if older_than is None else _moment(older_than, now=now),
    )


def _moment(older_than: Any, *, now: float) -> float:
    if isinstance(older_than, datetime):
        if older_than.tzinfo is None:
            raise InvalidInputError("older_than must be an aware datetime, got one without a time zone")
        return older_than.timestamp()
    if isinstance(older_than, bool) or not isinstance(older_than, (timedelta, Real)):
        raise InvalidInputError(f"older_than must be seconds, a timedelta or a datetime, got {older_than!r}")
    age = older_than.total_seconds() if isinstance(older_than, timedelta) else float(older_than)
    if not age >= 0:
        raise InvalidInputError(f"older_than must not be negative, got {older_than!r}")
    return now - age
