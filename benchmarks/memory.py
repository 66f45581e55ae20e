"""Memory of every stage, and of a training from epoch to epoch, where it has to stay flat.

    python benchmarks/memory.py stages quick            # from results/**/run.json of a finished run of that preset
    python benchmarks/memory.py epochs presets/quick.yaml --method sumnas-k2 --epochs 40
    python benchmarks/memory.py retraining presets/quick.yaml --epochs 40

`stages` takes the peak of every job; `--results` names another project's folder. `epochs` trains a supernet on the
prepared data (`--prepared`) and reads this process's resident memory after every epoch: the line fitted to the second
half may rise by no more than 2 % of the mean over its length. `retraining` does so with one network's training, as
`retrain` and `train_references` have it. All add to benchmarks/results/memory.json.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

from sumnas import data, files, machine, params, retraining, seeding, training
from sumnas.machine import cpu_model
from sumnas.spaces import base

OUT = Path(__file__).parent / "results" / "memory.json"
TARGET = 0.02


def resident() -> float:
    """Resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def of_stages(results: Path, prepared: Path) -> dict[str, dict[str, int]]:
    """Return number of jobs and the largest peak memory in MiB, by stage."""
    found: dict[str, list[int]] = {}
    for folder in (results, prepared):
        for path in sorted(folder.rglob("*run.json")):
            run = files.read_json(path)
            found.setdefault(run["stage"], []).append(run["peak_memory_mb"])
    return {name: {"jobs": len(peaks), "peak_memory_mb": max(peaks)} for name, peaks in sorted(found.items())}


def of_epochs(preset: Path, method: str, epochs: int, prepared: Path) -> dict[str, Any]:
    """Train, and return the resident memory in MiB after every epoch with the rise of its second half."""

    settings = params.load(preset)
    machine.compute_with(settings.run.threads)
    space = base.build(settings.space)
    images = data.load(prepared)
    with seeding.scoped(0, "supernet"):
        supernet = space.supernet()
    settings.supernet.arithmetic.place(supernet, "cpu")
    trained, batches, heldout = training.assemble(supernet, images, settings.supernet, settings.methods[method], 0)
    memory: list[float] = []
    training.train(trained, batches, heldout, epochs, on_epoch=lambda row: memory.append(round(resident(), 1)))
    return {"method": method, **flatness(memory)}


def of_retraining(preset: Path, epochs: int, prepared: Path) -> dict[str, Any]:
    """Return the same of one network's training by the recipe of `retrain`: that of the most costly operator alone."""

    settings = params.load(preset)
    machine.compute_with(settings.run.threads)
    space = base.build(settings.space)
    architecture = max(((choice,) * space.layers for choice in range(len(space.candidates))), key=space.macs)
    recipe = settings.retrain.recipe.model_copy(update={"epochs": epochs})
    memory: list[float] = []
    retraining.train_network(
        space, architecture, data.load(prepared), recipe, 0, lambda *_: memory.append(round(resident(), 1))
    )
    return {"architecture": space.encode(architecture), **flatness(memory)}


def flatness(memory: list[float]) -> dict[str, Any]:
    """Describe the resident memory after every epoch: the rise of the line through its second half."""
    late = np.array(memory[len(memory) // 2 :])
    slope = float(np.polyfit(np.arange(len(late)), late, 1)[0])
    rise = slope * len(late) / float(late.mean())
    return {"epochs": len(memory), "resident_mb": memory, "mb_per_epoch": round(slope, 4),
            "rise_of_second_half": round(rise, 4), "target": TARGET, "met": rise <= TARGET}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("stages", "epochs", "retraining"))
    parser.add_argument("preset", help="a name under which to keep it; but for stages the settings' file")
    parser.add_argument("--method", default="sumnas-k2")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--prepared", type=Path, default=Path("data/prepared"))
    parser.add_argument("--note", help="stages: what was made shorter in that run")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    kept: dict[str, Any] = files.read_json(arguments.out) if arguments.out.exists() else {}
    machine = {"cpu": cpu_model(), "python": platform.python_version(), "date": datetime.date.today().isoformat()}
    if arguments.what == "stages":
        name = arguments.preset
        found: dict[str, Any] = {"stages": of_stages(arguments.results, arguments.prepared)}
        found |= {**machine, **({"note": arguments.note} if arguments.note else {})}
    else:
        name = Path(arguments.preset).stem
        if arguments.what == "epochs":
            measured = of_epochs(Path(arguments.preset), arguments.method, arguments.epochs, arguments.prepared)
        else:
            measured = of_retraining(Path(arguments.preset), arguments.epochs, arguments.prepared)
        found = {arguments.what: {**measured, **machine}}
        print({key: value for key, value in measured.items() if key != "resident_mb"})
    kept[name] = {**kept.get(name, {}), **found}
    files.write_json(arguments.out, kept)


if __name__ == "__main__":
    main()
