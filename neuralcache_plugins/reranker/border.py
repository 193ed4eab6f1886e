"""What comes in from callers, checked once: requests to rank, and feedback."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, cast

from neuralcache_plugins.contracts import RankingServed, Rewards
from neuralcache_plugins.errors import InvalidInputError, UnknownDocumentError
from neuralcache_plugins.reranker.tracing import current_span

TRACE_KEYS = ("run_id", "parent_run_id", "trace_id", "span_id")


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One question with its candidates, as ``rerank`` takes them."""

    query: str
    texts: Sequence[str]
    ids: Sequence[str | None] | None
    top_n: int
    query_vector: Any
    vectors: Any
    prior_scores: Sequence[float] | None
    min_score: float | None
    session: str | None
    namespace: str
    trace: Mapping[str, str]

    @property
    def asks(self) -> bool:
        """Return whether there is a question at all; without one the prior order stands."""
        return bool(self.query.strip())


def request(
    query: str,
    texts: Sequence[str],
    *,
    ids: Sequence[str | None] | None,
    top_n: int | None,
    query_vector: Any,
    vectors: Any,
    prior_scores: Sequence[float | None] | None,
    min_score: float | None,
    session: str | None,
    namespace: str,
    trace: Mapping[str, str] | None,
) -> Request:
    """Check the arguments of ``Reranker.rerank``; ``InvalidInputError`` says what came and what was expected."""
    if not isinstance(query, str):
        raise InvalidInputError(f"query must be a str, got {type(query).__name__}")
    texts = _texts(texts)
    for name, values in (("ids", ids), ("vectors", vectors), ("prior_scores", prior_scores)):
        if values is not None and len(values) != len(texts):
            raise InvalidInputError(f"{name} must have one entry per text: got {len(values)} for {len(texts)} texts")
    if ids is not None and not set(map(type, ids)) <= {str, type(None)}:
        ids = _ids(ids)
    if trace is not None and not set(trace) <= set(TRACE_KEYS):
        raise InvalidInputError(f"trace may have the keys {', '.join(TRACE_KEYS)}, got {', '.join(map(str, trace))}")
    return Request(
        query=query,
        texts=texts,
        ids=ids,
        top_n=_top_n(top_n, len(texts)),
        query_vector=query_vector,
        vectors=vectors,
        prior_scores=None if prior_scores is None else _prior_scores(prior_scores),
        min_score=_min_score(min_score),
        session=check_name("session", session, optional=True),
        namespace=check_name("namespace", namespace) or "",
        trace={**current_span(), **(trace or {})},
    )


def canonical(query: str) -> str:
    """Return the question as it is keyed: NFC, case folded, white space collapsed."""
    return " ".join(unicodedata.normalize("NFC", query).casefold().split())


def rewards(
    ranking: RankingServed,
    *,
    helpful: Iterable[str | int] | str | int,
    unhelpful: Iterable[str | int] | str | int,
    rewards: Rewards | None,
) -> tuple[tuple[str, float], ...]:
    """Return (document id, reward) pairs for documents that this ranking showed; raise a clear error for any other."""
    given = [(_shown(ranking, name), 1.0) for name in _listed(helpful)]
    given += [(_shown(ranking, name), -1.0) for name in _listed(unhelpful)]
    if rewards is not None:
        given += [(_shown(ranking, name), _reward(name, value)) for name, value in _pairs(rewards)]
    if not given:
        raise InvalidInputError("feedback needs at least one document in helpful, unhelpful or rewards")
    return tuple(given) if len(given) == 1 else _without_repeats(given)


def _without_repeats(given: Iterable[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
    resolved: dict[str, float] = {}
    for document_id, reward in given:
        if resolved.setdefault(document_id, reward) != reward:
            raise InvalidInputError(f"document {document_id!r} is given two different rewards")
    return tuple(resolved.items())


def _texts(texts: Sequence[str]) -> Sequence[str]:
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise InvalidInputError(f"texts must be a list of str, got {type(texts).__name__}")
    if set(map(type, texts)) <= {str}:
        return texts
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidInputError(f"texts[{position}] must be a str, got {type(text).__name__}")
    return texts


def _top_n(top_n: Any, count: int) -> int:
    if top_n is None:
        return count
    if isinstance(top_n, bool) or not isinstance(top_n, Integral) or top_n < 1:
        raise InvalidInputError(f"top_n must be a whole number of at least 1, or None for all; got {top_n!r}")
    return min(int(top_n), count)


def _prior_scores(scores: Sequence[float | None]) -> list[float] | None:
    """Return floats with NaN for the unknown, or None when none is known."""
    try:
        values = [math.nan if score is None else float(score) for score in scores]
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"prior_scores must be numbers or None: {error}") from error
    return None if all(map(math.isnan, values)) else values


def _ids(ids: Sequence[Any]) -> list[str | None]:
    for position, one in enumerate(ids):
        if one is not None and not isinstance(one, str):
            raise InvalidInputError(f"ids[{position}] must be a str or None, got {type(one).__name__}")
    return [None if one is None else str(one) for one in ids]


def _min_score(least: Any) -> float | None:
    if least is None:
        return None
    if isinstance(least, bool) or not isinstance(least, Real) or math.isnan(least):
        raise InvalidInputError(f"min_score must be a number or None, got {least!r}")
    return float(least)


def check_name(kind: str, value: Any, *, optional: bool = False) -> str | None:
    """Return ``value`` if it can name a namespace or a session; ``InvalidInputError`` if not."""
    if value is None and optional:
        return None
    if not isinstance(value, str) or not value.strip():
        raise InvalidInputError(f"{kind} must be a non-empty str, got {value!r}")
    return value


def _pairs(rewards: Any) -> list[tuple[Any, Any]]:
    pairs = rewards.items() if isinstance(rewards, Mapping) else rewards
    try:
        return [(name, value) for name, value in pairs]
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"rewards must map documents to rewards, or be such pairs; got {rewards!r}") from error


def _listed(names: Any) -> Iterable[Any]:
    if type(names) in (list, tuple):  # asking the abstract classes takes longer than all the rest
        return cast("Iterable[Any]", names)
    if isinstance(names, (str, Integral)):
        return [names]
    if not isinstance(names, Iterable):
        raise InvalidInputError(f"helpful and unhelpful take ids or positions, got {names!r}")
    return list(names)


def _shown(ranking: RankingServed, name: Any) -> str:
    if isinstance(name, str):
        if name in ranking.document_ids:
            return name
    elif isinstance(name, bool) or not isinstance(name, (int, Integral)):
        raise InvalidInputError(
            f"documents are named by id (str) or by position in the list that was ranked (int), got {name!r}"
        )
    elif name in ranking.positions:
        return ranking.document_ids[ranking.positions.index(int(name))]
    kind = "document" if isinstance(name, str) else "position"
    shown = ", ".join(ranking.document_ids[:10]) + (", ..." if len(ranking.document_ids) > 10 else "")
    raise UnknownDocumentError(f"{kind} {name!r} was not shown in ranking {ranking.ranking_id}; shown were: {shown}")


def _reward(name: Any, value: Any) -> float:
    try:
        reward = float(value)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"the reward of {name!r} must be a number in [-1, 1], got {value!r}") from error
    if not -1.0 <= reward <= 1.0:
        raise InvalidInputError(f"the reward of {name!r} must be in [-1, 1], got {value!r}")
    return round(reward, 4)
