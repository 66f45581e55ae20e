"""A stage with nothing to compute costs little more than its import of torch."""

from __future__ import annotations

import math
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from workflow.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]
LATER = (
    "torchvision",
    "mlflow",
    "dvc",
    "snakemake",
    "matplotlib",
    "sklearn",
    "scipy",
    "pandas",
    "PIL",
    "jinja2",
    "filelock",
)
"""Imported only where they are needed, if at all."""


def seconds(folder: Path, *command: str) -> float:
    """Return the processor time of a python command."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "SUMNAS_CHECKPOINTS": str(folder / "work")}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], cwd=folder, env=env, check=True, timeout=120, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_stages_import_late_what_is_heavy() -> None:
    """One process for all: what any of them would import is there at the end, and is told by the first that does."""
    code = f"""
import importlib, sys
for stage in {list(STAGES)}:
    before = set(sys.modules)
    importlib.import_module("workflow." + stage)
    for name in sorted(set({LATER}) & (set(sys.modules) - before)):
        print(stage, "imports", name)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout == ""


def test_a_stage_with_nothing_to_compute_costs_little_more_than_torch(tmp_path: Path) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["benchmark"] |= {"source": "table", "table": {"path": "data/raw/none.csv", "seeds": ["accuracy"]}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    stages = {
        "train_references": ("-m", "workflow.train_references", "--shard", "0"),
        "describe_method": ("-m", "workflow.describe_method", "--method", "spos"),
    }
    least: dict[str, float] = {}
    for _ in range(3):  # other work on the machine adds to a call's time: the least of up to three counts
        for name, command in {"torch": ("-c", "import torch"), **stages}.items():
            least[name] = min(seconds(tmp_path, *command), least.get(name, math.inf))
        bar = 1.6 * least["torch"] + 0.5
        if all(least[name] < bar for name in stages):
            break
    else:
        pytest.fail(f"seconds of the processor: {least}; a stage may take {bar:.2f}")
    assert (tmp_path / "results/benchmark/shards/0.csv").exists() and (tmp_path / "results/methods/spos.json").exists()
