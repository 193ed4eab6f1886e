"""What a caller may say for one call: session, namespace and ``top_n``, by run metadata or ``configurable``.

``ContextualCompressionRetriever`` passes nothing on but its callbacks, so a call's options travel in their
metadata; in a chain or a graph the ambient ``configurable`` is seen as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from langchain_core.callbacks import Callbacks
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import var_child_runnable_config

from neuralcache_plugins.errors import InvalidInputError

SESSION_KEYS = ("session_id", "thread_id")
OPTION_KEYS = (*SESSION_KEYS, "namespace", "top_n")


@dataclass(frozen=True, slots=True)
class CallOptions:
    """One call's options (None: not given) and the callbacks that apply to it."""

    callbacks: Callbacks = None
    session: str | None = None
    namespace: str | None = None
    top_n: int | None = None

    @classmethod
    def current(cls, callbacks: Callbacks = None) -> CallOptions:
        """Read the options of the running call; raises ``InvalidInputError`` for unusable ones.

        Run metadata beats ``configurable``. ``session_id`` beats ``thread_id`` wherever they stand, because
        LangGraph copies its thread into the metadata of every run.
        """
        ambient = var_child_runnable_config.get()
        if ambient is not None and callbacks is None:
            callbacks = ambient.get("callbacks")
        sources = _sources(callbacks, ambient)
        if not sources:
            return cls(callbacks)
        return cls(
            callbacks,
            session=identifier("session_id", _first(sources, SESSION_KEYS)),
            namespace=identifier("namespace", _first(sources, ("namespace",))),
            top_n=positive("top_n", _first(sources, ("top_n",))),
        )


def in_metadata(config: RunnableConfig | None) -> RunnableConfig | None:
    """Return the config with the options of its ``configurable`` repeated in its metadata.

    A retriever hands on metadata alone. What the caller wrote into the metadata stays.
    """
    given = (config or {}).get("configurable") or {}
    options = {key: given[key] for key in OPTION_KEYS if given.get(key) is not None}
    if config is None or not options:
        return config
    return {**config, "metadata": {**options, **(config.get("metadata") or {})}}


def identifier(name: str, value: Any) -> str | None:
    """Return a session's or namespace's name as text; numbers and UUIDs will do."""
    if value is None or (isinstance(value, str) and value):
        return value
    if isinstance(value, int | UUID) and not isinstance(value, bool):
        return str(value)
    # falling back to the default here could show one tenant what another one taught
    raise InvalidInputError(f"{name} must be a non-empty string, an integer or a UUID, got {value!r}")


def positive(name: str, value: Any) -> int | None:
    """Return a count of documents, checked."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise InvalidInputError(f"{name} must be an integer of at least 1, got {value!r}")


def _sources(callbacks: Callbacks, ambient: RunnableConfig | None) -> list[Mapping[str, Any]]:
    """Return where options may stand, the strongest first."""
    candidates: list[Mapping[str, Any] | None] = []
    if callbacks is not None and not isinstance(callbacks, list):
        candidates.append(callbacks.metadata)
    if ambient is not None:
        candidates += [ambient.get("metadata"), ambient.get("configurable")]
    return [source for source in candidates if source]


def _first(sources: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> Any:
    return next((source[key] for key in keys for source in sources if source.get(key) is not None), None)
