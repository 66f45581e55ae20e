"""Supernet training speed beside NNI's: our `spos` against RandomOneShot of NNI 3.0 on NNI's own NasBench201.

Three sides, one process and one thread each, start once and then take turns at blocks of steps; one waits while another
works, so that what else the machine does hits all. NNI in its Lightning trainer draws the paths of a block; its network
in a bare loop and our training loop then run the same paths. The figure is the median over the blocks of NNI's time
over ours, with a bootstrap interval, by processor time and by the clock: on a machine that other work shares, the clock
counts that work as well. Before that the sides must agree on the logits of fixed weights: it is one network.

NNI lives in an environment of its own (`--environment`), made at the first run: about 5 GB, some minutes.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from sumnas.machine import cpu_model

HERE = Path(__file__).parent
TARGET = 3.0
SIDES = ("lightning", "bare", "sumnas")
RECIPE: dict[str, Any] = {"cells": 5, "batch_size": 64, "learning_rate": 0.2, "momentum": 0.0, "weight_decay": 4e-5}
SETTINGS: list[dict[str, Any]] = [
    {"name": "small", "channels": 8, "image_size": 16, "steps": 10, "warm_up": 10, **RECIPE},
    {"name": "paper", "channels": 16, "image_size": 32, "steps": 4, "warm_up": 5, **RECIPE},
]
DIFFERENCES = [
    "paths: the same on all sides, as NNI drew them; every side pays for its own draw",
    "weights: the same parameters in number, order and shape; the same logits for the same weights",
    "NNI runs every edge, multiplies 'none' by zero, stacks edges to sum them; we run what reaches the output",
    "NNI's normalisation updates running statistics, ours has none (recalibrated afterwards, as the paper does)",
    "memory: NNI NCHW, its default; ours channels_last, as train_supernet sets it",
    "SGD: NNI one tensor at a time (torch's default on a CPU), ours foreach",
    "data: NNI gets ready float batches without end; ours are gathered from uint8 and normalised inside the timed part",
    "NNI: SupervisedLearningModule without its accuracy metric; Lightning without logger, progress bar, checkpoints",
]


class Side:
    """A process that trains when asked."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment
        )
        self.facts = self.answer()

    def answer(self) -> dict[str, Any]:
        """Return its next message; exit with what it said if it has died."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            said = self.log.read()[-2000:]
            self.stop()
            sys.exit(f"{self.name} stopped with status {self.process.returncode}:\n{said}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def block(self, steps: int, paths: Sequence[Sequence[int]] = ()) -> dict[str, Any]:
        """Train `steps` steps and return wall and processor seconds and the paths that were trained."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"steps": steps, "paths": paths}) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def stop(self) -> None:
        """End it."""
        self.process.communicate()  # closes its input, at which it ends
        self.log.close()


