"""The report's chart of predicted accuracy over what is limited: all that a search scored, the front, what it found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sumnas import charts
from sumnas.plots import ACCENT, PALETTE, QUIET

FOUND = PALETTE[2]
"""The colour of what was found; of the others the grey ones are beaten, those in ACCENT are on the front."""


def front(
    rows: Sequence[Mapping[str, str]],
    found: Mapping[str, str],
    numbers: dict[str, int],
    title: str,
    split: str,
    most: int = charts.MOST,
    measured: str | None = None,
) -> charts.Chart:
    """Draw the rows of scored.csv. `found` has what limit each architecture was found under, in words.

    `numbers` gives every architecture its index in all charts, and takes up those that it lacks. The front and what
    was found are always shown, of the others at most `most`. Costs are the multiply-adds,
    or the rows' column `cost`, called `measured`, of those that have one.
    """
    key = "macs" if measured is None else "cost"
    rows = [row for row in rows if row[key] != ""]
    costs, predicted = (np.array([float(row[name]) for row in rows]) for name in (key, "predicted"))
    best = np.array([row["pareto"] == "1" for row in rows])
    named = np.array([row["architecture"] in found for row in rows])
    x, xticks = charts.axis(costs, charts.LEFT, charts.WIDTH - charts.RIGHT)
    y, yticks = charts.axis(predicted, charts.HEIGHT - charts.BOTTOM, charts.TOP)
    marks = []
    # What matters lies on top.
    for i in [*_evenly(np.flatnonzero(~best & ~named), costs, most), *np.flatnonzero(best & ~named),
              *np.flatnonzero(named)]:  # fmt: skip
        row = rows[i]
        colour = FOUND if named[i] else ACCENT if best[i] else QUIET
        number = numbers.setdefault(row["architecture"], len(numbers))
        at, up = round(float(x[i]), 1), round(float(y[i]), 1)
        radius = 6.0 if named[i] else 4.0 if best[i] else 3.0
        marks.append(charts.Mark(at, up, colour, number, _tip(row, found, measured), radius=radius))
    return charts.Chart(
        title, measured or "multiply-adds (millions)", f"predicted, {split} split (%)", xticks, yticks, marks,
        len(rows), f"the front, what was found, and of the others evenly over the {measured or 'multiply-adds'}",
        _steps(x[best], y[best]),
    )  # fmt: skip


def _evenly(indices: NDArray[np.intp], costs: NDArray[np.float64], most: int) -> list[int]:
    """Return the indices, or so many of them, evenly in the order of their costs."""
    order = indices[np.argsort(costs[indices], kind="stable")]
    if len(order) > most:
        order = order[np.linspace(0, len(order) - 1, most).round().astype(int)]
    return [int(i) for i in order]


def _steps(x: NDArray[np.float64], y: NDArray[np.float64]) -> str:
    """Return the line along the front: up to where the next one is better, as far as any limit reaches."""
    order = np.argsort(x, kind="stable")
    points = [(float(x[i]), float(y[i])) for i in order]
    if not points:
        return ""
    steps = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    steps += [f"H{right:.1f}V{up:.1f}" for right, up in points[1:]]
    return "".join([*steps, f"H{charts.WIDTH - charts.RIGHT:.1f}"])


def _tip(row: Mapping[str, Any], found: Mapping[str, str], measured: str | None) -> str:
    said = [f"predicted {float(row['predicted']):.2f} %", f"{float(row['macs']):.4g}M multiply-adds"]
    if measured is not None:
        said.append(f"{measured} {float(row['cost']):.4g}")
    said += ["on the Pareto front"] * (row["pareto"] == "1")
    if by := found.get(row["architecture"]):
        said.append(f"found {by}")
    return f"{row['architecture']}\n{'; '.join(said)}"
