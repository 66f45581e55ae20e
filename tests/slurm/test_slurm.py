"""The pipeline through a real Slurm: the bytes of a local run, also where jobs are cancelled or run out of time."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.slurm.conftest import LIMIT, Slurm
from tests.slurm.held import Held, hold
from tests.workflow.conftest import ROOT, Clone

RUNS = ("spos-0", "sumnas-k2-0")
SUPERNETS = [f"results/supernet/{run}/{file}" for run in RUNS for file in ("weights.safetensors", "history.csv")]


@dataclass
class Finished:
    """A clone whose pipeline went through Slurm, and the job that was cancelled on the way."""

    clone: Clone
    outputs: dict[str, bytes]
    said: str
    cancelled: str
    parent: list[str]


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a run's end and return what it said."""
    said, _ = process.communicate(timeout=LIMIT + 30)
    assert process.returncode == 0, said
    return said


@pytest.fixture(scope="session")
def finished(slurm: Slurm) -> Finished:
    """The whole pipeline by the promised command; the first training of spos-0 is cancelled in the middle."""
    clone = slurm.clone("slurm")
    process = slurm.start(clone, "snakemake", "--cores", "8", "--profile", "slurm")
    held = hold("spos-0", clone.folder, process)
    job, parent = held.job, held.parent
    slurm.ask("scancel", job)  # lets the stage go on, too: scancel sends SIGCONT before SIGTERM
    said = finish(process)
    return Finished(clone, clone.outputs(), said, job, parent)


@pytest.fixture(scope="session")
def local(slurm: Slurm, finished: Finished) -> subprocess.Popen[str]:
    """The same settings run by DVC in another clone; begins while the next test waits for Slurm."""
    return slurm.start(slurm.clone("local"), "dvc", "repro")


def test_every_result_comes_from_a_slurm_job(slurm: Slurm, finished: Finished) -> None:
    folder, jobs = finished.clone.folder, {job["id"]: job for job in slurm.jobs()}
    written = [json.loads(p.read_text()) for top in ("results", "data") for p in (folder / top).rglob("*run.json")]
    by_job = {record["slurm_job"]: record["stage"] for record in written}
    assert len(by_job) == len(written) == 20
    for number, stage in by_job.items():
        assert jobs[number]["state"] == "COMPLETED" and jobs[number]["rule"].startswith(f"rule_{stage}")


def test_two_runs_went_in_parallel(slurm: Slurm, finished: Finished) -> None:
    one, other = ([j for j in slurm.jobs() if j["rule"].endswith(name)] for name in ("spos_0", "sumnas-k2_0"))
    assert any(a["began"] < b["ended"] and b["began"] < a["ended"] for a in one for b in other)


def test_a_cancelled_training_is_resubmitted_and_goes_on(slurm: Slurm, finished: Finished) -> None:
    states = {job["id"]: job["state"] for job in slurm.jobs()}
    assert states[finished.cancelled] == "CANCELLED"
    assert "Trying to restart job" in finished.said and "stopped by SIGTERM" in finished.said
    assert "going on from step" in (finished.clone.folder / "logs/train_supernet/spos-0.log").read_text()
    # With a shell between them the job would end with the shell, before the stage has saved.
    assert "snakemake" in finished.parent, f"the stage's parent is {finished.parent}, not Snakemake"


