"""``simulate``: a stream of questions through a fresh reranker, with simulated people."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from neuralcache_plugins.contracts import Ranking
from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.evaluation.curves import Simulation
from neuralcache_plugins.evaluation.feedback_model import FeedbackModel, nearest_swaps
from neuralcache_plugins.evaluation.retrieval import Progress
from neuralcache_plugins.evaluation.streams import Stream
from neuralcache_plugins.evaluation.uncertainty import Array
from neuralcache_plugins.reranker import Reranker
from neuralcache_plugins.settings import RerankSettings, StoreSettings

START = 1_700_000_000.0
"""When simulated time begins, in seconds since the epoch: any fixed moment will do."""

HARDLY_EVER = 3_600.0
"""Seconds between background writes: every question is written in the foreground, in its turn."""


class _Passed(NamedTuple):
    """What one pass saw, one number per question."""

    first: Array
    ndcg: Array
    cold_first: Array
    cold_ndcg: Array
    trust: Array
    taken: Array


def simulate(
    stream: Stream,
    feedback: FeedbackModel | None = None,
    *,
    settings: RerankSettings | None = None,
    shown: int = 5,
    seeds: int | Sequence[int] = 5,
    limit: int | None = None,
    seconds_per_question: float = 60.0,
    progress: Progress | None = None,
) -> Simulation:
    """Ask every question of the stream once, in an order drawn by each seed, and learn from the feedback as it comes.

    Prequential: a question is ranked, and its figures are taken, before any feedback on it exists. ``shown`` documents
    are returned and can be rewarded. Each seed (a number n stands for 0..n-1) draws the order, the reactions, which
    document is pushed and which swap meaning; a fresh ``Reranker`` in memory learns with ``settings``. ``limit`` asks
    only so many questions. Simulated time moves by ``seconds_per_question``. Equal arguments give equal figures, to
    the last digit.
    """
    model = feedback or FeedbackModel()
    settings = settings or RerankSettings()
    if shown < 1 or (limit is not None and limit < 1):
        raise InvalidInputError(f"shown and limit must be at least 1, got {shown} and {limit}")
    chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
    if not chosen:
        raise InvalidInputError("seeds must be at least one")
    size = len(stream) if limit is None else min(limit, len(stream))
    total = len(stream) + size * len(chosen)
    cold = _cold_orders(stream, settings, shown, _advance(progress, 0, total))
    passes = [
        _pass(stream, model, settings, cold, shown=shown, seed=seed, size=size, pace=seconds_per_question,
              tick=_advance(progress, len(stream) + index * size, total))
        for index, seed in enumerate(chosen)
    ]
    return Simulation(
        stream=stream.name, feedback=model, settings=settings, shown=shown, seeds=chosen,
        first=np.array([one.first for one in passes]), ndcg=np.array([one.ndcg for one in passes]),
        cold_first=np.array([one.cold_first for one in passes]), cold_ndcg=np.array([one.cold_ndcg for one in passes]),
        trust=np.array([one.trust for one in passes]), taken=np.array([one.taken for one in passes]),
    )


def _cold_orders(
    stream: Stream, settings: RerankSettings, shown: int, tick: Callable[[int], None]
) -> list[list[int]]:
    """Return what is shown for each question without learning, which is the same for every seed."""
    orders = []
    frozen = settings.model_copy(update={"learning": False, "exploration": 0.0})
    with _reranker(frozen, lambda: START) as reranker:
        for at in range(len(stream)):
            orders.append(_places(stream, at, _ranked(reranker, stream, at, shown)))
            tick(at + 1)
    return orders


def _pass(
    stream: Stream, model: FeedbackModel, settings: RerankSettings, cold: list[list[int]], *, shown: int, seed: int,
    size: int, pace: float, tick: Callable[[int], None],
) -> _Passed:
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(stream))[:size]
    pushed = int(rng.integers(len(stream.ids)))
    swaps = nearest_swaps(stream.document_vectors, model.drift_share, rng)
    drift = size if model.drift_at is None else round(model.drift_at * size)
    seen = np.zeros((6, size))
    waiting: deque[tuple[int, Ranking, list[int]]] = deque()
    step = 0
    with _reranker(settings.model_copy(update={"seed": seed}), lambda: START + pace * step) as reranker:
        for step, at in enumerate(order.tolist()):
            _deliver(reranker, waiting, stream, due=step)
            right = stream.right[at] if step < drift else tuple(swaps[one] for one in stream.right[at])
            ranking = _ranked(reranker, stream, at, shown)
            places = _places(stream, at, ranking)
            before, after = cold[at], places
            seen[:, step] = (
                _first(after, right), _ndcg(after, right, shown), _first(before, right), _ndcg(before, right, shown),
                ranking.trust, _first(before, right) and after[0] == pushed and pushed not in right,
            )
            given = model.rewarded(places, right, pushed=pushed, rng=rng)
            if given:
                waiting.append((step + 1 + model.delay, ranking, given))
            # not left to the background thread: what is learned when must not depend on the machine
            reranker.flush()
            tick(step + 1)
    return _Passed(*seen)


def _deliver(
    reranker: Reranker, waiting: deque[tuple[int, Ranking, list[int]]], stream: Stream, *, due: int
) -> None:
    while waiting and waiting[0][0] <= due:
        _, ranking, given = waiting.popleft()
        reranker.feedback(ranking, helpful=[stream.ids[one] for one in given])


def _ranked(reranker: Reranker, stream: Stream, at: int, shown: int) -> Ranking:
    if stream.candidates is None:
        prior = [0.0] * len(stream.ids) if stream.prior_scores is None else stream.prior_scores[at]
        return reranker.rerank(
            stream.questions[at], stream.texts, ids=stream.ids, top_n=shown, prior_scores=prior,
            query_vector=stream.question_vectors[at], vectors=stream.document_vectors,
        )
    among = stream.candidates[at]
    return reranker.rerank(
        stream.questions[at], [stream.texts[one] for one in among], ids=[stream.ids[one] for one in among], top_n=shown,
        prior_scores=None if stream.prior_scores is None else stream.prior_scores[at],
        query_vector=stream.question_vectors[at], vectors=stream.document_vectors[list(among)],
    )


def _places(stream: Stream, at: int, ranking: Ranking) -> list[int]:
    positions: list[int] = ranking.positions.tolist()
    return positions if stream.candidates is None else [stream.candidates[at][one] for one in positions]


def _first(places: Sequence[int], right: Sequence[int]) -> bool:
    return bool(places) and places[0] in right


def _ndcg(places: Sequence[int], right: Sequence[int], shown: int) -> float:
    """Return nDCG among those shown, all grades 1 (Järvelin and Kekäläinen, TOIS 20, 2002); 0 if nothing is right."""
    gained = sum(1.0 / np.log2(rank + 2) for rank, one in enumerate(places) if one in right)
    ideal = sum(1.0 / np.log2(rank + 2) for rank in range(min(shown, len(right))))
    return float(gained / ideal) if ideal else 0.0


def _reranker(settings: RerankSettings, clock: Callable[[], float]) -> Reranker:
    quiet = StoreSettings(flush_interval_seconds=HARDLY_EVER, retention_seconds=None, store_text=False)
    return Reranker(store="memory://", settings=settings, store_settings=quiet, clock=clock)


def _advance(progress: Progress | None, before: int, total: int) -> Callable[[int], None]:
    def tick(done: int) -> None:
        if progress is not None:
            progress(before + done, total)

    return tick
