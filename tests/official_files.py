"""Small files in the official formats of NATS-Bench and NAS-Bench-201, for the tests."""

from __future__ import annotations

import bz2
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from sumnas.spaces.nasbench201 import NASBench201, Settings

SPACE = NASBench201(
    Settings(name="nasbench201", channels=16, cells=5, image_size=32, image_channels=3, classes=10, affine=True)
)
EVALUATED = {
    "cifar10-valid": ("x-valid", "ori-test"),
    "cifar10": ("ori-test",),
    "cifar100": ("x-valid", "x-test", "ori-test"),
    "ImageNet16-120": ("x-valid", "x-test", "ori-test"),
}


def strings() -> list[str]:
    """All architecture strings in some order that is not the space's own, as the official one is not."""
    order = np.random.default_rng(201).permutation(SPACE.size)
    every = [SPACE.encode(a) for a in SPACE.architectures()]
    return [every[i] for i in order]


def state(text: str, index: int, epochs: int, seeds: tuple[int, ...], datasets: tuple[str, ...] = ()) -> dict[str, Any]:
    """What `ArchResults.state_dict` returns, with made-up accuracies that differ in every place.

    Of the epochs only a few are there.
    """
    rng = np.random.default_rng([index, epochs])
    results, chosen, few = {}, datasets or tuple(EVALUATED), (0, epochs // 2, epochs - 1)
    for dataset in chosen:
        for seed in seeds:
            evaluated = {f"{name}@{e}": rng.uniform(10, 95) for name in EVALUATED[dataset] for e in few}
            results[dataset, seed] = {
                "name": dataset,
                "net_state_dict": None,
                "train_acc1es": {e: rng.uniform(10, 99) for e in few},
                "train_acc5es": None,
                "train_losses": {e: rng.uniform(0, 2) for e in few},
                "train_times": OrderedDict((e, 12.5) for e in few),
                "arch_config": {"channel": 16, "num_cells": 5, "arch_str": text, "class_num": 10},
                "params": np.float64(0.802426),
                "flop": 113.95137,
                "seed": f"{seed:04d}",
                "epochs": epochs,
                "latency": [np.float64(0.016)],
                "eval_names": list(EVALUATED[dataset]),
                "eval_acc1es": evaluated,
                "eval_times": {},
                "eval_losses": {key: rng.uniform(0, 2) for key in evaluated},
            }
    return {
        "arch_index": index,
        "arch_str": text,
        "all_results": results,
        "dataset_seed": {dataset: list(seeds) for dataset in chosen},
        "clear_net_done": True,
    }


def last(part: dict[str, Any], dataset: str, name: str) -> dict[str, float]:
    """The accuracies by seed after the last epoch of a state."""
    found = {}
    for seed in part["dataset_seed"][dataset]:
        result = part["all_results"][dataset, seed]
        epoch = result["epochs"] - 1
        found[str(seed)] = (
            result["train_acc1es"][epoch] if name == "train" else result["eval_acc1es"][f"{name}@{epoch}"]
        )
    return found


def record(text: str, index: int) -> OrderedDict[str, dict[str, Any]]:
    """A record of NATS-Bench: some architectures were trained with fewer seeds."""
    seeds = (777, 888, 999) if index % 2 else (777, 999)
    return OrderedDict([("12", state(text, index, 12, (111,))), ("200", state(text, index, 200, seeds))])


def pack(value: Any) -> bytes:
    """A file of NATS-Bench, as `nats_bench.pickle_save` writes it."""
    return bz2.compress(pickle.dumps(value, protocol=4))


def write_nats(folder: Path, names: list[str], indices: list[int]) -> dict[int, Any]:
    """Write a folder in NATS-Bench's format with some of the records; return them."""
    folder.mkdir()
    meta = {"meta_archs": names, "total_archs": len(names), "arch2infos": None, "evaluated_indexes": set()}
    (folder / "meta.pickle.pbz2").write_bytes(pack(meta))
    records = {index: record(names[index], index) for index in indices}
    for index, value in records.items():
        (folder / f"{index:06d}.pickle.pbz2").write_bytes(pack(value))
    return records
