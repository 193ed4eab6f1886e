"""What an answer was made from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from neuralcache_plugins.contracts import Ranking
from neuralcache_plugins.conversation.detecting import SOURCE
from neuralcache_plugins.core.credit import checked_shares
from neuralcache_plugins.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Answered:
    """The rankings that an answer was made from, their namespace if it was named, and what of them it used."""

    rankings: tuple[Ranking | str, ...]
    used: Mapping[str, float] | None
    namespace: str | None


def answer_from(ranking: Any, used: Mapping[str, float] | None, namespace: str | None) -> Answered:
    """Return what ``ConversationMonitor.answered`` was told; ``InvalidInputError`` if that names no ranking.

    A ranking given twice counts once, and one that showed nothing not at all.
    """
    several = ranking if isinstance(ranking, Iterable) and not isinstance(ranking, (str, Ranking)) else [ranking]
    rankings: dict[str, Ranking | str] = {}
    for one in several:
        if isinstance(one, Ranking):
            if one.ids:
                rankings[one.ranking_id] = one
        elif isinstance(one, str) and one:
            rankings.setdefault(one, one)
        elif one is not None:
            raise InvalidInputError(
                "answered needs the Ranking behind the answer, or its id, or several; None where there was none; got "
                f"{type(one).__name__}"
            )
    return Answered(tuple(rankings.values()), checked_shares(used), namespace)


def feedback_id(ranking: Ranking | str) -> str:
    """Return one id for each ranking, so that what is said of its answer counts once."""
    return f"{SOURCE}{ranking.ranking_id if isinstance(ranking, Ranking) else ranking}"
