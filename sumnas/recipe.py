"""How one network is trained from scratch: the settings, and what follows from them alone (method sec. 7)."""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sumnas.augmentation import Augmentation
from sumnas.errors import UserError
from sumnas.precision import Arithmetic
from sumnas.schedules import Schedule, warmed

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
"""Layers whose parameters `norm_weight_decay` is for."""


class Recipe(BaseModel):
    """How one network is trained. NAS-Bench-201's own: 200 epochs, batch 256, lr 0.1, the defaults, flip, crop 4."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(ge=1, description="passes over the training images")
    batch_size: int = Field(ge=2, description="images per step")
    learning_rate: float = Field(gt=0, description="of SGD, where the schedule begins")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    nesterov: bool = Field(True, description="Nesterov's momentum; needs momentum above 0, else it is left out")
    weight_decay: float = Field(5e-4, ge=0, description="on every parameter, normalisation included")
    norm_weight_decay: float | None = Field(
        None, ge=0, description="on the parameters of normalisation layers instead; null: the same as on all others"
    )
    schedule: Schedule = Field("cosine", description="constant within an epoch, as in NAS-Bench-201")
    warmup_epochs: int = Field(
        0, ge=0, description="epochs of a linear rise of the rate before the schedule, which takes the rest"
    )
    warmup_start: float = Field(0.01, ge=0, le=1, description="share of the rate that the rise starts from")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of the target that is spread evenly over all classes"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="before the classifier, where the space has such a layer")
    ema_decay: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="weights and statistics are averaged exponentially over the training, and the average is the "
        "result; during the warm-up it is a copy; null: the last weights are the result",
    )
    ema_every: int = Field(1, ge=1, description="the average takes in the first step of an epoch and every so many")
    last_batch: Literal["drop", "keep"] = Field(
        "drop", description="images of an epoch that fill no whole batch: left out, or a smaller batch (NAS-Bench-201)"
    )
    augmentation: Augmentation = Field(description="what is done at random to every training image")
    arithmetic: Arithmetic = Field(Arithmetic(), description="precision and memory format of the training")

    @model_validator(mode="after")
    def _something_after_the_warmup(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs = {self.warmup_epochs} leaves none of {self.epochs} epochs for the schedule; lower it"
            )
        return self

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 0."""
        return self.learning_rate * warmed(
            self.schedule, epoch, self.epochs, self.warmup_epochs, self.warmup_start
        )  # fmt: skip

    def optimizer(self, network: nn.Module) -> torch.optim.SGD:
        """Return SGD with momentum over all parameters, in two groups where normalisation decays by itself."""
        groups: list[dict[str, Any]] = [{"params": list(network.parameters())}]
        if self.norm_weight_decay is not None:
            norms = [p for module in network.modules() if isinstance(module, NORMS) for p in module.parameters()]
            known = {id(parameter) for parameter in norms}
            others = [p for p in network.parameters() if id(p) not in known]
            groups = [{"params": others}, {"params": norms, "weight_decay": self.norm_weight_decay}]
            groups = [group for group in groups if group["params"]]
        return torch.optim.SGD(
            groups, self.learning_rate, self.momentum, nesterov=self.nesterov and self.momentum > 0,
            weight_decay=self.weight_decay, foreach=True,
        )  # fmt: skip

    def average(self, network: nn.Module) -> AveragedModel | None:
        """Return what averages the network's weights and running statistics, where the recipe says so."""
        if self.ema_decay is None:
            return None
        averaged = get_ema_multi_avg_fn(self.ema_decay)  # type: ignore[no-untyped-call]
        return AveragedModel(network, multi_avg_fn=averaged, use_buffers=True)

    def average_in(self, average: AveragedModel, network: nn.Module, epoch: int, step: int) -> None:
        """Bring the average up to date after a step, both counted from 0, the step within its epoch.

        As in torchvision's reference training: it starts as a copy, and is made one again while the rate still rises.
        """
        if step % self.ema_every == 0:
            average.update_parameters(network)
            if epoch < self.warmup_epochs:
                average.n_averaged.zero_()

    def set_dropout(self, network: nn.Module) -> None:
        """Set the rate of the network's layer `dropout`; UserError where it has none."""
        layer = getattr(network, "dropout", None)
        if isinstance(layer, nn.Dropout):
            layer.p = self.dropout
        elif self.dropout:
            raise UserError(f"recipe.dropout = {self.dropout}: the networks of this space have no dropout; set it to 0")
