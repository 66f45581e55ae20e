"""What every reader of a data set in arrays gives."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8]
"""[N, H, W, C]."""
Labels = NDArray[np.int64]
"""[N], from 0."""


class Raw(NamedTuple):
    """A data set as it comes. `test` is None where it comes in one piece."""

    images: Images
    """[N, H, W, C] of the training set, or of the one piece."""
    labels: Labels
    """[N] of these images: positions in `classes`."""
    test: tuple[Images, Labels] | None
    classes: list[str]
    """Names of the classes."""


def digits() -> Raw:
    """Return scikit-learn's 1,797 handwritten digits, 8x8 in grey."""
    from sklearn.datasets import load_digits  # imported here: it takes seconds

    found = load_digits()
    images = found.images[..., None].astype(np.uint8)
    return Raw(images, found.target.astype(np.int64), None, [str(n) for n in range(10)])
