"""Markers in what people write next become feedback for the ranking behind the answer (extra ``conversation``).

``ConversationMonitor(feedback=reranker.feedback)`` is all there is to wire; ``catalogue`` describes markers as data.
"""

from neuralcache_plugins.conversation.analysis import Analysis, Turn
from neuralcache_plugins.conversation.catalogue import Catalogue, Marker, MarkerFile, catalogue
from neuralcache_plugins.conversation.detecting import Hit
from neuralcache_plugins.conversation.monitor import ConversationMonitor, Observation

__all__ = [
    "Analysis",
    "Catalogue",
    "ConversationMonitor",
    "Hit",
    "Marker",
    "MarkerFile",
    "Observation",
    "Turn",
    "catalogue",
]
