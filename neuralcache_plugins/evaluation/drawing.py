"""What all pictures share: a figure without global state, a palette that colour-blind people can tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from neuralcache_plugins.errors import MissingExtraError
from neuralcache_plugins.evaluation.uncertainty import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
"""Okabe and Ito (2008), the yellow left out: it is too faint on white."""

STYLES = ("-", "--", "-.", ":")
"""Lines differ by style as well, for print and for those who see no colour at all."""


def panels(count: int, *, width: float = 8.0, height: float = 3.2, across: bool = False) -> tuple[Figure, list[Axes]]:
    """Return a new figure with ``count`` panels below or beside each other; sizes in inches of one panel.

    The figure belongs to no window: ``savefig`` writes it, a notebook with ``%matplotlib inline`` shows it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        if error.name not in {"matplotlib", "matplotlib.figure"}:
            raise
        raise MissingExtraError("matplotlib", extra="eval") from error
    size = (width * count, height) if across else (width, height * count)
    figure = Figure(figsize=size, layout="constrained")
    shape = (1, count) if across else (count, 1)
    axes = figure.subplots(*shape, squeeze=False)
    return figure, [one for row in axes for one in row]


def line(axes: Axes, x: Any, y: Any, *, index: int, label: str, band: tuple[Any, Any] | None = None,
         skip: int = 0) -> None:
    """Draw one labelled curve, with a band around it where given; the first ``skip`` points are left out.

    Later curves are thinner, so that one that lies on another does not hide it.
    """
    colour, part = PALETTE[index % len(PALETTE)], slice(skip, None)
    axes.plot(x[part], y[part], color=colour, linestyle=STYLES[index % len(STYLES)],
              linewidth=max(1.2, 2.6 - 0.6 * index), label=label)
    if band is not None:
        axes.fill_between(x[part], band[0][part], band[1][part], color=colour, alpha=0.2, linewidth=0)


def estimates(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows of a panel of ``whisker``s, the first on top."""
    axes.set_yticks(range(len(names)), list(names))
    axes.set_ylim(max(1, len(names)) - 0.5, -0.5)


def whisker(axes: Axes, interval: Interval, place: float, *, index: int, label: str | None = None) -> None:
    """Draw an estimate with its interval, lying, at height ``place``."""
    # a percentile interval need not hold the estimate itself
    reach = [[max(0.0, interval.value - interval.low)], [max(0.0, interval.high - interval.value)]]
    colour = PALETTE[index % len(PALETTE)]
    axes.errorbar(interval.value, place, xerr=reach, fmt="o", capsize=3, color=colour, label=label)


def label(axes: Axes, *, x: str, y: str, title: str = "", legend: bool = True) -> None:
    """Name axes with their units, and everything else a reader needs."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if title:
        axes.set_title(title)
    axes.grid(alpha=0.3)
    if legend:
        axes.legend(frameon=False)


def moving_mean(values: npt.NDArray[np.float64], window: int) -> npt.NDArray[np.float64]:
    """Return the mean of the last ``window`` values at each place, fewer at the start; shape as ``values`` (..., n)."""
    total = np.concatenate([np.zeros((*values.shape[:-1], 1)), np.cumsum(values, axis=-1)], axis=-1)
    end = np.arange(1, values.shape[-1] + 1)
    start = np.maximum(0, end - window)
    mean: npt.NDArray[np.float64] = (total[..., end] - total[..., start]) / (end - start)
    return mean
