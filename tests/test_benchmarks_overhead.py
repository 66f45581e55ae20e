"""The benchmark of the engines: a tiny pipeline through one of them, and what its times are made of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.test_benchmarks_scoring import script

ROOT = Path(__file__).parents[1]


def test_a_job_costs_its_start_and_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[dict[str, Any]] = [{"stage": name, "seconds": 2.0} for name in ("rank", "rank", "score")]
    found = script("overhead", monkeypatch).row(18.0, runs, [0.5, 0.9, 0.6], {"rank": 1.0, "score": 2.5})
    assert (found["jobs"], found["stages_s"], found["nothing_to_do_s"]) == (3, 6.0, 0.6)
    assert found["per_job"] == {"overhead_s": 4.0, "start_s": 1.5, "engine_s": 2.5}
    assert found["overhead_share"] == pytest.approx(2 / 3, abs=1e-3)
    assert found["stages"]["rank"] == {"jobs": 2, "seconds": 4.0, "start_s": 1.0}


def test_the_page_on_the_pipeline_says_what_was_measured() -> None:
    engines = json.loads((ROOT / "benchmarks/results/overhead.json").read_text())["engines"]
    page = " ".join((ROOT / "docs/pipeline.md").read_text(encoding="utf-8").split())
    for label, name in (("DVC", "dvc"), ("Snakemake", "snakemake")):
        found, per_job = engines[name], engines[name]["per_job"]
        assert (
            f"{label} {per_job['overhead_s']:.1f} seconds a job beyond its own work, {per_job['start_s']:.1f} of them "
            f"Python's start and the imports, and {found['nothing_to_do_s']:.1f} seconds for the whole pipeline"
        ) in page
        assert f"{100 * found['overhead_share']:.0f} % of its time on that with DVC" in page or name != "dvc"
    assert f"and {100 * engines['snakemake']['overhead_share']:.0f} % with Snakemake" in page


@pytest.mark.engine
def test_the_tiny_size_runs(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/overhead.py", "--tiny", "--out", f"{tmp_path}/r.json"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    assert {"cpu", "cores", "python", "load_before"} <= set(result)
    checked_out = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    assert result["engines"].keys() == {"dvc", "snakemake"}
    for found in result["engines"].values():
        assert found["commit"] == checked_out
        assert found["jobs"] == 1 and found["stages"].keys() == {"describe_method"}
        assert 0 < found["stages_s"] < found["wall_s"] and found["nothing_to_do_s"] > 0
        assert all(row["start_s"] > 0 for row in found["stages"].values())
        assert found["per_job"]["overhead_s"] > 0
