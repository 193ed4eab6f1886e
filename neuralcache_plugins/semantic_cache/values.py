"""Answers as bytes and back: texts, bytes and JSON values. Nothing that is read is executed."""

from __future__ import annotations

import json
from typing import Any, TypeAlias

from neuralcache_plugins.contracts import AnswerKind, CachedAnswer
from neuralcache_plugins.errors import InvalidInputError, StoreCorruptError

Payload: TypeAlias = tuple[AnswerKind, bytes]


def encode(value: Any) -> Payload:
    """Return the bytes of an answer; ``InvalidInputError`` if it would not come back equal."""
    if isinstance(value, str):
        return "text", value.encode("utf-8", "surrogatepass")
    if isinstance(value, bytes):
        return "bytes", value
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise _unusable(value) from error
    if json.loads(text) != value:
        raise _unusable(value)
    return "json", text.encode()


def decode(payload: Payload) -> Any:
    """Return the answer, a new object every time."""
    kind, data = payload
    try:
        if kind == "json":
            return json.loads(data)
        return data.decode("utf-8", "surrogatepass") if kind == "text" else bytes(data)
    except ValueError as error:
        raise StoreCorruptError("a cached answer is damaged; remove it with invalidate()") from error


def value_of(answer: CachedAnswer) -> Any:
    """Return what a cached answer says."""
    return decode((answer.kind, answer.payload))


def is_nothing(value: Any) -> bool:
    """Return whether the answer is that there is none: None, or empty."""
    return value is None or (isinstance(value, str | bytes | list | dict) and not value)


def _unusable(value: Any) -> InvalidInputError:
    kind = type(value).__name__
    return InvalidInputError(f"an answer must be a str, bytes or a JSON value (with lists and str keys), got {kind}")
