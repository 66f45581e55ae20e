"""DARTS: every edge a softmax mixture of its operators, its alphas learned on held-out images (Liu et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sumnas.data import Batch
from sumnas.methods.base import Rounds, filled
from sumnas.mixtures import MixtureMethod, MixtureSettings
from sumnas.spaces.base import Supernet


class Settings(MixtureSettings):
    """A block of `methods` with `strategy: darts`. NAS-Bench-201 trains 50 epochs of half the images."""

    strategy: Literal["darts"]
    order: Literal[1, 2] = Field(1, description="2: alphas see the weights' next step, through finite differences")
    difference: float = Field(1e-2, gt=0, description="length of the finite difference in the space of the weights")


class DARTS(MixtureMethod):
    """First order: a step of the weights, then one of the alphas. Second order: alphas first, then weights.

    A pass of the mixture counts as one pass per operator: it runs them all.
    """

    settings: Settings
    """The block of `methods` that it was made with."""

    def __init__(self, supernet: Supernet, settings: Settings, total_steps: int, seed: int) -> None:
        super().__init__(supernet, settings, total_steps, seed)
        self.passes_per_step = (2 if settings.order == 1 else 5) * self.candidates
        self.weights = list(supernet.parameters())

    def step(self, batches: Rounds, heldout: Sequence[Batch]) -> Mapping[str, Tensor | float]:
        """Move weights and alphas once; report both losses, the rate, and the entropy of the operators."""
        rate = self.set_rate()
        (training,), held = batches[0], heldout[0]
        if self.settings.order == 1:
            loss = self._move_weights(training)
            held_loss = self._loss(held)
            self.move_alphas(torch.autograd.grad(held_loss, self.alphas)[0])
        else:
            held_loss, gradient = self.unrolled(training, held, rate)
            self.move_alphas(gradient)
            loss = self._move_weights(training)
        self.done_steps += 1
        return {
            "loss": loss, "learning_rate": rate, "heldout_loss": held_loss.detach(), "alpha_entropy": self.entropy(),
        }  # fmt: skip

    def _loss(self, batch: Batch) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.supernet.forward_mixture(images, self.alphas.softmax(1)), labels)

    def _move_weights(self, batch: Batch) -> Tensor:
        images, labels = batch
        logits = self.supernet.forward_mixture(images, self.alphas.detach().softmax(1))
        loss = F.cross_entropy(logits, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.descend(self.every_path)
        return loss.detach()

    def unrolled(self, training: Batch, held: Batch, rate: float) -> tuple[Tensor, Tensor]:
        """Return the held-out loss after the weights' next step on `training`, and its gradient by the alphas.

        The gradient is [layers, operators], the loss a scalar.
        The step w' is the optimiser's own with momentum and weight decay, but for the clipping. With v the gradient
        of the held-out loss by w', the gradient by the alphas is its direct part less rate * d2 L / dalpha dw * v,
        for which two gradients at w +- R v are subtracted, R = difference / |v| (equations 7 and 8).
        """
        before = [p.detach().clone() for p in self.weights]
        weights = [p.detach() for p in self.weights]  # the same memory: what follows moves the supernet itself
        found = torch.autograd.grad(self._loss(training), self.weights, allow_unused=True)
        with torch.no_grad():
            updates, slope = self._next_updates(filled(found, weights))
            torch._foreach_add_(weights, updates, alpha=-rate)
        loss = self._loss(held)
        direct, *found_held = torch.autograd.grad(loss, [self.alphas, *self.weights], allow_unused=True)
        with torch.no_grad():
            v = filled(found_held, weights)
            radius = self.settings.difference / torch.nn.utils.get_total_norm(v).clamp_min(1e-12)
            away = list(torch._foreach_mul(v, radius))
        sides = []
        for sign in (1, -1):
            torch._foreach_copy_(weights, before)
            torch._foreach_add_(weights, away, alpha=sign)
            sides.append(torch.autograd.grad(self._loss(training), self.alphas)[0])
        torch._foreach_copy_(weights, before)
        return loss.detach(), direct - rate * slope * (sides[0] - sides[1]) / (2 * radius)

    def _next_updates(self, gradients: list[Tensor]) -> tuple[list[Tensor], float]:
        """Return what the optimiser would subtract, in units of the rate, and its derivative by the gradient."""
        settings = self.settings
        torch._foreach_add_(gradients, [p.detach() for p in self.weights], alpha=settings.weight_decay)
        if not settings.momentum:
            return gradients, 1.0
        state = self.optimizer.state
        old = [state[p].get("momentum_buffer") for p in self.weights]
        velocity = [g if b is None else settings.momentum * b + g for g, b in zip(gradients, old, strict=True)]
        if not settings.nesterov:
            return velocity, 1.0
        return list(torch._foreach_add(gradients, velocity, alpha=settings.momentum)), 1 + settings.momentum


METHOD = DARTS
"""The method of `strategy: darts`, by the name that every strategy's module has for its own."""
