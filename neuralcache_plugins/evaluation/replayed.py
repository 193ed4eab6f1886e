"""What ``replay`` returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from neuralcache_plugins.evaluation import drawing
from neuralcache_plugins.evaluation.counterfactual import Counterfactual
from neuralcache_plugins.evaluation.tables import Table, paragraphs, write_csv, write_json
from neuralcache_plugins.evaluation.uncertainty import Array, Interval
from neuralcache_plugins.memory import LearnedState

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ORDERS = ("logged", "cold", "replayed")
"""As it was shown, as it would have been without learning, and as the replay would have it."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What the replayed settings know of one namespace at the end of the log: trust and weights by encoder."""

    rankings: int
    feedback: int
    trust: Mapping[str, float]
    weights: Mapping[str, Mapping[str, float]]

    @classmethod
    def of(cls, state: LearnedState) -> Learned:
        """Read a state."""
        return cls(
            state.rankings, state.feedback,
            {name: one.trust.value for name, one in state.learners.items()},
            {name: one.trust.named_weights() for name, one in state.learners.items()},
        )


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """One log, three orders: as logged, cold, replayed.

    ``values[metric]`` has shape (graded rankings, 3), in the order of the log; "RR" is the reciprocal rank of the first
    rewarded document among those shown, "first" is 1 where it stood first, "log-loss" is in nats. Their means are in
    ``means[order][metric]`` and ``gains["over logged" | "over cold"][metric]``, positive where the replay is better.
    """

    namespaces: tuple[str, ...]
    rankings: int
    feedback: int
    replayed: str
    positions: npt.NDArray[np.int64]
    ranking_ids: tuple[str, ...]
    of_namespace: tuple[str, ...]
    clusters: tuple[str, ...]
    values: Mapping[str, Array]
    means: Mapping[str, Mapping[str, Interval]]
    gains: Mapping[str, Mapping[str, Interval]]
    counterfactual: Counterfactual | None
    learned: Mapping[str, Learned]
    claims: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.positions)

    def table(self) -> Table:
        """Return one row per order, and one per gain."""
        metrics = tuple(self.values)
        rows = [(order, *(str(self.means[order][metric]) for metric in metrics)) for order in ORDERS]
        rows += [(f"gain {name}", *(one[metric].signed() for metric in metrics)) for name, one in self.gains.items()]
        caption = (f"{self.rankings} rankings, {self.feedback} feedback, {len(self)} rankings tell an order; "
                   f"replayed with {self.replayed}")
        return Table(caption, ("order", *metrics), tuple(rows))

    def counterfactual_table(self) -> Table | None:
        """Return the estimates from explored rankings, or None without exploration."""
        found = self.counterfactual
        if found is None:
            return None
        rows = (
            ("logged", str(found.logged)), ("IPS", str(found.ips)), ("SNIPS", str(found.snips)),
            ("doubly robust", str(found.doubly_robust)), ("gain, doubly robust", found.gain.signed()),
        )
        caption = (f"mean reward of the first document: {found.rankings} explored rankings, {found.matches} matches, "
                   f"effective sample size {found.effective_sample_size:.0f}")
        return Table(caption, ("estimate", "value"), rows)

    def as_dict(self) -> dict[str, Any]:
        """Return everything but per-ranking values, ready for JSON."""
        return {
            "namespaces": list(self.namespaces), "rankings": self.rankings, "feedback": self.feedback,
            "graded": len(self), "replayed": self.replayed,
            "means": {order: {name: one.as_dict() for name, one in each.items()} for order, each in self.means.items()},
            "gains": {order: {name: one.as_dict() for name, one in each.items()} for order, each in self.gains.items()},
            "counterfactual": None if self.counterfactual is None else self.counterfactual.as_dict(),
            "learned": {
                name: {"trust": dict(one.trust), "weights": {key: dict(value) for key, value in one.weights.items()}}
                for name, one in self.learned.items()
            },
            "claims": list(self.claims), "warnings": list(self.warnings),
        }

    def to_json(self, path: str | Path) -> None:
        """Write ``as_dict()``."""
        write_json(path, self.as_dict())

    def to_csv(self, path: str | Path) -> None:
        """Write one line per graded ranking: its place in the log and each metric for each order."""
        header = [f"{metric} {order}" for metric in self.values for order in ORDERS]
        write_csv(path, ("position", "namespace", "ranking_id", *header), self._lines())

    def plot(self) -> Figure:
        """Return a figure: the moving mean of the reciprocal rank of each order along the log, and the gains."""
        figure, (above, below) = drawing.panels(2, height=2.8)
        window = max(1, len(self) // 10)
        moving = drawing.moving_mean(self.values["RR"].T, window)
        for at, order in enumerate(ORDERS):
            drawing.line(above, np.arange(1, len(self) + 1), moving[at], index=at, label=order, skip=window // 3)
        drawing.label(above, x="rankings with feedback (count, in the order of the log)",
                      y=f"reciprocal rank\n(mean of the last {window})", title=f"replay: {self.replayed}")
        above.set_ylim(0.0, 1.02)
        pairs = [(name, metric) for name in self.gains for metric in ("RR", "first")]
        for place, (name, metric) in enumerate(pairs):
            drawing.whisker(below, self.gains[name][metric], place, index=place // 2)
        drawing.estimates(below, [f"{metric} {name}" for name, metric in pairs])
        below.axvline(0.0, color="0.4", linewidth=0.8, linestyle=":")
        drawing.label(below, x="gain of the replayed order (difference of means)", y="", legend=False)
        return figure

    def _repr_html_(self) -> str:
        further = self.counterfactual_table()
        tables = self.table().html() + ("" if further is None else further.html())
        return tables + paragraphs([*self.claims, *(f"Warning: {line}" for line in self.warnings)])

    def _lines(self) -> Iterator[tuple[Any, ...]]:
        for at, position in enumerate(self.positions.tolist()):
            numbers = [float(values[at, order]) for values in self.values.values() for order in range(len(ORDERS))]
            yield (position, self.of_namespace[at], self.ranking_ids[at], *numbers)
