"""Cost of presets/imagenet-mobilenet.yaml on machines like this one: an estimate from images per second measured here.

    python benchmarks/imagenet_cost.py             # results/imagenet_cost-<device>.json, and the table of the page
    python benchmarks/imagenet_cost.py --report    # the table of docs/reproduction.md alone, from the files

The speeds are those of `sumnas estimate`: the preset's own supernet and batch, random images, on a GPU where there is
one. Beside them stands how many photographs one process decodes and augments in a second: two of about ImageNet's size
that scikit-learn has, over and over. Time it on an idle machine; the load that it found is noted.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sumnas import estimate, files, params
from sumnas.augmentation import Augmentation
from sumnas.machine import compute_with, cpu_model
from sumnas.shown import row
from sumnas.streaming import ImageFiles
from workflow.readme import replaced

ROOT = Path(__file__).resolve().parents[1]
PRESET, PAGE = "imagenet-mobilenet", ROOT / "docs/reproduction.md"
OUT = Path("benchmarks/results")
IMAGES = {"train": 1_281_167, "test": 50_000}
"""Of ImageNet (ILSVRC 2012), before any are held out."""
BUSY = 0.5
"""Load per processor above which the machine was not idle."""


def decoding(settings: params.Params, seconds: float) -> dict[str, float]:
    """Return the photographs that one process decodes and augments in a second, as supernets and retraining ask for."""
    import sklearn.datasets

    photographs = sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
    wanted = {"supernet": settings.supernet.augmentation, "retrain": settings.retrain.recipe.augmentation}
    with tempfile.TemporaryDirectory() as name:
        for path in photographs:
            shutil.copy(path, name)
        paths = np.array([path.name.encode() for path in photographs], np.bytes_)
        lengths = np.array([path.stat().st_size for path in photographs], np.int64)
        images = ImageFiles(Path(name), paths, lengths, settings.data.resize or 224, settings.data.crop)
        return {key: _decoded(images, augmentation, seconds) for key, augmentation in wanted.items()}


def _decoded(images: ImageFiles, augmentation: Augmentation, seconds: float) -> float:
    def some(count: int) -> float:
        began = time.perf_counter()
        for _ in images.stream(([(place % len(images), 0, place)] for place in range(count)), augmentation):
            pass
        return time.perf_counter() - began

    some(1)  # imports, and what the first call alone pays for
    count = max(8, round(seconds / (some(8) / 8)))
    return count / some(count)


def measure(preset: Path, device: str, seconds: float, batch: int | None) -> dict[str, Any]:
    """Return speeds on this machine, and the hours of every stage that follow."""
    settings = params.load(preset)
    load, cpus = os.getloadavg()[0], len(os.sched_getaffinity(0))
    threads = min(settings.run.threads, cpus)
    compute_with(threads)
    items = estimate.images(settings, estimate.splits(settings.data, IMAGES["train"], IMAGES["test"]))
    speeds = estimate.speeds(settings, device, batch, seconds)
    name = torch.cuda.get_device_name() if device == "cuda" else cpu_model()
    return {
        "preset": preset.stem, "date": datetime.date.today().isoformat(), "estimate": True,
        "images_per_second": {way: round(value, 2) for way, value in speeds.items()},
        "decoded_per_second_and_process": {k: round(v, 1) for k, v in decoding(settings, seconds).items()},
        "batch_size": batch or settings.supernet.batch_size,
        "arithmetic": settings.supernet.arithmetic.model_dump(),
        "stages": estimate.hours(items, speeds), "device": name, "cpu": cpu_model(), "cpus": cpus, "threads": threads,
        "load": round(load, 2), "idle": load < BUSY * cpus, "python": platform.python_version(),
        "torch": torch.__version__,
    }  # fmt: skip


def block(root: Path) -> str:
    """Return the table of all measured devices, from committed files alone."""
    found = [files.read_json(path) for path in sorted((root / OUT).glob("imagenet_cost-*.json"))]
    heads = [f"hours of {entry['device']}" for entry in found]
    lines = [row(["stage", "of", "jobs", "images (million)", *heads]), row(["---"] * (4 + len(heads)))]
    for parts in zip(*(entry["stages"] for entry in found), strict=True):
        one = parts[0]
        cells = [one["stage"], one["of"] + (", forward" if one["way"] == "forward" else ""), str(one["jobs"])]
        lines.append(row([*cells, f"{one['images_million']:,.1f}", *(_hours(part["hours"]) for part in parts)]))
    totals = [sum(stage["hours"] for stage in entry["stages"]) for entry in found]
    lines.append(row(["*all*", "", "", "", *(_hours(float(f"{total:.3g}")) for total in totals)]))
    text = "\n".join(lines) + "\n\n"
    for entry in found:
        speed, decoded = entry["images_per_second"], entry["decoded_per_second_and_process"]
        text += (
            f"{entry['device']}, {entry['threads']} threads, batches of {entry['batch_size']}: {speed['train']:,.4g} "
            f"images a second forward and backward, {speed['forward']:,.4g} forward; one process decodes and augments "
            f"{decoded['supernet']:.4g} photographs a second for a supernet, {decoded['retrain']:.4g} for retraining. "
        )
        if not entry["idle"]:
            text += (
                f"**Measured beside other work** (load {entry['load']} on {entry['cpus']} processors): an idle machine "
                "is faster. "
            )
        text += f"Python {entry['python']}, torch {entry['torch']}, {entry['date']}. "
    return text + f"Files: {OUT}; made by benchmarks/imagenet_cost.py.\n"


def _hours(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement; a round of paths at least")
    parser.add_argument("--batch", type=int, help="images of a batch, where the supernet's is too large for memory")
    arguments = parser.parse_args()
    if not arguments.report:
        result = measure(ROOT / f"presets/{PRESET}.yaml", arguments.device, arguments.seconds, arguments.batch)
        files.write_json(ROOT / OUT / f"imagenet_cost-{arguments.device}.json", result)
    text = PAGE.read_text(encoding="utf-8")
    files.write_text(PAGE, replaced(text, "imagenet-cost", block(ROOT)))


if __name__ == "__main__":
    main()
