"""Instruments that prove what was learned: ``evaluate``, ``simulate``, ``replay`` and ``tune`` (extra ``eval``).

Results are frozen; each has ``table()``, ``as_dict()``, ``to_csv()``, ``to_json()``, ``plot()`` and shows itself in a
notebook. Only ``evaluate`` (ir-measures) and ``plot`` (matplotlib) need the extra.
"""

from __future__ import annotations

from neuralcache_plugins.evaluation.contenders import by_score
from neuralcache_plugins.evaluation.counterfactual import Counterfactual
from neuralcache_plugins.evaluation.curves import Curve, Simulation
from neuralcache_plugins.evaluation.feedback_model import FeedbackModel
from neuralcache_plugins.evaluation.judged import JudgedSet
from neuralcache_plugins.evaluation.judging import evaluate
from neuralcache_plugins.evaluation.replayed import Learned, Replay
from neuralcache_plugins.evaluation.replaying import replay
from neuralcache_plugins.evaluation.rescoring import LoggedRanker, text_ranker
from neuralcache_plugins.evaluation.retrieval import dense_run, lexical_run, vector_run
from neuralcache_plugins.evaluation.runs import Run
from neuralcache_plugins.evaluation.scoreboard import Comparison, Evaluation, Score
from neuralcache_plugins.evaluation.simulation import simulate
from neuralcache_plugins.evaluation.streams import Stream
from neuralcache_plugins.evaluation.tables import Table
from neuralcache_plugins.evaluation.tuned import Trial, Tuning
from neuralcache_plugins.evaluation.tuning import tune
from neuralcache_plugins.evaluation.uncertainty import Interval

__all__ = [
    "Comparison",
    "Counterfactual",
    "Curve",
    "Evaluation",
    "FeedbackModel",
    "Interval",
    "JudgedSet",
    "Learned",
    "LoggedRanker",
    "Replay",
    "Run",
    "Score",
    "Simulation",
    "Stream",
    "Table",
    "Trial",
    "Tuning",
    "by_score",
    "dense_run",
    "evaluate",
    "lexical_run",
    "replay",
    "simulate",
    "text_ranker",
    "tune",
    "vector_run",
]
