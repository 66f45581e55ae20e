"""In which arithmetic a network is trained: float32, or bfloat16 where that is accurate enough (autocast)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn


class Arithmetic(BaseModel):
    """Block `arithmetic` of `supernet` and of a recipe. Scores and statistics are always computed in float32.

    That is torch's float32: on GPUs from Ampere on its convolutions run in TF32 (torch.backends.cudnn.allow_tf32).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="bfloat16: convolutions and linear layers of the training; weights and their updates stay float32",
    )
    channels_last: bool = Field(True, description="memory format of images and weights: faster on most devices")

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return what the passes of a step run under."""
        # Without autocast's cache of converted weights: an adaptation changes weights in place between two passes, and
        # the second would run with those of the first.
        wanted = self.precision == "bfloat16"
        return torch.autocast(device.type, torch.bfloat16, enabled=wanted, cache_enabled=False)

    def place(self, network: nn.Module, device: str | torch.device) -> nn.Module:
        """Move a network to the device, in this memory format; returns the network itself."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return network.to(device=device, memory_format=layout)  # type: ignore[call-overload, no-any-return]

    def images(self, images: Tensor) -> Tensor:
        """[N, C, H, W], which come as channels_last, in this memory format."""
        return images if self.channels_last else images.contiguous()
