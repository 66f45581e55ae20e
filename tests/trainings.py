"""Small trainings that several tests look at: random images, a tiny supernet, every method."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import BaseModel

from sumnas import seeding
from sumnas.augmentation import Augmentation
from sumnas.data import Batches, Prepared
from sumnas.methods import cream, darts, enas, fairnas, gdas, nsas, spos, sumnas, wpl
from sumnas.methods.base import Method
from sumnas.spaces import nasbench201
from sumnas.spaces.base import Supernet
from sumnas.training import Heldout, Progress, SupernetSettings, assemble

SEED = 4
IMAGES, BATCH = 44, 8  # five batches an epoch, and four images left over


def prepared(count: int = IMAGES) -> Prepared:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 4, 4, 2), generator=generator, dtype=torch.uint8)
    labels = torch.randint(3, (count,), generator=generator)
    splits = ("train", "validation", "test")
    return Prepared(
        dict.fromkeys(splits, images), dict.fromkeys(splits, labels), torch.full((2,), 127.0), torch.full((2,), 74.0), 3
    )  # fmt: skip


def network() -> Supernet:
    settings = nasbench201.Settings(
        name="nasbench201", channels=2, cells=1, image_size=4, image_channels=2, classes=3
    )  # fmt: skip
    with seeding.scoped(SEED, "network"):
        supernet: Supernet = nasbench201.build(settings).supernet()
    return supernet.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def settings(epochs: int = 2, **changes: Any) -> SupernetSettings:
    augmentation = Augmentation(flip=True, crop_padding=1)
    return SupernetSettings(**{"epochs": epochs, "batch_size": BATCH, "augmentation": augmentation, **changes})


METHODS: dict[str, BaseModel] = {
    "spos": spos.Settings(strategy="spos", momentum=0.9),
    "fairnas": fairnas.Settings(strategy="fairnas", momentum=0.5),
    "sumnas": sumnas.Settings(strategy="sumnas", adaptation_steps=2, inner_learning_rate=0.05),
    "sumnas with all state": sumnas.Settings(
        strategy="sumnas", adaptation_steps=2, inner_learning_rate=0.05, outer_momentum=0.5,
        momentum_buffer="carry", rounds=2,
    ),
    "wpl": wpl.Settings(strategy="wpl", momentum=0.5, batches_per_path=2, train_share=0.75, alpha_epochs=1),
    "nsas": nsas.Settings(strategy="nsas", momentum=0.5, members=2),
    "darts": darts.Settings(strategy="darts"),
    "darts, second order": darts.Settings(strategy="darts", order=2),
    "gdas": gdas.Settings(strategy="gdas"),
    "cream": cream.Settings(strategy="cream", momentum=0.5, warmup=0.05, board=3, matching_every=2),
    "enas": enas.Settings(strategy="enas", controller_steps=2, controller_samples=2),
}  # fmt: skip


def start(name: str, epochs: int = 2, seed: int = SEED) -> tuple[Method, Batches, Heldout | None]:
    return assemble(network(), prepared(), settings(epochs), METHODS[name], seed)


class Stop(Exception):
    pass


def stop_at(epoch: int, step: int, kept: list[Progress] | None = None) -> Any:
    """Return an on_step that stops after step number `step` (from 1) of that epoch (from 0)."""

    def on_step(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (epoch, step):
            if kept is not None:
                kept.append(progress)
            raise Stop

    return on_step


class Widened:
    """A training's batches in float64."""

    def __init__(self, batches: Any) -> None:
        self.batches, self.steps = batches, batches.steps

    def epoch(self, epoch: int, first: int = 0) -> Any:
        for rounds in self.batches.epoch(epoch, first):
            yield [[(images.double(), labels) for images, labels in streams] for streams in rounds]
