"""Instruments that prove what was learned: ``evaluate``, ``simulate``, ``replay`` and ``tune`` (extra ``eval``)."""

from __future__ import annotations

from neuralcache_plugins.evaluation.contenders import by_score
from neuralcache_plugins.evaluation.judged import JudgedSet
from neuralcache_plugins.evaluation.judging import evaluate
from neuralcache_plugins.evaluation.retrieval import dense_run, lexical_run, vector_run
from neuralcache_plugins.evaluation.runs import Run
from neuralcache_plugins.evaluation.scoreboard import Comparison, Evaluation, Score
from neuralcache_plugins.evaluation.uncertainty import Interval

__all__ = [
    "Comparison",
    "Evaluation",
    "Interval",
    "JudgedSet",
    "Run",
    "Score",
    "by_score",
    "dense_run",
    "evaluate",
    "lexical_run",
    "vector_run",
]
