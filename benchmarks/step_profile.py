"""Where the operators of an SPOS step spend their time on one thread: shares by kind of operation.

    python benchmarks/step_profile.py

The same networks and batches as in against_nni.py, by torch.profiler: the self time of every operator over that of all.
Writes benchmarks/results/step_profile.json.
"""

from __future__ import annotations

import argparse
import datetime
import platform
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from sumnas import files, seeding
from sumnas.machine import cpu_model
from sumnas.methods import spos
from sumnas.spaces import nasbench201

SIZES = ((8, 5, 16), (16, 5, 32))
"""Channels, cells per stage, image size; batch 64."""
KINDS = {
    "convolution": ("convolution", "conv2d"),
    "normalisation": ("batch_norm",),
    "pooling, activation, sums": ("pool", "relu", "threshold", "add", "mean", "div", "mul", "zero", "fill"),
    "linear and loss": ("mm", "softmax", "nll", "log_softmax"),
    "update": ("foreach",),
}


def kind_of(operator: str) -> str:
    """Return which kind an operator of torch's is; the update's own operators are named foreach."""
    for kind in ("update", "convolution", "normalisation", "linear and loss", "pooling, activation, sums"):
        if any(part in operator for part in KINDS[kind]):
            return kind
    return "other"


def shares(channels: int, cells: int, size: int, steps: int) -> dict[str, Any]:
    """Return the share of the operators' time by kind, over `steps` steps of random paths."""
    settings = nasbench201.Settings(
        name="nasbench201", channels=channels, cells=cells, image_size=size, image_channels=3, classes=10
    )
    with seeding.scoped(0, "supernet"):
        supernet = nasbench201.build(settings).supernet()
    supernet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    method = spos.METHOD(supernet, spos.Settings(strategy="spos"), 10**6, 0)
    images = torch.randn(64, 3, size, size).contiguous(memory_format=torch.channels_last)
    batch = [[(images, torch.randint(10, (64,)))]]
    for _ in range(5):
        method.step(batch, [])
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            method.step(batch, [])
    found: dict[str, float] = {}
    for event in profiler.key_averages():
        kind = kind_of(event.key)
        found[kind] = found.get(kind, 0.0) + event.self_cpu_time_total / 1e6
    whole = sum(found.values())
    return {"channels": channels, "cells": cells, "image_size": size, "batch_size": 64, "steps": steps,
            "shares": {kind: round(seconds / whole, 3) for kind, seconds in sorted(found.items())}}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "step_profile.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = [shares(*size, arguments.steps) for size in SIZES]
    for row in rows:
        print(row)
    files.write_json(arguments.out, {
        "benchmark": "step_profile", "settings": rows, "cpu": cpu_model(), "threads": 1, "torch": torch.__version__,
        "python": platform.python_version(), "date": datetime.date.today().isoformat(),
    })  # fmt: skip


if __name__ == "__main__":
    main()
