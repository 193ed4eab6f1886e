"""What ``evaluate`` returns: every reranker's figures on one judged set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuralcache_plugins.evaluation import drawing
from neuralcache_plugins.evaluation.runs import Run
from neuralcache_plugins.evaluation.tables import Table, write_csv, write_json
from neuralcache_plugins.evaluation.uncertainty import Array, Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric of one reranker against the input order, over the same questions.

    ``p`` is of the paired randomisation test, ``p_holm`` is corrected for all comparisons of the evaluation.
    """

    gain: Interval
    p: float
    p_holm: float


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """One reranker: means by metric, values by metric and question, gains over the input order, CPU time.

    ``per_query[metric]`` is in the order of ``Evaluation.query_ids``. Times are CPU milliseconds of the calling
    thread for one question, encoding of texts not seen before included; 0 for the input order.
    """

    name: str
    means: Mapping[str, Interval]
    per_query: Mapping[str, Array]
    gains: Mapping[str, Comparison]
    cpu_median_ms: float
    cpu_p95_ms: float
    run: Run


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Every reranker's figures on one judged set; the first is the input order."""

    judged: str
    first_stage: str
    metrics: tuple[str, ...]
    query_ids: tuple[str, ...]
    candidates: int
    scores: tuple[Score, ...]

    def __getitem__(self, name: str) -> Score:
        for score in self.scores:
            if score.name == name:
                return score
        raise KeyError(name)

    def table(self) -> Table:
        """Return one row per metric and reranker: mean, gain with interval, corrected p-value, CPU time."""
        confidence = round(100 * self.scores[0].means[self.metrics[0]].confidence)
        caption = (f"{self.judged}: {len(self.query_ids)} questions, {self.candidates} candidates by "
                   f"{self.first_stage}; gains over the input order with {confidence} % intervals")
        header = ("metric", "reranker", "mean", "gain", "p (Holm)", "CPU ms", "p95 ms")
        return Table(caption, header, tuple(self._rows()))

    def as_dict(self) -> dict[str, Any]:
        """Return everything but per-question values, ready for JSON."""
        return {
            "judged": self.judged,
            "first_stage": self.first_stage,
            "questions": len(self.query_ids),
            "candidates": self.candidates,
            "rerankers": [self._entry(score) for score in self.scores],
        }

    def to_json(self, path: str | Path) -> None:
        """Write ``as_dict()`` and the values of every question."""
        values = {score.name: {name: score.per_query[name].tolist() for name in self.metrics} for score in self.scores}
        write_json(path, {**self.as_dict(), "query_ids": list(self.query_ids), "per_query": values})

    def to_csv(self, path: str | Path, *, per_query: bool = False) -> None:
        """Write one line per reranker and metric, or (``per_query``) per reranker, question and metric."""
        if per_query:
            write_csv(path, ("reranker", "query_id", "metric", "value"), self._values())
            return
        header = ("reranker", "metric", "mean", "low", "high", "gain", "gain_low", "gain_high", "p", "p_holm",
                  "cpu_median_ms", "cpu_p95_ms")
        write_csv(path, header, self._lines())

    def plot(self) -> Figure:
        """Return a figure with one panel per metric: means with intervals."""
        figure, axes = drawing.panels(len(self.metrics), width=3.6, height=1.2 + 0.4 * len(self.scores), across=True)
        for panel, metric in zip(axes, self.metrics, strict=True):
            for place, score in enumerate(self.scores):
                drawing.whisker(panel, score.means[metric], place, index=place)
            drawing.estimates(panel, [score.name for score in self.scores])
            drawing.label(panel, x=f"mean {metric} (0 to 1)", y="", legend=False)
        figure.suptitle(f"{self.judged}, {len(self.query_ids)} questions")
        return figure

    def _repr_html_(self) -> str:
        return self.table().html()

    def _rows(self) -> Iterator[tuple[str, ...]]:
        for metric in self.metrics:
            for score in self.scores:
                one = score.gains.get(metric)
                compared = ("", "") if one is None else (one.gain.signed(), f"{one.p_holm:.4f}")
                spent = f"{score.cpu_median_ms:.2f}", f"{score.cpu_p95_ms:.2f}"
                yield (metric, score.name, f"{score.means[metric].value:.3f}", *compared, *spent)

    def _entry(self, score: Score) -> dict[str, Any]:
        gains = {name: {**one.gain.as_dict(), "p": one.p, "p_holm": one.p_holm} for name, one in score.gains.items()}
        return {
            "name": score.name,
            "metrics": {name: mean.as_dict() for name, mean in score.means.items()},
            "gains": gains,
            "cpu_median_ms": score.cpu_median_ms,
            "cpu_p95_ms": score.cpu_p95_ms,
        }

    def _lines(self) -> Iterator[tuple[Any, ...]]:
        for score in self.scores:
            for name in self.metrics:
                mean, one = score.means[name], score.gains.get(name)
                gain = ("",) * 5 if one is None else (one.gain.value, one.gain.low, one.gain.high, one.p, one.p_holm)
                yield (score.name, name, mean.value, mean.low, mean.high, *gain, score.cpu_median_ms, score.cpu_p95_ms)

    def _values(self) -> Iterator[tuple[Any, ...]]:
        for score in self.scores:
            for at, query_id in enumerate(self.query_ids):
                for name in self.metrics:
                    yield score.name, query_id, name, float(score.per_query[name][at])
