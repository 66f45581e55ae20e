"""Supernet training: epochs over any method, fixed probes beside it. Knows neither the space nor a method's insides."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from sumnas import seeding
from sumnas.augmentation import Augmentation
from sumnas.data import Batch, Batches, Prepared
from sumnas.errors import UserError
from sumnas.methods.base import Method

Row = dict[str, Any]
"""One epoch's figures, by column of history.csv."""


class SupernetSettings(BaseModel):
    """Block `supernet`: what every method is trained with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(ge=1, description="an epoch is floor(images / batch size) rounds of every method")
    batch_size: int = Field(ge=2)
    augmentation: Augmentation
    probes: int = Field(0, ge=0, description="fixed sub-models whose loss is followed over the training (figure 3)")
    probe_every: int = Field(1, ge=1, description="epochs between two looks at the probes")


@dataclass
class Progress:
    """How far a training is: what a checkpoint holds beside the weights and the method's state."""

    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[Row] = field(default_factory=list)


class Heldout:
    """An endless seeded stream of batches of images that the weights are not trained on."""

    def __init__(self, data: Prepared, indices: Tensor, batch_size: int, seed: int) -> None:
        self.batches = Batches(data, indices, batch_size, seeding.derive(seed, "heldout"))

    def take(self, first: int, count: int) -> list[Batch]:
        """Return batches number `first` to `first + count - 1` of the stream."""
        taken: list[Batch] = []
        while len(taken) < count:
            epoch, position = divmod(first + len(taken), self.batches.steps)
            for number, rounds in enumerate(self.batches.epoch(epoch)):
                if position <= number < position + count - len(taken):
                    taken.append(rounds[0][0])
                if len(taken) == count:
                    break
        return taken


def batches_for(
    method: Method | type[Method], data: Prepared, settings: SupernetSettings, seed: int, streams: int, rounds: int
) -> tuple[Batches, Heldout | None]:
    """Split the training images as the method asks, and return its training batches and held-out stream."""
    count = len(data.labels["train"])
    order = torch.randperm(count, generator=seeding.torch_stream(seed, "shares"))
    cut = round(count * method.train_share)
    batches = Batches(
        data, order[:cut].sort().values, settings.batch_size, seed, settings.augmentation,
        streams=streams, rounds=rounds,
    )  # fmt: skip
    heldout = Heldout(data, order[cut:].sort().values, settings.batch_size, seed) if method.heldout else None
    return batches, heldout


def train(
    method: Method,
    batches: Batches,
    heldout: Heldout | None,
    epochs: int,
    probe: Callable[[], float] | None = None,
    probe_every: int = 1,
    progress: Progress | None = None,
    on_step: Callable[[Progress], None] | None = None,
    on_epoch: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Train `method`'s supernet in place and return one history row per epoch.

    Starts where `progress` is. `probe` returns the mean loss of the probes. `on_step` and `on_epoch` see what
    happened; they may raise to stop. UserError at the first loss that is not finite.
    """
    progress = progress or Progress()
    supernet = method.supernet
    supernet.train()
    while progress.epoch < epochs:
        for number, rounds in enumerate(batches.epoch(progress.epoch)):
            if number < progress.step:
                continue  # seen before the interruption
            step = progress.epoch * batches.steps + number
            extra = heldout.take(step * method.heldout, method.heldout) if heldout else []
            figures = {name: float(value) for name, value in method.step(rounds, extra).items()}
            if not math.isfinite(figures["loss"]):
                raise UserError(
                    f"the loss became {figures['loss']} in step {step} (epoch {progress.epoch + 1}) at learning rate "
                    f"{figures.get('learning_rate', math.nan):g}: lower the method's learning rate"
                )
            for name, value in figures.items():
                progress.sums[name] = progress.sums.get(name, 0.0) + value
            progress.step = number + 1
            if on_step:
                on_step(progress)
        row: Row = {
            "epoch": progress.epoch + 1,
            "steps": method.done_steps,
            "passes": method.done_steps * method.passes_per_step,
            **{name: value / batches.steps for name, value in progress.sums.items()},
            **method.end_epoch(),
        }
        if probe and (progress.epoch + 1) % probe_every == 0:
            row["probe_loss"] = probe()
        progress.history.append(row)
        progress.epoch, progress.step, progress.sums = progress.epoch + 1, 0, {}
        if on_epoch:
            on_epoch(row)
    return progress.history


def columns(history: Sequence[Row]) -> list[str]:
    """Return every column of a history, in order of first appearance."""
    return list(dict.fromkeys(name for row in history for name in row))


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def seconds(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self.start
