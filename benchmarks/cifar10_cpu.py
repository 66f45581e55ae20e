"""The paper's comparison at the scale of two cores, in pieces: makes what docs/results/cifar10-cpu/ lacks.

    python benchmarks/cifar10_cpu.py references    # every architecture of the pool with every seed: about 1 min each
    python benchmarks/cifar10_cpu.py table         # their means as one table, once all are there
    python benchmarks/cifar10_cpu.py run fairnas-0 # one supernet: trained, recalibrated, ranked against that table
    python benchmarks/cifar10_cpu.py run sumnas-k2-reuse-0 # a trial: one of these with a setting of cifar10_trials.yaml
    python benchmarks/cifar10_report.py            # the report of all that

The settings are presets/cifar10-cpu.yaml, the images data/raw/cifar10_16x16.npz; params.yaml and results/ of this clone
are not touched: stages run in a folder of their own. Each piece is written when it is whole, with its time beside it,
and the next call goes on from there.
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
RESULTS = ROOT / "docs/results/cifar10-cpu"
PRESET = ROOT / "presets/cifar10-cpu.yaml"
TRIALS = ROOT / "benchmarks/cifar10_trials.yaml"
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


def with_trial(text: dict[str, Any], method: str) -> dict[str, Any]:
    """Return the preset with the settings of the trial called `method`, and its method under that name."""
    trial = yaml.safe_load(TRIALS.read_text(encoding="utf-8")).get(method)
    if method not in text["methods"] and trial:
        for dotted, value in trial["changes"].items():
            *blocks, key = dotted.split(".")
            functools.reduce(operator.getitem, blocks, text)[key] = value
        text["methods"][method] = text["methods"][trial["method"]]
    return text


def run(name: str, work: Path, trained: Path | None) -> None:
    """Train, recalibrate and rank one supernet in a folder of its own, and keep its small files.

    `trained`: take the weights from that run's folder; for trials that change nothing of the training.
    """
    folder = work / "project"
    for part in ("sumnas", "workflow"):
        shutil.copytree(ROOT / part, folder / part, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    method = name.rpartition("-")[0]
    text = with_trial(yaml.safe_load(PRESET.read_text(encoding="utf-8")), method)
    text["data"]["path"] = str(ROOT / text["data"]["path"])
    seeds = [f"{table.PER_SEED}{seed}" for seed in text["benchmark"]["pool"]["seeds"]]
    text["benchmark"] |= {"source": "table", "table": {"path": str(TABLE), "seeds": seeds}}
    files.write_text(folder / "params.yaml", yaml.safe_dump(text, sort_keys=False))
    began = time.monotonic()
    for stage, arguments in (
        ("prepare_data", ()), ("build_benchmark", ()), ("build_further", ()), ("sample_architectures", ()),
        ("describe_method", ("--method", method)), ("train_supernet", ("--run", name)),
        ("recalibrate_bn", ("--run", name)), ("rank", ("--run", name)),
    ):  # fmt: skip
        if stage == "build_benchmark":
            files.write_csv(folder / "results/benchmark/shards/0.csv", pool.COLUMNS, [])
        if stage == "train_supernet" and trained is not None:
            adopt(trained, folder / "results/supernet" / name)
            continue
        subprocess.run([sys.executable, "-m", f"workflow.{stage}", *arguments], cwd=folder, check=True,
                       env={**os.environ, "PYTHONPATH": str(folder), "SUMNAS_TRACKING": "off"})  # fmt: skip
    for template in KEPT:
        source = folder / "results" / template.format(run=name)
        target = RESULTS / name / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    train = files.read_json(folder / f"results/supernet/{name}/run.json")
    note(RESULTS / name / "run.json", f"run {name}", time.monotonic() - began, train_seconds=train["seconds"])
    print(json.dumps(files.read_json(RESULTS / name / "metrics.json")["kendall_tau"]))


def adopt(trained: Path, target: Path) -> None:
    """Copy the trained supernet of a run whose folder is `trained`."""
    (source,) = (trained / "project/results/supernet").iterdir()
    shutil.copytree(source, target, dirs_exist_ok=True)


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
    parser.add_argument(
        "--work", type=Path, default=Path.home() / ".cache/sumnas/cifar10-cpu", help="folder to work in"
    )
    parser.add_argument("--trained", type=Path, help="run: folder of a run whose trained supernet is to be taken")
    parser.add_argument("--minutes", type=float, default=1e6, help="references: begin no network after that time")
    parser.add_argument("--seed", type=int, help="references: only this seed, so that two processes can share the work")
    arguments = parser.parse_args()
    if arguments.piece == "references":
        references(arguments.work, 60 * arguments.minutes, arguments.seed)
    elif arguments.piece == "table":
        write_table()
    else:
        run(arguments.name, arguments.work, arguments.trained)


if __name__ == "__main__":
    main()
