"""What ``simulate`` returns: prequential curves, one per seed, and their summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.evaluation import drawing
from neuralcache_plugins.evaluation.feedback_model import FeedbackModel
from neuralcache_plugins.evaluation.tables import Table, write_csv, write_json
from neuralcache_plugins.evaluation.uncertainty import Array
from neuralcache_plugins.settings import RerankSettings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES = ("first", "ndcg", "cold_first", "cold_ndcg", "trust", "taken")
_MEANING = {
    "first": "right document first", "ndcg": "nDCG of those shown", "cold_first": "right document first, no learning",
    "cold_ndcg": "nDCG of those shown, no learning", "trust": "trust in what was learned",
    "taken": "right first place lost to the pushed document",
}


class Curve(NamedTuple):
    """A moving mean over the questions asked so far: the median of the seeds, the lowest and the highest."""

    asked: Array
    median: Array
    low: Array
    high: Array


@dataclass(frozen=True, slots=True, eq=False)
class Simulation:
    """Figures of every question of every pass, arrays of shape (seeds, questions), in the order asked.

    ``first``: 1 where the first document was right; ``ndcg``: nDCG among those shown; ``cold_first`` and ``cold_ndcg``:
    the same questions without learning; ``trust``: trust when the question was ranked; ``taken``: 1 where the pushed
    document stood first instead of a right one that was first without learning.
    """

    stream: str
    feedback: FeedbackModel
    settings: RerankSettings
    shown: int
    seeds: tuple[int, ...]
    first: Array
    ndcg: Array
    cold_first: Array
    cold_ndcg: Array
    trust: Array
    taken: Array

    def curve(self, name: str, *, window: int | None = None) -> Curve:
        """Return a moving mean over the last ``window`` questions (None: a tenth of the stream), with its band."""
        moving = drawing.moving_mean(self._values(name), self._window(window))
        asked = np.arange(1.0, moving.shape[1] + 1.0)
        return Curve(asked, np.median(moving, axis=0), moving.min(axis=0), moving.max(axis=0))

    def mean(self, name: str, *, last: int | None = None) -> float:
        """Return the median over seeds of the mean over the ``last`` questions (None: all)."""
        values = self._values(name)
        return float(np.median(values[:, -last:].mean(axis=1) if last else values.mean(axis=1)))

    def spread(self, name: str, *, last: int | None = None) -> tuple[float, float]:
        """Return the lowest and the highest mean of any seed over the ``last`` questions (None: all)."""
        values = self._values(name)
        means = (values[:, -last:] if last else values).mean(axis=1)
        return float(means.min()), float(means.max())

    def table(self) -> Table:
        """Return one row per figure: over all questions, over the last quarter, and the spread of the seeds there."""
        last = self._last
        rows = []
        for name in CURVES:
            low, high = self.spread(name, last=last)
            rows.append((_MEANING[name], f"{self.mean(name):.3f}", f"{self.mean(name, last=last):.3f}",
                         f"{low:.3f} to {high:.3f}"))
        caption = (f"{self.stream}: {self.first.shape[1]} questions, {self.shown} shown, {len(self.seeds)} seeds "
                   f"(medians); {self.feedback.describe()}")
        return Table(caption, ("figure", "all questions", f"last {last}", "seeds"), tuple(rows))

    def as_dict(self) -> dict[str, Any]:
        """Return settings and summary, ready for JSON."""
        last = self._last
        figures = {
            name: {"all": self.mean(name), "last": self.mean(name, last=last),
                   "seeds": list(self.spread(name, last=last))}
            for name in CURVES
        }
        return {
            "stream": self.stream, "questions": self.first.shape[1], "shown": self.shown, "seeds": list(self.seeds),
            "last": last, "feedback": asdict(self.feedback), "settings": self.settings.model_dump(mode="json"),
            "figures": figures,
        }

    def to_json(self, path: str | Path) -> None:
        """Write ``as_dict()`` and the curves."""
        curves: Mapping[str, Any] = {
            name: {part: values.tolist() for part, values in self.curve(name)._asdict().items()} for name in CURVES
        }
        write_json(path, {**self.as_dict(), "curves": curves})

    def to_csv(self, path: str | Path) -> None:
        """Write one line per seed and question, in the order asked."""
        write_csv(path, ("seed", "question", *CURVES), self._lines())

    def plot(self) -> Figure:
        """Return a figure with two panels over the questions asked: right first place, and trust."""
        figure, (above, below) = drawing.panels(2, height=2.8)
        self.draw(above, "first", label="with learning")
        self.draw(above, "cold_first", label="without learning", index=1)
        window = self._window(None)
        drawing.label(above, x="", y=f"right document first\n(share of the last {window})",
                      title=f"{self.stream}: {self.feedback.describe()}")
        self.draw(below, "trust", label="trust", index=2, window=1)
        below.axhline(0.5, color="0.4", linewidth=0.8, linestyle=":")
        drawing.label(below, x="questions asked (count)", y="trust (0 to 1)", legend=False)
        if self.feedback.drift_at is not None:
            for axes in (above, below):
                axes.axvline(self.feedback.drift_at * len(self.first[0]), color="0.4", linewidth=0.8)
            above.text(self.feedback.drift_at * len(self.first[0]), 0.02, " drift", color="0.3")
        above.set_ylim(0.0, 1.02)
        below.set_ylim(-0.02, 1.02)
        return figure

    def draw(self, axes: Axes, name: str = "first", *, label: str | None = None, index: int = 0,
             window: int | None = None) -> None:
        """Draw one curve with its band into ``axes``, so that several simulations can share a picture."""
        curve = self.curve(name, window=window)
        drawing.line(axes, curve.asked, curve.median, index=index, label=label or _MEANING[name],
                     band=(curve.low, curve.high), skip=self._window(window) // 3)

    def _repr_html_(self) -> str:
        return self.table().html()

    @property
    def _last(self) -> int:
        return max(1, len(self.first[0]) // 4)

    def _window(self, window: int | None) -> int:
        return window or max(1, len(self.first[0]) // 10)

    def _values(self, name: str) -> Array:
        if name not in CURVES:
            raise InvalidInputError(f"no curve {name!r}; there are: {', '.join(CURVES)}")
        values: Array = getattr(self, name)
        return values

    def _lines(self) -> Iterator[tuple[Any, ...]]:
        for row, seed in enumerate(self.seeds):
            for at in range(self.first.shape[1]):
                yield (seed, at + 1, *(float(getattr(self, name)[row, at]) for name in CURVES))
