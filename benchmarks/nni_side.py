"""NNI's side of against_nni.py: RandomOneShot on NNI's own NasBench201, in timed blocks. Runs in NNI's environment.

    ENVIRONMENT/bin/python benchmarks/nni_side.py lightning '{"channels": 8, ...}'

`lightning` is what a user of NNI runs: the strategy with its Lightning evaluator. `bare` is the same mutated network
with the same draws in a plain loop of forward, backward and SGD step.
"""

from __future__ import annotations

import copy
import itertools
import json
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import torch
import torch.nn.functional as F
from timed_blocks import BATCHES, CLASSES, Blocks, Path, logits
from torch import Tensor, nn

warnings.simplefilter("ignore")  # NNI's about a torch that is newer than itself

import pytorch_lightning as pl  # noqa: E402
from nni.nas.evaluator.pytorch.lightning import Lightning, SupervisedLearningModule, Trainer  # noqa: E402
from nni.nas.execution import SequentialExecutionEngine  # noqa: E402
from nni.nas.hub.pytorch import NasBench201  # noqa: E402
from nni.nas.hub.pytorch.nasbench201 import PRIMITIVES  # noqa: E402
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule  # noqa: E402
from nni.nas.space import RawFormatModelSpace  # noqa: E402
from nni.nas.strategy import RandomOneShot  # noqa: E402

LABELS = ("cell/0_1", "cell/0_2", "cell/1_2", "cell/0_3", "cell/1_3", "cell/2_3")
OPERATORS = {name: index for index, name in enumerate(PRIMITIVES)}  # none, skip, 1x1, 3x3, pool


class Endless:
    """Ready batches, round and round: NNI pays nothing for its data, not even for the end of an epoch."""

    def __init__(self, setting: dict[str, Any]) -> None:
        shape = (setting["batch_size"], 3, setting["image_size"], setting["image_size"])
        self.batches = [(torch.randn(shape), torch.randint(CLASSES, shape[:1])) for _ in range(BATCHES)]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return itertools.cycle(self.batches)


def choices(network: nn.Module) -> list[Any]:
    return [module for module in network.modules() if isinstance(module, BaseSuperNetModule)]


def impose(modules: list[Any], path: Path) -> None:
    sampled = {label: PRIMITIVES[operator] for label, operator in zip(LABELS, path, strict=True)}
    for module in modules:
        module._sampled = sampled[module.label]


def drawn(modules: list[Any]) -> Path:
    """Return the path that NNI drew; the six choices of the first cell are those of every cell."""
    sampled = {module.label: module._sampled for module in modules[:6]}
    return tuple(OPERATORS[sampled[label]] for label in LABELS)


def describe(network: nn.Module, setting: dict[str, Any]) -> dict[str, Any]:
    def run(network: nn.Module, images: Tensor, path: Path) -> Tensor:
        impose(choices(network), path)
        return network(images)

    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "logits": logits(copy.deepcopy(network), setting["image_size"], run),
        "versions": {name: version(name) for name in ("nni", "pytorch-lightning", "torch")},
    }


class Timed(pl.Callback):
    """Tells the driver's blocks of every batch. The first one is the way in: its end begins the first block."""

    def __init__(self, blocks: Blocks, facts: dict[str, Any], modules: list[Any]) -> None:
        self.blocks, self.facts, self.modules = blocks, facts, modules

    def on_train_batch_end(self, *_: Any) -> None:  # noqa: D102
        if self.facts:
            self.blocks.ready(**self.facts)
            self.facts = {}
        else:
            self.blocks.done(drawn(self.modules))


def main(mode: str, setting: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    blocks = Blocks()
    space = NasBench201(setting["channels"], setting["cells"], CLASSES)
    data = Endless(setting)
    # NNI's module for supervised learning, without its accuracy metric, since our side computes none while training.
    module = SupervisedLearningModule(
        nn.CrossEntropyLoss, {}, setting["learning_rate"], setting["weight_decay"], torch.optim.SGD, export_onnx=False
    )
    strategy = RandomOneShot()
    if mode == "lightning":
        timed = Timed(blocks, {}, [])
        trainer = Trainer(
            max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0, callbacks=[timed],
        )  # fmt: skip
        evaluator = Lightning(module, trainer, train_dataloaders=data, val_dataloaders=data.batches[:1])
        strategy.initialize(RawFormatModelSpace(space, evaluator), SequentialExecutionEngine())  # mutates in place
        timed.facts, timed.modules = describe(space, setting), choices(space)
        strategy.run()
    else:
        strategy.mutate_model(space)
        facts, modules = describe(space, setting), choices(space)
        oneshot = strategy.configure_oneshot_module(module)
        oneshot.set_model(space)
        oneshot.train()
        optimizer = oneshot.configure_optimizers()
        blocks.ready(**facts)
        for images, labels in data:
            oneshot.resample()
            impose(modules, blocks.path())  # a draw is part of the step, though the driver's path is taken
            optimizer.zero_grad()
            F.cross_entropy(oneshot(images), labels).backward()
            optimizer.step()
            blocks.done(blocks.path())


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
