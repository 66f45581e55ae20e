"""The report's chart of accuracy over multiply-adds: points, front and what was found are those of scored.csv."""

from __future__ import annotations

import re

import numpy as np
import pytest

from sumnas import charts, fronts
from sumnas.plots import ACCENT, QUIET
from tests.test_plots import read

Row = dict[str, str]


def scored(count: int, seed: int = 0) -> list[Row]:
    """Rows as in scored.csv, with the front by looking at every pair."""
    rng = np.random.default_rng(seed)
    macs, predicted = rng.integers(1, 40, count) / 10, rng.integers(50, 90, count)
    rows = []
    for i, (m, p) in enumerate(zip(macs, predicted, strict=True)):
        beaten = any(
            q >= p and n <= m and (q > p or n < m or j < i)
            for j, (n, q) in enumerate(zip(macs, predicted, strict=True))
            if j != i
        )
        rows.append({"architecture": f"a{i}", "predicted": str(p), "macs": str(m), "pareto": str(int(not beaten))})
    return rows


def test_points_are_where_their_row_says_and_say_what_they_are() -> None:
    rows, numbers = scored(60), {"a7": 0, "elsewhere": 1}
    found = {"a3": "< 1M MACs, without limit"}
    chart = fronts.front(rows, found, numbers, "t", "validation")
    assert (len(chart.marks), chart.total, len(numbers)) == (60, 60, 61)
    assert numbers["a7"] == 0 and sorted(numbers.values()) == list(range(61))
    by_number = {number: name for name, number in numbers.items()}
    for mark in chart.marks:
        name = by_number[mark.index]
        row = rows[int(name[1:])]
        assert read(chart.xticks, mark.x) == pytest.approx(float(row["macs"]), abs=0.02)
        assert read(chart.yticks, mark.y) == pytest.approx(float(row["predicted"]), abs=0.1)
        assert mark.tip.startswith(f"{name}\npredicted {float(row['predicted']):.2f} %; {float(row['macs']):.4g}M ")
        assert ("on the Pareto front" in mark.tip) == (row["pareto"] == "1")
        assert ("found < 1M MACs, without limit" in mark.tip) == (name == "a3")
        on_front = ACCENT if row["pareto"] == "1" else QUIET
        assert mark.colour == (fronts.FOUND if name == "a3" else on_front)
    assert by_number[chart.marks[-1].index] == "a3"  # drawn last, over the others


def test_what_was_measured_stands_in_the_place_of_multiply_adds() -> None:
    rows = [{**row, "cost": str(7 * float(row["macs"]))} for row in scored(60)]
    unknown = {"architecture": "a60", "predicted": "99", "macs": "0.1", "cost": "", "pareto": "0"}
    chart = fronts.front([*rows, unknown], {"a3": "< 9 latency_ms"}, {}, "t", "validation", measured="latency (ms)")
    by_name = {row["architecture"]: row for row in rows}
    assert chart.xlabel == "latency (ms)" and len(chart.marks) == chart.total == 60
    for mark in chart.marks:
        row = by_name[mark.tip.split("\n")[0]]
        assert read(chart.xticks, mark.x) == pytest.approx(float(row["cost"]), abs=0.15)
        assert f"; {float(row['macs']):.4g}M multiply-adds; latency (ms) {float(row['cost']):.4g}" in mark.tip


def test_the_line_is_the_best_accuracy_within_every_limit() -> None:
    rows = scored(80, seed=1)
    chart = fronts.front(rows, {}, {}, "t", "validation")
    x, y, end = [], [], None
    for command, *values in re.findall(r"([MHV])([\d.]+)(?: ([\d.]+))?", chart.path):
        if command == "M":
            x, y = [float(values[0])], [float(values[1])]
        elif command == "H":
            end = float(values[0])
        else:
            x, y = [*x, end or 0.0], [*y, float(values[0])]
    assert end == charts.WIDTH - charts.RIGHT
    for limit in np.linspace(0.3, 3.9, 50):
        best = max((float(row["predicted"]) for row in rows if float(row["macs"]) <= limit), default=None)
        at = [height for place, height in zip(x, y, strict=True) if read(chart.xticks, place) <= limit + 0.02]
        if best is not None and abs(limit * 10 - round(limit * 10)) > 0.3:
            assert read(chart.yticks, at[-1]) == pytest.approx(best, abs=0.1)


def test_of_very_many_the_front_and_what_was_found_stay() -> None:
    rows = scored(1500, seed=2)
    found = {"a11": "without limit"}
    chart = fronts.front(rows, found, {}, "t", "test", 200)
    names = {mark.tip.split("\n")[0] for mark in chart.marks}
    kept = {row["architecture"] for row in rows if row["pareto"] == "1"} | {"a11"}
    assert kept <= names and len(names) == 200 + len(kept) and chart.total == 1500


def test_one_architecture_alone() -> None:
    rows = [{"architecture": "a", "predicted": "50", "macs": "1", "pareto": "1"}]
    chart = fronts.front(rows, {"a": "without limit"}, {}, "t", "test")
    assert len(chart.marks) == 1 and chart.path.startswith("M")
