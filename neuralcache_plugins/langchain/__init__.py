"""LangChain: a document compressor that learns, and a retriever around it."""

from __future__ import annotations

from neuralcache_plugins.errors import MissingExtraError

try:
    import langchain_core  # noqa: F401
except ImportError as error:
    if error.name != "langchain_core":  # it is there, but something that it needs is broken
        raise
    raise MissingExtraError("langchain-core", extra="langchain") from error

from neuralcache_plugins.langchain.compressor import NeuralCacheCompressor
from neuralcache_plugins.langchain.retriever import NeuralCacheRetriever

__all__ = ["NeuralCacheCompressor", "NeuralCacheRetriever"]
