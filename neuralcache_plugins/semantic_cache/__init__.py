"""A cache of answers: exact within a scope, semantic under a certificate, bound to the documents they came from."""

from neuralcache_plugins.semantic_cache.cache import SemanticCache
from neuralcache_plugins.semantic_cache.judges import Judge
from neuralcache_plugins.semantic_cache.records import read_records
from neuralcache_plugins.semantic_cache.report import CalibrationReport
from neuralcache_plugins.semantic_cache.results import CacheHit, CacheStats, Explanation, Sourced

__all__ = [
    "CacheHit", "CacheStats", "CalibrationReport", "Explanation", "Judge", "SemanticCache", "Sourced", "read_records",
]
