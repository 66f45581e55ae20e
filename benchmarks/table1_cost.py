"""Time and memory of every training of table 1 at the scale of two cores: a part of each, one after the other.

    python -m benchmarks.table1_cost                                # docs/results/table1-cpu/cost.json
    python -m benchmarks.table1_cost --only cream enas --out x.json # some of them, elsewhere

The runs themselves are made over days beside other work, so that their own times do not compare. Here each method
trains in a process of its own, one thread, from the same prepared images, for PART of its epochs and at least one, with
schedules that think that is all: phases of a training (Cream's warm-up) have their true shares. Counted is the time of
the processor inside the steps, without start-up and probes, and from it the hours of a whole training; and the
process's peak memory.
"""

from __future__ import annotations

import argparse
import platform
import resource
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from sumnas import files, machine, params, seeding, training
from sumnas.machine import cpu_model
from sumnas.spaces import base
from workflow.pieces import ROOT, prepared

PRESET = "table1-cpu"
COST = ROOT / "docs/results" / PRESET / "cost.json"
PART = 1 / 50
"""Of a training's epochs: 6 of 300, 1 of the 15 to 60 of methods whose epochs are long."""


def measure(preset: Path, name: str, folder: Path, part: float) -> dict[str, Any]:
    """Train a part of one method in this process; hours of the whole, on this processor."""
    settings = params.load(preset)
    machine.compute_with(settings.run.threads)
    block, images = settings.methods[name], prepared(folder, settings.data)
    epochs = training.epochs_of(block, settings.supernet)
    count = max(1, round(part * epochs))
    with seeding.scoped(0, "supernet"):
        supernet = base.build(settings.space).supernet()
    settings.supernet.arithmetic.place(supernet, "cpu")
    method, batches, heldout = training.assemble(supernet, images, settings.supernet, block, 0)
    method.total_steps = count * batches.steps
    started = time.process_time()
    training.train(method, batches, heldout, count)
    seconds = time.process_time() - started
    return {
        "epochs": epochs, "measured_epochs": count, "seconds": round(seconds, 2),
        "hours": round(seconds * epochs / count / 3600, 3),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", type=Path, default=ROOT / f"presets/{PRESET}.yaml")
    parser.add_argument("--only", nargs="+", metavar="METHOD", help="instead of all; needs --out")
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache/sumnas" / PRESET, help="for prepared images")
    parser.add_argument("--out", type=Path, default=COST)
    arguments = parser.parse_args(argv)
    if arguments.only and arguments.out == COST:
        parser.error(f"--only: name another file by --out, since {COST.name} has all methods, measured together")
    names: list[str] = arguments.only or params.load(arguments.preset).run.methods
    found: dict[str, Any] = {}
    prepared(arguments.work / "prepared", params.load(arguments.preset))  # here: it takes memory that no training does
    for name in names:
        # A process for each: its peak memory is the method's own.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
            found[name] = alone.submit(measure, arguments.preset, name, arguments.work / "prepared", PART).result()
        print(f"{name}: {found[name]}", flush=True)
    files.write_json(arguments.out, {
        "command": "python -m benchmarks.table1_cost", "methods": found,
        "machine": platform.machine(), "cpu": cpu_model(), "threads": 1, "python": platform.python_version(),
        "torch": torch.__version__,
    })  # fmt: skip


if __name__ == "__main__":
    main()
