"""An architecture drawn as a graph: nodes one below the other, an edge per operator, coloured and labelled."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sumnas import chains
from sumnas.plots import INK, PALETTE, QUIET, drawn

if TYPE_CHECKING:
    from sumnas.spaces.base import Block

Edge = tuple[int, int, str]
"""Source node, target node (a larger number), operator."""

ABSENT = "none"
"""The operator of an edge that is not there: dotted, without a label."""
ROW, COLUMN = 0.75, 0.92
"""Inches between nodes, and between edges side by side."""
MARGIN = 0.25
"""Inches around the drawing, above and below it; left and right half as much."""


@dataclass(frozen=True)
class Panel:
    """One architecture of a figure: a graph of `edges` or, with `chain`, a chain; `title` may have several lines."""

    title: str
    edges: Sequence[Edge]
    chain: Sequence[Block] | None = None


def lanes(edges: Sequence[Edge]) -> list[int]:
    """Return beside which column each edge runs: 0 straight down, 1, 2, ... to the right, -1, ... to the left.

    Edges that pass nodes bulge outwards, short ones inside; two that run side by side never share a column.
    """
    taken: dict[int, list[tuple[int, int]]] = {}
    chosen = [0] * len(edges)
    for index in sorted(range(len(edges)), key=lambda i: edges[i][1] - edges[i][0]):
        source, target, _ = edges[index]
        sides = (side for distance in range(1, len(edges) + 2) for side in (distance, -distance))
        candidates = [0, *sides] if target - source == 1 else sides
        lane = next(c for c in candidates if all(target <= a or b <= source for a, b in taken.get(c, [])))
        taken.setdefault(lane, []).append((source, target))
        chosen[index] = lane
    return chosen


def cells(path: Path, panels: Sequence[Panel], operators: Sequence[str], columns: int = 3) -> None:
    """Draw the architectures in a grid; the same operator has the same colour in all."""
    columns = max(1, min(columns, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    sizes = [chains.size(p.chain) if p.chain else _size(p.edges) for p in panels] or [_size([])]
    width, height = max(size[0] for size in sizes), max(size[1] for size in sizes)
    lines = max((panel.title.count("\n") + 1 for panel in panels), default=1)
    with drawn(path, columns * width, rows * (height + 0.16 * lines + 0.1)) as figure:
        if not panels:
            figure.text(0.5, 0.5, "no architecture that can be drawn", ha="center", va="center")
        for number, panel in enumerate(panels, 1):
            axes = figure.add_subplot(rows, columns, number)
            if panel.chain:
                chains.draw(axes, panel.chain)
            else:
                _draw(axes, panel.edges, operators)
            axes.set_title(panel.title.replace("$", r"\$"), fontsize=8)


def svg(edges: Sequence[Edge], operators: Sequence[str], chain: Sequence[Block] | None = None) -> bytes:
    """Return one architecture's drawing: of its chain where there is one, else of its graph."""
    if chain:
        return chains.svg(chain)
    buffer = io.BytesIO()
    with drawn(buffer, *_size(edges)) as figure:
        _draw(figure.add_subplot(), edges, operators)
    return buffer.getvalue()


def _size(edges: Sequence[Edge]) -> tuple[float, float]:
    """Return width and height in inches that hold the edges."""
    used = [*lanes(edges), 0]
    last = max((target for _, target, _ in edges), default=0)
    return (max(used) - min(used) + 1) * COLUMN + MARGIN, last * ROW + 2 * MARGIN


def _draw(axes: Any, edges: Sequence[Edge], operators: Sequence[str]) -> None:
    from matplotlib.patches import FancyArrowPatch

    present = [operator for operator in operators if operator != ABSENT]
    last = max((target for _, target, _ in edges), default=0)
    chosen = lanes(edges)
    for (source, target, operator), lane in zip(edges, chosen, strict=True):
        top, bottom, x = -source * ROW, -target * ROW, lane * COLUMN
        absent = operator == ABSENT
        colour = PALETTE[present.index(operator) % len(PALETTE)] if operator in present else QUIET if absent else INK
        arrow = FancyArrowPatch(
            (0, top), (0, bottom), color=colour, shrinkA=9, shrinkB=9, mutation_scale=11,
            arrowstyle="-" if absent else "-|>", linestyle="dotted" if absent else "solid",
            linewidth=1 if absent else 1.6,
            # The curve passes its lane's x half-way: it reaches half as far as its control point.
            connectionstyle=f"arc3,rad={2 * x / (bottom - top):.6f}",
        )  # fmt: skip
        axes.add_patch(arrow)
        if not absent:
            axes.text(
                x, (top + bottom) / 2, operator, ha="center", va="center", fontsize=7.5, color=INK,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )  # fmt: skip
    for node in range(last + 1):
        axes.text(
            0, -node * ROW, str(node), ha="center", va="center", fontsize=9, color="white", zorder=5,
            bbox={"boxstyle": "circle", "facecolor": INK, "edgecolor": "white"},
        )  # fmt: skip
    used = [*chosen, 0]
    axes.set_xlim((min(used) - 0.5) * COLUMN, (max(used) + 0.5) * COLUMN)
    axes.set_ylim(-last * ROW - MARGIN, MARGIN)
    axes.set_aspect("equal")
    axes.axis("off")
