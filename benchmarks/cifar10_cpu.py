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
import shutil
import time
from pathlib import Path
from typing import Any

import yaml

from sumnas import files, machine
from sumnas.benchmark import pool
from sumnas.machine import spent
from sumnas.spaces import base
from workflow import pieces
from workflow.pieces import ROOT, Plan

TRIALS = ROOT / "benchmarks/cifar10_trials.yaml"
OWN = "cifar10-cpu"
"""The preset whose references all runs are ranked against."""
PLAN = Plan(OWN, "python benchmarks/cifar10_cpu.py")
SHARED = ("data", "space", "benchmark", "sampling", "calibration", "evaluation")
"""What another preset must have in common with it."""
CHOICE = "own_choice.csv"
"""Beside a run's results: accuracies of the method's own choice, trained alone with every seed of the references."""
KEPT = ("supernet/{run}/history.csv", "ranking/{run}/predictions.csv", "ranking/{run}/metrics.json",
        "ranking/{run}/scatter.svg")  # fmt: skip
"""What is kept of a run: small files, from which the report is made."""


def project(work: Path, preset: str) -> tuple[Path, dict[str, Any]]:
    """Make the folder that stages run in, and return it with the preset's settings on the trained references."""
    own, text = PLAN.text(), PLAN.text(preset)
    if different := [block for block in SHARED if text[block] != own[block]]:
        raise SystemExit(
            f"presets/{preset}.yaml: block {different[0]} is not that of {OWN}, so its references do not fit"
        )
    return pieces.project(PLAN, work, preset)


def with_trial(text: dict[str, Any], method: str) -> dict[str, Any]:
    """Return the preset with the settings of the trial called `method`, and its method under that name."""
    trial = yaml.safe_load(TRIALS.read_text(encoding="utf-8")).get(method)
    if method not in text["methods"] and trial:
        for dotted, value in trial["changes"].items():
            *blocks, key = dotted.split(".")
            functools.reduce(operator.getitem, blocks, text)[key] = value
        text["methods"][method] = text["methods"][trial["method"]]
    return text


def run(name: str, work: Path, preset: str, trained: Path | None) -> None:
    """Train, recalibrate and rank one supernet in a folder of its own, and keep its small files.

    `trained`: take the supernet from that run's folder; for trials that change nothing of the training.
    """
    folder, text = project(work, preset)
    text = with_trial(text, name.rpartition("-")[0])
    kept, began = ROOT / "docs/results" / preset / name, time.monotonic()
    pieces.call(folder, text, name, "prepare_data", "build_benchmark", "build_further", "sample_architectures",
                "describe_method", *(["train_supernet"] if trained is None else []))  # fmt: skip
    if trained is not None:
        (source,) = (trained / "project/results/supernet").iterdir()
        shutil.copytree(source, folder / "results/supernet" / name, dirs_exist_ok=True)
    pieces.call(folder, text, name, "recalibrate_bn", "rank")
    seconds = time.monotonic() - began
    pieces.keep(folder / "results", kept, KEPT, name)
    train = files.read_json(folder / f"results/supernet/{name}/run.json")
    pieces.note(PLAN, kept / "run.json", f"run {name}{option(preset)}", seconds, train_seconds=spent(train),
                train_peak_memory_mb=train["peak_memory_mb"])  # fmt: skip
    metrics = files.read_json(kept / "metrics.json")
    derived = metrics.get("derived_architecture")
    if derived is not None and metrics["derived_accuracy"] is None:  # else it is one of the references
        train_choice(derived, kept / CHOICE, work)
    print(json.dumps(metrics["kendall_tau"]))


def train_choice(architecture: str, path: Path, work: Path) -> None:
    """Train a method's own choice alone, with the recipe and every seed of the references."""

    settings = PLAN.settings()
    machine.compute_with(settings.run.threads)
    space = base.build(settings.space)
    images = PLAN.prepared(work)
    files.write_csv(
        path, pool.COLUMNS, pool.train_share(space, [space.decode(architecture)], images, settings.benchmark.pool)
    )


def option(preset: str) -> str:
    """Return how a preset is named on the command line."""
    return "" if preset == OWN else f" --preset {preset}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("piece", choices=("references", "table", "run"))
    parser.add_argument("name", nargs="?", help="of a run, such as fairnas-0")
    parser.add_argument("--preset", default=OWN, help="run: a file of presets/ on the same references")
    parser.add_argument("--work", type=Path, help="folder to work in")
    parser.add_argument("--trained", type=Path, help="run: folder of a run whose trained supernet is to be taken")
    parser.add_argument("--minutes", type=float, default=1e6, help="references: begin no network after that time")
    parser.add_argument("--seed", type=int, help="references: only this seed")
    arguments = parser.parse_args()
    work: Path = arguments.work or Path.home() / ".cache/sumnas" / arguments.preset
    if arguments.piece == "run":
        if arguments.name is None:
            parser.error("run: which one? such as fairnas-0")
        run(arguments.name, work, arguments.preset, arguments.trained)
    elif arguments.preset != OWN:
        parser.error(f"{arguments.piece}: every preset takes the references of {OWN}")
    elif arguments.piece == "references":
        pieces.references(PLAN, work, 60 * arguments.minutes, arguments.seed)
    else:
        pieces.write_table(PLAN)


if __name__ == "__main__":
    with pieces.told(PLAN.command):
        main()
