"""The cells of NAS-Bench-201 as method sec. 8 writes them down, and small and full networks of them."""

from __future__ import annotations

import itertools
import random
from typing import Any

from sumnas.spaces import nasbench201
from sumnas.spaces.base import Architecture
from sumnas.spaces.nasbench201 import NASBench201

# Written down here from method sec. 8, not taken from the module under test.
NAMES = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
NONE, SKIP, CONV1, CONV3, POOL = range(5)
INTO = {1: ((0, 0),), 2: ((1, 0), (2, 1)), 3: ((3, 0), (4, 1), (5, 2))}
"""For each node its incoming edges: (index of the edge, source node)."""
ALL: list[Architecture] = list(itertools.product(range(5), repeat=6))


def space(**changes: Any) -> NASBench201:
    values = {"channels": 4, "cells": 1, "image_size": 8, "image_channels": 1, "classes": 10, **changes}
    return nasbench201.build(nasbench201.Settings(name="nasbench201", **values))


PAPER = space(channels=16, cells=5, image_size=32, image_channels=3)


def sample(count: int, seed: int = 0) -> list[Architecture]:
    return random.Random(seed).sample(ALL, count)
