"""The inner loop A^k: k SGD steps on one path, in place (Algorithm 1, line 10; equation 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sumnas.data import Batch
from sumnas.distributed import ALONE, Ranks
from sumnas.sharing import mean_loss
from sumnas.spaces.base import Architecture, Supernet

Buffers = dict[int, Tensor]
"""Momentum buffers by id of the parameter."""


def adapt(
    supernet: Supernet,
    architecture: Architecture,
    parameters: Sequence[Tensor],
    batches: Sequence[Batch],
    learning_rate: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    buffers: Buffers | None = None,
    max_norm: float | None = None,
    common: Tensor | None = None,
    sharers: Ranks = ALONE,
    batch_size: int = 0,
) -> Tensor:
    """Take one SGD step on this path for each of the batches, in place; return the mean loss (a scalar tensor).

    `parameters` are all of the path's; those that the loss does not reach (edges that cannot reach the output) have a
    zero gradient. With `buffers` momentum is carried over from earlier calls and kept there; without, it starts at
    zero, and A^k is a function of the weights alone. `max_norm` clips the gradient norm of each step. `common` is
    `supernet.common` of the first batch, with its graph, which several paths may share. With several `sharers` each of
    them has its part of every batch of `batch_size` images, and they add up their gradients at every step: all end with
    the same weights. `batches` are k times ([N, C, H, W] images, [N] labels); ValueError where there is none.
    """
    moving = list(parameters)
    velocity: list[Tensor] = []
    total: Tensor | None = None
    for images, labels in batches:
        shared = total is None and common is not None
        logits = supernet.rest(common, architecture) if shared else supernet(images, architecture)  # type: ignore[arg-type]
        loss = mean_loss(logits, labels, 0.0, sharers, batch_size)
        found = torch.autograd.grad(loss, moving, allow_unused=True, retain_graph=shared)
        del logits  # with the graph that `retain_graph` keeps: only the common part's is needed again
        if total is None and buffers is None and not weight_decay:
            # Without carried momentum or decay a parameter out of the loss's reach never moves: leave it out.
            moving = [p for p, g in zip(moving, found, strict=True) if g is not None]
            found = tuple(g for g in found if g is not None)
        gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(moving, found, strict=True)]
        seen = loss.detach()
        sharers.add([*gradients, seen])
        total = seen if total is None else total + seen
        del loss, seen
        # `.data`: the weights come back to what they were before another path uses the common graph, which an update
        # in the open would make autograd refuse.
        weights = [p.data for p in moving]
        with torch.no_grad():
            if max_norm is not None:
                norm = torch.nn.utils.get_total_norm(gradients)
                torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
            if weight_decay:
                torch._foreach_add_(gradients, weights, alpha=weight_decay)
            if momentum and buffers is not None:
                velocity = [buffers.setdefault(id(p), torch.zeros_like(p)) for p in moving]
            if momentum and velocity:
                torch._foreach_mul_(velocity, momentum)
                torch._foreach_add_(velocity, gradients)
            else:
                velocity = gradients  # a first step's buffer is its gradient, as in torch.optim.SGD
            torch._foreach_add_(weights, velocity, alpha=-learning_rate)
        del found, gradients  # else they would live on beside the next step's
    if total is None:
        raise ValueError("an adaptation needs at least one batch")
    return total / len(batches)
