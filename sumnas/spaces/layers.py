"""Layers of the NAS-Bench-201 networks (Dong & Yang 2020; paper App. A)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ReLUConvBN(nn.Module):
    """ReLU, convolution, batch normalisation: [N, Cin, H, W] -> [N, Cout, H/stride, W/stride].

    Without affine parameters in the normalisation the convolution carries a bias instead.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, affine: bool = True, track: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=not affine)
        self.norm = nn.BatchNorm2d(outputs, affine=affine, track_running_stats=track)

    def forward(self, x: Tensor) -> Tensor:
        """[N, Cin, H, W] -> [N, Cout, H/stride, W/stride]."""
        out: Tensor = self.norm(self.conv(F.relu(x)))
        return out


class AveragePool(nn.Module):
    """3x3 average over what lies inside the image, stride 1, shape kept, no normalisation."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape; the padding is not counted."""
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class Identity(nn.Identity):
    """`skip_connect` at stride 1."""


class Zero(nn.Module):
    """`none`: cuts the edge. Never called by a cell, which skips it; here for its (zero) costs."""

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros of the input's shape."""
        return torch.zeros_like(x)


class ResidualBlock(nn.Module):
    """Reduction between stages: half the height and width, other width of channels.

    ReLU-Conv3x3(stride 2)-BN, ReLU-Conv3x3-BN; shortcut AvgPool2x2-Conv1x1 without normalisation; sum.
    """

    def __init__(self, inputs: int, outputs: int, *, track: bool = True) -> None:
        super().__init__()
        self.first = ReLUConvBN(inputs, outputs, 3, 2, track=track)
        self.second = ReLUConvBN(outputs, outputs, 3, track=track)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, Cin, H, W] -> [N, Cout, H/2, W/2]."""
        out: Tensor = self.second(self.first(x)) + self.shortcut(F.avg_pool2d(x, 2))
        return out
