"""What the messages of any framework say: who speaks, and which text. By what they look like, importing none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from neuralcache_plugins.errors import InvalidInputError

USER = "user"
ASSISTANT = "assistant"
_ROLES = {
    "user": USER, "human": USER, "humanmessagechunk": USER,
    "assistant": ASSISTANT, "ai": ASSISTANT, "aimessagechunk": ASSISTANT, "chatbot": ASSISTANT, "model": ASSISTANT,
}


class Said(NamedTuple):
    """One message: ``role`` is "user", "assistant" or whatever else it was called."""

    role: str
    text: str


def read(messages: Any) -> list[Said]:
    """Return what was said, in order. A lone str or message is the user's turn, or one message.

    Takes LangChain messages (``type``, ``content``), LlamaIndex ``ChatMessage`` (``role``, ``blocks``), dicts with
    ``role`` or ``type`` and ``content``, and pairs (role, text). ``InvalidInputError`` for anything else.
    """
    if isinstance(messages, str):
        return [Said(USER, messages)]
    if isinstance(messages, Mapping) or _looks_like_one(messages) or not isinstance(messages, Iterable):
        return [_said(messages)]
    if _is_pair(messages):
        return [_said(messages)]
    return [_said(one) for one in messages]


def _looks_like_one(message: Any) -> bool:
    return hasattr(message, "content") and (hasattr(message, "type") or hasattr(message, "role"))


def _is_pair(message: Any) -> bool:
    return (isinstance(message, tuple) and len(message) == 2 and isinstance(message[0], str)
            and message[0].casefold() in {*_ROLES, "system", "tool", "placeholder"} and isinstance(message[1], str))


def _said(message: Any) -> Said:
    if isinstance(message, str):
        return Said(USER, message)
    if isinstance(message, Mapping):
        role, content = message.get("role", message.get("type")), message.get("content")
    elif _is_pair(message):
        role, content = message
    elif _looks_like_one(message):
        role, content = getattr(message, "role", None) or getattr(message, "type", None), message.content
    else:
        raise InvalidInputError(
            f"a message must be a str, a dict with role and content, a pair of them, or a message of LangChain or "
            f"LlamaIndex, got {type(message).__name__}"
        )
    name = str(getattr(role, "value", role)).casefold()
    return Said(_ROLES.get(name, name), _text(content))


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        return _text(content.get("text", ""))
    if isinstance(content, Sequence):
        return "\n".join(filter(None, map(_text, content)))
    return _text(getattr(content, "text", None) or "")
