"""Recalibration: running statistics of batch normalisation, re-estimated for one sub-model (paper sec. 4)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn


class CalibrationSettings(BaseModel):
    """Block `calibration`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: int = Field(ge=2, description="training images, drawn at random with equal counts of every class")
    batch_size: int = Field(ge=2, description="images per pass through the sub-model")
    seed: int = Field(0, ge=0, description="of the draw of the images")


def norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    """Return the network's normalisation layers in order of registration: the order of stored statistics."""
    return [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]


@torch.no_grad()
def recalibrate(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set every BN's running mean and variance to the exact pooled ones of its inputs over all `batches` of images.

    Batches are [N, C, H, W], normalised as in training.
    Every pass normalises by its own batch, as in training; the statistics are pooled over batches of any sizes
    (weighted by their pixels), and the variance is that of the population. A BN that no input reaches keeps mean 0
    and variance 1. The network is left in evaluation mode; parameters stay untouched. ValueError where a BN sees a
    single value per channel, which has no variance.
    """
    layers = norms(network)
    counts: dict[nn.Module, float] = {}
    means: dict[nn.Module, Tensor] = {}
    squares: dict[nn.Module, Tensor] = {}

    def pool(layer: nn.Module, inputs: tuple[Tensor, ...], _output: Any) -> None:
        assert isinstance(layer, nn.BatchNorm2d)
        assert layer.running_mean is not None and layer.running_var is not None
        n = inputs[0].numel() / inputs[0].shape[1]
        # With momentum 1 the pass has just left its batch's own mean and unbiased variance there: no second pass
        # over the input is needed. Pooled by Chan's formula, in float64 against cancellation.
        mean = layer.running_mean.to(torch.float64, copy=True)  # the next pass overwrites it in place
        square = layer.running_var.double() * (n - 1)
        if layer in counts:
            total = counts[layer] + n
            delta = mean - means[layer]
            means[layer] += delta * (n / total)
            squares[layer] += square + delta.square() * (counts[layer] * n / total)
            counts[layer] = total
        else:
            counts[layer], means[layer], squares[layer] = n, mean, square

    saved = [layer.momentum for layer in layers]
    handles = [layer.register_forward_hook(pool) for layer in layers]
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = 1.0
        network.train()
        for images in batches:
            network(images)
    finally:
        for handle in handles:
            handle.remove()
        for layer, momentum in zip(layers, saved, strict=True):
            layer.momentum = momentum
        network.eval()
    for layer in layers:
        layer.reset_running_stats()
        if layer in counts:
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.copy_(means[layer])
            layer.running_var.copy_(squares[layer] / counts[layer])


def get_statistics(network: nn.Module) -> Tensor:
    """Return [2, C] float32: all running means, then all running variances, layers in order of registration."""
    layers = norms(network)
    means = [layer.running_mean for layer in layers if layer.running_mean is not None]
    variances = [layer.running_var for layer in layers if layer.running_var is not None]
    return torch.stack([torch.cat(means), torch.cat(variances)])


def set_statistics(network: nn.Module, statistics: Tensor) -> None:
    """Put back what `get_statistics` gave, [2, C]; ValueError where it is of another network."""
    layers = norms(network)
    sizes = [layer.num_features for layer in layers]
    if statistics.shape != (2, sum(sizes)):
        raise ValueError(f"statistics of shape {tuple(statistics.shape)}, the network needs {(2, sum(sizes))}")
    means, variances = (torch.split(row, sizes) for row in statistics)
    for layer, mean, variance in zip(layers, means, variances, strict=True):
        assert layer.running_mean is not None and layer.running_var is not None
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
