"""The drawing of a chain of blocks: what its boxes and words say is what the architecture's string says."""

from __future__ import annotations

import io
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from sumnas import chains, drawing
from sumnas.results import _drawable
from sumnas.spaces import mobilenet
from sumnas.spaces.base import Architecture
from sumnas.spaces.nasbench201 import NASBench201
from tests.chains import space

OF = mobilenet.build(mobilenet.Settings(name="mobilenet", image_size=224, image_channels=3, classes=1000))
MIXED = tuple(np.random.default_rng(0).integers(0, 6, 19).tolist())


def boxes(svg: bytes) -> list[tuple[float, float, str]]:
    """Width, height and fill of every filled rectangle with an edge, from top to bottom."""
    found = []
    for path in ET.parse(io.BytesIO(svg)).iter("{http://www.w3.org/2000/svg}path"):
        style, points = path.get("style", ""), re.findall(r"[-\d.]+", path.get("d", ""))
        fill = re.search(r"fill: (#\w+)", style)
        if fill and "opacity: 0.85" in style and len(points) == 8:
            x, y = np.array(points[::2], float), np.array(points[1::2], float)
            found.append((y.min(), float(np.ptp(x)), float(np.ptp(y)), fill[1]))
    return [box[1:] for box in sorted(found)]


def texts(svg: bytes) -> list[str]:
    return re.findall(r"<!-- (.*?) -->", svg.decode())


@pytest.mark.parametrize("architecture", [MIXED, (0,) * 19, (5,) * 19])
def test_boxes_show_kernel_and_expansion(architecture: Architecture) -> None:
    svg = chains.svg(OF.chain(architecture))
    choices = [(int(part[1]), int(part[3])) for part in OF.encode(architecture).split("-")]
    found = boxes(svg)
    assert len(found) == 19
    # 72 points an inch, and one scale for all: the figure keeps a margin.
    widths = [72 * chains.UNIT * expansion for expansion, _ in choices]
    heights = [72 * (chains.SMALLEST + chains.KERNEL * kernel) for _, kernel in choices]
    scales = np.array([[b[0] for b in found], [b[1] for b in found]]) / [widths, heights]
    assert np.ptp(scales) < 1e-3 and 0.9 < scales.mean() <= 1
    colours = {kernel: {b[2] for b, (_, k) in zip(found, choices, strict=True) if k == kernel} for kernel in (3, 5, 7)}
    assert all(len(c) <= 1 for c in colours.values())
    assert len(set.union(*colours.values())) == len({k for _, k in choices})
    words = texts(svg)
    labels = [f"MB{e} {k}×{k}{', s2' * (i in (0, 2, 6, 14))}" for i, (e, k) in enumerate(choices)]
    assert [word for word in words if word.startswith("MB")] == labels
    assert [word for word in words if word.endswith(" ch")] == [f"{c} ch" for c in (32, 40, 80, 96, 192, 320)]
    assert [word for word in words if re.fullmatch(r"\d+×\d+", word)] == [
        f"{n}×{n}" for n in (56, 28, 14, 14, 7, 7)
    ]  # fmt: skip
    assert chains.svg(OF.chain(architecture)) == svg


def test_a_figure_may_hold_chains(tmp_path: Path) -> None:
    panels = [drawing.Panel(f"cell {i}", OF.graph(a), OF.chain(a)) for i, a in enumerate([MIXED, (0,) * 19])]
    drawing.cells(tmp_path / "cells.svg", panels, OF.candidates)
    svg = (tmp_path / "cells.svg").read_bytes()
    assert len(boxes(svg)) == 38 and {"cell 0", "cell 1"} <= set(texts(svg))


def test_a_space_says_whether_it_is_a_chain(tiny_space: NASBench201) -> None:
    edges, blocks = _drawable(space(), "e3k3-e6k7-e3k5-e3k3")
    assert edges is not None and len(edges) == 4
    assert blocks is not None and [(b.expansion, b.kernel) for b in blocks] == [(3, 3), (6, 7), (3, 5), (3, 3)]
    assert tiny_space.chain((0,) * 6) is None
    assert _drawable(space(), "e3k3") == (None, None)
