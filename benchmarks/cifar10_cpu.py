"""The paper's comparison at the scale of two cores, in pieces: makes what docs/results/cifar10-cpu/ lacks.

    python benchmarks/cifar10_cpu.py references    # every architecture of the pool with every seed: about 1 min each
    python benchmarks/cifar10_cpu.py table         # their means as one table, once all are there
    python benchmarks/cifar10_cpu.py run fairnas-0 # one supernet: trained, recalibrated, ranked against that table
    python benchmarks/cifar10_cpu.py run sumnas-k2-reuse-0 # a trial: one of these with a setting of cifar10_trials.yaml
    python benchmarks/cifar10_report.py            # the report of all that

    python benchmarks/cifar10_cpu.py run gdas-0 --preset table1-cpu      # another preset on the same references
    python -m benchmarks.table1_cost                                     # time and memory of a training of each
    python -m benchmarks.table1_report                                   # the report of these

The settings are presets/cifar10-cpu.yaml, the images data/raw/cifar10_16x16.npz; params.yaml and results/ of this clone
are not touched: stages run in a folder of their own. Each piece is written when it is whole, with its time beside it,
and the next call goes on from there. A run of a method with an architecture of its own also trains that one alone, as
the references were, unless it is one of them.
"""

from __future__ import annotations

import argparse
import functools
import json
import operator
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import yaml

from sumnas import data, files, params, preparation
from sumnas.benchmark import pool, table
from sumnas.machine import cpu_model
from sumnas.spaces import base

ROOT = Path(__file__).resolve().parents[1]
TRIALS = ROOT / "benchmarks/cifar10_trials.yaml"
OWN = "cifar10-cpu"
"""The preset whose references all runs are ranked against."""
RESULTS = ROOT / "docs/results" / OWN
PRESET = ROOT / f"presets/{OWN}.yaml"
SHARED = ("data", "space", "benchmark", "sampling", "calibration", "evaluation")
"""What another preset must have in common with it."""
CHOICE = "own_choice.csv"
"""Beside a run's results: accuracies of the method's own choice, trained alone with every seed of the references."""
ROWS, TIMES, TABLE = RESULTS / "references.csv", RESULTS / "references_seconds.csv", RESULTS / "benchmark.csv"
KEPT = ("supernet/{run}/history.csv", "ranking/{run}/predictions.csv", "ranking/{run}/metrics.json",
        "ranking/{run}/scatter.svg")  # fmt: skip
"""What is kept of a run: small files, from which the report is made."""


def prepared(folder: Path, settings: Any) -> data.Prepared:
    """Prepare the images into `folder`, where that was not done, and load them."""
    if not (folder / "manifest.json").exists():
        preparation.prepare(settings.data, folder)
    return data.load(folder)


def references(work: Path, seconds: float, only: int | None) -> None:
    """Train what is missing of the pool, one network at a time, until the time is up; `only` one of the seeds."""
    import torch

    settings = params.load(PRESET)
    torch.set_num_threads(settings.run.threads)
    space, plan = base.build(settings.space), settings.benchmark.pool
    images = prepared(work / "prepared", settings)
    architectures, deadline = pool.draw(space, plan), time.monotonic() + seconds
    wanted = [(a, s) for s in plan.seeds if only in (None, s) for a in architectures]
    for number, (architecture, seed) in enumerate(wanted, 1):
        rows = read(ROWS, pool.COLUMNS)
        key = {"architecture": space.encode(architecture), "seed": str(seed)}
        if any(key.items() <= row.items() for row in rows):
            continue
        if time.monotonic() > deadline:
            return
        began = time.monotonic()
        (row,) = pool.train_share(space, [architecture], images, plan.model_copy(update={"seeds": [seed]}))
        with filelock.FileLock(work / "lock"):  # another process may have added rows meanwhile
            files.write_csv(ROWS, pool.COLUMNS, [*read(ROWS, pool.COLUMNS), row])
            took = {**key, "seconds": round(time.monotonic() - began, 1)}
            files.write_csv(TIMES, list(took), [*read(TIMES, tuple(took)), took])
        print(f"{number}/{len(wanted)}: {key['architecture']} {seed}: {row['accuracy']:.2f} %", flush=True)


