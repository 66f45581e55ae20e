"""Predicted accuracy: a sub-model with the supernet's weights and its own statistics, on held-out images (sec. 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from sumnas.batchnorm import CalibrationSettings, recalibrate, set_statistics
from sumnas.data import Prepared, Split, in_batches
from sumnas.spaces.base import Architecture, Space, Supernet


class EvaluationSettings(BaseModel):
    """Block `evaluation`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    split: Literal["validation", "test"] = Field(description="images on which accuracies are predicted")
    batch_size: int = Field(ge=1)


class Score(NamedTuple):
    """Accuracy in percent and mean cross-entropy over a split."""

    accuracy: float
    loss: float


@torch.no_grad()
def evaluate(network: nn.Module, split: Split, batch_size: int) -> Score:
    """Score a network in evaluation mode on images [N, C, H, W] and labels [N], or on a split that is streamed."""
    network.eval()
    # Summed on the device and read once: a transfer per batch would stall an accelerator.
    count, correct, loss = 0, torch.zeros(()), torch.zeros(())
    for x, y in in_batches(split, batch_size):
        if not count:
            correct = torch.zeros((), dtype=torch.long, device=y.device)
            loss = torch.zeros((), dtype=torch.float64, device=y.device)
        logits = network(x)
        correct += (logits.argmax(1) == y).sum()
        loss += F.cross_entropy(logits, y, reduction="sum")
        count += len(y)
    return Score(100.0 * int(correct) / count, float(loss) / count)


class Predictor:
    """Scores sub-models of one trained supernet, which it leaves as it was."""

    def __init__(
        self, space: Space, supernet: Supernet, data: Prepared, calibration: CalibrationSettings,
        evaluation: EvaluationSettings,
    ) -> None:  # fmt: skip
        self.space, self.supernet, self.batch_size = space, supernet, evaluation.batch_size
        self.calibration = calibration_batches(data, calibration)
        self.split = data.split(evaluation.split)

    def recalibrated(self, architecture: Architecture) -> nn.Module:
        """Return the sub-model with statistics of its own."""
        network = self.space.extract(self.supernet, architecture)
        recalibrate(network, self.calibration)
        return network

    def __call__(self, architecture: Architecture, statistics: Tensor | None = None) -> Score:
        """Recalibrate, or take `statistics` found earlier, and score."""
        if statistics is None:
            network = self.recalibrated(architecture)
        else:
            network = self.space.extract(self.supernet, architecture)
            set_statistics(network, statistics)
        return evaluate(network, self.split, self.batch_size)


def calibration_batches(data: Prepared, settings: CalibrationSettings) -> Sequence[Tensor]:
    """Return the calibration images, normalised, as batches of about `batch_size`.

    Batches are equal up to one image: a last batch of a few images would give a BN a poor estimate to pass on.
    """
    images = data.normalise(data.images["train"][data.balanced_draw(settings.images, settings.seed)])
    return images.tensor_split(max(1, round(settings.images / settings.batch_size)))
