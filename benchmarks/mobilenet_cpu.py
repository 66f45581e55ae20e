"""The paper's second half at the scale of two cores, in pieces: makes what docs/results/mobilenet-cpu/ lacks.

    python -m benchmarks.mobilenet_cpu references     # every architecture of the pool with every seed: minutes each
    python -m benchmarks.mobilenet_cpu references --minutes 30          # begin none after half an hour
    python -m benchmarks.mobilenet_cpu table          # their means as one table, once all are there
    python -m benchmarks.mobilenet_cpu train fairnas-0                  # a supernet; needs no references
    python -m benchmarks.mobilenet_cpu run fairnas-0  # trained, where it is not yet, recalibrated, ranked, searched
    python -m benchmarks.mobilenet_cpu run sumnas-k2-0
    python -m benchmarks.mobilenet_cpu retrain fairnas-0                # what that search found, from scratch
    python -m benchmarks.mobilenet_cpu retrain sumnas-k2-0
    python -m benchmarks.mobilenet_report             # the report of all that

The settings are presets/mobilenet-cpu.yaml, the images the folder data/raw/cifar10, or the one that `--images` names;
params.yaml and results/ of this clone are not touched: stages run in a folder of their own, `--work`. Each piece is
written when it is whole, with its time beside it, and what is there is not made again: commit docs/results/ after each.
Within a piece a call that was stopped goes on from the checkpoints that its stages left on that machine; a reference
that was stopped begins anew.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sumnas import files
from sumnas.errors import UserError
from sumnas.machine import spent
from workflow import pieces
from workflow.pieces import Plan
from workflow.stages import FOUND, RETRAIN

PRESET = "mobilenet-cpu"
COMMAND = "python -m benchmarks.mobilenet_cpu"
RANKED = ("supernet/{run}/history.csv", "ranking/{run}/predictions.csv", "ranking/{run}/scatter.svg",
          "ranking/{run}/metrics.json")  # fmt: skip
SEARCHED = ("search/{run}/history.csv", "search/{run}/scored.csv", "search/{run}/pareto.svg", "search/{run}/found.json")
"""What is kept of a run: small files, from which the report is made. The supernet's weights are not among them."""


def train(plan: Plan, name: str, work: Path) -> tuple[Path, dict[str, Any], str]:
    """Train one supernet in a folder of its own; return that, the settings and the key of what was done there.

    No small file is kept of it alone: a process of its own can train while others still make the references.
    """
    folder, text = pieces.project(plan, work / name)
    key = pieces.call_once(folder, text, name, [], "prepare_data", "describe_method", "train_supernet")
    return folder, text, key


def run(plan: Plan, name: str, work: Path) -> None:
    """Train one supernet, where `train` has not, rank it and search with it, and keep the small files."""
    kept = plan.folder / name
    if (kept / "search/run.json").exists():
        print(f"{kept}: is there")
        return
    if not plan.table.exists():
        raise UserError(f"{plan.table}: is not there yet; run `{plan.command} references`, then `{plan.command} table`")
    folder, text, trained = train(plan, name, work)
    results = folder / "results"
    stages = ("build_benchmark", "build_further", "sample_architectures", "recalibrate_bn", "rank", "search")
    pieces.call_once(folder, text, name, [plan.table], *stages, after=trained)
    pieces.keep(results, kept, RANKED, name)
    pieces.keep(results, kept / "search", SEARCHED, name)
    training, rank, search = (
        files.read_json(path)
        for path in (results / f"supernet/{name}/run.json", results / f"ranking/{name}/run.json",
                     results / f"search/{name}/run.json")
    )  # fmt: skip
    seconds = spent(training) + spent(rank)
    pieces.note(plan, kept / "run.json", f"run {name}", seconds, train_seconds=spent(training),
                train_peak_memory_mb=training["peak_memory_mb"])  # fmt: skip
    pieces.note(plan, kept / "search/run.json", f"run {name}", spent(search),
                peak_memory_mb=search["peak_memory_mb"])  # fmt: skip


def retrain(plan: Plan, name: str, work: Path) -> None:
    """Train what a run's search found from scratch; needs its found.json alone."""
    kept = plan.folder / name
    if (kept / "retrain/run.json").exists():
        print(f"{kept / 'retrain'}: is there")
        return
    found = kept / "search/found.json"
    if not found.exists():
        raise UserError(f"{found}: is not there yet; run `{plan.command} run {name}`")
    folder, text = pieces.project(plan, work / name)
    target = folder / FOUND.format(run=name)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(found, target)
    pieces.call_once(folder, text, name, [found], "prepare_data", "retrain")
    pieces.keep(folder / "results", kept / "retrain", [RETRAIN.removeprefix("results/")], name)
    pieces.note(
        plan,
        kept / "retrain/run.json",
        f"retrain {name}",
        spent(files.read_json(folder / f"results/retrain/{name}/run.json")),
    )


PER_RUN: dict[str, Callable[[Plan, str, Path], object]] = {"train": train, "run": run, "retrain": retrain}
"""Pieces that are made for one run each."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("piece", choices=("references", "table", "train", "run", "retrain"))
    parser.add_argument("name", nargs="?", help="of a run, such as fairnas-0")
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache/sumnas" / PRESET, help="folder to work in")
    parser.add_argument("--images", type=Path, help="the folder of pictures, in the place of data.path")
    parser.add_argument("--minutes", type=float, default=1e6, help="references: begin no network after that time")
    parser.add_argument("--seed", type=int, help="references: only this seed")
    arguments = parser.parse_args()
    plan = Plan(PRESET, COMMAND, images=arguments.images)
    work: Path = arguments.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    if arguments.piece in PER_RUN and arguments.name is None:
        parser.error(f"{arguments.piece}: which one? such as fairnas-0")
    with pieces.told(COMMAND):
        if arguments.piece == "references":
            left = pieces.references(plan, work, 60 * arguments.minutes, arguments.seed)
            print(f"{left} are missing still, or in the hand of another process" if left else "all are there")
        elif arguments.piece == "table":
            pieces.write_table(plan)
        else:
            PER_RUN[arguments.piece](plan, arguments.name, work)


if __name__ == "__main__":
    main()
