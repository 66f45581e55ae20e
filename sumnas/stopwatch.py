"""Milliseconds of a network's parts on this device: every operator of every layer, and what all sub-models share."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sumnas import seeding
from sumnas.errors import UserError
from sumnas.precision import Arithmetic
from sumnas.spaces.base import Architecture, Costs, Space, Supernet

WHOLE = 5
"""Architectures that are run whole, to see how far sums of parts can be trusted."""


class Measured(NamedTuple):
    """The costs in milliseconds; whole networks' times as multiples of their sums, one per architecture tried."""

    costs: Costs
    whole: list[float]


def measure(space: Space, device: str, batch_size: int, warmup: int, repeats: int) -> Measured:
    """Time the forward passes in evaluation mode, float32, channels_last as in scoring: medians over the repeats.

    The parts take turns, so that a slow moment of the machine falls on all of them. UserError where the space does not
    say what its networks' parts are.
    """
    with seeding.scoped(0, "latency"):
        network = space.supernet(track=True).eval()
        images = torch.randn(batch_size, *_image(space)).to(device, memory_format=torch.channels_last)
    Arithmetic().place(network, device)
    parts = space.parts(network)
    if parts is None:
        raise UserError(
            f"space.name = {space.settings.name}: its networks are no chain of layers to be timed one by one; give "
            "measured costs of whole architectures as benchmark.costs (docs/benchmarks.md)"
        )
    jobs: list[tuple[Callable[[Tensor], Tensor], Tensor]] = []
    for part in [*parts.rest, *(part for layer in parts.choices for part in layer)]:
        into = torch.randn(batch_size, *part.shape, generator=torch.Generator().manual_seed(0))
        jobs.append((part.run, into.to(device, memory_format=torch.channels_last)))
    rng = seeding.numpy_stream(0, "latency")
    tried = [tuple(rng.integers(len(space.candidates), size=space.layers).tolist()) for _ in range(WHOLE)]
    times = _medians([*jobs, *((_whole(network, a), images) for a in tried)], device, warmup, repeats)
    fixed, width = len(parts.rest), len(space.candidates)
    table = np.array(times[fixed : len(jobs)]).reshape(space.layers, width)
    costs = Costs(sum(times[:fixed]), table)
    whole = [measured / costs.of(a) for a, measured in zip(tried, times[len(jobs) :], strict=True)]
    return Measured(costs, whole)


def _image(space: Space) -> tuple[int, int, int]:
    settings = space.settings
    return settings.image_channels, settings.image_size, settings.image_size


def _whole(network: Supernet, architecture: Architecture) -> Callable[[Tensor], Tensor]:
    return lambda images: network(images, architecture)


@torch.inference_mode()
def _medians(
    jobs: Sequence[tuple[Callable[[Tensor], Tensor], Tensor]], device: str, warmup: int, repeats: int
) -> list[float]:
    """Return each job's median milliseconds; `warmup` rounds over all of them go before and do not count."""
    times: list[list[float]] = [[] for _ in jobs]
    for number in range(warmup + repeats):
        for (run, into), found in zip(jobs, times, strict=True):
            wait(device)
            started = time.perf_counter()
            run(into)
            wait(device)
            if number >= warmup:
                found.append(1e3 * (time.perf_counter() - started))
    return [statistics.median(found) for found in times]


def wait(device: str) -> None:
    """Wait until the device has done what it was given: before and after a time is taken."""
    if device == "cuda":
        torch.cuda.synchronize()
