"""NeuralCache inside LlamaIndex: a node postprocessor that learns, feedback from answers, and caches."""

from __future__ import annotations

from neuralcache_plugins.errors import MissingExtraError

try:
    import llama_index.core  # noqa: F401
except ImportError as error:
    if error.name not in {"llama_index", "llama_index.core"}:  # it is there, but something that it needs is broken
        raise
    raise MissingExtraError("llama-index-core", extra="llamaindex") from error

from neuralcache_plugins.llamaindex.embedding import NeuralCacheEmbedding
from neuralcache_plugins.llamaindex.instrumentation import NeuralCacheInstrumentor
from neuralcache_plugins.llamaindex.postprocessor import NeuralCachePostprocessor
from neuralcache_plugins.llamaindex.query_engine import NeuralCacheQueryEngine
from neuralcache_plugins.llamaindex.responses import node_versions

__all__ = [
    "NeuralCacheEmbedding",
    "NeuralCacheInstrumentor",
    "NeuralCachePostprocessor",
    "NeuralCacheQueryEngine",
    "node_versions",
]
