"""``evaluate``: a judged set through any list of rerankers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from neuralcache_plugins.errors import InvalidInputError, MissingExtraError
from neuralcache_plugins.evaluation.contenders import INPUT, Candidates, Contender, contenders
from neuralcache_plugins.evaluation.judged import JudgedSet
from neuralcache_plugins.evaluation.retrieval import Progress, run_of
from neuralcache_plugins.evaluation.runs import Run
from neuralcache_plugins.evaluation.scoreboard import Comparison, Evaluation, Score
from neuralcache_plugins.evaluation.uncertainty import (
    Array,
    Bootstrap,
    holm,
    randomisation_p,
)

METRICS = ("nDCG@10", "RR@10", "R@10")


class _Ran(NamedTuple):
    run: Run
    seconds: list[float]
    values: Mapping[str, Array]


def evaluate(
    judged: JudgedSet | str | Path,
    rerankers: Mapping[str, Any] | Sequence[Any],
    *,
    metrics: Sequence[str] = METRICS,
    first_stage: Any = "bm25",
    candidates: int = 50,
    confidence: float = 0.95,
    resamples: int = 2_000,
    permutations: int = 10_000,
    seed: int = 0,
    clock: Callable[[], float] = time.thread_time,
    progress: Progress | None = None,
) -> Evaluation:
    """Rerank the first stage's candidates of every judged question, and compare each reranker with the input order.

    ``judged`` is a set or a folder that ``JudgedSet.load`` reads. ``rerankers``, by name: a ``Reranker``, a LangChain
    compressor, a LlamaIndex postprocessor, a callable ``(query, texts) -> positions``, or None; the input order is
    always there. What a reranker leaves out counts as not found, so give compressors a ``top_n`` that suits the
    metrics. ``first_stage`` is "bm25" (over the words of the lexical core), "dense" (the local encoder), an encoder, a
    ``Run`` or its file. ``metrics`` are names that ``ir-measures`` knows.

    Gains come with a bootstrap interval over questions and a paired randomisation test, Holm-corrected over all
    rerankers and metrics. ``clock`` gives seconds; the default counts this thread's CPU time alone. A ``Reranker``
    records what it ranks: give it ``store="memory://"`` unless the evaluation belongs into its log.

    Raises ``InvalidInputError`` for what cannot be used and ``MissingExtraError`` without ``ir-measures``.
    """
    bootstrap = Bootstrap(confidence, resamples, seed)
    if candidates < 1:
        raise InvalidInputError(f"candidates must be at least 1, got {candidates}")
    judged = judged if isinstance(judged, JudgedSet) else JudgedSet.load(judged)
    measures = _measures(metrics)
    ready = contenders(rerankers)
    steps = _Steps(progress, total=len(judged) * (len(ready) + (not isinstance(first_stage, Run))))
    found = run_of(first_stage, judged, candidates=candidates, progress=steps.first_stage)
    cases = _cases(judged, found, candidates)
    ran = {name: _ran(name, one, cases, judged, measures, clock, steps) for name, one in ready.items()}
    names = tuple(measures)
    gains = _compared(ran, names, permutations=permutations, bootstrap=bootstrap)
    return Evaluation(
        judged=judged.name,
        first_stage=found.name,
        metrics=names,
        query_ids=judged.query_ids,
        candidates=candidates,
        scores=tuple(_score(name, one, gains.get(name, {}), bootstrap) for name, one in ran.items()),
    )


def _cases(judged: JudgedSet, found: Run, candidates: int) -> list[Candidates]:
    text_of = dict(zip(judged.ids, judged.texts, strict=True))
    cases = []
    for query_id, query in zip(judged.query_ids, judged.queries, strict=True):
        best = found.best(query_id, candidates)
        unknown = [name for name, _ in best if name not in text_of]
        if unknown:
            raise InvalidInputError(
                f"the run {found.name!r} names documents that are not in the corpus of {judged.name!r}: {unknown[:3]}"
            )
        ids = tuple(name for name, _ in best)
        cases.append(Candidates(query, ids, tuple(text_of[name] for name in ids), tuple(score for _, score in best)))
    return cases


def _ran(
    name: str, order: Contender, cases: Sequence[Candidates], judged: JudgedSet, measures: Mapping[str, Any],
    clock: Callable[[], float], steps: _Steps,
) -> _Ran:
    found: dict[str, dict[str, float]] = {}
    seconds: list[float] = []
    for query_id, case in zip(judged.query_ids, cases, strict=True):
        started = clock()
        places = order(case) if case.ids else ()
        seconds.append(0.0 if name == INPUT else clock() - started)
        # ranks, not scores, so that no tie is broken by a document's name
        found[query_id] = {case.ids[place]: 1.0 / (rank + 1) for rank, place in enumerate(places)}
        steps.next()
    return _Ran(Run(name, found), seconds, _measured(judged, found, measures))


def _measures(names: Sequence[str]) -> dict[str, Any]:
    try:
        import ir_measures
    except ImportError as error:
        if error.name != "ir_measures":
            raise
        raise MissingExtraError("ir-measures", extra="eval") from error
    if not names:
        raise InvalidInputError("metrics must name at least one")
    measures = {}
    for name in names:
        try:
            measure = ir_measures.parse_measure(name)
        except (NameError, ValueError, SyntaxError) as error:
            raise InvalidInputError(f"{name!r} is no metric of ir-measures (such as nDCG@10): {error}") from error
        measures[str(measure)] = measure
    return measures


def _measured(judged: JudgedSet, found: Mapping[str, Mapping[str, float]], measures: Mapping[str, Any]
              ) -> dict[str, Array]:
    """Return each metric for each question; a question for which nothing was found scores 0."""
    import ir_measures

    place = {query_id: at for at, query_id in enumerate(judged.query_ids)}
    values = {name: np.zeros(len(judged)) for name in measures}
    for one in ir_measures.iter_calc(list(measures.values()), judged.qrels, found):
        values[str(one.measure)][place[one.query_id]] = one.value
    return values


def _compared(
    ran: Mapping[str, _Ran], metrics: Sequence[str], *, permutations: int, bootstrap: Bootstrap
) -> dict[str, dict[str, Comparison]]:
    pairs = [(name, metric) for name in ran if name != INPUT for metric in metrics]
    differences = {(name, metric): ran[name].values[metric] - ran[INPUT].values[metric] for name, metric in pairs}
    chances = [randomisation_p(differences[pair], permutations=permutations, seed=bootstrap.seed) for pair in pairs]
    gains: dict[str, dict[str, Comparison]] = {}
    for pair, p, corrected in zip(pairs, chances, holm(chances), strict=True):
        gains.setdefault(pair[0], {})[pair[1]] = Comparison(bootstrap.mean(differences[pair]), p, corrected)
    return gains


def _score(name: str, one: _Ran, gains: Mapping[str, Comparison], bootstrap: Bootstrap) -> Score:
    milliseconds = 1000.0 * np.array(one.seconds)
    return Score(
        name=name,
        means={metric: bootstrap.mean(values) for metric, values in one.values.items()},
        per_query=one.values,
        gains=gains,
        cpu_median_ms=float(np.median(milliseconds)),
        cpu_p95_ms=float(np.quantile(milliseconds, 0.95)),
        run=one.run,
    )


class _Steps:
    """Counts the questions done, over the first stage and all rerankers."""

    def __init__(self, progress: Progress | None, *, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def first_stage(self, done: int, total: int) -> None:
        self.next()

    def next(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)
