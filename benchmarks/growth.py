"""How the time of training and scoring grows, with slopes. One call, a few minutes.

    python benchmarks/growth.py          # on a GPU where there is one
    python benchmarks/growth.py --tiny   # does it run?

From one setting (k=2, m=5, batch 64, C=16) one thing at a time is varied, and the median time of an outer step
of SUMNAS is measured, the values in turn: adaptation steps k, candidates m, images a batch, channels. Then the time to
score a number of architectures, and to rank them with a bootstrap interval; and, where the machine has several cores
(GPUs on a GPU), the time of a step that 1, 2, ... processes share, by ranks.py. `slope` is that of log time over log
value: 1 is proportional; below it something is shared or fixed, above it something grows faster than the work. Of
processes it is negative: -1 would be half the time with twice as many; with two and m = 5 a split allows -0.74.

The networks are a chain of residual 3x3 convolutions, so that m can be any number: every layer chooses one of m. They
train in the engine that `auto` takes on the device (`engine`; `--engine` names one). First the engines are compared in
float64, to 1e-10.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from counted import seconds
from torch import Tensor, nn

from sumnas import files, seeding
from sumnas.batchnorm import recalibrate
from sumnas.evaluation import SubModel, evaluate
from sumnas.lockstep.rounds import FairRound
from sumnas.machine import cpu_model
from sumnas.methods.base import Engine
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

    def lockstep(self, images: Tensor, fair: FairRound) -> Tensor:
        """[N, 3, H, W] images -> [m, N, classes] logits."""
        layers = [[self.residual(one) for one in layer] for layer in self.layers]  # type: ignore[union-attr]
        x = fair.chain(fair.first("stem", images), layers)
        return fair.shared("head", x.mean((3, 4)))

    @staticmethod
    def residual(operator: nn.Module) -> Callable[[Tensor], Tensor]:
        """Return the operator with its input added."""
        return lambda x: x + operator(x)

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


def method_of(supernet: Chain, k: int, engine: Engine | Literal["auto"]) -> SUMNAS:
    """Return SUMNAS with this engine."""
    method = SUMNAS(supernet.train(), Settings(strategy="sumnas", adaptation_steps=k), 10**6, 0)
    method.use(engine)
    return method


def check(device: torch.device) -> float:
    """Return the largest difference of a weight between the engines after some steps; stop at 1e-10."""
    methods = [method_of(chain(3, 4, device).double(), 2, engine) for engine in ("sequential", "lockstep")]
    x, y = images(12, device)
    for method in methods:
        for _ in range(3):
            method.step([[(x.double(), y)] * 2])
    pairs = zip(*(method.supernet.parameters() for method in methods), strict=True)
    worst = max(float((one - other).detach().abs().max()) for one, other in pairs)
    if not worst < 1e-10:
        raise SystemExit(f"the engines differ by {worst}: nothing is timed")
    return worst


def processes(worlds: list[int], options: argparse.Namespace) -> dict[str, Any]:
    """Time a step that several processes share, by ranks.py: NAS-Bench-201's cells at k=2."""
    took: list[float] = []
    for world in worlds:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "ranks.json"
            words = [f"--world={world}", f"--device={options.device}", f"--threads={options.threads}", f"--out={out}"]
            words += [f"--rounds={options.rounds}", "--k=2", "--spaces=nasbench201", *["--tiny"] * options.tiny]
            command = [sys.executable, str(Path(__file__).with_name("ranks.py")), *words]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{' '.join(command)}: {done.stdout}{done.stderr}")
            (row,) = files.read_json(out)["rows"]
        took = took or [row["seconds_per_step"]["one"]]
        # Each number beside one process in turn: by its ratio, so that a slow minute of the machine leaves the slope.
        took.append(took[0] / row["times_as_fast"])
    values = [1, *worlds]
    return {"values": values, "ms": [round(1e3 * t, 3) for t in took], "slope": slope(values, took)}


def training(
    name: str, values: list[int], base: dict[str, int], rounds: int, device: torch.device, engine: Engine
) -> dict[str, Any]:
    """Time an outer step with one of the settings at each of the values, in turn."""
    works = []
    for value in values:
        size = {**base, name: value}
        method = method_of(chain(size["m"], size["channels"], device), size["k"], engine)
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
    parser.add_argument("--engine", default="auto", choices=("auto", "sequential", "lockstep"))
    parser.add_argument(
        "--worlds", type=int, nargs="*", help="numbers of processes (default: 2, 4 as cores or GPUs allow)"
    )
    parser.add_argument("--tiny", action="store_true", help="of no interest, in seconds: does it run?")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/growth-<device>.json")
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    device, load = torch.device(options.device), os.getloadavg()[0]
    worst, engine = check(device), method_of(chain(2, 4, device), 1, options.engine).engine
    print(f"the engines agree to {worst:.1e}; timed is {engine}", flush=True)
    base = {**BASE, "batch": 4, "channels": 4} if options.tiny else BASE
    found = {
        name: training(name, values, base, options.rounds, device, engine)
        for name, values in (TINY if options.tiny else VARIED).items()
    }
    found |= scoring([1, 2] if options.tiny else COUNTS, base, device)
    there = torch.cuda.device_count() if device.type == "cuda" else (os.cpu_count() or 1) // options.threads
    if worlds := [w for w in (2, 4) if w <= there] if options.worlds is None else options.worlds:
        found["processes"] = processes(worlds, options)
    for name, row in found.items():
        print(f"{name}: {dict(zip(row['values'], row['ms'], strict=True))} ms, slope {row['slope']}")
    result = {
        "benchmark": "growth", "date": datetime.date.today().isoformat(), "seed": 0,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else cpu_model(), "threads": options.threads,
        "system": platform.system(), "python": platform.python_version(), "torch": torch.__version__,
        "engine": engine, "engines_differ_by": worst, "cores": os.cpu_count(),
        "load_before": round(load, 1), "load_after": round(os.getloadavg()[0], 1),
        "base": base, "layers": LAYERS, "image_size": IMAGE, "rounds": options.rounds, "grows_with": found,
    }  # fmt: skip
    files.write_json(options.out or Path(__file__).parent / "results" / f"growth-{options.device}.json", result)


if __name__ == "__main__":
    main()
