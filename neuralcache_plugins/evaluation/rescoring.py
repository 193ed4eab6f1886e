"""A logged ranking, scored again: by other settings, by another ranker, by what the log says of its own order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeAlias

import numpy as np

from neuralcache_plugins.contracts import FeedbackGiven, RankingServed, Recorded, TelemetryStore
from neuralcache_plugins.core.trust import log_softmax
from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.evaluation.uncertainty import Array
from neuralcache_plugins.memory import LearnedState
from neuralcache_plugins.reranker.stages import Vectors, learned_evidence
from neuralcache_plugins.settings import RerankSettings

COLD_SETTINGS = ("lexical_weight", "dense_weight", "narrative_weight")
"""Settings that move the cold order; see ``recast``."""

NOT_REPLAYABLE = (
    "diversity", "exploration", "scorer_budget", "scorer_weight", "encoder_timeout_seconds", "texts_in_memory", "seed",
    "max_sessions", "narrative_rate", "namespaces_in_memory",
)
"""Settings of which a log cannot tell what they would have changed: what was shown, or what nobody recorded."""

_READ = 2_000
_REST = "\0rest"
_FLOOR = 1e-4
_AGREES = 0.05
_STILL = 1e-6
_IN_LINE = 0.99999

SHARPNESS = 1.75
"""The default of ``core.fusion.cold_log_probabilities``."""


Scores: TypeAlias = Sequence[float] | Array
"""One number per shown document."""


class LoggedRanker(Protocol):
    """Scores logged rankings and learns from logged feedback; called in the order of the log."""

    def score(self, ranking: RankingServed) -> Scores:
        """Return one finite number per shown document, higher is better."""

    def learn(self, recorded: Recorded) -> None:
        """Take in the next event, which may be a ranking or feedback."""


class Refold:
    """The package's own learning under ``settings``: every ranking is scored by what was known before it.

    ``logged_with`` are the settings that the log was made with; where the cold order's weights differ from them, each
    logged ranking is recast first. Holds one state per namespace, the same fold as the live one.
    """

    def __init__(self, settings: RerankSettings, *, logged_with: RerankSettings) -> None:
        self.states: dict[str, LearnedState] = {}
        self.recast = 0
        self.kept = 0
        self._settings = settings
        self._logged_with = logged_with
        self._moves_cold = any(getattr(settings, name) != getattr(logged_with, name) for name in COLD_SETTINGS)

    def score(self, ranking: RankingServed) -> Array:
        """Return log-probabilities of the shown documents, shape (k,), as the settings would have given them.

        All candidates that were not shown count as one more document that nothing is known of, with their share of
        the cold probability: without it the shown ones would look surer than they were.
        """
        ranking = self._as_recorded(ranking, count=True)
        shown = len(ranking.document_ids)
        chance = np.exp(np.array(ranking.cold, dtype=np.float64))
        if ranking.query_vector is None:
            return log_softmax(np.log(chance))
        rest = 0 if shown >= ranking.candidates else 1
        cold = np.log(np.append(chance, [max(_FLOOR, 1.0 - float(chance.sum()))] * rest))
        # only the question is looked at: the documents' vectors are in the signals already
        vectors = Vectors(ranking.encoder, ranking.query_vector, np.zeros((0, 0), dtype=np.float32), ())
        signals = {name: np.append(np.array(values, dtype=np.float32), np.zeros(rest, dtype=np.float32))
                   for name, values in ranking.signals.items()}
        for name in ("narrative", "uncommon"):  # recorded only where there was one
            signals.setdefault(name, np.zeros(shown + rest, dtype=np.float32))
        evidence = learned_evidence(
            cold, signals, state=self._state(ranking.namespace), ids=(*ranking.document_ids, *[_REST] * rest),
            vectors=vectors, in_session=ranking.session is not None, now=ranking.at, settings=self._settings,
        )
        return log_softmax(evidence.final[:shown])

    def learn(self, recorded: Recorded) -> None:
        """Fold the next event."""
        event = recorded.event
        if self._moves_cold:
            if isinstance(event, FeedbackGiven):
                event = replace(event, ranking=self._as_recorded(event.ranking))
            recorded = Recorded(recorded.position, event)
        self._state(event.namespace).fold(recorded)

    def _state(self, namespace: str) -> LearnedState:
        state = self.states.get(namespace)
        if state is None:
            state = self.states[namespace] = LearnedState(self._settings)
        return state

    def _as_recorded(self, ranking: RankingServed, *, count: bool = False) -> RankingServed:
        if not self._moves_cold:
            return ranking
        moved = recast(ranking, settings=self._settings, logged_with=self._logged_with)
        self.recast += count and moved is not None
        self.kept += count and moved is None
        return ranking if moved is None else replace(ranking, cold=tuple(moved.tolist()))


class Function:
    """A plain function of a logged ranking as a ranker that does not learn."""

    def __init__(self, function: Callable[[RankingServed], Scores]) -> None:
        self._function = function

    def score(self, ranking: RankingServed) -> Scores:
        """Return what the function says."""
        return self._function(ranking)

    def learn(self, recorded: Recorded) -> None:
        """Ignore the event."""


def ranker_of(ranker: Any) -> LoggedRanker:
    """Return ``ranker`` if it has ``score`` and ``learn``, a ``Function`` around a plain callable, or raise."""
    if hasattr(ranker, "score") and hasattr(ranker, "learn"):
        return ranker  # type: ignore[no-any-return]  # the two methods were just asked for
    if callable(ranker):
        return Function(ranker)
    raise InvalidInputError(
        f"ranker must have score(ranking) and learn(recorded), or be a callable RankingServed -> scores; got {ranker!r}"
    )


def text_ranker(order: Callable[[str, list[str]], Sequence[int]]) -> Callable[[RankingServed], list[float]]:
    """Return a ranker for ``replay`` from a callable (query, texts) -> positions, for logs made with ``store_text``."""

    def score(ranking: RankingServed) -> list[float]:
        if ranking.query_text is None or ranking.document_texts is None:
            raise InvalidInputError(
                f"ranking {ranking.ranking_id} was recorded without text: only logs made with store_text=True "
                "(NEURALCACHE_STORE_STORE_TEXT=1) can be replayed through a ranker that reads texts"
            )
        places = list(order(ranking.query_text, list(ranking.document_texts)))
        rank_of = {int(place): rank for rank, place in enumerate(places)}
        return [-float(rank_of.get(place, len(places) + place)) for place in range(len(ranking.document_ids))]

    return score


def not_replayed(settings: RerankSettings, logged_with: RerankSettings) -> list[str]:
    """Return which settings differ without a log being able to tell what that would have changed."""
    return [name for name in NOT_REPLAYABLE if getattr(settings, name) != getattr(logged_with, name)]


def recast(ranking: RankingServed, *, settings: RerankSettings, logged_with: RerankSettings) -> Array | None:
    """Return the cold log-probabilities (k,) that other weights would have given the shown documents, or None.

    The log holds the signals of the shown documents and the cold probability that came of them,

        ln(p - 1e-4) = a (prior + lexical_weight * lexical) + (a * dense_weight / s) dense + constant,

    with narrative_weight * narrative beside the lexical term within a session,

    where only the scale ``a`` and the spread ``s`` of the dense signal over all candidates are unknown: least squares
    over the shown finds both, and the residual tells whether the log was made with these weights at all. None where
    it was not, where a scorer had its say, or where the shown documents (fewer than three, or prior and dense in line
    with each other) do not determine it. The new scale is taken to be the old one: the other candidates, which it
    depends on, are not in the log.
    """
    chance = np.exp(np.array(ranking.cold, dtype=np.float64)) - _FLOOR
    usable = chance > _FLOOR
    if usable.sum() < 3 or "scorer" in ranking.signals:
        return None
    prior, lexical, dense, narrative = (_signal(ranking, name) for name in ("prior", "lexical", "dense", "narrative"))
    bent = narrative if ranking.session is not None else np.zeros_like(dense)
    solved = _scale_and_slope(
        np.log(chance[usable]),
        (prior + logged_with.lexical_weight * lexical + logged_with.narrative_weight * bent)[usable],
        dense[usable],
    )
    if solved is None:
        return None
    scale, slope = solved
    # with a silent prior the dense signal speaks with weight 1, see core.fusion.cold_worth
    alone = not prior.any()
    before, after = (1.0 if alone and one.dense_weight else one.dense_weight for one in (logged_with, settings))
    if before == 0.0 and (slope * float(np.ptp(dense)) > _AGREES or (after > 0.0 and dense.any())):
        return None
    worth = scale * (prior + settings.lexical_weight * lexical + settings.narrative_weight * bent)
    if before > 0.0:
        worth += slope * after / before * dense
    mass = float(chance[usable].sum())
    moved: Array = np.log(np.exp(log_softmax(worth)) * mass + _FLOOR)
    return moved


def _scale_and_slope(logit: Array, about: Array, dense: Array) -> tuple[float, float] | None:
    """Solve logit = scale * about + slope * dense + constant; None where that does not fit or has no one answer."""
    logit, about, dense = (values - values.mean() for values in (logit, about, dense))
    about_size, dense_size = float(np.sqrt(about @ about)), float(np.sqrt(dense @ dense))
    if about_size < _STILL and dense_size < _STILL:
        return None
    if about_size < _STILL:
        # the dense signal spoke alone, standardised, so the scale is the sharpness itself
        scale, slope = SHARPNESS, float(logit @ dense) / dense_size**2
    elif dense_size < _STILL:
        scale, slope = float(logit @ about) / about_size**2, 0.0
    elif abs(float(about @ dense)) > _IN_LINE * about_size * dense_size:
        return None
    else:
        table = np.stack([about, dense], axis=1)
        (scale, slope), _, _, _ = np.linalg.lstsq(table, logit, rcond=None)
    fits = float(np.abs(scale * about + slope * dense - logit).max()) < _AGREES
    if not fits or scale <= 0.0 or slope * dense_size < -_AGREES:
        return None
    return float(scale), max(0.0, float(slope))


def events_of(store: TelemetryStore, namespaces: Sequence[str], *, upto: int) -> Iterator[Recorded]:
    """Yield the events of the namespaces by position, up to the position ``upto``."""
    only = namespaces[0] if len(namespaces) == 1 else None
    wanted, after = set(namespaces), 0
    while batch := store.read(after=after, upto=upto, namespace=only, limit=_READ):
        yield from (one for one in batch if one.event.namespace in wanted)
        after = batch[-1].position


def logged_log_probabilities(ranking: RankingServed) -> Array:
    """Return the logarithms of the probabilities (k,) that the logged scores stand for: they are logistic lifts."""
    scores = np.clip(np.array(ranking.scores, dtype=np.float64), 1e-6, 1.0 - 1e-6)
    return log_softmax(np.log(scores) - np.log1p(-scores))


def _signal(ranking: RankingServed, name: str) -> Array:
    values: Mapping[str, Sequence[float]] = ranking.signals
    found = np.array(values.get(name, (0.0,) * len(ranking.document_ids)), dtype=np.float64)
    return np.where(np.isfinite(found), found, 0.0)
