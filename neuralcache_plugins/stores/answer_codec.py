"""Answers and the events about them as rows, and the numbers that all stores keep to. Nothing read here is executed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, TypeAlias

from neuralcache_plugins.contracts import (
    AnswerCached,
    AnswerEvent,
    AnswerJudged,
    AnswerMissed,
    AnswerServed,
    DocumentVersion,
)
from neuralcache_plugins.errors import StoreCorruptError

COLUMNS = ("kind", "namespace", "at", "event_id", "entry_id", "scope", "body")
"""The columns of one event, in the order of an encoded row."""

KINDS: dict[type[AnswerEvent], str] = {
    AnswerCached: "cached", AnswerServed: "served", AnswerJudged: "judged", AnswerMissed: "missed",
}
"""What the column ``kind`` says."""

LEAST_COST = 1e-6
"""Added to every cost, so that answers without one are told apart by hits and age."""

ROOM = 20
"""When answers must go, one in so many goes with them: the next puts find room."""

FAILURE_KEPT_SECONDS = 60.0
"""How long a failed computation is told to those who waited for it."""

Row: TypeAlias = tuple[str, str, float, str, str, str, str]
"""One encoded event: the values of ``COLUMNS``."""


def encode(event: AnswerEvent) -> Row:
    """Return the row of an event."""
    body: dict[str, Any]
    if isinstance(event, AnswerCached):
        name, body = event.entry_id, {"cost": event.cost, "seconds": event.seconds}
    elif isinstance(event, AnswerMissed):
        name, body = event.missed_id, {"reason": event.reason}
    else:
        name = event.hit_id if isinstance(event, AnswerServed) else event.judged_id
        body = {"score": event.score, "features": dict(event.features), "propensity": event.propensity,
                **_own(event)}
    text = json.dumps(body, separators=(",", ":"))
    return KINDS[type(event)], event.namespace, event.at, name, event.entry_id, event.scope, text


def decode(row: Iterable[Any]) -> AnswerEvent:
    """Return the event of a row; ``StoreCorruptError`` if the row is damaged."""
    kind, namespace, at, name, entry_id, scope, text = row
    try:
        body = json.loads(text)
        if kind == "cached":
            return AnswerCached(entry_id, namespace, at, scope, body["cost"], body["seconds"])
        if kind == "missed":
            return AnswerMissed(name, namespace, at, scope, body["reason"])
        if kind == "served":
            return AnswerServed(name, entry_id, namespace, at, scope, body["kind"], body["score"], body["features"],
                                body["propensity"], body.get("cost", 0.0), body.get("seconds", 0.0))
        return AnswerJudged(name, entry_id, namespace, at, scope, body["correct"], body["source"], body["score"],
                            body["features"], body["propensity"], body["hit_id"])
    except (ValueError, KeyError, TypeError) as error:
        raise StoreCorruptError(f"the event {name!r} about an answer is damaged") from error


def documents_text(documents: Iterable[tuple[str, str | None]]) -> str:
    """Return documents as JSON pairs; ids need not be Unicode."""
    return json.dumps(list(documents))


def documents(text: str) -> tuple[DocumentVersion, ...]:
    """Return documents from JSON pairs."""
    return tuple([(name, version) for name, version in json.loads(text)])


def blob(text: str) -> bytes:
    """Return text as bytes, lone surrogates included: people paste what they find."""
    return text.encode("utf-8", "surrogatepass")


def text(stored: bytes) -> str:
    """Return text from bytes."""
    return stored.decode("utf-8", "surrogatepass")


def _own(event: AnswerServed | AnswerJudged) -> dict[str, Any]:
    if isinstance(event, AnswerServed):
        return {"kind": event.kind, "cost": event.cost, "seconds": event.seconds}
    return {"correct": event.correct, "source": event.source, "hit_id": event.hit_id}
