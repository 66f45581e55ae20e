"""Augmentation of images in memory against a naive one, image by image."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from sumnas.augmentation import Augmentation, augment

BOTH = Augmentation(flip=True, crop_padding=2)

Draw = tuple[bool, int, int]
"""Flipped, first row and first column of the crop."""


def naive(image: np.ndarray[Any, Any], draw: Draw, padding: int) -> np.ndarray[Any, Any]:
    """Mirror one image [H, W, C], pad it with zeros and cut out a window of its own size."""
    flipped, top, left = draw
    height, width, _ = image.shape
    padded = np.zeros((height + 2 * padding, width + 2 * padding, image.shape[2]), image.dtype)
    for row in range(height):
        for column in range(width):
            padded[padding + row, padding + column] = image[row, width - 1 - column if flipped else column]
    return padded[top : top + height, left : left + width]


def possible(image: np.ndarray[Any, Any], settings: Augmentation) -> dict[bytes, Draw]:
    """What an image can become, and by which draw."""
    shifts = range(2 * settings.crop_padding + 1)
    draws = [(f, t, c) for f in ([False, True] if settings.flip else [False]) for t in shifts for c in shifts]
    return {naive(image, draw, settings.crop_padding).tobytes(): draw for draw in draws}


def random_images(count: int, shape: tuple[int, int, int] = (5, 7, 2)) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(1, 256, (count, *shape), generator=generator, dtype=torch.uint8)


WAYS = [Augmentation(flip=True), Augmentation(crop_padding=2), Augmentation(flip=True, crop_padding=1)]


@pytest.mark.parametrize("settings", WAYS, ids=str)
def test_every_image_becomes_one_of_its_own_windows(settings: Augmentation) -> None:
    images = random_images(200)
    before = images.clone()
    out = augment(images, settings, torch.Generator().manual_seed(0))
    assert out.shape == images.shape and out.dtype == torch.uint8 and torch.equal(images, before)
    for image, augmented in zip(images.numpy(), out.numpy(), strict=True):
        assert augmented.tobytes() in possible(image, settings)


@pytest.mark.parametrize("settings", WAYS, ids=str)
def test_draws_are_uniform_and_each_image_has_its_own(settings: Augmentation) -> None:
    image = random_images(1)
    choices = possible(image[0].numpy(), settings)
    assert len(choices) == (2 if settings.flip else 1) * (2 * settings.crop_padding + 1) ** 2
    out = augment(image.expand(4000, -1, -1, -1), settings, torch.Generator().manual_seed(0))
    draws = [choices[augmented.tobytes()] for augmented in out.numpy()]
    counts = Counter(draws)
    assert set(counts) == set(choices.values())
    assert chisquare(list(counts.values())).pvalue > 1e-3
    # Neighbours are independent: they agree as often as two draws do by chance.
    agree = sum(a == b for a, b in zip(draws, draws[1:], strict=False)) / 3999
    share = 1 / len(choices)
    assert abs(agree - share) < 4 * math.sqrt(share * (1 - share) / 3999)


def test_augmentation_follows_from_its_generator() -> None:
    images = random_images(50)

    def draw(seed: int) -> Tensor:
        return augment(images, BOTH, torch.Generator().manual_seed(seed))

    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))


def test_no_augmentation_changes_nothing_and_draws_nothing() -> None:
    images, generator = random_images(5), torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert torch.equal(augment(images, Augmentation(), generator), images)
    assert torch.equal(generator.get_state(), state)