def test_a_time_limit_is_no_loss(slurm: Slurm, finished: Finished, local: subprocess.Popen[str]) -> None:
    """One training is warned before its limit, as by the profile; the other runs into it without a warning."""
    folder, before = finished.clone.folder, len(slurm.jobs())
    for path in SUPERNETS:
        (folder / path).unlink()
    profile = yaml.safe_load((folder / "slurm/config.yaml").read_text())
    warning = profile["default-resources"]["slurm_extra"]
    process = slurm.start(
        finished.clone, "snakemake", "--cores", "8", "--profile", "slurm",
        "--set-resources", f"train_supernet:slurm_extra={warning} if wildcards.method == 'spos' else ''",
        "--", *SUPERNETS,
    )  # fmt: skip
    waiting: dict[str, Held] = {run: hold(run, folder, process) for run in RUNS}
    # Only now, so that on a slow machine the limit does not come before the training. Slurm looks at the clock twice a
    # minute: the warning comes at the next look, and at the one after it the limit would be reached.
    for run, seconds in zip(RUNS, (45, 5), strict=True):
        slurm.ask("scontrol", "update", f"JobId={waiting[run].job}", f"EndTime=now+{seconds}")
    end = time.monotonic() + 150
    while waiting and time.monotonic() < end:
        for run, held in list(waiting.items()):
            if held.signalled:
                waiting.pop(run).go_on()
        time.sleep(0.05)
    assert not waiting, f"no signal has come to {list(waiting)}"
    said = finish(process)
    assert said.count("stopped by SIGTERM") >= 2
    warned, unwarned = (
        [job["state"] for job in slurm.jobs()[before:] if job["rule"].endswith(name)]
        for name in ("spos_0", "sumnas-k2_0")
    )
    assert warned == ["FAILED", "COMPLETED"], "the warned stage ends before its limit"
    assert unwarned == ["TIMEOUT", "COMPLETED"]
    for run in RUNS:
        assert "going on from step" in (folder / f"logs/train_supernet/{run}.log").read_text()
    again = finished.clone.outputs()
    assert [path for path in SUPERNETS if again[path] != finished.outputs[path]] == []


def test_slurm_and_local_give_the_same_bytes(slurm: Slurm, finished: Finished, local: subprocess.Popen[str]) -> None:
    finish(local)
    clone = Clone(slurm.root / "local")
    expected = clone.outputs()
    records = [json.loads(path.read_text()) for path in (clone.folder / "results").rglob("*run.json")]
    assert records and all(record["slurm_job"] is None for record in records)
    assert finished.outputs.keys() == expected.keys() and len(expected) > 30
    assert [path for path in expected if finished.outputs[path] != expected[path]] == []


ONE_NODE = {
    "--nodes=2 --ntasks-per-node=1 --gpus-per-node=2 --cpus-per-task=8": "--nodes=1 --ntasks=2 --cpus-per-task=1",
    '--nnodes "$SLURM_NNODES" --nproc-per-node 2': '--nnodes "$SLURM_NTASKS" --nproc-per-node 1',
    "source .venv/bin/activate\n": "",  # these tests' own environment is on the path already
    "/scratch/$USER/sumnas": "checkpoints",
}
"""What the batch script for several nodes needs where there is one: two launchers on it that find each other."""


def test_the_pages_batch_script_spreads_a_training_over_launchers(slurm: Slurm, finished: Finished) -> None:
    page = (ROOT / "docs/cluster.md").read_text()
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n#SBATCH --nodes=2.*?)```", page, re.S)
    for many, one in ONE_NODE.items():
        assert many in script
        script = script.replace(many, one)
    clone = Clone(slurm.root / "launchers")
    shutil.copytree(finished.clone.folder, clone.folder)
    clone.env = {**finished.clone.env, "PWD": str(clone.folder)}
    folder = clone.folder / "results/supernet/sumnas-k2-0"
    shutil.rmtree(folder)
    (clone.folder / "job.sh").write_text(script)
    ended = clone.run("timeout", "-k", "20", "300", "sbatch", "--wait", "--output=job.log", "job.sh", check=False)
    said = (clone.folder / "job.log").read_text()
    assert ended.returncode == 0, said
    record = json.loads((folder / "run.json").read_text())
    assert record["processes"] == "2" and said.count("sub-model passes, loss") == 1
    alone, shared = (rows(c.folder / "results/supernet/sumnas-k2-0/history.csv") for c in (finished.clone, clone))
    assert [row["passes"] for row in shared] == [row["passes"] for row in alone]
    # Another order of summation, in float32: about the same loss over an epoch, and later the course alone. That each
    # step is the same is held in float64 (tests/test_distributed.py).
    assert float(shared[0]["loss"]) == pytest.approx(float(alone[0]["loss"]), rel=1e-2)
    assert float(shared[-1]["loss"]) < 0.9 * float(shared[0]["loss"])


def rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table."""
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))
