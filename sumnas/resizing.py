"""Smaller images by averaging over areas: a new pixel is the mean of what it covers, parts of pixels included."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sumnas.errors import UserError

CHUNK = 500
"""Images at a time: bounds the memory of the exact arithmetic."""


def shrink(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """[N, S, S, C] -> [N, size, size, C], rounded once, half to even; blocks are averaged where `size` divides S.

    UserError where the images are smaller, or not square.
    """
    _, height, width, _ = images.shape
    if height != width:
        raise UserError(
            f"data.resize = {size}: the images have {height}x{width} pixels, and only square ones are resized"
        )
    if size > height:
        raise UserError(f"data.resize = {size}: the images have only {height}x{width} pixels; they are never enlarged")
    if size == height:
        return images
    overlap = _overlaps(height, size)
    out = np.empty((len(images), size, size, images.shape[3]), np.uint8)
    for first in range(0, len(images), CHUNK):
        x = images[first : first + CHUNK].astype(np.float64)
        # Sums of whole numbers, exact in float64 in whatever order: the same bytes on every machine.
        sums = np.einsum("ih,nhwc->niwc", overlap, x, optimize=True)
        sums = np.einsum("jw,niwc->nijc", overlap, sums, optimize=True)
        out[first : first + CHUNK] = np.rint(sums / height**2)
    return out


def _overlaps(old: int, new: int) -> NDArray[np.float64]:
    """[new, old]: how much of an old pixel (length `new`) lies in a new one (length `old`), in whole numbers."""
    edges = np.arange(old + 1) * new
    targets = np.arange(new + 1) * old
    low = np.maximum(edges[None, :-1], targets[:-1, None])
    high = np.minimum(edges[None, 1:], targets[1:, None])
    overlap: NDArray[np.float64] = np.maximum(high - low, 0).astype(np.float64)
    return overlap
