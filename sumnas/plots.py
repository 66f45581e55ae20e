"""Figures, from result files only; the same bytes for the same numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sumnas import files

INK, ACCENT, QUIET = "#222222", "#1f6f8b", "#9aa5ab"


def scatter(path: Path, rows: Sequence[Mapping[str, Any]], title: str, ylabel: str) -> None:
    """Draw predicted against reference accuracy (percent), one point per architecture, coloured by MACs."""
    figure, axes = _figure(5.2, 4.4)
    points = axes.scatter(
        [float(row["reference"]) for row in rows], [float(row["predicted"]) for row in rows],
        c=[float(row["macs"]) for row in rows], cmap="viridis", s=28, edgecolors="white", linewidths=0.5,
    )  # fmt: skip
    figure.colorbar(points, label="multiply-adds (millions)")
    axes.set(xlabel="reference accuracy, test split (%)", ylabel=ylabel, title=title)
    _save(figure, path)


def intervals(path: Path, rows: Sequence[tuple[str, float, float, float]], xlabel: str, title: str) -> None:
    """Draw values with their intervals (label, value, low, high), one line each, top to bottom."""
    figure, axes = _figure(6.0, 0.9 + 0.38 * len(rows))
    for y, (_, value, low, high) in enumerate(rows):
        axes.plot([low, high], [y, y], color=QUIET, linewidth=2.5, solid_capstyle="round")
        axes.plot([value], [y], "o", color=ACCENT)
        axes.annotate(f"{value:.3f}", (value, y), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axes.invert_yaxis()
    axes.margins(y=0.15)
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.set(xlabel=xlabel, title=title)
    _save(figure, path)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(width, height), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    axes.title.set_fontsize(10)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    """Write SVG without date, and with names of elements that depend on the content alone."""
    import matplotlib
    from matplotlib import pyplot

    with matplotlib.rc_context({"svg.hashsalt": "sumnas"}), files.replacing(path) as part:
        figure.savefig(part, format="svg", metadata={"Date": None})
    pyplot.close(figure)
