"""Reranking and caching that learn, inside LangChain and LlamaIndex.

Names are resolved when first asked for, so importing the package loads no framework and no driver.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Attribution": "contracts",
    "CacheHit": "semantic_cache",
    "CacheSettings": "settings",
    "ComputationError": "errors",
    "DimensionMismatchError": "errors",
    "EncoderError": "errors",
    "InvalidInputError": "errors",
    "MissingExtraError": "errors",
    "NeuralCacheError": "errors",
    "Ranking": "contracts",
    "RerankSettings": "settings",
    "Reranker": "reranker",
    "SchemaVersionError": "errors",
    "SemanticCache": "semantic_cache",
    "StoreBusyError": "errors",
    "ErasedMeanwhileError": "errors",
    "StoreClosedError": "errors",
    "StoreCorruptError": "errors",
    "StoreError": "errors",
    "StoreFullError": "errors",
    "StoreSettings": "settings",
    "UnknownDocumentError": "errors",
    "UnknownHitError": "errors",
    "UnknownRankingError": "errors",
    "open_store": "stores",
}

__all__ = [
    "Attribution",
    "CacheHit",
    "CacheSettings",
    "ComputationError",
    "DimensionMismatchError",
    "EncoderError",
    "ErasedMeanwhileError",
    "InvalidInputError",
    "MissingExtraError",
    "NeuralCacheError",
    "Ranking",
    "RerankSettings",
    "Reranker",
    "SchemaVersionError",
    "SemanticCache",
    "StoreBusyError",
    "StoreClosedError",
    "StoreCorruptError",
    "StoreError",
    "StoreFullError",
    "StoreSettings",
    "UnknownDocumentError",
    "UnknownHitError",
    "UnknownRankingError",
    "open_store",
]

if TYPE_CHECKING:
    from neuralcache_plugins.contracts import Attribution, Ranking
    from neuralcache_plugins.errors import (
        ComputationError,
        DimensionMismatchError,
        EncoderError,
        ErasedMeanwhileError,
        InvalidInputError,
        MissingExtraError,
        NeuralCacheError,
        SchemaVersionError,
        StoreBusyError,
        StoreClosedError,
        StoreCorruptError,
        StoreError,
        StoreFullError,
        UnknownDocumentError,
        UnknownHitError,
        UnknownRankingError,
    )
    from neuralcache_plugins.reranker import Reranker
    from neuralcache_plugins.semantic_cache import CacheHit, SemanticCache
    from neuralcache_plugins.settings import CacheSettings, RerankSettings, StoreSettings
    from neuralcache_plugins.stores import open_store


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
