"""The benchmark of several processes runs as one command, checks before it times, and says what the split allows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_benchmarks_scoring import script

ROOT = Path(__file__).parents[1]


def test_the_tiny_size_runs(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/ranks.py", "--tiny", "--rounds", "2", "--out", f"{tmp_path}/r.json"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("one process and 2 agree to ") and done.stdout.count("agree to") == 1
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["differ_by"] < 1e-10 and (result["world"], result["split"], result["backend"]) == (2, 1, "gloo")
    assert {"device", "cpus", "torch", "python", "seed", "threads"} <= set(result)
    found = [(row["space"]["name"], row["m"], row["k"], row["bound"]) for row in result["rows"]]
    assert found == [
        ("nasbench201", 5, 1, 1.6667), ("nasbench201", 5, 2, 1.6667), ("mobilenet", 6, 1, 2), ("mobilenet", 6, 2, 2)
    ]  # fmt: skip
    for row in result["rows"]:
        assert row["rounds"] == 2 and min(row["seconds_per_step"].values()) > 0
        assert row["share_of_bound"] == pytest.approx(row["times_as_fast"] / row["bound"], abs=1e-4)
        assert 1 < row["bound_by_macs"] <= 2 and set(row["seconds_per_step"]) == {"one", "all", "each"}
        assert 0 < row["machine_allows"] < 20


@pytest.mark.parametrize(("groups", "split", "bound"), [(1, 2, 2), (2, 2, 10 / 3), (5, 2, 10), (1, 1, 1)])
def test_what_a_split_allows(groups: int, split: int, bound: float, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = script("ranks", monkeypatch)
    space = ranks.space_of(ranks.SIZES["tiny"]["spaces"][0])
    times = {"one": [4.0, 4.0], "all": [2.0, 2.0], "each": [5.0, 5.0]}
    found = ranks.row(space, 1, 6, groups * split, split, times, [bound, bound])
    assert found["machine_allows"] == pytest.approx(0.8 * groups * split)
    assert found["bound"] == pytest.approx(bound, abs=1e-4) and found["times_as_fast"] == 2
    assert found["share_of_bound"] == pytest.approx(2 / bound, abs=1e-4) and found["bound_by_macs"] == found["bound"]


def test_the_page_on_clusters_says_what_was_measured() -> None:
    rows = json.loads((ROOT / "benchmarks/results/ranks-cpu.json").read_text())["rows"]
    shares: dict[str, list[float]] = {}
    bounds: dict[str, set[float]] = {}
    for row in rows:
        shares.setdefault(row["space"]["name"], []).append(row["share_of_bound"])
        bounds.setdefault(row["space"]["name"], set()).add(round(row["bound_by_macs"], 2))
    ranges = {name: f"{min(found):.2f} to {max(found):.2f}" for name, found in shares.items()}
    cells, chain = ("nasbench201", "mobilenet")
    page = " ".join((ROOT / "docs/cluster.md").read_text(encoding="utf-8").split())
    assert f"took {ranges[cells]} of what the split allows for NAS-Bench-201 and {ranges[chain]} for a narrow" in page
    allowed = [row["machine_allows"] for row in rows]
    assert f"did {min(allowed):.2f} to {max(allowed):.2f} times the work of one (`machine_allows`)" in page
    assert f"(`bound_by_macs`: {bounds[cells].pop()} and {bounds[chain].pop()} in" in page
