"""Signals from outside: feedback of LangSmith, Langfuse and Phoenix by the ids of their traces, and clicks.

Needs none of their packages: ``from_langsmith`` and its like take what their clients return, as objects or dicts, and
hand each score to a ``judge``, such as ``Reranker.judge``.
"""

from neuralcache_plugins.outside.clicks import click_propensities, rewards_from_clicks
from neuralcache_plugins.outside.scores import Taken, from_langfuse, from_langsmith, from_phoenix

__all__ = [
    "Taken",
    "click_propensities",
    "from_langfuse",
    "from_langsmith",
    "from_phoenix",
    "rewards_from_clicks",
]
