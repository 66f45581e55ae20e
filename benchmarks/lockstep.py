"""An outer step of SUMNAS in lockstep, beside other ways to run it. One call, at most ten minutes.

Sides, interleaved on the same batches, the order turning from round to round:

- `sequential`: `SUMNAS.step`, path by path;
- `lockstep`: the same with all m paths at once; on a GPU one captured graph (`--compile`: its forward and backward by
  `torch.compile` before);
- `naive`: for every path clone all weights, take k steps of `torch.optim.SGD`, keep the difference, restore all;
- `bare`: forward and backward passes of the m sub-models as stand-alone networks, and nothing else: no update.

First the two engines are compared: in float64 on a small network over several steps, to 1e-10. Then peaks of the device
are measured, then the sides are timed. How bytes and operations are counted: benchmarks/counted.py. `bars` says what
is aimed at, and where that is missed by how much and why.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from bars import of_lockstep
from counted import count, floor_bytes, peaks, seconds
from meta_step import PlainNetwork
from torch import Tensor

from sumnas import seeding
from sumnas.data import Batch
from sumnas.lockstep.descent import JointLoss
from sumnas.lockstep.rounds import indices
from sumnas.machine import cpu_model
from sumnas.methods.sumnas import SUMNAS, Settings
from sumnas.paths import strictly_fair_paths
from sumnas.spaces import nasbench201
from sumnas.spaces.base import Architecture, Supernet

CLASSES = 10
SIZES: dict[str, dict[str, Any]] = {
    "cuda": {"channels": 16, "cells": 5, "image_size": 32, "batches": [64, 256]},
    "cpu": {"channels": 16, "cells": 1, "image_size": 16, "batches": [64, 256]},
    "tiny": {"channels": 4, "cells": 1, "image_size": 8, "batches": [6]},
}
SIDES = ("sequential", "lockstep", "naive", "bare")
Work = Callable[[], object]


def supernet_of(size: dict[str, Any], device: torch.device, dtype: torch.dtype = torch.float32) -> Supernet:
    keys = ("channels", "cells", "image_size")
    space = nasbench201.build(
        nasbench201.Settings(name="nasbench201", image_channels=3, classes=CLASSES, **{k: size[k] for k in keys})
    )
    with seeding.scoped(0, "supernet"):
        supernet = space.supernet()
    return supernet.to(device=device, dtype=dtype, memory_format=torch.channels_last).train()  # type: ignore[call-overload]


def method_of(supernet: Supernet, k: int, engine: str, *, compiled: bool = False) -> SUMNAS:
    settings = Settings(strategy="sumnas", adaptation_steps=k, inner_learning_rate=0.01, inner_momentum=0.9)
    method = SUMNAS(supernet, settings, 10**6, 0)
    method.use(engine)
    if compiled and method.joint is not None:
        method.joint.loss = torch.compile(method.joint.loss, fullgraph=True, dynamic=False)
    return method


def batches_of(size: dict[str, Any], k: int, batch: int, device: torch.device, dtype: torch.dtype) -> list[Batch]:
    generator = torch.Generator().manual_seed(k)
    shape = (batch, 3, size["image_size"], size["image_size"])
    return [
        (
            torch.randn(shape, generator=generator).to(device, dtype).contiguous(memory_format=torch.channels_last),
            torch.randint(CLASSES, (batch,), generator=generator).to(device),
        )
        for _ in range(k)
    ]


def check(device: torch.device, *, compiled: bool) -> float:
    """Return the largest difference of a weight between the engines after steps with other paths; stop at 1e-10."""
    size = SIZES["tiny"]
    methods = [
        method_of(supernet_of(size, device, torch.float64), 2, engine, compiled=compiled)
        for engine in ("sequential", "lockstep")
    ]
    for _ in range(4):
        given = batches_of(size, 2, 12, device, torch.float64)
        for method in methods:
            method.step([given])
    pairs = zip(*(method.supernet.parameters() for method in methods), strict=True)
    worst = max(float((one - other).detach().abs().max()) for one, other in pairs)
    joint = methods[1].joint
    if not worst < 1e-10 or joint is None or joint.captured.captures != (1 if device.type == "cuda" else 0):
        raise SystemExit(f"the engines differ by {worst}, or more than one graph was captured: nothing is timed")
    return worst


def naive(supernet: Supernet, paths: list[Architecture], batches: list[Batch]) -> Work:
    """Algorithm 1 as most code has it: the whole supernet cloned and restored for every path."""

    def work() -> None:
        total = [torch.zeros_like(p) for p in supernet.parameters()]
        for path in paths:
            before = [p.detach().clone() for p in supernet.parameters()]
            sgd = torch.optim.SGD(supernet.path_choices(path) + supernet.shared, 0.01, momentum=0.9)
            for images, labels in batches:
                sgd.zero_grad(set_to_none=True)
                F.cross_entropy(supernet(images, path), labels).backward()
                sgd.step()
            with torch.no_grad():
                for p, old, sum_ in zip(supernet.parameters(), before, total, strict=True):
                    sum_ += old - p
                    p.copy_(old)
            sgd.zero_grad(set_to_none=True)
        with torch.no_grad():
            for p, sum_ in zip(supernet.parameters(), total, strict=True):
                p -= sum_ + 4e-5 * p

    return work


def bare(networks: list[PlainNetwork], batches: list[Batch]) -> Work:
    """Only the passes."""

    def work() -> list[tuple[Tensor | None, ...]]:
        return [  # a path that no image gets through leaves most parameters unused
            torch.autograd.grad(F.cross_entropy(network(images), labels), list(network.parameters()), allow_unused=True)
            for network in networks
            for images, labels in batches
        ]

    return work


def measure(
    size: dict[str, Any], k: int, batch: int, options: argparse.Namespace, best: dict[str, float], until: float
) -> dict[str, Any]:
    device = torch.device(options.device)
    methods = {
        engine: method_of(supernet_of(size, device), k, engine, compiled=options.compile and engine == "lockstep")
        for engine in ("sequential", "lockstep")
    }
    plain, given = supernet_of(size, device), batches_of(size, k, batch, device, torch.float32)
    layers, candidates, rng = len(plain.choices), len(plain.choices[0]), np.random.default_rng(0)
    networks: list[PlainNetwork] = []
    paths: list[Architecture] = []

    def draw() -> dict[str, Work]:
        # The methods draw paths of their own, from one seed; the other two get theirs. All cost the same on average.
        nonlocal networks, paths
        paths = strictly_fair_paths(layers, candidates, rng)
        setting = {**size, "image_channels": 3}
        networks = [
            PlainNetwork(setting, path, CLASSES).to(device=device, memory_format=torch.channels_last) for path in paths
        ]  # type: ignore[call-overload]
        return {
            "sequential": lambda: methods["sequential"].step([given]),
            "lockstep": lambda: methods["lockstep"].step([given]),
            "naive": naive(plain, paths, given),
            "bare": bare(networks, given),
        }

    cast = torch.autocast(device.type, torch.bfloat16, enabled=options.bf16, cache_enabled=False)
    with cast:
        for _ in range(2):
            for work in draw().values():
                seconds(work, device)
        times: dict[str, list[float]] = {side: [] for side in SIDES}
        floors: list[int] = []
        for round_ in range(options.rounds):
            works = draw()
            order = [SIDES[(round_ + turn) % len(SIDES)] for turn in range(len(SIDES))]
            for side in order:
                times[side].append(seconds(works[side], device))
            floors.append(k * floor_bytes(list(networks), given[0][0]))
            if round_ >= 2 and time.monotonic() > until:
                break
        joint = methods["lockstep"].joint
        assert joint is not None
        # Counted on the plain function, since a replayed or compiled graph shows no operations.
        joint.loss = JointLoss(methods["lockstep"].supernet)
        tensors = [tensor for pair in given for tensor in pair]
        index = indices(paths).to(device)
        found = count(lambda: joint.captured.function(index, torch.tensor(0.01, device=device), *tensors))
        found["sequential_moved_bytes"] = count(lambda: methods["sequential"].step([given]))["moved_bytes"]
    return row(k, batch, candidates, times, int(np.mean(floors)), found, best)


def row(
    k: int, batch: int, m: int, times: dict[str, list[float]], floor: int, found: dict[str, int], best: dict[str, float]
) -> dict[str, Any]:
    """Medians, ratios to the sequential step with bootstrap intervals, and shares of the device's peaks."""
    values = {side: np.array(took) for side, took in times.items()}
    rounds = len(values["lockstep"])
    picks = np.random.default_rng(0).integers(rounds, size=(4000, rounds))
    medians = {side: float(np.median(took)) for side, took in values.items()}
    faster = {}
    for side in ("lockstep", "naive", "bare"):
        ratios = values["sequential"] / values[side]
        low, high = np.quantile(np.median(ratios[picks], axis=1), [0.025, 0.975])
        faster[side] = {
            "times_as_fast": round(float(np.median(ratios)), 3),
            "interval_95": [round(float(low), 3), round(float(high), 3)],
        }
    took, copy = medians["lockstep"], best["copy_bytes_per_s"]
    return {
        "k": k, "batch_size": batch, "rounds": rounds, "passes": m * k,
        "ms": {side: round(1e3 * value, 3) for side, value in medians.items()},
        "images_per_s": {side: round(m * k * batch / value) for side, value in medians.items()},
        "than_sequential": faster,
        "floor_bytes": floor, "lockstep_moved_bytes": found["moved_bytes"],
        "sequential_moved_bytes": found["sequential_moved_bytes"], "lockstep_operations": found["operations"],
        "share_of_copy_floor": round(floor / copy / took, 4),
        "share_of_copy_moved": round(found["moved_bytes"] / copy / took, 4),
        "share_of_matrix_product": round(found["operations"] / best["matrix_operations_per_s"] / took, 4),
    }  # fmt: skip


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1, help="torch threads on the CPU (default 1)")
    parser.add_argument("--rounds", type=int, default=15, help="at most, per row (default 15)")
    parser.add_argument("--minutes", type=float, default=8.0, help="that the timing may take (default 8)")
    parser.add_argument("--bf16", action="store_true", help="under autocast to bfloat16")
    parser.add_argument("--compile", action="store_true", help="lockstep's passes by torch.compile (needs a compiler)")
    parser.add_argument("--tiny", action="store_true", help="a network of no interest, in seconds: does it run?")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/lockstep-<device>.json")
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    device, load = torch.device(options.device), os.getloadavg()[0]
    size = SIZES["tiny" if options.tiny else options.device]
    worst = check(device, compiled=options.compile)
    print(f"the engines agree to {worst:.1e}", flush=True)
    best = peaks(device, torch.bfloat16 if options.bf16 else torch.float32, tiny=options.tiny)
    cases = [(batch, k) for batch in size["batches"] for k in ((1, 2) if options.tiny else (1, 2, 4))]
    start, weights = time.monotonic(), [batch * k for batch, k in cases]
    out = options.out or Path(__file__).parent / "results" / f"lockstep-{options.device}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (batch, k) in enumerate(cases):
        until = start + 60 * options.minutes * sum(weights[: number + 1]) / sum(weights)
        rows.append(measure(size, k, batch, options, best, until))
        found = rows[-1]
        print(f"batch {batch} k={k}: {found['ms']} ms; lockstep {found['than_sequential']['lockstep']} of sequential's "
              f"speed, {found['share_of_copy_floor']:.2f} of the copy floor", flush=True)  # fmt: skip
        # After every row: time on a GPU is short, and what was measured stays if a later row fails.
        out.write_text(json.dumps(result(options, size, worst, best, rows, load), indent=2) + "\n")


def result(
    options: argparse.Namespace,
    size: dict[str, Any],
    worst: float,
    best: dict[str, float],
    rows: list[Any],
    load: float,
) -> dict[str, Any]:
    """Return what the file has: settings, versions and machine, the rows, and the bars by them."""
    return {
        "benchmark": "lockstep", "date": datetime.date.today().isoformat(), "engines_differ_by": worst,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else cpu_model(), "threads": options.threads,
        "system": platform.system(), "python": platform.python_version(), "torch": torch.__version__,
        "cores": os.cpu_count(), "load_before": round(load, 1), "load_after": round(os.getloadavg()[0], 1),
        "bf16": options.bf16, "compile": options.compile, "network": {k: v for k, v in size.items() if k != "batches"},
        "peaks": {name: round(value) for name, value in best.items()}, "rows": rows,
        "bars_for": "one H100", "bars": of_lockstep(rows),
    }  # fmt: skip


if __name__ == "__main__":
    main()
