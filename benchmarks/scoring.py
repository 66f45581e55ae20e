"""Sub-models scored per second: one by one, in orbits, by a loop of plain models. One call, at most ten minutes.

    python benchmarks/scoring.py          # on a GPU where there is one: C=16 N=5 32x32; on a CPU C=16 N=1 16x16
    python benchmarks/scoring.py --tiny   # does it run?

All sides recalibrate and score random sub-models of one supernet on the same images, in turn:

- `ours`: `evaluation.Predictor`: one network for all, statistics pooled in one pass, correct answers summed on the
  device;
- `orbits`: `lockstep.scoring.OrbitPredictor`: the same for the whole orbit of the sub-model at once, m of them (on a
  GPU captured graphs); its time is divided by m;
- `plain`: what most code does: build the stand-alone network, load the sub-model's weights, `torch.optim.swa_utils
  .update_bn`, and count correct answers batch by batch.

First answers are compared: with the plain models image by image, where statistics are the same up to the variances'
estimator, so that all but a few agree; of orbits the losses, which are the same up to rounding. Random images and
weights cost what real ones cost. Beside the speeds stands how many scores the whole space needs when architectures that
run the same operations are scored once (`search.memoise`), how many are computed in orbits, and the hours for all.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from counted import seconds
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import update_bn

from sumnas import files, seeding
from sumnas.batchnorm import CalibrationSettings
from sumnas.data import Prepared
from sumnas.evaluation import EvaluationSettings, Predictor
from sumnas.exhaustive import cases, in_orbits, orbit
from sumnas.lockstep.scoring import OrbitPredictor
from sumnas.machine import cpu_model
from sumnas.precision import Arithmetic
from sumnas.spaces import nasbench201
from sumnas.spaces.base import Architecture, Space, Supernet
from sumnas.spaces.nasbench201 import NASBench201

CLASSES = 10
SIDES = ("ours", "plain", "orbits")
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
    Arithmetic().place(network, calibration[0].device)
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


def losses_apart(predict: Predictor, together: OrbitPredictor, members: list[Architecture]) -> float:
    """Return by how much of itself the loss of a sub-model differs, scored in its orbit and alone."""
    pairs = zip(together(members), [predict(member) for member in members], strict=True)
    return max(abs(one.loss / other.loss - 1) for one, other in pairs)


def measure(size: dict[str, Any], device: torch.device, architectures: int, until: float) -> dict[str, Any]:
    """Time all sides on the same sub-models and their orbits, the order turning."""
    keys = ("channels", "cells", "image_size")
    space = nasbench201.build(
        nasbench201.Settings(name="nasbench201", image_channels=3, classes=CLASSES, **{k: size[k] for k in keys})
    )
    with seeding.scoped(0, "supernet"):
        supernet = space.supernet()
    Arithmetic().place(supernet, device)  # as `trained.load` does
    prepared, batch = random_images(size, device), size["batch_size"]
    calibration = CalibrationSettings(images=size["images"], batch_size=batch, seed=0)
    predict = Predictor(
        space, supernet, prepared, calibration, EvaluationSettings(split="validation", batch_size=batch)
    )
    batches, together, m = list(predict.calibration), OrbitPredictor(predict), len(space.candidates)
    split = list(zip(*(torch.split(whole, batch) for whole in prepared.split("validation")), strict=True))
    rng = np.random.default_rng(0)
    chosen: list[Architecture] = []
    while len(chosen) < architectures:
        drawn = tuple(int(o) for o in rng.integers(len(space.candidates), size=space.layers))
        chosen += [drawn] * space.connected(drawn)
    apart = [disagreement(predict, plain_network(space, supernet, a, batches), a, split) for a in chosen[:5]]
    if max(apart) > 0.1:
        raise SystemExit(f"the sides give other answers to up to {max(apart):.0%} of the images: nothing is timed")
    differ = max(losses_apart(predict, together, orbit(architecture, m)) for architecture in chosen[:2])
    if differ > 1e-2:
        # On a GPU convolutions may round to TF32, each form of them in its own way.
        raise SystemExit(f"losses of sub-models in their orbits differ by {differ:.1e} of them: nothing is timed")
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for number, architecture in enumerate(chosen):
        works = {
            "ours": lambda a=architecture: predict(a),
            "plain": lambda a=architecture: accuracy(plain_network(space, supernet, a, batches), split),
            "orbits": lambda a=architecture: together(orbit(a, m)),
        }
        for side in SIDES[number % 3 :] + SIDES[: number % 3]:
            times[side].append(seconds(works[side], device) / (m if side == "orbits" else 1))
        if number >= 4 and time.monotonic() > until:
            break
    found, scores = summary(times), scores_needed(space)
    hours = {
        side: round(scores[count] / found["per_second"][side] / 3600, 2)
        for side, count in (("plain", "connected"), ("ours", "operations"), ("orbits", "in_orbits"))
    }
    return {
        **size, **found, "other_answers_at_most": round(max(apart), 4), "orbit_losses_differ_by": differ,
        "scores": scores, "hours_for_the_space": hours,
    }  # fmt: skip


def summary(times: dict[str, list[float]]) -> dict[str, Any]:
    """Speeds; how many times as fast ours is as plain, and orbits as ours, with bootstrap intervals of the median."""
    seconds_each = {side: np.array(times[side]) for side in SIDES}
    fast, interval = ratio(seconds_each["plain"] / seconds_each["ours"])
    orbits_fast, orbits_interval = ratio(seconds_each["ours"] / seconds_each["orbits"])
    return {
        "sub_models": len(times["ours"]),
        "per_second": {side: round(1 / float(of.mean()), 2) for side, of in seconds_each.items()},
        "times_as_fast": fast,
        "interval_95": interval,
        "orbits_times_as_fast_as_ours": orbits_fast,
        "orbits_interval_95": orbits_interval,
    }


def ratio(ratios: NDArray[np.float64]) -> tuple[float, list[float]]:
    """Return the median with its interval."""
    picks = np.random.default_rng(0).integers(len(ratios), size=(4000, len(ratios)))
    low, high = np.quantile(np.median(ratios[picks], axis=1), [0.025, 0.975])
    return round(float(np.median(ratios)), 3), [round(float(low), 3), round(float(high), 3)]


def scores_needed(space: NASBench201) -> dict[str, int]:
    """How many sub-models an exhaustive search scores, by `search.memoise`, and computes in orbits."""
    connected = sum(space.connected(architecture) for architecture in space.architectures())
    operations, m = cases(space, flatten=False), len(space.candidates)
    return {
        "connected": connected,
        "operations": len(operations),
        "function": len(cases(space, flatten=True)),
        "in_orbits": m * len(in_orbits([group[0] for group in operations], m)),
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
    device, load = torch.device(options.device), os.getloadavg()[0]
    found = measure(
        SIZES["tiny" if options.tiny else options.device], device, options.architectures,
        time.monotonic() + 60 * options.minutes,
    )  # fmt: skip
    print(
        f"{found['per_second']} sub-models a second; ours {found['times_as_fast']} times as fast as plain "
        f"{found['interval_95']}, orbits {found['orbits_times_as_fast_as_ours']} times as ours "
        f"{found['orbits_interval_95']}; hours for the whole space: {found['hours_for_the_space']}"
    )
    result = {
        "benchmark": "scoring", "date": datetime.date.today().isoformat(), "seed": 0,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else cpu_model(), "threads": options.threads,
        "system": platform.system(), "python": platform.python_version(), "torch": torch.__version__,
        "cores": os.cpu_count(), "load_before": round(load, 1), "load_after": round(os.getloadavg()[0], 1), **found,
    }  # fmt: skip
    files.write_json(options.out or Path(__file__).parent / "results" / f"scoring-{options.device}.json", result)


if __name__ == "__main__":
    main()
