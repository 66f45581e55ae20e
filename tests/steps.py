"""What a step of SUMNAS is tried on: a small supernet off its initial values, random batches."""

from __future__ import annotations

from typing import Any

import torch

from sumnas import seeding
from sumnas.data import Batch
from sumnas.methods.base import Method, Rounds
from sumnas.spaces import nasbench201
from sumnas.spaces.base import Supernet

SEED = 11
TOTAL = 5  # steps of the schedules; the tests take three of them, so that cosine factors are all different


def supernet(dtype: torch.dtype = torch.float64, **changes: Any) -> Supernet:
    values = {"channels": 2, "cells": 1, "image_size": 4, "image_channels": 2, "classes": 3, **changes}
    with seeding.scoped(SEED, "weights"):
        network = nasbench201.build(nasbench201.Settings(name="nasbench201", **values)).supernet().to(dtype)
        with torch.no_grad():  # no weight at exactly zero or one: decay and momentum have to show everywhere
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def rounds_for(method: Method, step: int, dtype: torch.dtype = torch.float64, size: int = 4) -> Rounds:
    """Random batches of what one step of the method takes."""
    generator = torch.Generator().manual_seed(1000 + step)

    def batch() -> Batch:
        images = torch.randn(6, 2, size, size, generator=generator, dtype=dtype)
        return images, torch.randint(3, (6,), generator=generator)

    return [[batch() for _ in range(method.streams)] for _ in range(method.rounds)]


def name_of(case: dict[str, Any]) -> str:
    return "-".join(f"{key}={value}" for key, value in case.items())
