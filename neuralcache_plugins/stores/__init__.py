"""Where telemetry is kept: ``open_store`` turns a URL into a store.

============================  =========================================================
``sqlite:///telemetry.db``    a file, relative to the current directory
``sqlite:////var/nc/t.db``    a file by its absolute path (Windows: ``sqlite:///C:/t.db``)
``sqlite:///:memory:``        a SQLite database in memory, shared by the threads of the object
``memory://``                 plain Python objects in memory
``other://...``               whatever an installed package offers for ``other``
============================  =========================================================

A package offers a scheme by an entry point in the group ``neuralcache_plugins.stores``: its name is the scheme, its
value a callable that takes the URL and returns a ``TelemetryStore``.
"""

from __future__ import annotations

import importlib.metadata
import re
from typing import Literal

from neuralcache_plugins.contracts import TelemetryStore
from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.stores.memory import MemoryStore

__all__ = ["ENTRY_POINTS", "mask", "open_store"]

ENTRY_POINTS = "neuralcache_plugins.stores"
"""The entry-point group in which packages offer further schemes."""

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*)://(?P<rest>.*)", re.DOTALL)


def open_store(store: TelemetryStore | str | None = None, *, default_url: str | None = None,
               synchronous: Literal["normal", "full"] = "normal",
               busy_timeout_seconds: float = 5.0) -> TelemetryStore:
    """Return the store at a URL; a store is returned as it is.

    None means ``default_url``, or without it what ``NEURALCACHE_STORE_URL`` says, or else a SQLite file in the user's
    data folder. The last two arguments are for SQLite files.
    """
    if store is None:
        store = default_url or _configured_url()
    if not isinstance(store, str):
        return _checked(store)
    match = _URL.fullmatch(store)
    if match is None:
        raise InvalidInputError(f"a store URL must look like {_accepted()}, got {mask(store)!r}")
    scheme, rest = match["scheme"].lower(), match["rest"]
    if scheme == "sqlite":
        return _open_sqlite(store, rest, synchronous=synchronous, busy_timeout_seconds=busy_timeout_seconds)
    if scheme == "memory":
        return _open_memory(store, rest)
    return _open_other(store, scheme)


def mask(url: str) -> str:
    """Return the URL fit for logs: without user, password and the values of query parameters."""
    without_user = re.sub(r"^([A-Za-z][A-Za-z0-9+.\-]*://)?.*@", r"\1***@", url, flags=re.DOTALL)
    place, mark, query = without_user.partition("?")
    return place + mark + re.sub(r"=[^&]*", "=***", query)


def _configured_url() -> str:
    # the one look upwards that stores are allowed, for those who open a store themselves
    from neuralcache_plugins.settings import StoreSettings

    return StoreSettings().resolved_url()


def _checked(store: object) -> TelemetryStore:
    if not isinstance(store, TelemetryStore):
        raise InvalidInputError(f"a store must be a TelemetryStore, a URL or None, got {type(store).__name__}")
    return store


def _open_sqlite(url: str, rest: str, *, synchronous: Literal["normal", "full"],
                 busy_timeout_seconds: float) -> TelemetryStore:
    from neuralcache_plugins.stores.sqlite import SqliteStore

    path = rest.removeprefix("/")
    if not path or path.endswith("/") or (path == rest and path != ":memory:"):
        raise InvalidInputError(
            "a SQLite URL must look like sqlite:///relative.db, sqlite:////absolute/file.db or sqlite:///:memory:, "
            f"got {mask(url)!r}"
        )
    return SqliteStore(path, synchronous=synchronous, busy_timeout_seconds=busy_timeout_seconds)


def _open_memory(url: str, rest: str) -> TelemetryStore:
    if rest:
        raise InvalidInputError(f"the plain store in memory has no name: write memory://, got {mask(url)!r}")
    return MemoryStore()


def _open_other(url: str, scheme: str) -> TelemetryStore:
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINTS, name=scheme):
        return _checked(entry_point.load()(url))
    raise InvalidInputError(f"no store is known for {mask(url)!r}; a store URL must look like {_accepted()}")


def _accepted() -> str:
    names = sorted({entry_point.name for entry_point in importlib.metadata.entry_points(group=ENTRY_POINTS)})
    further = "".join(f", {name}://..." for name in names)
    return f"sqlite:///file.db, sqlite:////absolute/file.db, sqlite:///:memory:, memory://{further}"
