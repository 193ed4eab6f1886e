"""What in a prompt is the question, and what is everything else.

LangChain hands a cache its messages as one JSON text. Compared as a whole, two prompts with one system message are
nearly alike whatever was asked; so the last human turn is taken out as the question, and the rest has to be equal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from langchain_core.messages import BaseMessage, HumanMessage

FindQuestion: TypeAlias = Callable[[str], str] | None
"""Finds the question inside the last human turn, where that holds more (such as the retrieved context)."""

_HOLE = "\0question\0"


def split_prompt(prompt: str, find: FindQuestion) -> tuple[str, str]:
    """Return the question and all the rest, as text. A prompt without a human turn is a question as a whole."""
    messages = _messages(prompt)
    turn = None if messages is None else _last_human(messages)
    text = prompt if turn is None else _text(turn["kwargs"]["content"])
    if text is None:
        return prompt, ""
    question = text if find is None else find(text)
    if question not in text:
        return question, prompt  # it was made up from the prompt: all of that has to be equal
    before, _, after = text.rpartition(question) if question else (text, "", "")
    rest = f"{before}{_HOLE}{after}"
    if turn is None or messages is None:
        return question, rest
    turn["kwargs"]["content"] = _with_text(turn["kwargs"]["content"], rest)
    return question, json.dumps(messages, sort_keys=True)


def last_human_text(messages: Sequence[Any]) -> tuple[str, list[Any]] | None:
    """Return the text of the last human message, and the messages with a hole in its place; None if there is none."""
    for at in range(len(messages) - 1, -1, -1):
        message = messages[at]
        if isinstance(message, HumanMessage) and isinstance(message.content, str):
            hole = message.model_copy(update={"content": _HOLE, "id": None})
            return message.content, [*map(_without_id, messages[:at]), hole, *map(_without_id, messages[at + 1 :])]
    return None


def _without_id(message: Any) -> Any:
    # ids are made anew for every message
    return message.model_copy(update={"id": None}) if isinstance(message, BaseMessage) else message


def _messages(prompt: str) -> list[dict[str, Any]] | None:
    if not prompt.startswith("["):
        return None
    try:
        found = json.loads(prompt)
    except ValueError:
        return None
    if not all(isinstance(each, dict) and each.get("lc") == 1 and isinstance(each.get("id"), list)
               and isinstance(each.get("kwargs"), dict) for each in found):
        return None
    return list(found)


def _last_human(messages: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    turns = (each for each in reversed(messages) if each["id"][-1:] == ["HumanMessage"])
    return next((each for each in turns if "content" in each["kwargs"]), None)


def _text(content: Any) -> str | None:
    """Return the one text of a message; None where it holds several, or none."""
    if isinstance(content, str):
        return content
    texts = [part for part in content if _is_text(part)] if isinstance(content, list) else []
    if len(texts) != 1:
        return None
    return texts[0] if isinstance(texts[0], str) else str(texts[0]["text"])


def _with_text(content: Any, text: str) -> Any:
    if isinstance(content, str):
        return text
    return [(text if isinstance(part, str) else {**part, "text": text}) if _is_text(part) else part for part in content]


def _is_text(part: Any) -> bool:
    return isinstance(part, str) or (isinstance(part, dict) and part.get("type") == "text"
                                     and isinstance(part.get("text"), str))
