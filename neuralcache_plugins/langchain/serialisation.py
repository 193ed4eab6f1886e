"""LangChain objects as text and back, restricted to messages, generations and documents. No pickle."""

from __future__ import annotations

import warnings
from typing import Any

from langchain_core.documents import Document
from langchain_core.load import Serializable, dumps, loads
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    ChatMessageChunk,
    FunctionMessage,
    FunctionMessageChunk,
    HumanMessage,
    HumanMessageChunk,
    SystemMessage,
    SystemMessageChunk,
    ToolMessage,
    ToolMessageChunk,
)
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, Generation, GenerationChunk

# plain data all of them: making one runs no code of the payload's choice
_ALLOWED: list[type[Serializable]] = [
    AIMessage, AIMessageChunk, ChatMessage, ChatMessageChunk, FunctionMessage, FunctionMessageChunk, HumanMessage,
    HumanMessageChunk, SystemMessage, SystemMessageChunk, ToolMessage, ToolMessageChunk, ChatGeneration,
    ChatGenerationChunk, Generation, GenerationChunk, Document,
]

with warnings.catch_warnings():
    # it says once per process that it is in beta, and that would be said to who uses the cache
    warnings.simplefilter("ignore")
    loads("[]", allowed_objects=_ALLOWED)


def to_text(value: Any) -> str | None:
    """Return a value as text, or None if it would not come back equal: then it must not be cached."""
    try:
        text = dumps(value)
        return text if _is_same(value, from_text(text)) else None
    except (ValueError, TypeError, NotImplementedError):
        return None


def from_text(text: str) -> Any:
    """Return a new value from its text; ``ValueError`` for anything but messages, generations, documents and JSON."""
    return loads(text, allowed_objects=_ALLOWED)


def _is_same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_is_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return bool(one == other)
