"""Settings and stores, opened for a verb, with messages that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from neuralcache_plugins.contracts import TelemetryStore
from neuralcache_plugins.errors import InvalidInputError, StoreCorruptError
from neuralcache_plugins.reranker import NamespaceStats, Reranker
from neuralcache_plugins.semantic_cache import CacheStats, SemanticCache
from neuralcache_plugins.settings import CacheSettings, RerankSettings, StoreSettings, from_environment
from neuralcache_plugins.stores import mask, open_store

NEW_FILE = "nothing was recorded there yet"



def url_of(given: str | None) -> str:
    """Return the URL given on the command line, or the configured one."""
    return given or from_environment(StoreSettings).resolved_url()


def is_new_file(url: str) -> bool:
    """Return whether opening the URL would make a new SQLite file."""
    path = url.removeprefix("sqlite:///")
    return path not in (url, ":memory:") and not Path(path).expanduser().exists()


@contextmanager
def opened(url: str, *, must_exist: bool = False) -> Iterator[TelemetryStore]:
    """Open a store for the length of a ``with``; ``InvalidInputError`` where it must exist and does not."""
    if must_exist and is_new_file(url):
        raise InvalidInputError(f"there is no file for {mask(url)}: {NEW_FILE}; name another store with --store URL")
    settings = from_environment(StoreSettings)
    with pointing_at(url):
        store = open_store(url, synchronous=settings.synchronous, busy_timeout_seconds=settings.busy_timeout_seconds)
        try:
            yield store
        finally:
            store.close()


@contextmanager
def pointing_at(url: str) -> Iterator[None]:
    """Complete the command in the advice about a corrupt file: the default store may be another, healthy one."""
    try:
        yield
    except StoreCorruptError as error:
        if str(error).endswith("doctor --quarantine"):
            raise StoreCorruptError(f"{error} --store {mask(url)}") from error
        raise


def learned(store: TelemetryStore, namespaces: list[str]) -> list[NamespaceStats]:
    """Return what the namespaces have learned, without writing anything."""
    # not closed: there is nothing to flush, and closing would write a snapshot
    reader = Reranker(store=store, settings=from_environment(RerankSettings))
    return [reader.stats(namespace=name).namespace for name in namespaces]


def cached(store: TelemetryStore, namespaces: list[str]) -> dict[str, CacheStats]:
    """Return what the log says of the cache of answers, for namespaces that have one, without writing anything."""
    found = {}
    for name in namespaces:
        # not closed, as above
        told = SemanticCache(store=store, namespace=name, settings=from_environment(CacheSettings)).stats()
        if told.logged is not None and told.logged.position:
            found[name] = told
    return found


def now() -> float:
    """Return seconds since the epoch, UTC."""
    return datetime.now(UTC).timestamp()
