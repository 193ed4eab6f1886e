"""LangChain: a document compressor that learns, a retriever around it, caches, and feedback from answers."""

from __future__ import annotations

from neuralcache_plugins.errors import MissingExtraError

try:
    import langchain_core  # noqa: F401
except ImportError as error:
    if error.name != "langchain_core":  # it is there, but something that it needs is broken
        raise
    raise MissingExtraError("langchain-core", extra="langchain") from error

from neuralcache_plugins.langchain.cached import CachedRunnable, cached, document_versions
from neuralcache_plugins.langchain.callbacks import NeuralCacheCallbackHandler
from neuralcache_plugins.langchain.compressor import NeuralCacheCompressor
from neuralcache_plugins.langchain.llm_cache import NeuralCacheLLMCache
from neuralcache_plugins.langchain.retriever import NeuralCacheRetriever

__all__ = [
    "CachedRunnable",
    "NeuralCacheCallbackHandler",
    "NeuralCacheCompressor",
    "NeuralCacheLLMCache",
    "NeuralCacheRetriever",
    "cached",
    "document_versions",
]
