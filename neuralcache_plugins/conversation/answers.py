"""What an answer was made from, in whatever form the caller has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from neuralcache_plugins.contracts import Ranking
from neuralcache_plugins.conversation.detecting import SOURCE
from neuralcache_plugins.core.credit import checked_shares
from neuralcache_plugins.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Answered:
    """What an answer was made from: the ranking, or the question whose latest ranking it was, and what it showed."""

    ranking: Ranking | str | None
    query: str | None
    ids: tuple[str, ...]
    used: Mapping[str, float] | None

    @property
    def feedback_id(self) -> str | None:
        """One for each ranking, None where only the question is known."""
        name = self.ranking.ranking_id if isinstance(self.ranking, Ranking) else self.ranking
        return None if name is None else f"{SOURCE}{name}"


def answer_from(ranking: Any, query: Any, documents: Any, used: Mapping[str, float] | None) -> Answered:
    """Return what ``ConversationMonitor.answered`` was told; ``InvalidInputError`` if that names no ranking."""
    used = checked_shares(used)
    if isinstance(ranking, Ranking) and query is None:
        shown = ranking.ids if documents is None else tuple(map(_document_id, documents))
        return Answered(ranking, None, shown, used)
    names = [name for name in (ranking, query) if name is not None]
    if len(names) != 1 or not isinstance(names[0], str) or documents is None:
        raise InvalidInputError(
            "answered needs a Ranking, or its id or the query together with the documents shown; got "
            f"ranking={type(ranking).__name__}, query={type(query).__name__}, documents={type(documents).__name__}"
        )
    return Answered(ranking, query, tuple(map(_document_id, documents)), used)


def _document_id(document: Any) -> str:
    """Return the id of a document: itself, a LlamaIndex node's, a LangChain document's as the adapter returned it."""
    if isinstance(document, str):
        return document
    for name in ("node_id", "id", "id_"):
        found = getattr(document, name, None)
        if isinstance(found, str):
            return found
    raise InvalidInputError(f"a document needs an id; hand in what the adapter returned, got {type(document).__name__}")
