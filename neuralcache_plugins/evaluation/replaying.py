"""``replay``: the user's own log through other settings, or through another ranker."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from neuralcache_plugins.contracts import FeedbackGiven, RankingServed, Recorded, TelemetryStore
from neuralcache_plugins.core.trust import log_softmax
from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.evaluation.counterfactual import Counterfactual, counterfactual
from neuralcache_plugins.evaluation.replayed import ORDERS, Learned, Replay
from neuralcache_plugins.evaluation.rescoring import (
    LoggedRanker,
    Refold,
    Scores,
    events_of,
    logged_log_probabilities,
    not_replayed,
    ranker_of,
)
from neuralcache_plugins.evaluation.retrieval import Progress
from neuralcache_plugins.evaluation.uncertainty import Array, Bootstrap
from neuralcache_plugins.evaluation.verdicts import said
from neuralcache_plugins.settings import RerankSettings
from neuralcache_plugins.stores import open_store

METRICS = ("RR", "first", "log-loss")


def replay(
    store: TelemetryStore | str | None = None,
    *,
    settings: RerankSettings | None = None,
    ranker: LoggedRanker | Callable[[RankingServed], Scores] | None = None,
    namespace: str | Sequence[str] | None = None,
    logged_with: RerankSettings | None = None,
    confidence: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Replay:
    """Go through the log once more: score every ranking before its feedback is folded, and compare the orders.

    ``settings`` (None: the environment's) fold and order as the live reranker would, among the documents that were
    shown; or ``ranker`` is any callable from a ``RankingServed`` to one number per shown document, with ``learn`` where
    it learns. ``namespace`` is one, several or all (None). ``logged_with`` are the settings that the log was made with
    (None: the environment's); they matter only where the weights of the cold order differ. Nothing is written.

    The metrics are over rankings whose feedback tells an order, that is, rewards some shown documents and not all:
    the reciprocal rank of the first rewarded document, how often it stood first, and the log-loss, each for the order
    that was logged, the cold order and the replayed one. Bootstrap intervals draw questions, not rankings. Where
    exploration was recorded there are counterfactual estimates as well. ``Replay.claims`` and ``Replay.warnings`` say
    in words what the data support and what they cannot.
    """
    bootstrap = Bootstrap(confidence, resamples, seed)
    if settings is not None and ranker is not None:
        raise InvalidInputError("replay takes settings or a ranker, not both")
    current = logged_with or RerankSettings()
    chosen = settings or RerankSettings()
    refold = Refold(chosen, logged_with=current)
    scorer: LoggedRanker = refold if ranker is None else ranker_of(ranker)
    with opened_for_reading(store) as source:
        names = namespaces_of(source, namespace)
        head = source.head().position
        rows, counts = walk(events_of(source, names, upto=head), scorer, progress=progress, upto=head)
    how = "another ranker" if ranker is not None else _changes(chosen, current)
    draft = _result([row for row in rows if row.graded], names=names, counts=counts, how=how, bootstrap=bootstrap)
    learned = {} if ranker is not None else {name: Learned.of(state) for name, state in refold.states.items()}
    draft = dataclasses.replace(draft, counterfactual=_explored(rows, bootstrap), learned=learned)
    return said(draft, rows=rows, counts=counts, refold=refold if ranker is None else None,
                ignored=not_replayed(chosen, current))


def _result(
    graded: Sequence[Row], *, names: tuple[str, ...], counts: Counts, how: str, bootstrap: Bootstrap
) -> Replay:
    each = [row.values for row in graded]
    values = {metric: np.array([one[metric] for one in each]).reshape(-1, len(ORDERS)) for metric in METRICS}
    clusters = tuple(row.question for row in graded)
    means = {
        order: {metric: bootstrap.mean(values[metric][:, at], clusters) for metric in METRICS}
        for at, order in enumerate(ORDERS)
    }
    gains = {
        f"over {order}": {
            metric: bootstrap.mean(improvement(values[metric], metric, at), clusters) for metric in METRICS
        }
        for at, order in enumerate(ORDERS[:2])
    }
    return Replay(
        namespaces=names, rankings=counts.rankings, feedback=counts.feedback, replayed=how,
        positions=np.array([row.position for row in graded], dtype=np.int64),
        ranking_ids=tuple(row.ranking_id for row in graded), of_namespace=tuple(row.namespace for row in graded),
        clusters=clusters, values=values, means=means, gains=gains, counterfactual=None, learned={},
    )


@dataclass(slots=True)
class Row:
    """One logged ranking with its rescored order; rewards come later, if at all."""

    position: int
    namespace: str
    ranking_id: str
    question: str
    ids: tuple[str, ...]
    candidates: int
    propensity: float
    orders: tuple[Array, Array, Array]
    """Log-probabilities (k,) as logged, cold and replayed."""
    rewards: dict[str, float] = field(default_factory=dict)

    @property
    def helped(self) -> Array:
        """Return the positive part of the rewards, shape (k,)."""
        return np.array([max(0.0, self.rewards.get(name, 0.0)) for name in self.ids])

    @property
    def graded(self) -> bool:
        """Return whether the feedback prefers some shown documents to others."""
        helped = self.helped > 0
        return bool(helped.any() and not helped.all())

    @property
    def values(self) -> dict[str, tuple[float, float, float]]:
        """Return each metric for the logged, the cold and the replayed order."""
        helped = self.helped
        ranks = [_first_rank(np.arange(len(helped), 0.0, -1.0), helped)]
        ranks += [_first_rank(order, helped) for order in self.orders[1:]]
        target = helped / helped.sum()
        return {
            "RR": (1.0 / ranks[0], 1.0 / ranks[1], 1.0 / ranks[2]),
            "first": (float(ranks[0] == 1), float(ranks[1] == 1), float(ranks[2] == 1)),
            "log-loss": (_loss(self.orders[0], target), _loss(self.orders[1], target), _loss(self.orders[2], target)),
        }


@dataclass(slots=True)
class Counts:
    """What went by."""

    rankings: int = 0
    feedback: int = 0
    without_vector: int = 0


def walk(
    events: Iterable[Recorded], ranker: LoggedRanker, *, progress: Progress | None = None, upto: int = 0
) -> tuple[list[Row], Counts]:
    """Score every ranking with what ``ranker`` knew before it, let it learn, and attach the feedback as it comes.

    Rankings that neither got feedback nor were explored are dropped. The last word on a document counts.
    """
    rows: dict[tuple[str, str], Row] = {}
    counts = Counts()
    for recorded in events:
        event = recorded.event
        if isinstance(event, RankingServed):
            counts.rankings += 1
            counts.without_vector += event.query_vector is None
            rows[event.namespace, event.ranking_id] = _row(recorded.position, event, ranker)
        elif (row := rows.get((event.namespace, event.ranking_id))) is not None:
            counts.feedback += 1
            row.rewards.update(_known(event, row))
        ranker.learn(recorded)
        if progress is not None:
            progress(recorded.position, max(upto, recorded.position))
    return [row for row in rows.values() if row.rewards or row.propensity < 1.0], counts


def improvement(values: Array, metric: str, over: int) -> Array:
    """Return how much better the replayed order did than order ``over``, per ranking, shape (n,); more is better."""
    difference: Array = values[:, 2] - values[:, over]
    return -difference if metric == "log-loss" else difference


@contextmanager
def opened_for_reading(store: TelemetryStore | str | None) -> Iterator[TelemetryStore]:
    """Open a URL for the length of a ``with``; a store stays its owner's to close."""
    opened = open_store(store)
    try:
        yield opened
    finally:
        if opened is not store:
            opened.close()


def namespaces_of(store: TelemetryStore, namespace: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the namespaces meant; ``InvalidInputError`` for one that the log does not have."""
    known = store.namespaces()
    if namespace is None:
        return tuple(known)
    wanted = (namespace,) if isinstance(namespace, str) else tuple(dict.fromkeys(namespace))
    if missing := [name for name in wanted if name not in known]:
        raise InvalidInputError(
            f"{store.url} has no namespace {missing[0]!r}; it has: {', '.join(map(repr, known)) or 'none'}")
    return wanted


def _row(position: int, event: RankingServed, ranker: LoggedRanker) -> Row:
    scores = np.asarray(ranker.score(event), dtype=np.float64)
    if scores.shape != (len(event.document_ids),) or not np.isfinite(scores).all():
        raise InvalidInputError(
            f"the ranker must give one finite number per shown document: {len(event.document_ids)} were shown in "
            f"{event.ranking_id}, got shape {scores.shape}"
        )
    orders = logged_log_probabilities(event), log_softmax(np.array(event.cold, dtype=np.float64)), log_softmax(scores)
    # without exploration every propensity is 1; of a single candidate it says nothing
    propensity = event.propensities[0] if event.propensities and event.candidates > 1 else 1.0
    return Row(position, event.namespace, event.ranking_id, f"{event.namespace}\0{event.query_key}",
               event.document_ids, event.candidates, propensity, orders)


def _known(event: FeedbackGiven, row: Row) -> dict[str, float]:
    return {name: reward for name, reward in event.rewards if name in row.ids}


def _first_rank(order: Array, helped: Array) -> int:
    """Return the rank, from 1, of the first rewarded document; ties keep the order shown."""
    ranked = np.argsort(-order, kind="stable")
    return int(np.flatnonzero(helped[ranked] > 0)[0]) + 1


def _loss(order: Array, target: Array) -> float:
    return -float(target @ order)


def _explored(rows: Sequence[Row], bootstrap: Bootstrap) -> Counterfactual | None:
    explored = [row for row in rows if row.propensity < 1.0]
    if not explored:
        return None
    chosen = [int(np.argmax(row.orders[2])) for row in explored]
    return counterfactual(
        np.array([row.rewards.get(row.ids[0], 0.0) for row in explored]),
        np.array([row.propensity for row in explored]),
        np.array([place == 0 for place in chosen]),
        np.array([_features(row, 0) for row in explored]),
        np.array([_features(row, place) for row, place in zip(explored, chosen, strict=True)]),
        clusters=[row.question for row in explored], bootstrap=bootstrap,
    )


def _features(row: Row, place: int) -> list[float]:
    """Describe one document to the model of the reward: what both orders think of it, known before any feedback."""
    return [float(np.exp(order[place])) for order in row.orders[1:]]


def _changes(settings: RerankSettings, current: RerankSettings) -> str:
    changed: Mapping[str, Any] = {
        name: value for name, value in settings.model_dump().items()
        if value != getattr(current, name) and name not in not_replayed(settings, current)
    }
    return ", ".join(f"{name} {value}" for name, value in changed.items()) or "the same settings"
