"""NeuralCache inside LlamaIndex: a node postprocessor that learns which nodes help which questions."""

from __future__ import annotations

from neuralcache_plugins.errors import MissingExtraError

try:
    import llama_index.core  # noqa: F401
except ImportError as error:
    if error.name not in {"llama_index", "llama_index.core"}:  # it is there, but something that it needs is broken
        raise
    raise MissingExtraError("llama-index-core", extra="llamaindex") from error

from neuralcache_plugins.llamaindex.postprocessor import NeuralCachePostprocessor

__all__ = ["NeuralCachePostprocessor"]
