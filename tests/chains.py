"""Small networks of the MobileNet space, which tests look at from several sides."""

from __future__ import annotations

import random
from typing import Any

from sumnas.spaces import mobilenet
from sumnas.spaces.base import Architecture
from sumnas.spaces.mobilenet import MobileNet

STAGES = (
    {"channels": 3, "blocks": 2, "stride": 1},
    {"channels": 4, "blocks": 2, "stride": 2},
)


def space(**changes: Any) -> MobileNet:
    """Four blocks of three and four channels for images of 2x4x4, three classes."""
    values = {
        "image_size": 4, "image_channels": 2, "classes": 3, "stem_channels": 4, "stem_stride": 1, "first_channels": 3,
        "stages": STAGES, "head_channels": 6, **changes,
    }  # fmt: skip
    return mobilenet.build(mobilenet.Settings(name="mobilenet", **values))


def sample(of: MobileNet, count: int, seed: int = 0) -> list[Architecture]:
    rng = random.Random(seed)
    return [tuple(rng.randrange(6) for _ in range(of.layers)) for _ in range(count)]
