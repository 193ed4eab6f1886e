"""A retriever that reranks what another one finds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    BaseCallbackManager,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, RetrieverLike
from langchain_core.runnables import RunnableConfig
from pydantic import ConfigDict, Field

from neuralcache_plugins.langchain.call_options import CallOptions, in_metadata, positive
from neuralcache_plugins.langchain.compressor import NeuralCacheCompressor


class NeuralCacheRetriever(BaseRetriever):
    """Asks ``base_retriever`` and returns the best of its documents.

    Unlike ``ContextualCompressionRetriever`` it takes the number of documents itself, also for one call
    (``retriever.invoke(question, k=3)``), and sees ``session_id``, ``thread_id``, ``namespace`` and ``top_n`` in the
    ``configurable`` of a direct call. Other arguments of ``invoke`` go to the base retriever, which should find
    several times more documents than are wanted.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    base_retriever: RetrieverLike = Field(description="finds the candidates")
    compressor: NeuralCacheCompressor = Field(
        default_factory=NeuralCacheCompressor, description="ranks the candidates, takes feedback")
    k: int | None = Field(default=None, ge=1, description="documents returned; None: as the compressor's top_n says")

    def invoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """Return the best documents for a question; ``k=`` sets their number for this call."""
        return super().invoke(input, in_metadata(config), **kwargs)

    async def ainvoke(self, input: str, config: RunnableConfig | None = None, **kwargs: Any) -> list[Document]:
        """Do as ``invoke`` does, asynchronously all the way."""
        return await super().ainvoke(input, in_metadata(config), **kwargs)

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun,
                                k: int | None = None, **kwargs: Any) -> list[Document]:
        call = self._options(run_manager.get_child(), k)
        found = self.base_retriever.invoke(query, config={"callbacks": run_manager.get_child()}, **kwargs)
        return self.compressor.compress_with(call, found, query)

    async def _aget_relevant_documents(self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun,
                                       k: int | None = None, **kwargs: Any) -> list[Document]:
        call = self._options(run_manager.get_child(), k)
        found = await self.base_retriever.ainvoke(query, config={"callbacks": run_manager.get_child()}, **kwargs)
        return await self.compressor.acompress_with(call, found, query)

    def _options(self, callbacks: BaseCallbackManager, k: int | None) -> CallOptions:
        """Return the call's options; the argument beats run metadata, which beats the field."""
        call = CallOptions.current(callbacks)
        return replace(call, top_n=positive("k", k) or call.top_n or self.k)
