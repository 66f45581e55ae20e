"""Charts that the report draws as inline SVG, whose points tell what they are: positions only, the template draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 360.0, 290.0
"""Of a chart, in units of its SVG; on a wide page a unit is a pixel."""
LEFT, RIGHT, TOP, BOTTOM = 52.0, 10.0, 10.0, 42.0
"""Margins around the plotting area, in the same units; numbers and labels of the axes stand in them."""
MOST = 6000
"""Points of all runs' charts of one kind together; of more, an even choice is shown."""


@dataclass(frozen=True)
class Tick:
    """A number at an axis, `label` as it is shown, `at` in user units from the left edge or, at the y axis, the top."""

    at: float
    label: str


@dataclass(frozen=True)
class Mark:
    """One architecture: a circle at `x` and `y` of this `radius`, in user units from the left and the top edge.

    `index` is the same in all charts, `colour` is `#rrggbb`, and `tip` is what is told of it under the pointer. `foot`
    is the y at which its stem begins, None where it has none.
    """

    x: float
    y: float
    colour: str
    index: int
    tip: str
    foot: float | None = None
    radius: float = 4.0


@dataclass(frozen=True)
class Chart:
    """What the template draws, in user units of `width` x `height`. A `path` (SVG's `d`) lies under the marks.

    The area of the marks goes from `left` to `right` and from `top` to `bottom`; outside it are the ticks' numbers and,
    with their units, `xlabel` and `ylabel`. `title` stands above. `total` counts the architectures that there are;
    where these are more than the marks, `chosen` says which are shown.
    """

    title: str
    xlabel: str
    ylabel: str
    xticks: list[Tick]
    """Along the bottom, placed by their x."""
    yticks: list[Tick]
    """Along the left edge, placed by their y, each with a line across."""
    marks: list[Mark]
    total: int
    chosen: str = "evenly over the true ranks"
    path: str = ""
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM


@dataclass(frozen=True)
class Ranked:
    """The A ranked architectures of one run. Ranks begin with 1, the best; ties share their mean rank."""

    architectures: Sequence[str]
    """Their strings, A of them."""
    reference: NDArray[np.float64]
    """[A] true accuracy, in percent."""
    predicted: NDArray[np.float64]
    """[A] accuracy with the supernet's weights, in percent."""
    macs: NDArray[np.float64]
    """[A] multiply-adds, in millions."""
    true_rank: NDArray[np.float64]
    """[A] rank by `reference`."""
    predicted_rank: NDArray[np.float64]
    """[A] rank by `predicted`."""


def ranked(rows: Sequence[Mapping[str, str]]) -> Ranked:
    """Read the rows of predictions.csv. Equal accuracies share the mean of their ranks."""
    from scipy.stats import rankdata

    reference, predicted, macs = (
        np.array([float(row[key]) for row in rows]) for key in ("reference", "predicted", "macs")
    )
    names = [row["architecture"] for row in rows]
    return Ranked(names, reference, predicted, macs, rankdata(-reference), rankdata(-predicted))


def scatter(run: Ranked, title: str, split: str, most: int = MOST) -> Chart:
    """Predicted against reference accuracy, of at most so many architectures."""
    x, xticks = axis(run.reference, LEFT, WIDTH - RIGHT)
    y, yticks = axis(run.predicted, HEIGHT - BOTTOM, TOP)
    marks = _marks(run, x, y, most)
    return Chart(title, "true accuracy (%)", f"predicted, {split} split (%)", xticks, yticks, marks, len(x))


def rank_differences(run: Ranked, title: str, most: int = MOST) -> Chart:
    """Predicted less true rank over the true rank: above 0 is thought worse than it is, below 0 better."""
    difference = run.predicted_rank - run.true_rank
    count = len(difference)
    x, xticks = axis(run.true_rank, LEFT, WIDTH - RIGHT, (1, count))
    y, yticks = axis(difference, HEIGHT - BOTTOM, TOP, (-count, count))  # one scale for all runs
    marks = _marks(run, x, y, most, next(tick.at for tick in yticks if float(tick.label) == 0))
    return Chart(title, "true rank (1: best)", "predicted - true rank", xticks, yticks, marks, count)


def colour_scale(count: int = 7) -> list[str]:
    """Return the colours of the scale of MACs, from few to many."""
    return _colours(np.linspace(0, 1, count))


def _marks(
    run: Ranked, x: NDArray[np.float64], y: NDArray[np.float64], most: int, foot: float | None = None
) -> list[Mark]:
    order = np.argsort(run.true_rank, kind="stable")
    chosen = order if len(order) <= most else order[np.linspace(0, len(order) - 1, most).round().astype(int)]
    span = run.macs.max() - run.macs.min() if len(run.macs) else 0.0
    colours = _colours((run.macs - run.macs.min()) / span if span else np.zeros(len(run.macs)))
    return [
        Mark(round(float(x[i]), 1), round(float(y[i]), 1), colours[i], int(i), _tip(run, int(i)), foot)
        for i in chosen.tolist()
    ]


def _tip(run: Ranked, i: int) -> str:
    return (
        f"{run.architectures[i]}\ntrue {run.reference[i]:.2f} %, predicted {run.predicted[i]:.2f} %; "
        f"true rank {run.true_rank[i]:g}, predicted rank {run.predicted_rank[i]:g}; "
        f"{run.macs[i]:.4g}M multiply-adds"
    )


def axis(
    values: NDArray[np.float64], start: float, end: float, limits: tuple[float, float] | None = None
) -> tuple[NDArray[np.float64], list[Tick]]:
    """Return the positions [A] of the values [A] between `start` and `end` (a margin left free), and ticks there."""
    from matplotlib.ticker import MaxNLocator

    low, high = limits or (float(values.min()), float(values.max()))
    margin = 0.05 * (high - low) or 1.0
    low, high = low - margin, high + margin
    ticks = [float(tick) for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]
    scale = (end - start) / (high - low)
    places = [Tick(round(start + (tick - low) * scale, 1), f"{tick:g}") for tick in ticks]
    return start + (values - low) * scale, places


def _colours(shares: NDArray[np.float64]) -> list[str]:
    """Return viridis at 0..1, without its lightest end, which white paper swallows."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colour) for colour in colormaps["viridis"](0.92 * shares)]
