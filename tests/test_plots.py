"""Figures: well-formed, the same bytes for the same numbers, and they show what they were given."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sumnas import charts, drawing, plots
from sumnas.plots import Curve, Spread
from sumnas.spaces.base import Space
from sumnas.spaces.nasbench201 import NASBench201

ROWS = [{"reference": 90 + i, "predicted": 80 + i * i, "macs": 0.1 * i} for i in range(5)]
CURVES = [Curve("one", [1, 2, 3], [2.0, 0.5, 0.01]), Curve("other", [2, 3], [1.0, 0.9])]
DRAW: dict[str, Callable[[Path], None]] = {
    "scatter": lambda path: plots.scatter(path, ROWS, "title", "y"),
    "intervals": lambda path: plots.intervals(path, [("a $x$", 0.5, 0.2, 0.6), ("b", -0.1, -0.3, 0.2)], "tau", "title"),
    "no intervals": lambda path: plots.intervals(path, [], "tau", "title"),
    "curves": lambda path: plots.curves(path, [("loss", CURVES), ("probe", CURVES[:1])]),
    "spreads": lambda path: plots.spreads(path, [Spread("a-0", "a", [1, 2, 4], 7 / 3, 1.5)], "accuracy", "title"),
    "cells": lambda path: drawing.cells(path, [drawing.Panel("t $y$\nu", [(0, 1, "op")])] * 4, ["none", "op"]),
    "no cells": lambda path: drawing.cells(path, [], ["none", "op"]),
}


def texts(svg: bytes) -> list[str]:
    """The texts of a figure: matplotlib draws their letters as outlines, and names them in comments."""
    return [text.decode() for text in re.findall(rb"<!-- (.*?) -->", svg)]


@pytest.mark.parametrize("name", DRAW)
def test_well_formed_and_the_same_bytes_again(name: str, tmp_path: Path) -> None:
    first, again = tmp_path / "first.svg", tmp_path / "again.svg"
    DRAW[name](first)
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 20, "savefig.dpi": 33}):  # the user's own taste
        DRAW[name](again)
    assert ET.parse(first).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert first.read_bytes() == again.read_bytes()
    assert b"<dc:date>" not in first.read_bytes()


def test_intervals_show_labels_and_values(tmp_path: Path) -> None:
    DRAW["intervals"](tmp_path / "f.svg")
    shown = texts((tmp_path / "f.svg").read_bytes())
    assert {"a $x$", "b", "0.500", "-0.100", "tau", "title"} <= set(shown)


def test_spreads_show_what_was_recorded(tmp_path: Path) -> None:
    DRAW["spreads"](tmp_path / "f.svg")
    shown = texts((tmp_path / "f.svg").read_bytes())
    assert "a-0" in shown and "2.33 ± 1.50" in shown


def test_curves_name_each_method_once_and_choose_the_axis(tmp_path: Path) -> None:
    wide = [Curve("one", [1, 2], [2.0, 0.05]), Curve("one", [1, 2], [2.0, 0.06])]
    plots.curves(tmp_path / "f.svg", [("wide", wide), ("narrow", [Curve("one", [1, 2], [2.0, 1.0])])])
    svg = (tmp_path / "f.svg").read_bytes()
    shown = texts(svg)
    assert shown.count("one") == 1 and {"wide", "narrow", "epoch"} <= set(shown)
    assert "0.1" in shown and "0.3" not in shown  # the decades of the logarithmic axis alone
    assert "1.2" in shown  # of the linear one
    assert plots.PALETTE[0].encode() in svg


def test_many_points_become_a_picture(tmp_path: Path) -> None:
    many = [ROWS[0]] * (plots.RASTER_FROM + 1)
    plots.scatter(tmp_path / "many.svg", many, "title", "y")
    DRAW["scatter"](tmp_path / "few.svg")
    assert b"<image" in (tmp_path / "many.svg").read_bytes()
    assert len((tmp_path / "many.svg").read_bytes()) < 200_000
    assert (tmp_path / "few.svg").read_bytes().count(b"<use") >= len(ROWS)


def edges_of(text: str) -> list[tuple[int, int, str]]:
    """The edges of an official string, read from its definition: |op~source| groups, one per node from 1 on."""
    groups = re.findall(r"\|((?:\w+~\d\|)+)", text)
    return [
        (int(part.split("~")[1]), node, part.split("~")[0])
        for node, group in enumerate(groups, 1)
        for part in group.rstrip("|").split("|")
    ]


def test_the_graph_is_that_of_the_string(tiny_space: NASBench201) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        architecture = tuple(rng.integers(0, 5, 6).tolist())
        assert sorted(tiny_space.graph(architecture)) == sorted(edges_of(tiny_space.encode(architecture)))


def test_a_space_without_a_graph_of_its_own_is_a_chain(tiny_space: NASBench201) -> None:
    assert Space.graph(tiny_space, (3, 0, 1, 0, 0, 4)) == [
        (0, 1, "nor_conv_3x3"), (1, 2, "none"), (2, 3, "skip_connect"), (3, 4, "none"), (4, 5, "none"),
        (5, 6, "avg_pool_3x3"),
    ]  # fmt: skip


@pytest.mark.parametrize("architecture", [(3, 1, 2, 3, 0, 4), (0, 0, 0, 1, 0, 0), (4, 4, 4, 4, 4, 4)])
def test_the_drawing_names_every_edge_that_is_there(tiny_space: NASBench201, architecture: tuple[int, ...]) -> None:
    svg = drawing.svg(tiny_space.graph(architecture), tiny_space.candidates)
    expected = Counter(operator for *_, operator in edges_of(tiny_space.encode(architecture)))
    absent = expected.pop("none", 0)
    assert Counter(texts(svg)) == expected + Counter("0123")
    assert svg.count(b"stroke-dasharray") == absent
    ET.parse(io.BytesIO(svg))


@given(
    st.lists(
        st.tuples(st.integers(0, 6), st.integers(1, 6)).map(lambda p: (p[0], p[0] + p[1], "op")),
        unique=True,
        max_size=12,
    )
)
def test_edges_side_by_side_never_share_a_lane(edges: list[tuple[int, int, str]]) -> None:
    chosen = drawing.lanes(edges)
    for i, (a, b, _) in enumerate(edges):
        assert b - a == 1 or chosen[i] != 0  # the straight lane passes through the nodes between
        for j, (c, d, _) in enumerate(edges[:i]):
            assert chosen[i] != chosen[j] or b <= c or d <= a


def predictions(count: int, seed: int = 0) -> list[dict[str, str]]:
    rng = np.random.default_rng(seed)
    reference, predicted = rng.normal(90, 3, count), rng.integers(50, 70, count)
    return [
        {
            "architecture": f"a{i}",
            "reference": repr(float(r)),
            "predicted": repr(float(p)),
            "macs": f"{0.1 + i / 7:.3f}",
        }
        for i, (r, p) in enumerate(zip(reference, predicted, strict=True))
    ]


def read(ticks: list[charts.Tick], at: float) -> float:
    """The number that stands at a place of an axis, from its first and last tick."""
    (a, x), (b, y) = ((t.at, float(t.label)) for t in (ticks[0], ticks[-1]))
    return x + (at - a) * (y - x) / (b - a)


def test_scatter_points_lie_at_their_numbers() -> None:
    rows = predictions(40)
    chart = charts.scatter(charts.ranked(rows), "t", "validation")
    assert sorted(mark.index for mark in chart.marks) == list(range(40))
    for mark in chart.marks:
        row = rows[mark.index]
        assert read(chart.xticks, mark.x) == pytest.approx(float(row["reference"]), abs=0.05)
        assert read(chart.yticks, mark.y) == pytest.approx(float(row["predicted"]), abs=0.1)
        assert chart.left <= mark.x <= chart.right and chart.top <= mark.y <= chart.bottom
        assert row["architecture"] in mark.tip and f"{float(row['reference']):.2f} %" in mark.tip


def test_rank_differences_by_counting() -> None:
    rows = predictions(30, seed=1)
    chart = charts.rank_differences(charts.ranked(rows), "t")

    def rank(key: str, row: dict[str, str]) -> float:
        better = sum(float(other[key]) > float(row[key]) for other in rows)
        equal = sum(float(other[key]) == float(row[key]) for other in rows)
        return better + (equal + 1) / 2  # equal ones share the mean of their ranks

    for mark in chart.marks:
        true, predicted = (rank(key, rows[mark.index]) for key in ("reference", "predicted"))
        assert f"true rank {true:g}, predicted rank {predicted:g};" in mark.tip
        assert read(chart.xticks, mark.x) == pytest.approx(true, abs=0.02)
        assert read(chart.yticks, mark.y) == pytest.approx(predicted - true, abs=0.05)
        assert mark.foot is not None and read(chart.yticks, mark.foot) == pytest.approx(0, abs=0.05)


def test_of_very_many_points_an_even_choice_is_shown() -> None:
    run = charts.ranked(predictions(1500))
    for chart in (charts.scatter(run, "t", "test", 500), charts.rank_differences(run, "t", 500)):
        ranks = sorted(run.true_rank[mark.index] for mark in chart.marks)
        assert len(ranks) == 500 and chart.total == 1500
        assert ranks[0] == 1 and ranks[-1] == 1500
        assert set(np.diff(ranks)) <= {2, 3, 4}


@pytest.mark.parametrize("count", [1, 2])
def test_charts_of_almost_nothing(count: int) -> None:
    rows = [{"architecture": "a", "reference": "90", "predicted": "50", "macs": "1"}] * count
    for chart in (charts.scatter(charts.ranked(rows), "t", "v"), charts.rank_differences(charts.ranked(rows), "t")):
        assert len(chart.marks) == count and chart.xticks and chart.yticks
