"""Sub-models scored per second, beside a loop that builds a plain model for each. One call, at most ten minutes.

    python benchmarks/scoring.py          # on a GPU where there is one: C=16 N=5 32x32; on a CPU C=16 N=1 16x16
    python benchmarks/scoring.py --tiny   # does it run?

Both sides recalibrate and score the same random sub-models of one supernet on the same images, in turn:

- `ours`: `evaluation.Predictor`: one network for all, statistics pooled in one pass, correct answers summed on the
  device;
- `plain`: what most code does: build the stand-alone network, load the sub-model's weights, `torch.optim.swa_utils
  .update_bn`, and count correct answers batch by batch.

First their answers are compared image by image: the statistics are the same up to the variances' estimator, so that
all but a few agree. Random images and weights cost what real ones cost. Beside the speeds stands how many scores the
whole space needs when architectures that run the same operations are scored once (`search.memoise`).
"""

from __future__ import annotations

import argparse
import datetime
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from counted import seconds
from torch import Tensor
from torch.optim.swa_utils import update_bn

from sumnas import files, seeding
from sumnas.batchnorm import CalibrationSettings
from sumnas.data import Prepared
from sumnas.evaluation import EvaluationSettings, Predictor
from sumnas.exhaustive import cases
from sumnas.machine import cpu_model
from sumnas.spaces import nasbench201
from sumnas.spaces.base import Architecture, Space, Supernet
from sumnas.spaces.nasbench201 import NASBench201

CLASSES = 10
SIZES: dict[str, dict[str, Any]] = {
    "cuda": {"channels": 16, "cells": 5, "image_size": 32, "images": 5000, "batch_size": 500},
    "cpu": {"channels": 16, "cells": 1, "image_size": 16, "images": 1000, "batch_size": 250},
    "tiny": {"channels": 4, "cells": 1, "image_size": 8, "images": 40, "batch_size": 20},
}


def random_images(size: dict[str, Any], device: torch.device) -> Prepared:
    """As many images to calibrate on as to score."""
    generator = torch.Generator().manual_seed(0)
    shape = (size["images"], size["image_size"], size["image_size"], 3)
    names = ("train", "validation", "test")
    images: dict[str, Any] = {
        name: torch.randint(256, shape, generator=generator, dtype=torch.uint8).to(device) for name in names
    }
    labels = {name: torch.randint(CLASSES, shape[:1], generator=generator).to(device) for name in names}
    return Prepared(images, labels, torch.full((3,), 0.5).to(device), torch.full((3,), 0.25).to(device), CLASSES)


def plain_network(
    space: Space, supernet: Supernet, architecture: Architecture, calibration: list[Tensor]
) -> torch.nn.Module:
    """Return a sub-model as a model of its own, recalibrated by torch."""
    network = space.network(architecture)
    network.load_state_dict(space.extract(supernet, architecture).state_dict())
    network.to(calibration[0].device)
    update_bn(calibration, network)
    return network.eval()


@torch.no_grad()
def accuracy(network: torch.nn.Module, split: list[Any]) -> float:
    """Return the percentage of correct answers, read batch by batch."""
    correct = [int((network(images).argmax(1) == labels).sum().item()) for images, labels in split]
    return 100.0 * sum(correct) / sum(len(labels) for _, labels in split)


@torch.no_grad()
def disagreement(predict: Predictor, network: torch.nn.Module, architecture: Architecture, split: list[Any]) -> float:
    """Return the share of images to which both sides give another answer."""
    predict(architecture)
    others = [(predict.shared(x).argmax(1) != network(x).argmax(1)).float() for x, _ in split]
    return float(torch.cat(others).mean())


