"""A LlamaIndex embedding model, seen as the core's ``Encoder``."""

from __future__ import annotations

import asyncio
import inspect

from llama_index.core.base.embeddings.base import BaseEmbedding


class EmbedModelEncoder:
    """Gives a ``BaseEmbedding`` the method names of ``neuralcache_plugins.contracts.Encoder``.

    Only the public methods of the model are called, so its batching, rate limit, cache, callbacks and spans hold.
    ``fingerprint`` is made of the class and ``model_name``; the core adds the width.
    """

    def __init__(self, model: BaseEmbedding) -> None:
        self.model = model
        self.fingerprint = f"{type(model).__qualname__}/{model.model_name}"
        self._batches_natively = any(
            inspect.getattr_static(type(model), name) is not inspect.getattr_static(BaseEmbedding, name)
            for name in ("_aget_text_embedding", "_aget_text_embeddings", "aget_text_embedding_batch")
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.fingerprint!r})"

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one vector per text."""
        return self.model.get_text_embedding_batch(texts)

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a question."""
        return self.model.get_query_embedding(text)

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one vector per text without blocking the event loop."""
        if self._batches_natively:
            return await self.model.aget_text_embedding_batch(texts)
        # the framework's fallback would run the synchronous method on the event loop itself
        return await asyncio.to_thread(self.model.get_text_embedding_batch, texts)

    async def aembed_query(self, text: str) -> list[float]:
        """Return the vector of a question without blocking the event loop."""
        return await self.model.aget_query_embedding(text)
