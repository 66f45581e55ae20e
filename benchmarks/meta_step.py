"""What an outer step of SUMNAS costs beside the bare training passes that it consists of.

A is `SUMNAS.step`: m paths with k adaptation steps each. B is the same number of plain training passes: the m
sub-models as stand-alone networks (written here, with nothing of `sumnas` in them), each trained for k steps by
`torch.optim.SGD` with momentum (the faster one of its two implementations), built and warmed up outside the timed
part. A and B alternate in one process on the same paths and batches, either one first in turn; the figure is the median
over pairs of the time of A over that of B, with a bootstrap interval. Target: at most 1.05.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sumnas import seeding
from sumnas.machine import cpu_model
from sumnas.methods import sumnas as method_module
from sumnas.methods.sumnas import SUMNAS, Settings
from sumnas.paths import strictly_fair_paths
from sumnas.spaces import nasbench201

TARGET = 1.05
SETTINGS: list[dict[str, Any]] = [
    {"name": "small", "channels": 16, "cells": 1, "image_size": 16, "image_channels": 3, "batch_size": 64},
    {"name": "quick", "channels": 4, "cells": 1, "image_size": 8, "image_channels": 1, "batch_size": 64},
]
MOMENTUM, RATE = 0.9, 0.01
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
KERNEL = {2: 1, 3: 3}  # by operator: none, skip, 1x1, 3x3, pool


class Block(nn.Module):
    """ReLU, convolution, normalisation by the batch."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.norm(self.conv(F.relu(x)))


class PlainCell(nn.Module):
    """A cell that knows only its own edges; those that cannot reach the output are not there."""

    def __init__(self, channels: int, path: tuple[int, ...]) -> None:
        super().__init__()
        useful = {3}
        for (source, target), operator in reversed(list(zip(EDGES, path, strict=True))):
            if operator and target in useful:
                useful.add(source)
        self.blocks = nn.ModuleList()
        self.plan: list[tuple[nn.Module | None, int, int, int]] = []
        for (source, target), operator in zip(EDGES, path, strict=True):
            if operator and target in useful:
                block = Block(channels, channels, KERNEL[operator]) if operator in KERNEL else None
                if block is not None:
                    self.blocks.append(block)
                self.plan.append((block, operator, source, target))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        nodes: list[Tensor | None] = [x, None, None, None]
        for block, operator, source, target in self.plan:
            value = nodes[source]
            if value is None:
                if block is None:
                    continue
                value = torch.zeros_like(x)
            if block is not None:
                value = block(value)
            elif operator == 4:
                value = F.avg_pool2d(value, 3, 1, 1, count_include_pad=False)
            before = nodes[target]
            nodes[target] = value if before is None else before + value
        out = nodes[3]
        return torch.zeros_like(x) if out is None else out