def measure(size: dict[str, Any], device: torch.device, architectures: int, until: float) -> dict[str, Any]:
    """Time both sides on the same sub-models, each twice, the order turning."""
    keys = ("channels", "cells", "image_size")
    space = nasbench201.build(
        nasbench201.Settings(name="nasbench201", image_channels=3, classes=CLASSES, **{k: size[k] for k in keys})
    )
    with seeding.scoped(0, "supernet"):
        supernet = space.supernet().to(device)
    prepared, batch = random_images(size, device), size["batch_size"]
    calibration = CalibrationSettings(images=size["images"], batch_size=batch, seed=0)
    predict = Predictor(
        space, supernet, prepared, calibration, EvaluationSettings(split="validation", batch_size=batch)
    )
    batches = list(predict.calibration)
    split = list(zip(*(torch.split(whole, batch) for whole in prepared.split("validation")), strict=True))
    rng = np.random.default_rng(0)
    chosen: list[Architecture] = []
    while len(chosen) < architectures:
        drawn = tuple(int(o) for o in rng.integers(len(space.candidates), size=space.layers))
        chosen += [drawn] * space.connected(drawn)
    apart = [disagreement(predict, plain_network(space, supernet, a, batches), a, split) for a in chosen[:5]]
    if max(apart) > 0.1:
        raise SystemExit(f"the sides give other answers to up to {max(apart):.0%} of the images: nothing is timed")
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for number, architecture in enumerate(chosen):
        works = {
            "ours": lambda a=architecture: predict(a),
            "plain": lambda a=architecture: accuracy(plain_network(space, supernet, a, batches), split),
        }
        for side in ("ours", "plain") if number % 2 else ("plain", "ours"):
            times[side].append(seconds(works[side], device))
        if number >= 4 and time.monotonic() > until:
            break
    return {**size, **summary(times), "other_answers_at_most": round(max(apart), 4), "scores": scores_needed(space)}


def summary(times: dict[str, list[float]]) -> dict[str, Any]:
    """Speeds, and how many times as fast ours is, by sub-model, with a bootstrap interval of the median."""
    ours, other = (np.array(times[side]) for side in ("ours", "plain"))
    ratios = other / ours
    picks = np.random.default_rng(0).integers(len(ratios), size=(4000, len(ratios)))
    low, high = np.quantile(np.median(ratios[picks], axis=1), [0.025, 0.975])
    return {
        "sub_models": len(ratios),
        "per_second": {"ours": round(1 / float(ours.mean()), 2), "plain": round(1 / float(other.mean()), 2)},
        "times_as_fast": round(float(np.median(ratios)), 3),
        "interval_95": [round(float(low), 3), round(float(high), 3)],
    }


def scores_needed(space: NASBench201) -> dict[str, int]:
    """How many sub-models an exhaustive search scores, by `search.memoise`."""
    connected = sum(space.connected(architecture) for architecture in space.architectures())
    return {
        "connected": connected,
        "operations": len(cases(space, flatten=False)),
        "function": len(cases(space, flatten=True)),
    }


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1, help="torch threads on the CPU (default 1)")
    parser.add_argument("--architectures", type=int, default=60, help="at most (default 60)")
    parser.add_argument("--minutes", type=float, default=8.0, help="that the timing may take (default 8)")
    parser.add_argument("--tiny", action="store_true", help="a network of no interest, in seconds: does it run?")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/scoring-<device>.json")
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    found = measure(
        SIZES["tiny" if options.tiny else options.device], device, options.architectures,
        time.monotonic() + 60 * options.minutes,
    )  # fmt: skip
    print(f"{found['per_second']} sub-models a second, {found['times_as_fast']} times as fast {found['interval_95']}")
    result = {
        "benchmark": "scoring", "date": datetime.date.today().isoformat(), "seed": 0,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else cpu_model(), "threads": options.threads,
        "system": platform.system(), "python": platform.python_version(), "torch": torch.__version__, **found,
    }  # fmt: skip
    files.write_json(options.out or Path(__file__).parent / "results" / f"scoring-{options.device}.json", result)


if __name__ == "__main__":
    main()
