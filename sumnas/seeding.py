"""Random streams, each derived from a seed and a name, so that no stream depends on how often another was used."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, *names: object) -> int:
    """Return a 63-bit seed for the stream called `names` under `seed`; equal inputs give equal seeds anywhere."""
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_stream(seed: int, *names: object) -> np.random.Generator:
    """Return a NumPy generator for the named stream."""
    return np.random.default_rng(derive(seed, *names))


def torch_stream(seed: int, *names: object, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a torch generator on `device` for the named stream."""
    import torch

    return torch.Generator(device).manual_seed(derive(seed, *names))


@contextlib.contextmanager
def scoped(seed: int, *names: object) -> Iterator[None]:
    """Run the body with torch's CPU stream set to the named stream, and put the old state back afterwards.

    For code that draws from the global stream and takes no generator, such as the initialisation of layers.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, *names))
        yield
