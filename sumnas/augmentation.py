"""Random flips, crops and erased rectangles: per image, in one pass over a batch, on the images' device."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

ERASED_AREA = (0.02, 0.33)
"""Share of an image that is erased, uniform between these, as in torchvision (Zhong et al. 2020)."""
ERASED_ASPECT = (0.3, 3.3)
"""Height over width of what is erased, its logarithm uniform between those of these."""
TRIES = 10
"""Rectangles drawn for an image; where none lies inside of it, the image stays whole."""


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
    auto_augment: Literal["imagenet", "cifar10", "svhn", "randaugment", "trivialaugment"] | None = Field(
        None,
        description="image folders only: a random change of colours and shape by AutoAugment's policy for that data, "
        "by RandAugment or by TrivialAugment, as torchvision has them; null: none",
    )
    random_erasing: float = Field(
        0.0, ge=0, le=1, description="in this share of the images a random rectangle is set to the mean colour"
    )

    @property
    def needs_files(self) -> str | None:
        """The first key that is for image folders only."""
        return next((name for name in ("resized_crop", "auto_augment") if getattr(self, name) is not None), None)


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


def erase(
    images: Tensor, probability: float, generator: torch.Generator, of: int | None = None, part: slice = slice(None)
) -> Tensor:
    """Set a random rectangle of every image with `probability` to 0, in place: [N, C, H, W], normalised.

    These may be a `part` `of` a batch of so many images: what is drawn for each is then that of the whole batch.

    Distributed as torchvision's RandomErasing: area and aspect as above, height and width rounded and less than those
    of the image, every position alike.
    """
    height, width = images.shape[2:]
    count = len(images) if of is None else of
    area, aspect = torch.rand(2, count, TRIES, generator=generator, device=images.device)
    place = torch.rand(2, count, generator=generator, device=images.device)
    chosen = torch.rand(count, generator=generator, device=images.device) < probability
    area = height * width * (ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * area)
    low, high = (math.log(value) for value in ERASED_ASPECT)
    aspect = (low + (high - low) * aspect).exp()
    sides = torch.stack(((area * aspect).sqrt().round(), (area / aspect).sqrt().round()))
    inside = (sides[0] < height) & (sides[1] < width)
    first = inside.to(torch.uint8).argmax(1)  # of equal ones the first
    sides = sides[:, torch.arange(count, device=images.device), first]
    chosen &= inside.any(1)
    whole = torch.tensor((height, width), dtype=sides.dtype, device=images.device)[:, None]
    starts = (place * (whole - sides + 1)).floor()
    sides, starts, chosen = sides[:, part], starts[:, part], chosen[part]
    rows, columns = (
        (torch.arange(size, device=images.device) >= start[:, None])
        & (torch.arange(size, device=images.device) < (start + side)[:, None])
        for size, start, side in zip((height, width), starts, sides, strict=True)
    )
    mask = chosen[:, None, None] & rows[:, :, None] & columns[:, None, :]
    return images.masked_fill_(mask[:, None], 0.0)
