"""The stages between vectors and an order, on arrays alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from neuralcache_plugins.contracts import Array, Matrix, Positions, Vector
from neuralcache_plugins.core import fusion, selection
from neuralcache_plugins.core.lexical import TokenStatistics, lexical_scores, tokens
from neuralcache_plugins.core.trust import Nearness, Trust, log_softmax
from neuralcache_plugins.memory import Features, LearnedState, Origin
from neuralcache_plugins.settings import RerankSettings

Origins: TypeAlias = Mapping[int, Sequence[Origin]]

SPOKEN = 0.625
SHORT = 6
"""A question of so many words or fewer leaves room for the words of what helped before in its session."""

FLAT = 1e-4
"""Cosines that spread less than this are equal up to rounding."""


class Vectors(NamedTuple):
    """Question and candidates of one encoder: ``rows`` (n, d) hold zeros where a document has no usable vector."""

    encoder: str
    question: Vector
    rows: Matrix
    unusable: Sequence[int]


class Learned(NamedTuple):
    """What a learned order was made of, for ``explaining``.

    ``helped`` and ``failed`` are ``Questions.origins``: all that changes when the state moves on, past ``position``.
    ``fruitless`` (n,) is what candidates lost for standing behind the first in vain, None where nothing did.
    ``mean`` and ``deviation`` are of the cosine of two ordinary questions.
    """

    features: Features
    slots: Sequence[int]
    helped: Origins
    failed: Origins
    position: int
    trust: Trust
    nearness: Nearness
    fruitless: Array | None
    mean: float
    deviation: float


class Evidence(NamedTuple):
    """What every stage left behind: log-probabilities cold and final (n,), and one array per signal.

    ``feedback`` counts what the state had been told by then; ``learned`` is None where learning had no say.
    """

    cold: Array
    final: Array
    trust: float
    signals: Mapping[str, Vector]
    feedback: int = 0
    learned: Learned | None = None


class Chosen(NamedTuple):
    """The documents to return, in order, with scores that never rise."""

    positions: Positions
    scores: tuple[float, ...]
    propensities: tuple[float, ...]


def cold_evidence(
    *,
    count: int,
    prior_scores: Sequence[float] | None,
    lexical: Vector | None,
    vectors: Vectors | None,
    narrative: Vector | None,
    in_session: bool,
    settings: RerankSettings,
    spoken: Vector | None = None,
) -> tuple[Array, dict[str, Vector]]:
    """Return the cold log-probabilities (n,) and the signals that they were made of.

    ``spoken`` (n,) is what ``spoken_of`` returned. It joins the lexical signal as far as some candidate is about what
    the session was about: its narrative fits it.

    The narrative of a session is context of the question, so it belongs to the cold order, and its signal is how far
    it ``bent`` the question; the namespace's does not, and its signal is the cosine.
    """
    silent = np.zeros(count, dtype=np.float32)
    signals = {
        "prior": fusion.prior_signal(prior_scores, count),
        "dense": silent,
        "lexical": silent,
        "narrative": silent,
    }
    dense: Vector | None = None
    if lexical is not None:
        signals["lexical"] = lexical
    if vectors is not None:
        dense = signals["dense"] = vectors.rows @ vectors.question
        if narrative is not None and settings.learning:
            fit = vectors.rows @ narrative
            signals["narrative"] = bent(fit, dense, overlap=float(vectors.question @ narrative)) if in_session else fit
            if in_session and spoken is not None and lexical is not None and settings.narrative_weight > 0:
                lexical = signals["lexical"] = lexical + np.float32(max(0.0, float(fit.max()))) * spoken
        if vectors.unusable:
            dense = dense.copy()
            dense[list(vectors.unusable)] = np.nan
    worth = fusion.cold_worth(
        signals["prior"],
        dense,
        lexical,
        dense_weight=settings.dense_weight,
        lexical_weight=settings.lexical_weight,
    )
    if in_session and narrative is not None:
        worth += np.float32(settings.narrative_weight) * signals["narrative"]
    return fusion.cold_log_probabilities(worth).astype(np.float64), signals


def spoken_of(query: str, helped: TokenStatistics | None, texts: Sequence[TokenStatistics]) -> Vector | None:
    """Return how well candidates match the words of the documents that helped last in the session, (n,).

    The less the longer ``query`` is: a long question says by itself what it is about. None where nothing helped yet.
    The weights were chosen on the follow-up questions of mtrag. Costs what ``lexical_scores`` does.
    """
    if helped is None:
        return None
    share = SPOKEN * min(1.0, SHORT / max(1, len(tokens(query))))
    return lexical_scores(helped, texts) * np.float32(share)


def bent(fit: Vector, dense: Vector, *, overlap: float) -> Vector:
    """Return how far a session's narrative bends its question towards each candidate, (n,).

    ``fit`` and ``dense`` (n,) are cosines of the candidates with narrative and question, ``overlap`` that of narrative
    and question. What the narrative adds is counted in deviations of what the question says, and is worth

    * the more the less the question says by itself of the session's subject ("how many of them died?"),
    * next to nothing where no candidate is about that subject: then it has changed.

    Both exponents and the weight were chosen on the follow-up questions of mtrag, among some hundred variants; they sit
    in a plateau there with either encoder. Without the second factor, weights that help as much cost 0.03 to 0.08
    nDCG@10 where the subject changes; with it nothing.
    """
    deviation = float(dense.std())
    if deviation < FLAT:
        return np.zeros_like(fit)
    lean = min(1.0, max(0.0, 1.0 - overlap)) ** 5 * max(0.0, float(fit.max())) ** 2
    moved: Vector = (fit - fit.mean()) * np.float32(lean / deviation)
    return moved


def learned_evidence(
    cold: Array,
    signals: dict[str, Vector],
    *,
    state: LearnedState,
    ids: Sequence[str],
    vectors: Vectors | None,
    in_session: bool,
    now: float,
    settings: RerankSettings,
) -> Evidence:
    """Return the final log-probabilities (n,): the cold ones, moved as far as learning has earned trust."""
    slots = state.documents.slots_of(ids) if len(state.documents) else []
    signals["pheromone"] = state.documents.pheromones(slots, now) if slots else np.zeros(len(ids), dtype=np.float32)
    signals["association"] = np.zeros(len(ids), dtype=np.float32)
    learner = None if vectors is None else state.learners.get(vectors.encoder)
    if learner is None or vectors is None or not settings.learning or not learner.trust.earned:
        return Evidence(cold, cold, 0.0 if learner is None else learner.trust.value, signals, state.feedback)
    if "uncommon" not in signals:  # it is there already where a log is replayed, without the documents' vectors
        signals["uncommon"] = _uncommon(signals, vectors, learner.spread.centre, settings)
    features = state.features(
        learner,
        vectors.question,
        slots,
        cold=cold,
        pheromone=signals["pheromone"],
        narrative=np.zeros(len(ids)) if in_session else signals["narrative"].astype(np.float64),
        uncommon=signals["uncommon"],
    )
    if features.near is not None:
        signals["association"] = (np.exp(features.table[:, 2]) - np.exp(cold)).astype(np.float32)
    nearness = learner.nearness(features.near)
    final = learner.trust.order(features.table, cold, nearness=nearness)
    first, fruitless = int(final.argmax()), None
    if learner.fruitless.knows(ids[first]):
        # as far as the learned order counts, and not at all where it does not
        fruitless = learner.trust.share(nearness) * learner.fruitless.penalties(ids, first)
        final = log_softmax(final + fruitless) if fruitless.any() else final
    learned = Learned(
        features,
        slots=slots,
        helped=learner.helped.origins,
        failed=learner.failed.origins,
        position=state.position,
        trust=copy.copy(learner.trust),  # it replaces its arrays and never changes them
        nearness=nearness,
        fruitless=fruitless,
        mean=learner.spread.mean,
        deviation=learner.spread.deviation,
    )
    return Evidence(cold, final, learner.trust.value, signals, state.feedback, learned)


def _uncommon(
    signals: Mapping[str, Vector], vectors: Vectors, centre: Vector, settings: RerankSettings
) -> Vector:
    """Return ``fusion.uncommon`` with the weight of the dense signal in the cold order, (n,)."""
    dense = signals["dense"]
    if vectors.unusable:
        dense = dense.copy()
        dense[list(vectors.unusable)] = np.nan
    weight = settings.dense_weight
    if weight > 0.0 and not signals["prior"].any():
        weight = 1.0  # as in ``fusion.cold_worth``
    return fusion.uncommon(dense, vectors.rows @ centre, weight=weight)


def choose(
    evidence: Evidence,
    *,
    count: int,
    least: float | None,
    rows: Matrix | None,
    settings: RerankSettings,
    rng: np.random.Generator,
) -> Chosen:
    """Return the ``count`` documents to show: the best, or a diverse or explored choice where the settings ask.

    Those that score less than ``least`` are not shown.
    """
    scores = _scores(evidence.final)
    if least is not None:
        eligible = np.flatnonzero(scores >= least)
        chosen = _choice(
            scores[eligible], min(count, len(eligible)), None if rows is None else rows[eligible], settings, rng
        )
        return chosen._replace(positions=eligible[chosen.positions])
    return _choice(scores, count, rows, settings, rng)


def _choice(
    scores: Array, count: int, rows: Matrix | None, settings: RerankSettings, rng: np.random.Generator
) -> Chosen:
    propensities = [1.0] * count
    if settings.exploration > 0:
        order = selection.best(scores, len(scores))
        positions, chances = selection.explore(order, count=count, probability=settings.exploration, rng=rng)
        propensities = chances.tolist()
    elif settings.diversity > 0 and rows is not None and count:
        positions = selection.best_and_diverse(scores, rows, count=count, diversity=settings.diversity)
    else:
        positions = selection.best(scores, count)
    return Chosen(positions, tuple(np.minimum.accumulate(scores[positions]).tolist()), tuple(propensities))


def _scores(log_probabilities: Array) -> Array:
    """Return the logistic of the lift over an even chance, in [0, 1]: 1/2 means "as good as any of these"."""
    odds = np.exp(log_probabilities)
    odds *= len(odds) / np.add.reduce(odds)
    scores: Array = odds / (1.0 + odds)
    return scores
