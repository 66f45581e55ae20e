"""GDAS: one operator an edge, drawn by Gumbel-softmax from alphas that learn straight through it (Dong & Yang 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sumnas import seeding
from sumnas.data import Batch
from sumnas.methods.base import Rounds
from sumnas.mixtures import MixtureMethod, MixtureSettings
from sumnas.spaces.base import Architecture, Supernet


class Settings(MixtureSettings):
    """A block of `methods` with `strategy: gdas`. NAS-Bench-201 trains 250 epochs of half the images."""

    strategy: Literal["gdas"]
    tau_first: float = Field(10.0, gt=0, description="temperature of the softmax at the start; falls linearly")
    tau_last: float = Field(0.1, gt=0, description="temperature at the end")


class GDAS(MixtureMethod):
    """A step of the weights on a drawn path, then one of the alphas on another. All cells share a draw."""

    settings: Settings
    """The block of `methods` that it was made with."""
    passes_per_step = 2

    def __init__(self, supernet: Supernet, settings: Settings, total_steps: int, seed: int) -> None:
        super().__init__(supernet, settings, total_steps, seed)
        self.generator = seeding.torch_stream(seed, "gumbel")

    @property
    def tau(self) -> float:
        """Temperature of the next step, linear from `tau_first` to `tau_last` over the training."""
        settings = self.settings
        return settings.tau_first + (settings.tau_last - settings.tau_first) * self.progress

    def draw(self) -> tuple[Tensor, Architecture]:
        """Return weights [layers, operators] that are 1 for the drawn operators and 0 else, and the path drawn.

        Their gradient is that of softmax((log p + Gumbel noise) / tau).
        """
        # Noise of the CPU's stream, so that the draws follow from the seed on every device.
        noise = torch.empty(self.layers, self.candidates, dtype=torch.float64).exponential_(generator=self.generator)
        gumbel = -noise.clamp_min(1e-30).log().to(self.alphas.device, self.alphas.dtype)
        soft = ((self.alphas.log_softmax(1) + gumbel) / self.tau).softmax(1)
        index = soft.detach().argmax(1)
        one_hot = F.one_hot(index, self.candidates).to(soft.dtype)
        return one_hot + (soft - soft.detach()), tuple(index.tolist())  # in this order exactly 0 and 1

    def step(self, batches: Rounds, heldout: Sequence[Batch]) -> Mapping[str, Tensor | float]:
        """Move weights, then alphas; report both losses, the rate, the temperature and the operators' entropy."""
        rate, tau = self.set_rate(), self.tau
        ((images, labels),), (held_images, held_labels) = batches[0], heldout[0]
        _, path = self.draw()
        loss = F.cross_entropy(self.supernet(images, path), labels)  # its weights are 1
        loss.backward()  # type: ignore[no-untyped-call]
        self.descend([path])
        weights, path = self.draw()
        # Only the drawn operators run, so only their weights have a gradient; by the softmax all alphas of an edge do.
        held_loss = F.cross_entropy(self.supernet.forward_mixture(held_images, weights, path), held_labels)
        (gradient,) = torch.autograd.grad(held_loss, self.alphas, allow_unused=True)
        # A path of which nothing reaches the output says nothing about the alphas.
        self.move_alphas(torch.zeros_like(self.alphas) if gradient is None else gradient)
        self.done_steps += 1
        return {
            "loss": loss.detach(), "learning_rate": rate, "heldout_loss": held_loss.detach(),
            "alpha_entropy": self.entropy(), "tau": tau,
        }  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Add the stream of noise."""
        return {**super().state_dict(), "gumbel": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put the stream of noise back."""
        super().load_state_dict(state)
        self.generator.set_state(state["gumbel"])


METHOD = GDAS
"""The method of `strategy: gdas`, by the name that every strategy's module has for its own."""
