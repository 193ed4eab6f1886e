"""An embedding model that computes each vector once."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from pydantic import ConfigDict, Field, PrivateAttr

from neuralcache_plugins.contracts import StoredVector, TelemetryStore
from neuralcache_plugins.errors import StoreError
from neuralcache_plugins.settings import StoreSettings, from_environment
from neuralcache_plugins.stores import open_store

_LOG = logging.getLogger(__name__)

TRAITS = ("model_name", "dimensions", "query_instruction", "text_instruction", "normalize", "pooling")
"""Attributes of a model that make its vectors what they are."""


class NeuralCacheEmbedding(BaseEmbedding):
    """Keeps the vectors of ``embed_model`` in a store, by model and role.

    Unlike LlamaIndex's own ``embeddings_cache`` it never hands one model's vector to another, nor a question's to a
    document of the same text. Vectors are rounded to float16, the first time as well: one text has one vector. A store
    that fails costs a call of the model.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True)

    embed_model: BaseEmbedding = Field(description="Makes the vectors that are not there yet.")
    store: Any = Field(default=None, repr=False, exclude=True,
                       description="Telemetry store or its URL; None is the configured default.")
    namespace: str = Field(default="default", min_length=1, description="Tenant: nothing cached crosses it.")

    _opened: TelemetryStore | None = PrivateAttr(default=None)
    _lock: Any = PrivateAttr(default_factory=threading.Lock)
    _warned: bool = PrivateAttr(default=False)

    def __init__(self, embed_model: BaseEmbedding, **fields: Any) -> None:
        super().__init__(embed_model=embed_model, **{
            "model_name": embed_model.model_name, "embed_batch_size": embed_model.embed_batch_size,
            "callback_manager": embed_model.callback_manager, **fields})

    @classmethod
    def class_name(cls) -> str:
        """Return the name that serialised components carry."""
        return "NeuralCacheEmbedding"

    def close(self) -> None:
        """Close the store if it was opened here."""
        with self._lock:
            opened, self._opened = self._opened, None
        if opened is not None and opened is not self.store:
            opened.close()

    def _get_query_embedding(self, query: str) -> Embedding:
        return self._cached("query", [query], lambda texts: [self.embed_model.get_query_embedding(texts[0])])[0]

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return self._cached("document", texts, self.embed_model.get_text_embedding_batch)

    async def _aget_query_embedding(self, query: str) -> Embedding:
        known = await asyncio.to_thread(self._known, "query", [query])
        if query not in known:
            fresh = [await self.embed_model.aget_query_embedding(query)]
            known |= await asyncio.to_thread(self._learn, "query", [query], fresh)
        return known[query]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aget_text_embeddings([text]))[0]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        known = await asyncio.to_thread(self._known, "document", texts)
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        if missing:
            fresh = await self.embed_model.aget_text_embedding_batch(missing)
            known |= await asyncio.to_thread(self._learn, "document", missing, fresh)
        return [known[text] for text in texts]

    def _cached(self, role: str, texts: list[str], embed: Callable[[list[str]], list[Embedding]]) -> list[Embedding]:
        known = self._known(role, texts)
        missing = [text for text in dict.fromkeys(texts) if text not in known]
        if missing:
            known |= self._learn(role, missing, embed(missing))
        return [list(known[text]) for text in texts]

    def _known(self, role: str, texts: Sequence[str]) -> dict[str, Embedding]:
        try:
            keys = {self._key(role, text): text for text in texts}
            found = self._store().get_vectors(self.namespace, self._fingerprint(), list(keys))
        except StoreError as error:
            self._warn(error)
            return {}
        return {keys[key]: _numbers(vector) for key, vector in found.items()}

    def _learn(self, role: str, texts: Sequence[str], fresh: Sequence[Embedding]) -> dict[str, Embedding]:
        with np.errstate(over="ignore"):
            halves = [np.asarray(vector, np.float32).astype(np.float16) for vector in fresh]
        if not all(np.isfinite(half).all() for half in halves):
            return dict(zip(texts, fresh, strict=True))  # too large for a half: better not kept than changed
        try:
            rows = [StoredVector(self._key(role, text), half) for text, half in zip(texts, halves, strict=True)]
            self._store().put_vectors(self.namespace, self._fingerprint(), rows, at=datetime.now(UTC).timestamp(),
                                      max_rows=from_environment(StoreSettings).vectors_on_disk)
        except StoreError as error:
            self._warn(error)
        return {text: _numbers(half) for text, half in zip(texts, halves, strict=True)}

    def _key(self, role: str, text: str) -> str:
        data = f"{role}\0{text}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(data, key=self._store().hash_key(), digest_size=16).hexdigest()

    def _fingerprint(self) -> str:
        model = self.embed_model
        traits = [f"{name}={getattr(model, name)!r}" for name in TRAITS if getattr(model, name, None) is not None]
        return f"llamaindex:{type(model).__module__}.{type(model).__qualname__}:{','.join(traits)}"

    def _store(self) -> TelemetryStore:
        with self._lock:
            if self._opened is None:
                self._opened = open_store(self.store)
            return self._opened

    def _warn(self, error: StoreError) -> None:
        if not self._warned:
            _LOG.warning("embeddings are not cached until the store recovers (logged once): %s", error)
        self._warned = True


def _numbers(vector: Any) -> Embedding:
    return [float(value) for value in vector]