class Reduction(nn.Module):
    """Residual block between two stages."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(Block(inputs, outputs, 3, 2), Block(outputs, outputs, 3))
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.body(x) + self.shortcut(F.avg_pool2d(x, 2))


class PlainNetwork(nn.Module):
    """One architecture as a stand-alone network."""

    def __init__(self, setting: dict[str, Any], path: tuple[int, ...], classes: int) -> None:
        super().__init__()
        width = setting["channels"]
        layers: list[nn.Module] = [
            nn.Conv2d(setting["image_channels"], width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width, track_running_stats=False),
        ]
        for stage in range(3):
            if stage:
                layers.append(Reduction(width, 2 * width))
                width *= 2
            layers += [PlainCell(width, path) for _ in range(setting["cells"])]
        self.body = nn.Sequential(*layers, nn.BatchNorm2d(width, track_running_stats=False), nn.ReLU())
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.head(self.body(x).mean((2, 3)))


Batches = list[tuple[Tensor, Tensor]]
Work = Callable[[], object]


def bare(networks: list[PlainNetwork], batches: Batches, *, foreach: bool) -> Work:
    """Return the bare passes, ready to run: momentum buffers exist, as in the middle of a training."""
    sgd = [torch.optim.SGD(n.parameters(), RATE, momentum=MOMENTUM, foreach=foreach) for n in networks]

    def work(batches: Batches = batches) -> None:
        for network, optimizer in zip(networks, sgd, strict=True):
            for images, labels in batches:
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(network(images), labels).backward()
                optimizer.step()

    work(batches[:1])
    return work


def seconds(works: list[Work]) -> list[float]:
    """Return how long each took, run in this order without garbage collection in between."""
    took = []
    gc.collect()
    gc.disable()
    for work in works:
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    gc.enable()
    return took


def measure(setting: dict[str, Any], k: int, pairs: int, seed: int) -> dict[str, Any]:
    classes = 10
    keys = ("channels", "cells", "image_size", "image_channels")
    space = nasbench201.build(
        nasbench201.Settings(name="nasbench201", classes=classes, **{key: setting[key] for key in keys})
    )
    torch.manual_seed(seed)
    supernet = space.supernet().to(memory_format=torch.channels_last)
    supernet.train()
    settings = Settings(strategy="sumnas", adaptation_steps=k, inner_learning_rate=RATE * k, inner_momentum=MOMENTUM)
    method = SUMNAS(supernet, settings, 10**6, seed)
    rng = np.random.default_rng(seed)
    shape = (setting["batch_size"], setting["image_channels"], setting["image_size"], setting["image_size"])

    def draw() -> tuple[list[PlainNetwork], Batches]:
        batches = [
            (torch.randn(shape).to(memory_format=torch.channels_last), torch.randint(classes, shape[:1]))
            for _ in range(k)
        ]
        paths = strictly_fair_paths(space.layers, len(space.candidates), rng)
        method_module.strictly_fair_paths = lambda *_: paths  # the same paths on both sides
        return [PlainNetwork(setting, p, classes).to(memory_format=torch.channels_last) for p in paths], batches

    # Which of the two is faster is told on a few draws of their own, which warm everything up as well.
    trials = []
    for _ in range(4):
        networks, batches = draw()
        method.step([batches])
        works = [bare(networks, batches, foreach=foreach) for foreach in (True, False)]
        trials.append(seconds(works[::-1])[::-1] if len(trials) % 2 else seconds(works))
    foreach = bool(np.median([one - other for one, other in trials]) <= 0)

    times = []
    for pair in range(pairs):
        networks, batches = draw()
        works = [lambda batches=batches: method.step([batches]), bare(networks, batches, foreach=foreach)]
        times.append(seconds(works[::-1])[::-1] if pair % 2 else seconds(works))
    ours, theirs = np.array(times).T
    ratios = ours / theirs
    draws = np.random.default_rng(seed).choice(ratios, (4000, pairs))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return {
        **setting, "k": k, "pairs": pairs, "passes": len(space.candidates) * k, "seed": seed,
        "ratio": round(float(np.median(ratios)), 4), "interval_95": [round(float(low), 4), round(float(high), 4)],
        "sumnas_ms": round(1e3 * float(np.median(ours)), 3), "bare_ms": round(1e3 * float(np.median(theirs)), 3),
        "bare_sgd": "foreach" if foreach else "loop", "within_target": bool(np.median(ratios) <= TARGET),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1)")
    parser.add_argument("--pairs", type=int, default=24, help="pairs at k = 1, fewer at larger k (default 24)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "meta_step.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for setting in SETTINGS:
        for k in (1, 2, 4):
            pairs = max(round(arguments.pairs / k**0.75), 10)
            row = measure(setting, k, pairs, seeding.derive(arguments.seed, setting["name"], k) % 2**31)
            rows.append(row)
            low, high = row["interval_95"]
            print(
                f"{row['name']:6} k={k}: SUMNAS {row['sumnas_ms']:8.2f} ms, bare passes {row['bare_ms']:8.2f} ms "
                f"({row['bare_sgd']}), ratio {row['ratio']:.3f} [{low:.3f}, {high:.3f}]",
                flush=True,
            )
    result = {
        "benchmark": "meta_step", "target": TARGET, "date": datetime.date.today().isoformat(),
        "cpu": cpu_model(), "system": platform.system(), "python": platform.python_version(),
        "torch": torch.__version__, "threads": arguments.threads, "seed": arguments.seed, "settings": rows,
    }  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
