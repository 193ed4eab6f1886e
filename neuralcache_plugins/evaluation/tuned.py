"""What ``tune`` returns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuralcache_plugins.errors import InvalidInputError
from neuralcache_plugins.evaluation import drawing
from neuralcache_plugins.evaluation.tables import Table, paragraphs, write_csv, write_json
from neuralcache_plugins.evaluation.uncertainty import Interval, finite
from neuralcache_plugins.settings import RerankSettings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """One combination: what it changes, its mean gain where settings are chosen, and its gain on the tail.

    ``gain`` is shown for every trial and counts for the chosen one alone: the best of many on the tail would be luck.
    """

    changes: Mapping[str, Any]
    gain_chosen_on: float
    gain: Interval

    def told(self) -> str:
        """Return the changes in one line."""
        return ", ".join(f"{name} {value}" for name, value in self.changes.items())


@dataclass(frozen=True, slots=True, eq=False)
class Tuning:
    """What was tried, and whether anything is recommended; ``reason`` says why or why not.

    ``head`` and ``tail`` count the rankings to choose on and those held out. ``gain`` is the best trial's on the tail,
    in the unit of ``metric``, positive where it is better than the current settings.
    """

    namespaces: tuple[str, ...]
    metric: str
    current: RerankSettings
    head: int
    tail: int
    trials: tuple[Trial, ...]
    best: Trial | None
    gain: Interval
    recommended: RerankSettings | None
    reason: str

    def save(self, path: str | Path) -> None:
        """Write what is recommended: TOML for ``.toml`` (keys of ``RerankSettings``), else lines for the environment.

        Raises ``InvalidInputError`` with the reason where nothing is recommended.
        """
        if self.recommended is None or self.best is None:
            raise InvalidInputError(f"nothing is recommended, so there is nothing to write. {self.reason}")
        place, prefix = Path(path), RerankSettings.model_config.get("env_prefix", "")
        if place.suffix == ".toml":
            lines = [f"{name} = {json.dumps(value)}" for name, value in self.best.changes.items()]
        else:
            lines = [f"{prefix}{name.upper()}={_plain(value)}" for name, value in self.best.changes.items()]
        place.write_text("\n".join([f"# {self.reason}", *lines]) + "\n", encoding="utf-8")

    def table(self) -> Table:
        """Return one row per trial, the best to choose first."""
        ordered = sorted(self.trials, key=lambda one: -one.gain_chosen_on)
        rows = tuple((one.told(), f"{one.gain_chosen_on:+.4f}", one.gain.signed()) for one in ordered)
        caption = (f"gain in {self.metric} over the current settings: chosen on {self.head} rankings, tested on the "
                   f"last {self.tail}")
        return Table(caption, ("changes", "where chosen", "held out"), rows)

    def as_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {
            "namespaces": list(self.namespaces), "metric": self.metric, "head": self.head, "tail": self.tail,
            "current": self.current.model_dump(mode="json"),
            "recommended": None if self.recommended is None or self.best is None else dict(self.best.changes),
            "reason": self.reason, "gain": self.gain.as_dict(),
            "trials": [
                {"changes": dict(one.changes), "gain_chosen_on": finite(one.gain_chosen_on), "gain": one.gain.as_dict()}
                for one in self.trials
            ],
        }

    def to_json(self, path: str | Path) -> None:
        """Write ``as_dict()``."""
        write_json(path, self.as_dict())

    def to_csv(self, path: str | Path) -> None:
        """Write one line per trial."""
        write_csv(path, ("changes", "gain_chosen_on", "gain", "low", "high"), self._lines())

    def plot(self) -> Figure:
        """Return a figure: each trial's gain where settings are chosen and on the tail, with intervals."""
        ordered = sorted(self.trials, key=lambda one: -one.gain_chosen_on)[:12]
        figure, (axes,) = drawing.panels(1, height=1.4 + 0.32 * max(1, len(ordered)))
        for place, one in enumerate(ordered):
            axes.plot(one.gain_chosen_on, place, "D", color=drawing.PALETTE[1], markersize=5,
                      label="where chosen" if place == 0 else None)
            drawing.whisker(axes, one.gain, place, index=0, label="held out" if place == 0 else None)
        drawing.estimates(axes, [one.told() for one in ordered])
        axes.axvline(0.0, color="0.4", linewidth=0.8, linestyle=":")
        drawing.label(axes, x=f"gain in {self.metric} over the current settings (difference of means)", y="",
                      title="recommended" if self.recommended is not None else "nothing is recommended",
                      legend=bool(ordered))
        return figure

    def _repr_html_(self) -> str:
        return self.table().html() + paragraphs([self.reason])

    def _lines(self) -> Iterator[tuple[Any, ...]]:
        for one in self.trials:
            yield one.told(), one.gain_chosen_on, one.gain.value, one.gain.low, one.gain.high


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
