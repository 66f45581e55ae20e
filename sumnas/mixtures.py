"""What methods with architecture parameters share: an alpha per layer and operator beside the weights (DARTS, GDAS)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from sumnas import seeding
from sumnas.data import Batch
from sumnas.errors import UserError
from sumnas.methods.base import GradientMethod, MethodSettings
from sumnas.schedules import Schedule
from sumnas.spaces.base import Architecture, Supernet


class MixtureSettings(MethodSettings):
    """Rates of weights and alphas. The defaults are NAS-Bench-201's (Dong & Yang 2020), at batches of 64."""

    learning_rate: float = Field(0.025, gt=0, description="of SGD on the weights, where the schedule begins")
    minimum_rate: float = Field(0.001, ge=0, description="where the schedule ends")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD on the weights")
    nesterov: bool = Field(True, description="Nesterov's momentum for the weights")
    schedule: Schedule = Field(
        "cosine", description="of the weights' rate over the training; that of the alphas is constant"
    )
    weight_decay: float = Field(5e-4, ge=0, description="of the weights")
    clip_norm: float | None = Field(5.0, gt=0, description="largest gradient norm of a step of the weights; null: any")
    alpha_learning_rate: float = Field(3e-4, gt=0, description="of Adam on the alphas")
    alpha_betas: tuple[float, float] = Field((0.5, 0.999), description="of Adam on the alphas")
    alpha_weight_decay: float = Field(1e-3, ge=0, description="of the alphas")
    alpha_scale: float = Field(1e-3, ge=0, description="standard deviation of the alphas' initial values")
    train_share: float = Field(0.5, gt=0, lt=1, description="of the training images, for weights; the rest for alphas")


class MixtureMethod(GradientMethod):
    """Weights move on training batches, `alphas` [layers, operators] on held-out ones, one of each a step.

    All cells share the alphas. They are no part of the supernet: sub-models are ranked by its weights alone.
    """

    heldout = 1

    def __init__(self, supernet: Supernet, settings: Any, total_steps: int, seed: int) -> None:
        super().__init__(supernet, settings, total_steps, seed)
        if type(supernet).forward_mixture is Supernet.forward_mixture:
            raise UserError(f"strategy = {settings.strategy!r}: this space has no mixture of its operators; choose "
                            "another method, or space.name: nasbench201")  # fmt: skip
        self.train_share = settings.train_share
        self.every_path = [(operator,) * self.layers for operator in range(self.candidates)]
        like = supernet.shared[0]
        start = torch.randn(self.layers, self.candidates, generator=seeding.torch_stream(seed, "alphas"))
        self.alphas = nn.Parameter((settings.alpha_scale * start).to(like.device, like.dtype))
        self.alpha_optimizer = torch.optim.Adam(
            [self.alphas], settings.alpha_learning_rate, settings.alpha_betas, weight_decay=settings.alpha_weight_decay
        )

    def move_alphas(self, gradient: Tensor) -> None:
        """Take one Adam step on the alphas by a gradient of their shape, [layers, operators]."""
        self.alphas.grad = gradient
        self.alpha_optimizer.step()
        self.alphas.grad = None

    def entropy(self) -> Tensor:
        """Mean over the layers of the entropy of the operators' probabilities, in nats: a scalar."""
        logarithms = self.alphas.detach().log_softmax(1)
        return -(logarithms.exp() * logarithms).sum(1).mean()

    def end_epoch(self, heldout: Iterable[Batch] = ()) -> Mapping[str, float]:
        """Report the probability of every operator, its mean over the layers."""
        means = self.alphas.detach().softmax(1).mean(0).tolist()
        return {f"operator_{operator}": value for operator, value in enumerate(means)}

    def architecture(self) -> Architecture:
        """Return the operator with the largest alpha in every layer."""
        return tuple(self.alphas.detach().argmax(1).tolist())

    def state_dict(self) -> dict[str, Any]:
        """Add the alphas and their optimiser."""
        state = {"alphas": self.alphas.detach().clone(), "alpha_optimizer": self.alpha_optimizer.state_dict()}
        return {**super().state_dict(), **state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put the alphas and their optimiser back."""
        super().load_state_dict(state)
        with torch.no_grad():
            self.alphas.copy_(state["alphas"])
        self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])
