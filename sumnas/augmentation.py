"""Random flips and crops of images in memory: per image, in one pass, on the images' device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor


class Augmentation(BaseModel):
    """What is done at random to every training image."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    flip: bool = Field(False, description="mirror half of the images")
    crop_padding: int = Field(0, ge=0, description="pad with this many zero pixels, then crop back at random")
    resized_crop: float | None = Field(
        None,
        gt=0,
        le=1,
        description="image folders only: a random rectangle of at least this share of the area, resized",
    )


def augment(images: Tensor, settings: Augmentation, generator: torch.Generator) -> Tensor:
    """[N, H, W, C] -> the same shape and type, each image flipped and shifted by its own draw."""
    count, height, width, _ = images.shape
    device = images.device
    if not settings.flip and not settings.crop_padding:
        return images
    columns = torch.arange(width, device=device).expand(count, width)
    if settings.flip:
        mirrored = torch.rand(count, 1, generator=generator, device=device) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    rows = torch.arange(height, device=device).expand(count, height)
    if settings.crop_padding:
        pad = settings.crop_padding
        images = F.pad(images, (0, 0, pad, pad, pad, pad))
        shift = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=generator, device=device)
        rows, columns = rows + shift[0], columns + shift[1]
    batch = torch.arange(count, device=device)[:, None, None]
    return images[batch, rows[:, :, None], columns[:, None, :]]
