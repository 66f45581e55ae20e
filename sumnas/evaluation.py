"""Predicted accuracy: a sub-model with the supernet's weights and its own statistics, on held-out images (sec. 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from sumnas import seeding
from sumnas.batchnorm import CalibrationSettings, recalibrate
from sumnas.data import Batch, Prepared, Split, in_batches
from sumnas.errors import UserError
from sumnas.spaces.base import Architecture, Space, Supernet


class EvaluationSettings(BaseModel):
    """Block `evaluation`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    split: Literal["validation", "test"] = Field(description="images on which accuracies are predicted")
    batch_size: int = Field(
        ge=1, description="images per pass; changes time and memory, accuracies at most by rounding"
    )
    adaptation_steps: int = Field(
        0, ge=0, description="SGD steps that fit every sub-model before it is scored (sec. 3.1)"
    )
    adaptation_learning_rate: float = Field(0.05, gt=0, description="of these steps; their momentum is 0.9")
    adaptation_batch_size: int = Field(64, ge=2, description="training images a step, the same for every sub-model")


class Score(NamedTuple):
    """`accuracy` in percent and `loss`, the mean cross-entropy per image, over a split.

    `top5`, where it was asked for and there are more than five classes: percent of images whose class is among the
    five highest logits.
    """

    accuracy: float
    loss: float
    top5: float | None = None


@torch.no_grad()
def evaluate(
    network: nn.Module, split: Split, batch_size: int, name: str = "a network", *, top5: bool = False
) -> Score:
    """Score a network in evaluation mode on images [N, C, H, W] and labels [N], or on a split that is streamed.

    UserError, with `name`, where the loss is not finite: such an accuracy would mean nothing.
    """
    network.eval()
    # Summed on the device and read once: a transfer per batch would stall an accelerator.
    count, correct, loss, among = 0, torch.zeros(()), torch.zeros(()), None
    for x, y in in_batches(split, batch_size):
        if not count:
            correct = torch.zeros((), dtype=torch.long, device=y.device)
            loss = torch.zeros((), dtype=torch.float64, device=y.device)
        logits = network(x)
        correct += (logits.argmax(1) == y).sum()
        if top5 and logits.shape[1] > 5:
            found = (logits.topk(5).indices == y[:, None]).sum()
            among = found if among is None else among + found
        loss += F.cross_entropy(logits, y, reduction="sum")
        count += len(y)
    mean = float(loss) / count
    if not math.isfinite(mean):
        raise UserError(
            f"{name}: the loss on the scored images is {mean}: its weights went wrong; lower the learning rate"
        )
    return Score(100.0 * int(correct) / count, mean, None if among is None else 100.0 * int(among) / count)


class SubModel(nn.Module):
    """One architecture of a supernet that can run any: the same network, another architecture set."""

    def __init__(self, network: Supernet, architecture: Architecture) -> None:
        super().__init__()
        self.network, self.architecture = network, architecture

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] images -> [N, classes] logits."""
        logits: Tensor = self.network(x, self.architecture)
        return logits


class FitSettings(Protocol):
    """The part of block `evaluation` that says how sub-models are fitted."""

    @property
    def adaptation_steps(self) -> int:
        """SGD steps; 0 leaves sub-models as they are."""
        ...

    @property
    def adaptation_learning_rate(self) -> float:
        """Learning rate of the SGD steps that fit a sub-model."""
        ...

    @property
    def adaptation_batch_size(self) -> int:
        """Images per step."""
        ...


class Fit:
    """Fits sub-models to a few training batches before they are scored (sec. 3.1); with 0 steps, leaves them be."""

    def __init__(self, data: Prepared, settings: FitSettings) -> None:
        self.rate, self.batches = settings.adaptation_learning_rate, list[Batch]()
        for step in range(settings.adaptation_steps):
            index = data.balanced_draw(settings.adaptation_batch_size, seeding.derive(0, "fit", step))
            self.batches.append((data.normalise(data.images["train"][index]), data.labels["train"][index]))

    def __call__(self, network: nn.Module) -> None:
        """Train an extracted network in place, on copies of its weights: the supernet's stay."""
        if not self.batches:
            return
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.data = parameter.detach().clone()
                parameter.requires_grad_(True)
        network.train()
        optimizer = torch.optim.SGD(network.parameters(), self.rate, 0.9, foreach=True)
        for images, labels in self.batches:
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        for parameter in network.parameters():
            parameter.requires_grad_(False)


class Predictor:
    """Scores sub-models of one trained supernet, which it leaves as it was: recalibration, then a held-out split."""

    def __init__(
        self, space: Space, supernet: Supernet, data: Prepared, calibration: CalibrationSettings,
        evaluation: EvaluationSettings,
    ) -> None:  # fmt: skip
        self.space, self.supernet, self.batch_size = space, supernet, evaluation.batch_size
        self.calibration = calibration_batches(data, calibration)
        self.split = data.split(evaluation.split)
        self.fit = Fit(data, evaluation)
        # One network for all: to build one for each would take longer than to score a small one.
        self.shared = SubModel(space.tracked(supernet), ())

    def __call__(self, architecture: Architecture) -> Score:
        """Recalibrate one sub-model and score it."""
        network: nn.Module = self.shared
        if self.fit.batches:
            network = self.space.extract(self.supernet, architecture)
            self.fit(network)
        else:
            self.shared.architecture = architecture
        recalibrate(network, self.calibration)
        return evaluate(network, self.split, self.batch_size, self.space.encode(architecture))


def calibration_batches(data: Prepared, settings: CalibrationSettings) -> Sequence[Tensor]:
    """Return the calibration images, normalised, as batches [N, C, H, W] of about `batch_size`.

    Batches are equal up to one image: a last batch of a few images would give a BN a poor estimate to pass on.
    """
    images = data.normalise(data.images["train"][data.balanced_draw(settings.images, settings.seed)])
    return images.tensor_split(max(1, round(settings.images / settings.batch_size)))
