"""An outer step of SUMNAS whose paths several processes share, beside the same step in one process. One command:

    python benchmarks/ranks.py                 # two processes of one thread each, on the CPU
    python benchmarks/ranks.py --world 4 --device cuda
    python benchmarks/ranks.py --split 2       # both run every path, each on half of its batch

First both are compared: in float64 on small networks over several steps, to 1e-10. Then they are timed in turn, on the
same paths and batches, the order changing from round to round; the other processes wait while one is alone.

With m paths and w processes one of these has ceil(m / w) paths, so that a step can be at most m / ceil(m / w) times as
fast: 5/3 with two processes for m = 5 (NAS-Bench-201), 2 for m = 6 (MobileNet). Paths cost differently: `bound_by_macs`
is what the multiply-adds of the paths that were drawn allow, the mean over the rounds; `sum_ms` is one sum over the
processes of as much as a step sums. `machine_allows` is what processes that share nothing come to: all take the step of
one process at the same time, and do that many times the work of one that is alone. Two hardware threads of one core, or
memory that both wait for, make it less than their number. With `--split s` the paths are shared by w / s groups, and
each batch by the s processes of a group: s times what so many groups allow. `bars`: what is aimed at with two
processes, and where that is missed by how much and why.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bars import of_ranks
from counted import seconds

from sumnas import distributed, seeding
from sumnas.data import Batch
from sumnas.distributed import ALONE, Ranks
from sumnas.machine import cpu_model
from sumnas.methods.sumnas import SUMNAS, Settings
from sumnas.spaces import base, mobilenet, nasbench201
from sumnas.spaces.base import Space

CLASSES, SEED = 10, 0
CELLS = {"name": "nasbench201", "image_channels": 3, "classes": CLASSES}
CHAIN = {"name": "mobilenet", "image_channels": 3, "classes": CLASSES, "stem_stride": 1}
SMALL = {
    "stem_channels": 4,
    "first_channels": 4,
    "head_channels": 8,
    "stages": [{"channels": 4, "blocks": 2, "stride": 2}],
}
MIDDLE = {
    "stem_channels": 16, "first_channels": 8, "head_channels": 64,
    "stages": [{"channels": 16, "blocks": 2, "stride": 2}, {"channels": 24, "blocks": 2, "stride": 2}],
}  # fmt: skip
SIZES: dict[str, dict[str, Any]] = {
    "cuda": {
        "spaces": [{**CELLS, "channels": 16, "cells": 5, "image_size": 32}, {**CHAIN, "image_size": 32}],
        "batch": 256, "k": [1, 2, 4],
    },
    "cpu": {
        "spaces": [{**CELLS, "channels": 16, "cells": 1, "image_size": 16}, {**CHAIN, **MIDDLE, "image_size": 16}],
        "batch": 64, "k": [1, 2, 4],
    },
    "tiny": {
        "spaces": [{**CELLS, "channels": 2, "cells": 1, "image_size": 4}, {**CHAIN, **SMALL, "image_size": 4}],
        "batch": 6, "k": [1, 2],
    },
}  # fmt: skip
SIDES = ("one", "all", "each")
"""One process while the others wait; all share the step; each takes the whole step, all at the same time."""


def space_of(settings: dict[str, Any]) -> Space:
    module = {"nasbench201": nasbench201, "mobilenet": mobilenet}[settings["name"]]
    return base.build(module.Settings.model_validate(settings))


def method_of(
    space: Space, k: int, batch: int, ranks: Ranks, split: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> SUMNAS:  # fmt: skip
    with seeding.scoped(SEED, "supernet"):
        supernet = space.supernet()
    supernet = supernet.to(device=device, dtype=dtype, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    settings = Settings(strategy="sumnas", adaptation_steps=k, inner_learning_rate=0.01, inner_momentum=0.9)
    method = SUMNAS(supernet, settings, 10**6, SEED)
    method.share(ranks, split, batch)
    return method


def batches_of(space: Space, k: int, batch: int, device: torch.device, dtype: torch.dtype) -> list[Batch]:
    generator, size = torch.Generator().manual_seed(SEED), space.settings.image_size
    return [
        (
            torch.randn(batch, 3, size, size, generator=generator)
            .to(device, dtype)
            .contiguous(memory_format=torch.channels_last),
            torch.randint(CLASSES, (batch,), generator=generator).to(device),
        )
        for _ in range(k)
    ]


def own(method: SUMNAS, batches: list[Batch]) -> list[Batch]:
    """Return what a process reads: all of each batch, or its part."""
    part = method.sharers.part(len(batches[0][1]))
    return [(images[part], labels[part]) for images, labels in batches]


def check(ranks: Ranks, split: int, device: torch.device) -> float:
    """Return the largest difference of a weight between one process and all after some steps; stop at 1e-10."""
    worst = 0.0
    for settings in SIZES["tiny"]["spaces"]:
        space = space_of(settings)
        given = batches_of(space, 2, 12, device, torch.float64)
        methods = [method_of(space, 2, 12, *who, device, torch.float64) for who in ((ALONE, 1), (ranks, split))]
        for method in methods:
            for _ in range(4):
                method.step([own(method, given)])
        pairs = zip(*(method.supernet.parameters() for method in methods), strict=True)
        worst = max([worst, *(float((one - other).detach().abs().max()) for one, other in pairs)])
    if not worst < 1e-10:
        raise SystemExit(f"one process and {ranks.world} differ by {worst}: nothing is timed")
    return worst


def measure(
    space: Space, k: int, batch: int, ranks: Ranks, options: argparse.Namespace, device: torch.device, until: float
) -> Any:  # fmt: skip
    """Time steps in turn; every rank gets the same row, of which the first's times are the ones."""
    split, rounds = options.split, options.rounds
    # One of each, so that all are at the same step, of the same paths.
    alone, shared, apart = (
        method_of(space, k, batch, *who, device) for who in ((ALONE, 1), (ranks, split), (ALONE, 1))
    )
    given = batches_of(space, k, batch, device, torch.float32)
    mine = own(shared, given)
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    bounds: list[float] = []
    for number in range(-2, rounds):  # two to warm up
        for side in SIDES if number % 2 else SIDES[::-1]:
            ranks.wait()
            took = 0.0
            if side == "all":
                took = seconds(lambda: shared.step([mine]), device)
            elif side == "each":
                took = seconds(lambda: apart.step([given]), device)
            elif ranks.first:
                took = seconds(lambda: alone.step([given]), device)
            if number >= 0:
                times[side].append(took)
        if number >= 0:
            bounds.append(split * (sum(shared.loads) / max(shared.loads) if ranks.world > split else 1))
        if ranks.from_first(number >= 2 and time.monotonic() > until):
            break
    weights = [parameter.detach().clone() for parameter in shared.supernet.parameters()]
    sums = []
    for _ in range(5):
        ranks.wait()
        sums.append(seconds(lambda: ranks.add(weights), device))
    found = row(space, k, batch, ranks.world, split, times, bounds)
    return {**found, "sum_ms": round(1e3 * float(np.median(sums)), 3)}


