"""How the weights of a supernet begin: the paper does not say."""

from __future__ import annotations

from typing import Literal

from torch import nn

Initialisation = Literal["default", "kaiming"]
"""default: torch's own of every layer, uniform by fan-in. kaiming: see `initialise`."""
LINEAR_STD = 0.01
"""Standard deviation of a classifier's weights with kaiming."""


def initialise(network: nn.Module, how: Initialisation) -> None:
    """Draw a network's weights anew from torch's global stream (see seeding.scoped), in place; `default` leaves them.

    kaiming, as torchvision does for mobile networks: convolutions normal with variance 2 / fan-out (He et al. 2015,
    eq. 14; fan-out is counted without groups), linear layers normal with standard deviation 0.01, every bias 0.
    Normalisation layers begin as ever: scale 1, shift 0.
    """
    if how == "default":
        return
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.0, LINEAR_STD)
        else:
            continue
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