def median_ratio(theirs: Sequence[float], ours: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """Return the median over pairs of theirs / ours and its bootstrap 95 % interval."""
    ratios = np.asarray(theirs, dtype=float) / np.asarray(ours, dtype=float)
    draws = np.random.default_rng(seed).choice(ratios, (4000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return {"ratio": round(float(np.median(ratios)), 3), "interval_95": [round(float(low), 3), round(float(high), 3)]}


def summary(times: dict[str, list[float]], images: int) -> dict[str, Any]:
    """Return each side's images per second (median over its blocks) and how many times NNI's we are."""
    speeds = {side: round(images / float(np.median(seconds)), 1) for side, seconds in times.items()}
    ratios = {f"over_{side}": median_ratio(times[side], times["sumnas"]) for side in times if side != "sumnas"}
    return {"images_per_second": speeds, **ratios}


def check_same(facts: dict[str, dict[str, Any]]) -> None:
    """Exit if the sides' networks differ."""
    ours = facts["sumnas"]
    for side, theirs in facts.items():
        if theirs["parameters"] != ours["parameters"]:
            sys.exit(f"{side} has {theirs['parameters']} parameters, sumnas {ours['parameters']}: not the same network")
        if not np.allclose(theirs["logits"], ours["logits"], rtol=1e-3, atol=1e-3):
            sys.exit(f"{side} and sumnas give different logits with the same weights: not the same network")


def measure(setting: dict[str, Any], pairs: int, python: Path) -> dict[str, Any]:
    text = json.dumps(setting)
    sides: dict[str, Side] = {}
    for name in SIDES:
        script = [str(HERE / "sumnas_side.py")] if name == "sumnas" else [str(HERE / "nni_side.py"), name]
        sides[name] = Side(name, [sys.executable if name == "sumnas" else str(python), *script, text])
    check_same({name: side.facts for name, side in sides.items()})
    wall: dict[str, list[float]] = {name: [] for name in SIDES}
    processor: dict[str, list[float]] = {name: [] for name in SIDES}
    for number in range(-1, pairs):
        steps = setting["warm_up"] if number < 0 else setting["steps"]
        replies = {"lightning": sides["lightning"].block(steps)}
        paths = replies["lightning"]["paths"]
        for name in ("bare", "sumnas") if number % 2 else ("sumnas", "bare"):
            replies[name] = sides[name].block(steps, paths)
        if number >= 0:
            for name, reply in replies.items():
                wall[name].append(reply["wall"])
                processor[name].append(reply["processor"])
    for side in sides.values():
        side.stop()
    images = setting["steps"] * setting["batch_size"]
    row = {
        **setting, "pairs": pairs, "parameters": sides["sumnas"].facts["parameters"],
        "processor_time": summary(processor, images), "clock": summary(wall, images),
        "versions": {name: sides[name].facts["versions"] for name in ("sumnas", "lightning")},
    }  # fmt: skip
    return {**row, "within_target": row["processor_time"]["over_lightning"]["ratio"] >= TARGET}


def environment(folder: Path) -> Path:
    """Return the python of NNI's environment; make it where it is missing or was made for other requirements."""
    requirements = HERE / "requirements-nni.txt"
    ready, digest = folder / ".ready", hashlib.sha256(requirements.read_bytes()).hexdigest()
    python = folder / "bin" / "python"
    if not ready.is_file() or ready.read_text() != digest:
        print(f"making NNI's environment in {folder}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", str(requirements)], check=True)
        ready.write_text(digest)
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(platformdirs.user_cache_dir("sumnas")) / "nni"
    parser.add_argument("--environment", type=Path, default=default, help="folder of NNI's virtual environment")
    parser.add_argument("--pairs", type=int, default=24, help="blocks per side and size (default 24)")
    parser.add_argument("--only", choices=[s["name"] for s in SETTINGS], help="one of the sizes")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "against_nni.json")
    arguments = parser.parse_args()
    python = environment(arguments.environment)
    rows, load = [], os.getloadavg()
    for setting in SETTINGS:
        if arguments.only in (None, setting["name"]):
            rows.append(row := measure(setting, arguments.pairs, python))
            for clock in ("processor_time", "clock"):
                for side in ("lightning", "bare"):
                    found, speeds = row[clock][f"over_{side}"], row[clock]["images_per_second"]
                    low, high = found["interval_95"]
                    print(
                        f"{row['name']:6} {clock:14} sumnas {speeds['sumnas']:7.1f} images/s, NNI {side:9} "
                        f"{speeds[side]:7.1f}: {found['ratio']:.2f} times [{low:.2f}, {high:.2f}]",
                        flush=True,
                    )
    versions = {**rows[0]["versions"]["lightning"], **rows[0]["versions"]["sumnas"]}
    nni_torch = rows[0]["versions"]["lightning"]["torch"]
    for row in rows:
        del row["versions"]
    result = {
        "benchmark": "against_nni", "target": TARGET, "date": datetime.date.today().isoformat(), "cpu": cpu_model(),
        "cores": os.cpu_count(), "load_before": round(load[0], 1), "load_after": round(os.getloadavg()[0], 1),
        "system": platform.system(), "python": platform.python_version(), "versions": versions,
        "torch_of_nni": nni_torch, "threads": 1, "differences": DIFFERENCES, "settings": rows,
    }  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