def row(
    space: Space, k: int, batch: int, world: int, split: int, times: dict[str, list[float]], bounds: list[float]
) -> dict[str, Any]:
    """Medians, their ratio with a bootstrap interval, and its share of what the split allows."""
    one, all_, each = (np.array(times[side]) for side in SIDES)
    ratios, m, groups = one / all_, len(space.candidates), world // split
    picks = np.random.default_rng(SEED).integers(len(ratios), size=(4000, len(ratios)))
    low, high = np.quantile(np.median(ratios[picks], axis=1), [0.025, 0.975])
    bound = split * m / -(-m // groups)
    return {
        "space": space.settings.model_dump(mode="json"), "m": m, "k": k, "batch_size": batch, "rounds": len(ratios),
        "seconds_per_step": {side: round(float(np.median(times[side])), 6) for side in SIDES},
        "times_as_fast": round(float(np.median(ratios)), 4),
        "interval_95": [round(float(low), 4), round(float(high), 4)],
        "bound": round(bound, 4), "share_of_bound": round(float(np.median(ratios)) / bound, 4),
        "bound_by_macs": round(float(np.mean(bounds)), 4),
        "machine_allows": round(float(np.median(world * one / each)), 4),
    }  # fmt: skip


def options_of(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--split", type=int, default=1, help="processes that share every batch of a path (default 1)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="cuda: a GPU for each, by NCCL")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of each (default 1)")
    parser.add_argument("--rounds", type=int, default=15, help="at most, per row (default 15)")
    parser.add_argument("--minutes", type=float, default=8.0, help="that the timing may take (default 8)")
    parser.add_argument("--k", type=int, nargs="*", help="adaptation steps (default: 1, 2, 4)")
    parser.add_argument("--spaces", nargs="*", choices=("nasbench201", "mobilenet"), help="(default: both)")
    parser.add_argument("--tiny", action="store_true", help="networks of no interest, in seconds: does it run?")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/ranks[-split]-<device>.json")
    return parser.parse_args(words)


def main(options: argparse.Namespace, ranks: Ranks) -> None:
    torch.set_num_threads(options.threads)
    device, load = torch.device(options.device), os.getloadavg()[0]
    size = SIZES["tiny" if options.tiny else options.device]
    worst = check(ranks, options.split, device)
    if ranks.first:
        print(f"one process and {ranks.world} agree to {worst:.1e}", flush=True)
    spaces = [settings for settings in size["spaces"] if settings["name"] in (options.spaces or settings["name"])]
    cases = [(settings, k) for settings in spaces for k in options.k or size["k"]]
    start, rows = time.monotonic(), []
    for number, (settings, k) in enumerate(cases):
        until = start + 60 * options.minutes * (number + 1) / len(cases)
        rows.append(measure(space_of(settings), k, size["batch"], ranks, options, device, until))
        if ranks.first:
            found = rows[-1]
            print(f"{settings['name']} k={k}: {found['times_as_fast']} times as fast as one process, "
                  f"{found['share_of_bound']:.2f} of the split's {found['bound']}; that share nothing: "
                  f"{found['machine_allows']} times", flush=True)  # fmt: skip
    if not ranks.first:
        return
    result = {
        "benchmark": "ranks", "date": datetime.date.today().isoformat(), "differ_by": worst, "seed": SEED,
        "world": ranks.world, "split": options.split, "threads": options.threads,
        "backend": "nccl" if device.type == "cuda" else "gloo",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else cpu_model(), "cpus": os.cpu_count(),
        "system": platform.system(), "python": platform.python_version(), "torch": torch.__version__, "rows": rows,
        "load_before": round(load, 1), "load_after": round(os.getloadavg()[0], 1),
        "bars_for": "two processes that share paths",
        "bars": of_ranks(rows) if (ranks.world, options.split) == (2, 1) else [],
    }  # fmt: skip
    name = f"ranks{'-split' * (options.split > 1)}-{options.device}.json"
    out = options.out or Path(__file__).parent / "results" / name
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    options, place = options_of(None), distributed.place()
    if place is None:  # become torchrun, which calls this once for each process
        words = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.world}", __file__]
        os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
        os.execv(sys.executable, [sys.executable, *words, *sys.argv[1:]])
    with distributed.joined(place, options.device) as ranks:
        main(options, ranks)
