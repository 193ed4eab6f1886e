"""What an erasure concerns, and events with documents cut out of them: the same for every store."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TypeVar

from neuralcache_plugins.contracts import Erasure, FeedbackGiven, RankingServed, in_session
from neuralcache_plugins.errors import ErasedMeanwhileError, InvalidInputError

_T = TypeVar("_T")


def check(what: Erasure) -> None:
    """Refuse an erasure without a single condition: it would take everything."""
    if what == Erasure():
        raise InvalidInputError(
            "an Erasure needs at least one of namespace, document_ids, session and older_than, got none"
        )


def check_epoch(current: int, expected: int | None) -> None:
    """Raise ``ErasedMeanwhileError`` if somebody expects an epoch that is over."""
    if expected not in (None, current):
        raise ErasedMeanwhileError(f"something was erased since epoch {expected}, it is epoch {current} now")


def concerns_ranking(what: Erasure, ranking: RankingServed) -> bool:
    """Return whether the ranking meets all conditions; documents are looked at separately."""
    return _placed(what, ranking) and (what.older_than is None or ranking.at < what.older_than)


def concerns_feedback(what: Erasure, feedback: FeedbackGiven) -> bool:
    """Return whether the feedback or the ranking it is about meets all conditions: it cannot outlive its ranking."""
    if not _placed(what, feedback.ranking):
        return False
    return what.older_than is None or min(feedback.at, feedback.ranking.at) < what.older_than


def ranking_without(ranking: RankingServed, gone: Collection[str]) -> RankingServed | None:
    """Return the ranking without these documents, or None when none is left."""
    kept = [index for index, name in enumerate(ranking.document_ids) if name not in gone]
    if not kept:
        return None
    texts = ranking.document_texts
    return replace(
        ranking,
        document_ids=_pick(ranking.document_ids, kept), positions=_pick(ranking.positions, kept),
        scores=_pick(ranking.scores, kept), cold=_pick(ranking.cold, kept),
        signals={name: _pick(values, kept) for name, values in ranking.signals.items()},
        propensities=_pick(ranking.propensities, kept),
        document_texts=None if texts is None else _pick(texts, kept),
    )


def feedback_without(feedback: FeedbackGiven, gone: Collection[str]) -> FeedbackGiven | None:
    """Return the feedback without rewards for these documents, or None when none is left.

    A mean vector that such a document went into goes as well: the document cannot be taken out of it.
    """
    kept = tuple((name, reward) for name, reward in feedback.rewards if name not in gone)
    if len(kept) == len(feedback.rewards):
        return feedback
    if not kept:
        return None
    return replace(feedback, rewards=kept, document_vector=None)


def _placed(what: Erasure, ranking: RankingServed) -> bool:
    return what.namespace in (None, ranking.namespace) and (
        what.session is None or in_session(ranking.session, what.session)
    )


def _pick(values: tuple[_T, ...], kept: list[int]) -> tuple[_T, ...]:
    return tuple(values[index] for index in kept)
