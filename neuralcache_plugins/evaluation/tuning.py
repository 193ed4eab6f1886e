"""``tune``: settings chosen on the early part of a log, and proved on the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from neuralcache_plugins.contracts import Recorded, TelemetryStore
from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.evaluation.replaying import (
    METRICS,
    Row,
    improvement,
    namespaces_of,
    opened_for_reading,
    walk,
)
from neuralcache_plugins.evaluation.rescoring import NOT_REPLAYABLE, Refold, events_of
from neuralcache_plugins.evaluation.retrieval import Progress
from neuralcache_plugins.evaluation.tuned import Trial, Tuning
from neuralcache_plugins.evaluation.uncertainty import NOTHING, Array, Bootstrap
from neuralcache_plugins.evaluation.verdicts import ENOUGH_FEEDBACK
from neuralcache_plugins.settings import RerankSettings

SPACE: Mapping[str, Sequence[Any]] = {
    "lexical_weight": (0.0, 0.3, 0.8, 1.5),
    "dense_weight": (0.0, 0.3, 1.0),
    "questions_per_document": (16, 64, 256),
    "half_life_seconds": (7 * 86_400.0, 30 * 86_400.0, 180 * 86_400.0),
}
"""What is tried when nothing else is asked for."""


def tune(
    store: TelemetryStore | str | None = None,
    space: Mapping[str, Sequence[Any]] | None = None,
    *,
    settings: RerankSettings | None = None,
    namespace: str | Sequence[str] | None = None,
    metric: str = "RR",
    held_out: float = 0.3,
    trials: int = 30,
    confidence: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tuning:
    """Replay the log under each combination in ``space``, choose on its early part, and test the choice on the tail.

    ``settings`` are the current ones (None: the environment's), which the log is taken to be made with. ``space`` maps
    names of ``RerankSettings`` to values to try beside the current one (None: ``SPACE``); of more than ``trials``
    combinations as many are drawn by ``seed``. ``metric`` is "RR", "first" or "log-loss", see ``replay``. The last
    ``held_out`` share of the rankings with feedback, by position in the log, is not looked at while choosing; learning
    goes on through it.

    ``recommended`` is None, with the reason in words, unless the chosen settings beat the current ones on the tail by
    more than noise: the whole interval of the paired gain lies above 0, over at least 30 rankings. Costs one replay for
    each trial, with the log in memory.
    """
    bootstrap = Bootstrap(confidence, resamples, seed)
    if metric not in METRICS:
        raise InvalidInputError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    if not 0.0 < held_out < 1.0 or trials < 1:
        raise InvalidInputError(f"held_out must be between 0 and 1 and trials at least 1, got {held_out} and {trials}")
    current = settings or RerankSettings()
    asked = combinations(SPACE if space is None else space, current, trials=trials, seed=seed)
    with opened_for_reading(store) as source:
        names = namespaces_of(source, namespace)
        log = list(events_of(source, names, upto=source.head().position))
    rows = _replayed(log, current, current)
    cut = len(rows) - round(held_out * len(rows))
    tried = []
    for number, changes in enumerate(asked):
        tried.append(_trial(changes, log, current, rows, cut=cut, metric=metric, bootstrap=bootstrap))
        if progress is not None:
            progress(number + 1, len(asked))
    # of equals the one that changes least
    best = max(tried, key=lambda one: (one.gain_chosen_on, -len(one.changes)), default=None)
    recommended, reason = _verdict(best, head=cut, tail=len(rows) - cut)
    return Tuning(
        namespaces=names, metric=metric, current=current, head=cut, tail=len(rows) - cut, trials=tuple(tried),
        best=best, reason=reason,
        recommended=None if recommended is None else changed(current, recommended.changes),
        gain=NOTHING if best is None else best.gain,
    )


def combinations(
    space: Mapping[str, Sequence[Any]], current: RerankSettings, *, trials: int, seed: int
) -> list[dict[str, Any]]:
    """Return what each combination changes in ``current``, those that change nothing left out, at most ``trials``."""
    for name, values in space.items():
        if name not in RerankSettings.model_fields:
            raise InvalidInputError(f"RerankSettings has no {name!r}")
        if name in NOT_REPLAYABLE:
            raise InvalidInputError(f"a log cannot tell what {name} would have changed: it cannot be tuned by replay")
        if isinstance(values, str) or not values:
            raise InvalidInputError(f"{name} must have a list of values to try, got {values!r}")
    found = []
    for values in product(*([getattr(current, name), *values] for name, values in space.items())):
        wanted = changed(current, dict(zip(space, values, strict=True)))
        changes = {name: getattr(wanted, name) for name in space if getattr(wanted, name) != getattr(current, name)}
        if changes and changes not in found:
            found.append(changes)
    if len(found) <= trials:
        return found
    picked = np.random.default_rng(seed).choice(len(found), size=trials, replace=False)
    return [found[at] for at in sorted(picked.tolist())]


def changed(settings: RerankSettings, changes: Mapping[str, Any]) -> RerankSettings:
    """Return a checked copy of ``settings``; ``InvalidInputError`` names what cannot be used."""
    try:
        return RerankSettings(**{**settings.model_dump(), **changes})
    except ValueError as error:  # pydantic's
        faults: Any = getattr(error, "errors", list)()
        told = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}, got {fault['input']!r}" for fault in faults]
        raise InvalidInputError("; ".join(told) or str(error)) from error


def _trial(
    changes: dict[str, Any], log: Sequence[Recorded], current: RerankSettings, rows: Sequence[Row], *, cut: int,
    metric: str, bootstrap: Bootstrap,
) -> Trial:
    other = _replayed(log, changed(current, changes), current)
    gains = _paired(other, rows, metric)
    tail = bootstrap.mean(gains[cut:], [row.question for row in rows[cut:]])
    return Trial(changes, float(gains[:cut].mean()) if cut else 0.0, tail)


def _replayed(log: Sequence[Recorded], settings: RerankSettings, current: RerankSettings) -> list[Row]:
    rows, _ = walk(log, Refold(settings, logged_with=current))
    return [row for row in rows if row.graded]


def _paired(other: Sequence[Row], rows: Sequence[Row], metric: str) -> Array:
    """Return how much better each ranking of ``other`` is than its twin under the current settings."""
    values = np.array([[row.values[metric][2], 0.0, one.values[metric][2]]
                       for row, one in zip(rows, other, strict=True)]).reshape(-1, 3)
    return improvement(values, metric, 0)


def _verdict(best: Trial | None, *, head: int, tail: int) -> tuple[Trial | None, str]:
    if best is None:
        return None, "There was nothing to try: every combination equals the current settings."
    if tail < ENOUGH_FEEDBACK:
        return None, (f"Only {tail} rankings with feedback that tells an order were held out (and {head} to choose "
                      f"on): at least {ENOUGH_FEEDBACK} are needed to tell a gain from noise.")
    if best.gain_chosen_on <= 0.0:
        return None, f"Nothing did better than the current settings on the {head} rankings to choose on."
    sure = f"{best.gain.signed()}, {round(100 * best.gain.confidence)} % interval"
    told = f"gain on the {tail} rankings held out: {sure}"
    if not best.gain.above_zero:
        return None, f"The best, {best.told()}, does not beat the current settings beyond noise ({told})."
    return best, f"{best.told()} beats the current settings ({told})."

