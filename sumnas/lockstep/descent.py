"""All paths of a strictly fair round adapted together, and the gradient of all of them (Algorithm 1, lines 8 to 12)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sumnas.data import Batch
from sumnas.lockstep.capture import Captured
from sumnas.lockstep.rounds import FairRound, indices
from sumnas.spaces.base import Architecture, Supernet


@dataclass(frozen=True)
class Inner:
    """The inner SGD: k `steps`, and `momentum` that starts at zero.

    `max_norm` is the largest norm of a path's gradient, None for any. `weight_decay` times the weights is added to the
    gradient after that.
    """

    steps: int
    momentum: float
    weight_decay: float
    max_norm: float | None


class Choices:
    """Every choice parameter once, with the layer and the operator it belongs to."""

    def __init__(self, supernet: Supernet) -> None:
        self.parameters: list[nn.Parameter] = []
        self.owners: list[tuple[int, int]] = []
        for layer, operators in enumerate(supernet.choices):
            for operator, parameters in enumerate(operators):
                self.parameters += parameters
                self.owners += [(layer, operator)] * len(parameters)


class JointLoss:
    """The training losses of all paths of a round, [m], as one graph."""

    def __init__(self, supernet: Supernet) -> None:
        self.supernet = supernet
        self.candidates = len(supernet.choices[0])

    def __call__(
        self, index: Tensor, images: Tensor, labels: Tensor, weights: Mapping[str, Tensor], versions: bool
    ) -> Tensor:
        """`weights` are the shared parameters by name, with `versions` one per path; see `FairRound`."""
        logits = self.supernet.lockstep(images, FairRound(self.supernet, index, weights, versions, self.candidates))
        found = F.cross_entropy(logits.flatten(0, 1), labels.repeat(self.candidates), reduction="none")
        return found.view(self.candidates, -1).mean(1)


class JointAdaptation:
    """A^k for all m paths at once: theta - theta' of every parameter, and the weights as they were.

    A choice parameter adapts in place, on the one path it is on. A shared one has m versions, [m, ...].
    """

    def __init__(self, supernet: Supernet, inner: Inner) -> None:
        self.inner = inner
        self.choices = Choices(supernet)
        self.loss = JointLoss(supernet)
        names = {id(p): name for name, p in supernet.named_parameters()}
        self.shared = {names[id(p)]: p for p in supernet.shared}  # in the supernet's order
        self.any_round = any_round(supernet)
        self.captured = Captured(self._run, supernet.shared[0].device)

    def __call__(self, paths: Sequence[Architecture], batches: Sequence[Batch], rate: float) -> list[Tensor]:
        """Return the mean losses [m], then theta - theta' of the choice parameters, then of the shared ones.

        The latter are sums over the paths. `batches` is one per step, or one for all of them. On a GPU the next call
        overwrites what this one returned.
        """
        return self.captured(*self._inputs(paths, batches, rate))

    def rehearse(self, batches: Sequence[Batch], rate: float) -> None:
        """Make a GPU's graph ahead of the first call, with batches of its shape; see `Captured.prepare`.

        The weights are as they were, also where it fails.
        """
        choices = [p.detach() for p in self.choices.parameters]
        theta = [p.clone() for p in choices]
        try:
            self.captured.prepare(*self._inputs(self.any_round, batches, rate))
        finally:
            torch._foreach_copy_(choices, theta)

    def _inputs(self, paths: Sequence[Architecture], batches: Sequence[Batch], rate: float) -> list[Tensor]:
        dtype = next(iter(self.shared.values())).dtype
        return [indices(paths), torch.tensor(rate, dtype=dtype), *(tensor for batch in batches for tensor in batch)]

    def _run(self, index: Tensor, rate: Tensor, *tensors: Tensor) -> list[Tensor]:
        batches = list(zip(tensors[::2], tensors[1::2], strict=True))
        choices = [p.detach() for p in self.choices.parameters]
        theta = [p.clone() for p in choices]
        m = index.shape[-1]
        versions = {name: p.detach().expand(m, *p.shape).clone() for name, p in self.shared.items()}
        moving = choices + list(versions.values())
        for version in versions.values():
            version.requires_grad_()
        leaves = [*self.choices.parameters, *versions.values()]
        velocity: list[Tensor] = []
        total: Tensor | None = None
        for step in range(self.inner.steps):
            images, labels = batches[step if len(batches) > 1 else 0]
            losses = self.loss(index, images, labels, versions, True)
            gradients = list(torch.autograd.grad(losses.sum(), leaves, materialize_grads=True))
            total = losses.detach() if total is None else total + losses.detach()
            del losses
            with torch.no_grad():
                velocity = self._velocity(index, gradients, moving, velocity)
                torch._foreach_sub_(moving, torch._foreach_mul(velocity, rate))
        assert total is not None
        with torch.no_grad():
            differences = list(torch._foreach_sub(theta, choices))
            torch._foreach_copy_(choices, theta)
            for name, p in self.shared.items():
                differences.append((p - versions[name]).sum(0))
        return [total / self.inner.steps, *differences]

    def _velocity(
        self, index: Tensor, gradients: list[Tensor], moving: list[Tensor], velocity: list[Tensor]
    ) -> list[Tensor]:
        """Clip, decay, and add the momentum: torch's SGD, path by path; overwrites its arguments."""
        inner = self.inner
        if inner.max_norm is not None:
            self._clip(index, gradients, inner.max_norm)
        if inner.weight_decay:
            torch._foreach_add_(gradients, moving, alpha=inner.weight_decay)
        if not inner.momentum or not velocity:
            return gradients  # a first step's buffer is its gradient
        torch._foreach_mul_(velocity, inner.momentum)
        torch._foreach_add_(velocity, gradients)
        return velocity

    def _clip(self, index: Tensor, gradients: list[Tensor], max_norm: float) -> None:
        """Scale every path's gradient down to the norm: its version of the shared parameters and its operators'."""
        count = len(self.choices.parameters)
        squares = torch.stack([g.flatten(1).square().sum(1) for g in gradients[count:]]).sum(0)
        places = [index[1, layer, operator : operator + 1] for layer, operator in self.choices.owners]
        for gradient, place in zip(gradients[:count], places, strict=True):
            squares = squares.index_add(0, place, gradient.square().sum()[None])
        scale = (max_norm / (squares.sqrt() + 1e-6)).clamp(max=1.0)
        for gradient, place in zip(gradients[:count], places, strict=True):
            gradient.mul_(scale.index_select(0, place).view(()))
        for gradient in gradients[count:]:
            gradient.mul_(scale.view(-1, *(1,) * (gradient.dim() - 1)))


