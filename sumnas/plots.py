"""Figures, from result files only; the same bytes for the same numbers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sumnas import files
from sumnas.shown import measured

INK, ACCENT, QUIET = "#222222", "#0072b2", "#9aa5ab"
"""Colours of text and lines, of what matters, and of what it is compared with."""
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's colours, told apart by the colour-blind, without the yellow that white paper swallows."""
STYLE = {"backend": "svg", "svg.hashsalt": "sumnas", "axes.titlesize": 10}
"""Matplotlib's settings for every figure; the salt makes equal figures equal bytes."""
DASHES = ("solid", "dashed", "dotted", "dashdot")
"""Line styles of the curves of one colour, in turn: its seeds."""
RASTER_FROM = 2000
"""Points from which a scatter is drawn as a picture inside the SVG: a browser is slow with so many elements."""


@dataclass(frozen=True)
class Curve:
    """One run's values over its epochs; `group` (the method) gives the colour."""

    group: str
    epochs: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class Spread:
    """One run's sub-models: `values` are accuracies in percent, a stroke each.

    `label`, the run's name, stands beside them; `group` (the method) gives the colour. `mean` and `std` (standard
    deviation) are as recorded, in percent, of these or of all sub-models.
    """

    label: str
    group: str
    values: Sequence[float]
    mean: float
    std: float


def colours(names: Sequence[str]) -> dict[str, str]:
    """Return a colour for each name, in order of first appearance."""
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(dict.fromkeys(names))}


def scatter(path: Path, rows: Sequence[Mapping[str, Any]], title: str, ylabel: str) -> None:
    """Draw predicted against reference accuracy (percent), one point per architecture, coloured by MACs."""
    with drawn(path, 5.2, 4.4) as figure:
        axes = _axes(figure)
        points = axes.scatter(
            [float(row["reference"]) for row in rows], [float(row["predicted"]) for row in rows],
            c=[float(row["macs"]) for row in rows], cmap="viridis", s=28, edgecolors="white", linewidths=0.5,
            rasterized=len(rows) > RASTER_FROM,
        )  # fmt: skip
        figure.colorbar(points, label="multiply-adds (millions)")
        axes.set(xlabel="reference accuracy (%)", ylabel=ylabel, title=title)


def pareto(
    path: Path, rows: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]], title: str, split: str,
    cost: str = "macs",
) -> None:  # fmt: skip
    """Draw predicted accuracy (percent) over MACs of all that were scored, the Pareto front, and what was found.

    Where the limited `cost` was measured it is drawn over that, of those whose cost is known.
    """
    name = measured(cost)
    key, xlabel = ("macs", "multiply-adds (millions)") if name is None else ("cost", name.replace("$", r"\$"))
    rows = [row for row in rows if row[key] != ""]
    with drawn(path, 5.2, 4.0) as figure:
        axes = _axes(figure)
        big = len(rows) > RASTER_FROM
        costs, predicted = ([float(row[column]) for row in rows] for column in (key, "predicted"))
        axes.plot(costs, predicted, "o", color=QUIET, markersize=3, alpha=0.6, rasterized=big, label="scored")
        front = sorted((float(row[key]), float(row["predicted"])) for row in rows if int(row["pareto"]))
        axes.plot(
            *zip(*front, strict=True),
            color=ACCENT,
            linewidth=1.4,
            drawstyle="steps-post",
            marker=".",
            label="Pareto front",
        )
        for number, entry in enumerate(found):
            colour, label = PALETTE[1 + number % (len(PALETTE) - 1)], str(entry["label"]).replace("$", r"\$")
            axes.plot([entry[key]], [entry["predicted"]], "D", color=colour, markersize=6, label=f"found {label}")
        axes.grid(color="#eeeeee")
        axes.set(xlabel=xlabel, ylabel=f"predicted accuracy, {split} split (%)", title=title)
        axes.legend(loc="lower right", frameon=False, fontsize=8)


