"""The core behind a compressor: made on first use, shared by copies, left behind by pickles."""

from __future__ import annotations

import threading
from typing import Any

from pydantic import SecretStr

from neuralcache_plugins.contracts import Encoder, TelemetryStore
from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.reranker import Reranker
from neuralcache_plugins.settings import RerankSettings

Store = TelemetryStore | SecretStr | str | None


class Engine:
    """One ``Reranker`` and what it is made of.

    It holds the lock and the store's connections that pydantic could neither deep-copy nor pickle.
    """

    def __init__(self, embeddings: Encoder | None, store: Store, settings: RerankSettings | None, namespace: str, *,
                 adopted: Reranker | None = None) -> None:
        self._parts = (embeddings, store, settings)
        self._namespace = namespace
        self._lock = threading.Lock()
        self._reranker = adopted
        self.adopted = adopted is not None

    def reranker(self) -> Reranker:
        """Return the core; the first call makes it."""
        if self._reranker is None:
            with self._lock:
                if self._reranker is None:
                    self._reranker = self._make()
        return self._reranker

    def suits(self, embeddings: Encoder | None, store: Store, settings: RerankSettings | None) -> bool:
        """Return whether the core is, or would be, made of exactly these objects."""
        mine = self._parts
        return mine[0] is embeddings and mine[1] is store and mine[2] is settings

    def close(self) -> None:
        """Close the core if it was made here."""
        with self._lock:
            if self._reranker is not None and not self.adopted:
                self._reranker.close()

    def _make(self) -> Reranker:
        embeddings, store, settings = self._parts
        url = store.get_secret_value() if isinstance(store, SecretStr) else store
        return Reranker(embeddings, store=url, settings=settings, namespace=self._namespace)

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        return self

    def __reduce__(self) -> tuple[type[Engine], tuple[Any, ...]]:
        if self.adopted:
            raise TypeError("a compressor made by from_reranker() cannot be pickled, because its Reranker lives in "
                            "this process; make one with embeddings= and store= instead")
        return Engine, (*self._parts, self._namespace)


def successor(engine: Engine, embeddings: Encoder | None, store: Store, settings: RerankSettings | None,
              namespace: str) -> Engine:
    """Return an engine for a compressor whose fields were changed after it was made."""
    if engine.adopted:
        raise InvalidInputError("embeddings, store and settings of a compressor made by from_reranker() are those "
                                "of its Reranker and cannot be changed")
    return Engine(embeddings, store, settings, namespace)
