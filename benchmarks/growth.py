"""How the time of training and scoring grows, with slopes. One call, a few minutes.

    python benchmarks/growth.py          # on a GPU where there is one
    python benchmarks/growth.py --tiny   # does it run?

From one setting (k=2, m=5, batch 64, C=16) one thing at a time is varied, and the median time of an outer step
of SUMNAS is measured, the values in turn: adaptation steps k, candidates m, images a batch, channels. Then the time to
score a number of architectures, and to rank them with a bootstrap interval. `slope` is that of log time over log value:
1 is proportional; below it something is shared or fixed, above it something grows faster than the work.

The networks are a chain of residual 3x3 convolutions, so that m can be any number: every layer chooses one of m.
"""

from __future__ import annotations

import argparse
import datetime
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from counted import seconds
from torch import Tensor, nn

from sumnas import files, seeding
from sumnas.batchnorm import recalibrate
from sumnas.evaluation import SubModel, evaluate
from sumnas.machine import cpu_model
from sumnas.methods.sumnas import SUMNAS, Settings
from sumnas.paths import uniform_path
from sumnas.ranking import RankingSettings, kendall
from sumnas.spaces.base import Architecture, Supernet

LAYERS, CLASSES, IMAGE = 6, 10, 16
BASE = {"k": 2, "m": 5, "batch": 64, "channels": 16}
VARIED: dict[str, list[int]] = {"k": [1, 2, 4, 8], "m": [2, 4, 8, 16], "batch": [16, 32, 64, 128, 256],
                                "channels": [8, 16, 32, 64]}  # fmt: skip
COUNTS = [8, 16, 32, 64]
TINY: dict[str, list[int]] = {"k": [1, 2], "m": [2, 4], "batch": [4, 8], "channels": [4, 8]}


class Chain(Supernet):
    """Layers that choose one of m convolutions, with a batch norm of their own each."""

    def __init__(self, m: int, channels: int, *, track: bool) -> None:
        super().__init__()

        def candidate() -> nn.Module:
            return nn.Sequential(
                nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels, track_running_stats=track),
            )  # fmt: skip

        self.stem = nn.Conv2d(3, channels, 3, stride=2, padding=1, bias=False)
        self.layers = nn.ModuleList(nn.ModuleList(candidate() for _ in range(m)) for _ in range(LAYERS))
        self.head = nn.Linear(channels, CLASSES)
        self.choices = [[list(one.parameters()) for one in layer] for layer in self.layers]  # type: ignore[union-attr]
        self.shared = [*self.stem.parameters(), *self.head.parameters()]

    def forward(self, x: Tensor, architecture: Architecture) -> Tensor:
        """[N, 3, H, W] images -> [N, classes] logits."""
        x = self.stem(x)
        for layer, operator in zip(self.layers, architecture, strict=True):
            x = x + layer[operator](x)  # type: ignore[index]
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def chain(m: int, channels: int, device: torch.device, *, track: bool = False) -> Chain:
    """Return one with seeded weights."""
    with seeding.scoped(0, "chain"):
        return Chain(m, channels, track=track).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def images(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return random images and labels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((count, 3, IMAGE, IMAGE), generator=generator).to(device, memory_format=torch.channels_last)
    return x, torch.randint(CLASSES, (count,), generator=generator).to(device)


def slope(values: list[int], took: list[float]) -> float:
    """Return the slope of log time over log value."""
    return round(float(np.polyfit(np.log(values), np.log(took), 1)[0]), 3)


def training(name: str, values: list[int], base: dict[str, int], rounds: int, device: torch.device) -> dict[str, Any]:
    """Time an outer step with one of the settings at each of the values, in turn."""
    works = []
    for value in values:
        size = {**base, name: value}
        supernet = chain(size["m"], size["channels"], device).train()
        method = SUMNAS(supernet, Settings(strategy="sumnas", adaptation_steps=size["k"]), 10**6, 0)
        given = [[images(size["batch"], device)] * size["k"]]
        works.append(lambda method=method, given=given: method.step(given))
    for work in works:
        work()
    took = [[seconds(work, device) for work in works] for _ in range(rounds)]
    medians = [float(np.median(column)) for column in zip(*took, strict=True)]
    return {"values": values, "ms": [round(1e3 * t, 3) for t in medians], "slope": slope(values, medians)}


def scoring(counts: list[int], base: dict[str, int], device: torch.device) -> dict[str, dict[str, Any]]:
    """Time the recalibration and scoring of a number of architectures, and tau with its interval over them."""
    supernet = chain(base["m"], base["channels"], device, track=True)
    network = SubModel(supernet, ())
    split, rng = images(4 * base["batch"], device), np.random.default_rng(0)
    calibration = torch.split(split[0], base["batch"])

    def score(count: int) -> None:
        for _ in range(count):
            network.architecture = uniform_path(LAYERS, base["m"], rng)
            recalibrate(network, calibration)
            evaluate(network, split, base["batch"])

    score(2)
    took = [seconds(lambda count=count: score(count), device) for count in counts]
    many = [8 * count for count in counts]
    pairs = [rng.normal(size=(2, count)) for count in many]
    kendall(*pairs[0], RankingSettings())  # imports what it needs
    ranked = [seconds(lambda pair=pair: kendall(*pair, RankingSettings()), device) for pair in pairs]
    return {
        "architectures scored": {
            "values": counts, "ms": [round(1e3 * t, 3) for t in took], "slope": slope(counts, took)
        },
        "architectures ranked": {
            "values": many, "ms": [round(1e3 * t, 3) for t in ranked], "slope": slope(many, ranked)
        },
    }  # fmt: skip


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1, help="torch threads on the CPU (default 1)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tiny", action="store_true", help="of no interest, in seconds: does it run?")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/growth-<device>.json")
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    base = {**BASE, "batch": 4, "channels": 4} if options.tiny else BASE
    found = {
        name: training(name, values, base, options.rounds, device)
        for name, values in (TINY if options.tiny else VARIED).items()
    }
    found |= scoring([1, 2] if options.tiny else COUNTS, base, device)
    for name, row in found.items():
        print(f"{name}: {dict(zip(row['values'], row['ms'], strict=True))} ms, slope {row['slope']}")
    result = {
        "benchmark": "growth", "date": datetime.date.today().isoformat(), "seed": 0,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else cpu_model(), "threads": options.threads,
        "system": platform.system(), "python": platform.python_version(), "torch": torch.__version__,
        "base": base, "layers": LAYERS, "image_size": IMAGE, "rounds": options.rounds, "grows_with": found,
    }  # fmt: skip
    files.write_json(options.out or Path(__file__).parent / "results" / f"growth-{options.device}.json", result)


if __name__ == "__main__":
    main()
