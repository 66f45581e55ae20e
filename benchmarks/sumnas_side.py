"""Our side of against_nni.py: the training loop of `train_supernet` with method `spos`, in timed blocks.

python benchmarks/sumnas_side.py '{"channels": 8, ...}'
"""

from __future__ import annotations

import copy
import json
import sys
from importlib.metadata import version
from typing import Any

import torch
from timed_blocks import BATCHES, CLASSES, Blocks, logits

from sumnas import training
from sumnas.augmentation import Augmentation
from sumnas.data import Prepared
from sumnas.methods import spos
from sumnas.paths import uniform_path
from sumnas.spaces import nasbench201


def main(setting: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    blocks = Blocks()
    keys = ("channels", "cells", "image_size")
    space = nasbench201.build(
        nasbench201.Settings(name="nasbench201", image_channels=3, classes=CLASSES, **{k: setting[k] for k in keys})
    )
    supernet = space.supernet()
    check = logits(copy.deepcopy(supernet), setting["image_size"], lambda network, x, path: network(x, path))
    supernet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as train_supernet does
    size, count = setting["image_size"], BATCHES * setting["batch_size"]
    images = torch.randint(256, (count, size, size, 3), dtype=torch.uint8)
    data = Prepared(
        {"train": images}, {"train": torch.randint(CLASSES, (count,))}, torch.full((3,), 127.5), torch.full((3,), 73.9),
        CLASSES,
    )  # fmt: skip
    settings = training.SupernetSettings(
        epochs=10**6, batch_size=setting["batch_size"], augmentation=Augmentation(flip=False, crop_padding=0)
    )
    method_settings = spos.Settings(
        strategy="spos", schedule="constant", learning_rate=setting["learning_rate"],
        weight_decay=setting["weight_decay"],
    )  # fmt: skip
    method, batches, heldout = training.assemble(supernet, data, settings, method_settings, seed=0)

    def wanted(*arguments: Any) -> tuple[int, ...]:
        uniform_path(*arguments)  # a draw is part of the step, though the driver's path is taken
        return blocks.path()

    spos.uniform_path = wanted
    blocks.ready(
        parameters=sum(p.numel() for p in supernet.parameters()), logits=check,
        versions={name: version(name) for name in ("sumnas", "torch")},
    )  # fmt: skip
    training.train(method, batches, heldout, settings.epochs, on_step=lambda _: blocks.done(blocks.path()))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