class JointGradient:
    """The gradient of the sum of a round's losses: every parameter's, in the order of the supernet's parameters."""

    def __init__(self, supernet: Supernet) -> None:
        self.loss = JointLoss(supernet)
        self.named = dict(supernet.named_parameters())
        self.any_round = any_round(supernet)
        self.captured = Captured(self._run, supernet.shared[0].device)

    def __call__(self, paths: Sequence[Architecture], batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Return the losses [m], and the gradient of their sum. On a GPU the next call overwrites both."""
        losses, *gradients = self.captured(indices(paths), *batch)
        return losses, gradients

    def rehearse(self, batch: Batch) -> None:
        """Make a GPU's graph ahead of the first call, with a batch of its shape; see `Captured.prepare`."""
        self.captured.prepare(indices(self.any_round), *batch)

    def _run(self, index: Tensor, images: Tensor, labels: Tensor) -> list[Tensor]:
        losses = self.loss(index, images, labels, self.named, False)
        gradients = torch.autograd.grad(losses.sum(), list(self.named.values()), materialize_grads=True)
        return [losses.detach(), *gradients]


def any_round(supernet: Supernet) -> list[Architecture]:
    """Return the simplest strictly fair round: path i has operator i in every layer."""
    return [(operator,) * len(supernet.choices) for operator in range(len(supernet.choices[0]))]