def intervals(path: Path, rows: Sequence[tuple[str, float, float, float]], xlabel: str, title: str) -> None:
    """Draw values with their intervals (label, value, low, high), one line each, top to bottom."""
    with drawn(path, 5.2, 0.9 + 0.38 * len(rows)) as figure:
        axes = _axes(figure)
        for y, (_, value, low, high) in enumerate(rows):
            axes.plot([low, high], [y, y], color=QUIET, linewidth=2.5, solid_capstyle="round")
            axes.plot([value], [y], "o", color=ACCENT)
            axes.annotate(f"{value:.3f}", (value, y), (0, 7), textcoords="offset points", ha="center", fontsize=8)
        _name_rows(axes, [label for label, *_ in rows])
        axes.set(xlabel=xlabel, title=title)


def curves(path: Path, panels: Sequence[tuple[str, Sequence[Curve]]]) -> None:
    """Draw panels (label of the values, one curve per run) below each other, over the epochs of training.

    A panel whose positive values span more than a factor of 20 has a logarithmic axis.
    """
    groups = list(dict.fromkeys(curve.group for _, panel in panels for curve in panel))
    colour = colours(groups)
    dashes = {group: DASHES[i // len(PALETTE) % len(DASHES)] for i, group in enumerate(groups)}
    with drawn(path, 5.2, 0.9 + 2.3 * len(panels)) as figure:
        all_axes = [_axes(figure, (len(panels), 1, number)) for number in range(1, len(panels) + 1)]
        handles = {}
        for axes in all_axes[1:]:
            axes.sharex(all_axes[0])  # an epoch is at one place in all panels
        for axes, (label, panel) in zip(all_axes, panels, strict=True):
            for curve in panel:
                style = {"color": colour[curve.group], "linestyle": dashes[curve.group], "linewidth": 1.4}
                marker = {"marker": "o", "markersize": 3} if len(curve.epochs) < 12 else {}
                (handles[curve.group],) = axes.plot(curve.epochs, curve.values, **style, **marker)
            axes.set(ylabel=label, yscale="log" if _wide(panel) else "linear")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(color="#eeeeee")
        all_axes[-1].set_xlabel("epoch")
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)


def spreads(path: Path, rows: Sequence[Spread], xlabel: str, title: str) -> None:
    """Draw every run's sub-models as strokes, and the mean and standard deviation (paper fig. 3, right)."""
    colour = colours([row.group for row in rows])
    with drawn(path, 5.2, 0.9 + 0.5 * len(rows)) as figure:
        axes = _axes(figure)
        big = sum(len(row.values) for row in rows) > RASTER_FROM
        for y, row in enumerate(rows):
            heights = [y + 0.24] * len(row.values)
            axes.plot(row.values, heights, "|", color=colour[row.group], markersize=6, alpha=0.6, rasterized=big)
            axes.errorbar(row.mean, y, xerr=row.std, fmt="o", color=colour[row.group], capsize=4, linewidth=1.8)
            axes.annotate(
                f"{row.mean:.2f} ± {row.std:.2f}", (row.mean, y), (0, 7), textcoords="offset points",
                ha="center", fontsize=8,
            )  # fmt: skip
        _name_rows(axes, [row.label for row in rows])
        axes.set(xlabel=xlabel, title=title)


@contextlib.contextmanager
def drawn(target: Path | IO[bytes], width: float, height: float) -> Iterator[Any]:
    """Give an empty figure of so many inches, and write it as SVG at the end.

    No date, names of elements that depend on the content alone, and no settings of the user's own matplotlib.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    style: Any = {**matplotlib.rcParamsDefault, **STYLE}
    with matplotlib.rc_context(style):
        figure = pyplot.figure(figsize=(width, height), layout="constrained")
        try:
            yield figure
            if isinstance(target, Path):
                with files.replacing(target) as part:
                    figure.savefig(part, format="svg", metadata={"Date": None}, dpi=150)
            else:
                figure.savefig(target, format="svg", metadata={"Date": None}, dpi=150)
        finally:
            pyplot.close(figure)


def _axes(figure: Any, place: tuple[int, int, int] = (1, 1, 1)) -> Any:
    axes = figure.add_subplot(*place)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return axes


def _name_rows(axes: Any, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), [label.replace("$", r"\$") for label in labels])
    axes.set_ylim(len(labels) - 0.4, -0.7)
    axes.grid(axis="x", color="#eeeeee")


def _wide(panel: Sequence[Curve]) -> bool:
    values = [value for curve in panel for value in curve.values if math.isfinite(value)]
    return bool(values) and min(values) > 0 and max(values) > 20 * min(values)
