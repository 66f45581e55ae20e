"""Batch normalisation over a batch whose images several processes share (torch.distributed), on any device.

torch.nn.SyncBatchNorm is for GPUs alone and takes a module of its own; here a network's layers stay as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sumnas.distributed import Ranks


@contextlib.contextmanager
def synchronised(network: nn.Module, ranks: Ranks) -> Iterator[None]:
    """Let every BatchNorm2d of the network normalise by the batch of all `ranks` together, where it trains.

    Running statistics become those of the whole batch. Each rank has to run the same layers in the same order. The
    layers are what they were when the body ends; with one rank they never change.
    """
    layers = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)] if ranks.several else []
    for layer in layers:
        layer.__dict__["forward"] = partial(batch_norm, layer, ranks)
    try:
        yield
    finally:
        for layer in layers:
            del layer.__dict__["forward"]


def batch_norm(layer: nn.BatchNorm2d, ranks: Ranks, x: Tensor) -> Tensor:
    """Run a layer on this rank's share of a batch, [n, C, H, W] -> the same shape; n may differ by rank, and be 0.

    In evaluation mode with running statistics it is the layer itself, and no rank waits. ValueError where the whole
    batch has one value per channel, as torch has it, but on the CPU alone: an accelerator would have to be waited for.
    A gradient of the weights is of this rank's images alone: the sum over the ranks is that of the whole batch.
    """
    if not layer.training and layer.running_mean is not None:
        return nn.BatchNorm2d.forward(layer, x)
    # Gradients reach mean and variance by hand below: to autograd they are constants.
    count, mean, variance = _moments(x.detach(), ranks)
    if x.device.type == "cpu" and count < 2:
        raise ValueError("one value per channel over all ranks: there is no variance to normalise by")
    if layer.training and layer.running_mean is not None and layer.running_var is not None:
        assert layer.momentum is not None and layer.num_batches_tracked is not None
        layer.num_batches_tracked.add_(1)
        for kept, new in ((layer.running_mean, mean), (layer.running_var, variance * (count / (count - 1)))):
            kept.mul_(1 - layer.momentum).add_(new.to(kept.dtype), alpha=layer.momentum)
    out: Tensor = _Normalised.apply(x, layer.weight, layer.bias, mean, variance, layer.eps, count, ranks)
    return out


def _moments(x: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
    """Return how many values per channel all ranks have, and their mean and variance, [C] each, pooled by Chan.

    The count is a tensor, too: to make a number of it a GPU would have to be waited for at every layer.
    """
    exact = x.dtype if x.dtype == torch.float64 else torch.float32
    channels, own = x.shape[1], x.numel() // x.shape[1]
    # A row of each rank; what the others have comes by the sum: one call, and no rounding.
    rows = torch.zeros(ranks.world, 2 * channels + 1, dtype=torch.float64, device=x.device)
    if own:
        variance, mean = torch.var_mean(x.to(exact), (0, 2, 3), correction=0)
        rows[ranks.rank] = torch.cat((mean, variance, mean.new_full((1,), own))).double()
    ranks.add([rows])
    means, variances, counts = torch.split(rows, [channels, channels, 1], 1)
    count = counts.sum()
    shares = counts / count
    mean = (shares * means).sum(0)
    variance = (shares * (variances + (means - mean).square())).sum(0)
    return count, mean.to(exact), variance.to(exact)


class _Normalised(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, where mean and variance are of all ranks' x.

    With g the gradient of the output, N values per channel, and u = (x - mean) / sqrt(variance + eps), that of x is
    weight / sqrt(variance + eps) * (g - sum(g) / N - u * sum(g * u) / N), both sums over all ranks.
    """

    @staticmethod
    def forward(
        context: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, eps: float,
        count: Tensor, ranks: Ranks,
    ) -> Tensor:  # fmt: skip
        """Normalise by statistics that are there: what evaluation does."""
        context.save_for_backward(x, weight, mean, variance)
        context.eps, context.count, context.ranks = eps, count, ranks
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps) if x.numel() else x.clone()

    @staticmethod
    @once_differentiable
    def backward(context: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Add to the gradient at fixed statistics what goes through them: for each channel, linear in x."""
        x, weight, mean, variance = context.saved_tensors
        scale = torch.ones_like(mean) if weight is None else weight
        through, by_weight, by_bias = grad, torch.zeros_like(scale), torch.zeros_like(scale)
        inverse = (variance + context.eps).rsqrt()
        if x.numel():
            # GPUs take mean and inverse where a batch's own are kept, whatever the mode; CPUs take those before.
            through, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
                grad, x, scale, mean, variance, mean, inverse, False, context.eps, [True, True, True]
            )
        sums = torch.stack((by_weight, by_bias)).to(mean.dtype)
        context.ranks.add([sums])
        sums = sums / context.count.to(mean.dtype)
        slope = -scale * inverse.square() * sums[0]
        level = -scale * inverse * sums[1] - slope * mean
        through = torch.addcmul(through + level.view(1, -1, 1, 1), x, slope.view(1, -1, 1, 1))
        affine = (None, None) if weight is None else (by_weight, by_bias)
        return through.to(x.dtype), *affine, None, None, None, None, None
