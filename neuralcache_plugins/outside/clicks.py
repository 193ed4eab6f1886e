"""Clicks and dwell as rewards: corrected for the rank that was clicked, since what stands on top is seen more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from neuralcache_plugins.contracts import Array, FeedbackGiven, Ranking, RankingServed, Recorded
from neuralcache_plugins.errors import InvalidInputError, UnknownDocumentError

SATISFIED_SECONDS = 30.0
"""Who stays so long was served (Fox et al., "Evaluating implicit measures to improve web search", 2005)."""

CLIP = 0.3
"""Propensities below it count as this much: a rare click far down must not outweigh all others."""

FEWEST = 100.0
"""So many clicks at least, after weighing, before propensities are believed."""


def rewards_from_clicks(
    ranking: Ranking | RankingServed,
    clicked: Iterable[str],
    *,
    dwell_seconds: Mapping[str, float] | None = None,
    propensities: Sequence[float] | None = None,
) -> dict[str, float]:
    """Return a reward in [0, 1] for each document clicked, for ``feedback(ranking, rewards=..., source="click")``.

    ``propensities[r]`` is the chance that people look at rank r (from 0), relative to the first: 1 / (r + 1) where none
    are given (the usual assumption), ``click_propensities`` measures them. A click counts in inverse proportion
    (Joachims, Swaminathan & Schnabel, WSDM 2017), cut where the propensity is below ``CLIP`` and scaled so that
    a click there is worth 1. With ``dwell_seconds`` a click counts by how long the person stayed, in full from
    ``SATISFIED_SECONDS`` on. What was not clicked gets nothing. ``UnknownDocumentError`` for what was not shown.
    """
    shown = ranking.ids if isinstance(ranking, Ranking) else ranking.document_ids
    chances = [1.0 / (rank + 1.0) for rank in range(len(shown))] if propensities is None else list(propensities)
    if not chances or not all(0.0 < chance <= 1.0 for chance in chances):
        raise InvalidInputError(f"propensities must be in (0, 1], one per rank, got {propensities}")
    rewards: dict[str, float] = {}
    for name in clicked:
        if name not in shown:
            raise UnknownDocumentError(f"document {name!r} was not shown in ranking {ranking.ranking_id}")
        chance = chances[min(shown.index(name), len(chances) - 1)]
        stayed = 1.0 if dwell_seconds is None else _share(dwell_seconds.get(name, 0.0))
        rewards[name] = stayed * CLIP / max(CLIP, chance)
    return {name: reward for name, reward in rewards.items() if reward > 0.0}


def click_propensities(log: Iterable[Recorded], *, source: str = "click", ranks: int = 10) -> tuple[float, ...]:
    """Return how likely people are to look at each rank, relative to the first, from a log with exploration on.

    ``log`` are events of one namespace, such as ``store.read(namespace=...)`` hands out page by page. Where chance
    fills ranks, every rank shows the same mixture of documents once each is weighed by one over its recorded
    propensity; then click rates differ by how much people look, and their ratios are what is wanted (the
    position-based model). Later ranks draw from what is left, which matters little while candidates are many more than
    ranks. The answer never rises with the rank. Clicks are feedback of ``source`` (or ``source:...``). O(log).

    ``InvalidInputError`` when nothing was explored, or fewer than ``FEWEST`` clicks were weighed in at the first rank
    and in all (by Kish's effective number).
    """
    if ranks < 1:
        raise InvalidInputError(f"ranks must be at least 1, got {ranks}")
    explored, clicks = _read(log, source)
    shown, weights = np.zeros(ranks), np.zeros(ranks)
    told: list[float] = []
    for ranking_id, ranking in explored.items():
        for rank, (name, chance) in enumerate(zip(ranking.document_ids[:ranks], ranking.propensities, strict=False)):
            shown[rank] += 1.0 / chance
            if name in clicks.get(ranking_id, ()):
                weights[rank] += 1.0 / chance
                told.append(1.0 / chance)
    if not explored:
        raise InvalidInputError("no ranking in this log was explored: set exploration, or assume propensities")
    enough = sum(told) ** 2 / sum(one * one for one in told) if told else 0.0
    if enough < FEWEST or weights[0] == 0.0:
        raise InvalidInputError(f"{enough:.0f} clicks (effective number) are too few, {FEWEST:.0f} are needed")
    rates: Array = np.divide(weights, shown, out=np.zeros(ranks), where=shown > 0)
    falling = np.minimum.accumulate(np.minimum(1.0, rates / rates[0]))
    return tuple(np.maximum(falling, 0.01).tolist())


def _read(log: Iterable[Recorded], source: str) -> tuple[dict[str, RankingServed], dict[str, set[str]]]:
    explored: dict[str, RankingServed] = {}
    clicks: dict[str, set[str]] = {}
    for recorded in log:
        event = recorded.event
        if isinstance(event, FeedbackGiven):
            if event.source == source or event.source.startswith(f"{source}:"):
                clicks.setdefault(event.ranking_id, set()).update(name for name, value in event.rewards if value > 0)
        elif any(chance < 1.0 for chance in event.propensities):
            explored[event.ranking_id] = event
    return explored, clicks


def _share(seconds: float) -> float:
    return min(1.0, max(0.0, seconds / SATISFIED_SECONDS))
