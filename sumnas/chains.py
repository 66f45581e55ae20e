"""An architecture that is a chain of blocks, drawn from top to bottom (paper, figure 5).

A block's height and colour show its kernel, its width the expansion; a line and the number of channels mark a stage.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sumnas.plots import INK, PALETTE, QUIET, drawn

if TYPE_CHECKING:
    from sumnas.spaces.base import Block

KERNEL, UNIT, GAP = 0.045, 0.26, 0.1
"""In inches: height of a block per pixel of its kernel, width per unit of its expansion, and space between blocks."""
WIDEST = 6
"""The expansion that a drawing is wide enough for at least, so that several have one scale."""
SMALLEST = 0.09
"""Inches added to every block's height, for its label."""
SIDE = 0.62
"""Inches on either side of the blocks, for what is said of a stage."""
MARGIN = 0.1
"""Inches around the drawing."""
END = 0.22
"""Height in inches of what stands at both ends."""


def size(blocks: Sequence[Block]) -> tuple[float, float]:
    """Return width and height in inches that hold the chain."""
    widest = max(WIDEST, *(block.expansion for block in blocks))
    return widest * UNIT + 2 * SIDE + 2 * MARGIN, sum(map(_height, blocks)) + len(blocks) * GAP + 2 * (
        END + MARGIN
    ) + GAP


def svg(blocks: Sequence[Block]) -> bytes:
    """Return one chain's drawing."""
    buffer = io.BytesIO()
    with drawn(buffer, *size(blocks)) as figure:
        draw(figure.add_subplot(), blocks)
    return buffer.getvalue()


def draw(axes: Any, blocks: Sequence[Block]) -> None:
    """Draw the chain into axes, which become as large as it."""
    from matplotlib.patches import Rectangle

    width, height = size(blocks)
    kernels = sorted({3, 5, 7} | {block.kernel for block in blocks})
    top, stage = -MARGIN, -1
    bottom = _end(axes, top, "image, stem")
    for block in blocks:
        top, tall, wide = bottom - GAP, _height(block), block.expansion * UNIT
        _arrow(axes, bottom, top)
        if block.stage != stage:
            stage = block.stage
            axes.plot([-width / 2, width / 2], [top + GAP / 2] * 2, color=QUIET, linewidth=0.7, zorder=0)
            axes.text(width / 2, top, f"{block.channels} ch", ha="right", va="top", fontsize=7, color=INK)
            axes.text(-width / 2, top, f"{block.size}×{block.size}", ha="left", va="top", fontsize=7, color=INK)
        colour = PALETTE[kernels.index(block.kernel) % len(PALETTE)]
        axes.add_patch(
            Rectangle((-wide / 2, top - tall), wide, tall, facecolor=colour, edgecolor=INK, linewidth=0.6, alpha=0.85)
        )
        stride = f", s{block.stride}" if block.stride > 1 else ""
        text = f"MB{block.expansion} {block.kernel}×{block.kernel}{stride}"
        axes.text(0, top - tall / 2, text, ha="center", va="center", fontsize=7, color="white", weight="bold")
        bottom = top - tall
    _arrow(axes, bottom, bottom - GAP)
    _end(axes, bottom - GAP, "head, classes")
    axes.set_xlim(-width / 2, width / 2)
    axes.set_ylim(-height, 0)
    axes.set_aspect("equal", anchor="N")
    axes.axis("off")


def _height(block: Block) -> float:
    return SMALLEST + KERNEL * block.kernel


def _end(axes: Any, top: float, text: str) -> float:
    axes.text(0, top - END / 2, text, ha="center", va="center", fontsize=7, color=INK)
    return top - END


def _arrow(axes: Any, start: float, end: float) -> None:
    from matplotlib.patches import FancyArrowPatch

    axes.add_patch(
        FancyArrowPatch(
            (0, start), (0, end), arrowstyle="-|>", mutation_scale=5, shrinkA=0, shrinkB=0, linewidth=0.8, color=INK
        )
    )