def read(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """Read the rows of a file that may not be there yet."""
    return files.read_csv(path, columns) if path.exists() else []


def write_table() -> None:
    """Bring the trained references into the one table, a valid input of `benchmark.source: table`."""
    settings = params.load(PRESET)
    space = base.build(settings.space)
    table.write(TABLE, space, pool.merge([ROWS], space, settings.benchmark.pool))
    seconds = [float(row["seconds"]) for row in read(TIMES, ("seconds",))]
    note(RESULTS / "references_run.json", "references", float(np.sum(seconds)))
    print(
        f"{TABLE}: {len(table.read(TABLE, space).architectures)} architectures, {np.sum(seconds) / 3600:.2f} core-hours"
    )


def project(work: Path, preset: str) -> tuple[Path, dict[str, Any]]:
    """Make the folder that stages run in, and return it with the preset's settings on the trained references."""
    folder = work / "project"
    for part in ("sumnas", "workflow"):
        shutil.copytree(ROOT / part, folder / part, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    own, text = (yaml.safe_load((ROOT / f"presets/{name}.yaml").read_text(encoding="utf-8")) for name in (OWN, preset))
    if different := [block for block in SHARED if text[block] != own[block]]:
        raise SystemExit(
            f"presets/{preset}.yaml: block {different[0]} is not that of {OWN}, so its references do not fit"
        )
    text["data"]["path"] = str(ROOT / text["data"]["path"])
    seeds = [f"{table.PER_SEED}{seed}" for seed in text["benchmark"]["pool"]["seeds"]]
    text["benchmark"] |= {"source": "table", "table": {"path": str(TABLE), "seeds": seeds}}
    return folder, text


def with_trial(text: dict[str, Any], method: str) -> dict[str, Any]:
    """Return the preset with the settings of the trial called `method`, and its method under that name."""
    trial = yaml.safe_load(TRIALS.read_text(encoding="utf-8")).get(method)
    if method not in text["methods"] and trial:
        for dotted, value in trial["changes"].items():
            *blocks, key = dotted.split(".")
            functools.reduce(operator.getitem, blocks, text)[key] = value
        text["methods"][method] = text["methods"][trial["method"]]
    return text


def call(folder: Path, text: dict[str, Any], name: str, *stages: str) -> None:
    """Run stages for one run in the folder, with these settings."""
    files.write_text(folder / "params.yaml", yaml.safe_dump(text, sort_keys=False))
    of_run = {"train_supernet", "recalibrate_bn", "rank"}
    for stage in stages:
        arguments = ("--run", name) if stage in of_run else ()
        if stage == "describe_method":
            arguments = ("--method", name.rpartition("-")[0])
        subprocess.run([sys.executable, "-m", f"workflow.{stage}", *arguments], cwd=folder, check=True,
                       env={**os.environ, "PYTHONPATH": str(folder), "SUMNAS_TRACKING": "off"})  # fmt: skip


def run(name: str, work: Path, preset: str, trained: Path | None) -> None:
    """Train, recalibrate and rank one supernet in a folder of its own, and keep its small files.

    `trained`: take the supernet from that run's folder; for trials that change nothing of the training.
    """
    folder, text = project(work, preset)
    text = with_trial(text, name.rpartition("-")[0])
    kept, began = ROOT / "docs/results" / preset / name, time.monotonic()
    files.write_csv(folder / "results/benchmark/shards/0.csv", pool.COLUMNS, [])
    call(folder, text, name, "prepare_data", "build_benchmark", "build_further", "sample_architectures",
         "describe_method", *(["train_supernet"] if trained is None else []))  # fmt: skip
    if trained is not None:
        (source,) = (trained / "project/results/supernet").iterdir()
        shutil.copytree(source, folder / "results/supernet" / name, dirs_exist_ok=True)
    call(folder, text, name, "recalibrate_bn", "rank")
    seconds = time.monotonic() - began
    for template in KEPT:
        source = folder / "results" / template.format(run=name)
        kept.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, kept / source.name)
    train = files.read_json(folder / f"results/supernet/{name}/run.json")
    note(kept / "run.json", f"run {name}{option(preset)}", seconds, train_seconds=train["seconds"],
         train_peak_memory_mb=train["peak_memory_mb"])  # fmt: skip
    metrics = files.read_json(kept / "metrics.json")
    derived = metrics.get("derived_architecture")
    if derived is not None and metrics["derived_accuracy"] is None:  # else it is one of the references
        train_choice(derived, kept / CHOICE, work)
    print(json.dumps(metrics["kendall_tau"]))


def train_choice(architecture: str, path: Path, work: Path) -> None:
    """Train a method's own choice alone, with the recipe and every seed of the references."""
    import torch

    settings = params.load(PRESET)
    torch.set_num_threads(settings.run.threads)
    space = base.build(settings.space)
    images = prepared(work / "prepared", settings)
    files.write_csv(
        path, pool.COLUMNS, pool.train_share(space, [space.decode(architecture)], images, settings.benchmark.pool)
    )


def option(preset: str) -> str:
    """Return how a preset is named on the command line."""
    return "" if preset == OWN else f" --preset {preset}"


def note(path: Path, command: str, seconds: float, **more: object) -> None:
    """Write what varies from run to run."""
    import torch

    files.write_json(path, {
        "command": f"python benchmarks/cifar10_cpu.py {command}", "seconds": round(seconds, 1), **more,
        "machine": platform.machine(), "cpu": cpu_model(), "threads": 1, "python": platform.python_version(),
        "torch": torch.__version__, "numpy": np.__version__,
    })  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("piece", choices=("references", "table", "run"))
    parser.add_argument("name", nargs="?", help="of a run, such as fairnas-0")
    parser.add_argument("--preset", default=OWN, help="run: a file of presets/ on the same references")
    parser.add_argument("--work", type=Path, help="folder to work in")
    parser.add_argument("--trained", type=Path, help="run: folder of a run whose trained supernet is to be taken")
    parser.add_argument("--minutes", type=float, default=1e6, help="references: begin no network after that time")
    parser.add_argument("--seed", type=int, help="references: only this seed, so that two processes can share the work")
    arguments = parser.parse_args()
    work: Path = arguments.work or Path.home() / ".cache/sumnas" / arguments.preset
    if arguments.piece == "run":
        if arguments.name is None:
            parser.error("run: which one? such as fairnas-0")
        run(arguments.name, work, arguments.preset, arguments.trained)
    elif arguments.preset != OWN:
        parser.error(f"{arguments.piece}: every preset takes the references of {OWN}")
    elif arguments.piece == "references":
        references(work, 60 * arguments.minutes, arguments.seed)
    else:
        write_table()


if __name__ == "__main__":
    main()
