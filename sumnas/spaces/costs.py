"""Multiply-adds and parameters, counted from real layers while they run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def count_parameters(module: nn.Module) -> int:
    """Return the number of learned parameters, those of normalisation included."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(module: nn.Module, *inputs: Any, linear_bias: bool = True) -> int:
    """Return the multiply-adds of one forward pass of `inputs` (batch of 1).

    Only convolutions and linear layers count, as in NAS-Bench-201. With `linear_bias` the additions of a linear
    layer's bias count too, which is how that benchmark arrives at its figures; a convolution's bias never counts.
    """
    total = 0

    def conv(layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        nonlocal total
        assert isinstance(layer, nn.Conv2d)
        total += output.numel() * layer.weight[0].numel()

    def linear(layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        nonlocal total
        assert isinstance(layer, nn.Linear)
        biases = output.numel() if linear_bias and layer.bias is not None else 0
        total += output.numel() * layer.in_features + biases

    handles = []
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            handles.append(layer.register_forward_hook(conv))
        elif isinstance(layer, nn.Linear):
            handles.append(layer.register_forward_hook(linear))
    try:
        with torch.no_grad():
            module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return total
