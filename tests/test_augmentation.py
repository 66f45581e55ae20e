"""Augmentation of images in memory against a naive one, image by image."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, ks_2samp
from torch import Tensor

from sumnas.augmentation import Augmentation, augment, erase

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


# Erasing.


def holes(images: Tensor) -> list[tuple[int, int, int, int] | None]:
    """Top, left, height and width of what is 0 in images of ones [N, C, H, W]; asserts that it is one rectangle."""
    found: list[tuple[int, int, int, int] | None] = []
    for image in images:
        empty = (image == 0).all(0)
        assert torch.equal(empty, (image == 0).any(0))  # the same in every channel
        if not empty.any():
            found.append(None)
            continue
        rows, columns = empty.any(1).nonzero().flatten(), empty.any(0).nonzero().flatten()
        top, left, bottom, right = int(rows[0]), int(columns[0]), int(rows[-1]), int(columns[-1])
        assert empty[top : bottom + 1, left : right + 1].all()
        assert int(empty.sum()) == (bottom - top + 1) * (right - left + 1)
        found.append((top, left, bottom - top + 1, right - left + 1))
    return found


def test_what_is_erased_is_distributed_as_torchvisions() -> None:
    from torchvision.transforms import v2

    count, height, width = 3000, 24, 32
    own = holes(erase(torch.ones(count, 2, height, width), 0.6, torch.Generator().manual_seed(0)))
    reference = v2.RandomErasing(p=1.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        other = holes(torch.stack([reference(torch.ones(1, height, width)) for _ in range(count)]))
    erased = [hole for hole in own if hole]
    assert abs(len(erased) / count - 0.6) < 4 * math.sqrt(0.24 / count)
    expected = [hole for hole in other if hole]
    figures = {
        "area": lambda h: h[2] * h[3], "aspect": lambda h: h[2] / h[3], "top": lambda h: h[0] / (height - h[2] + 1),
        "left": lambda h: h[1] / (width - h[3] + 1), "middle": lambda h: h[0] + h[2] / 2,
    }  # fmt: skip
    for name, figure in figures.items():
        assert ks_2samp([figure(h) for h in erased], [figure(h) for h in expected]).pvalue > 1e-3, name


def test_erasing_follows_from_its_generator_and_touches_nothing_else() -> None:
    images = torch.randn(200, 3, 9, 7).to(memory_format=torch.channels_last)

    def draw(seed: int, probability: float = 0.5) -> Tensor:
        return erase(images.clone(), probability, torch.Generator().manual_seed(seed))

    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))
    assert torch.equal(draw(0)[draw(0) != 0], images[draw(0) != 0])
    assert torch.equal(draw(0, 0.0), images)
    assert (draw(0, 1.0) == 0).flatten(1).any(1).float().mean() > 0.95  # but for those no rectangle fitted into
    # Those with one image less do not depend on the others' content, and a tiny image stays whole.
    assert torch.equal(erase(torch.ones(5, 1, 1, 1), 1.0, torch.Generator()), torch.ones(5, 1, 1, 1))
