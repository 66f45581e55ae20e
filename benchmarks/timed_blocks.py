"""What the sides of a comparison of training speeds share: blocks of steps, timed when the driver asks for them.

Runs in NNI's environment too: nothing here but torch and the standard library.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Path = tuple[int, ...]
"""One operator per edge, both in the order of NAS-Bench-201's strings."""
CLASSES = 10
BATCHES = 64
"""Batches of images in memory, which a side goes round in."""
CHECKED: list[Path] = [(3, 3, 3, 3, 3, 3), (0, 2, 4, 1, 3, 2), (3, 0, 1, 2, 4, 0), (2, 3, 4, 4, 0, 1)]
"""Sub-models on which the two networks must agree: all operators, an empty node, an edge that leads nowhere."""


class Blocks:
    """A side's end of the talk with the driver: one JSON object per line, an order in, what it took out.

    The clock of a block starts when the order is read and stops when its last step is done, so that whatever the
    training loop does between two steps is counted.
    """

    def __init__(self) -> None:
        # The libraries print as they please: standard output becomes standard error for them.
        self._replies = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._left = 0
        self._ran: list[Path] = []
        self._paths: list[Path] = []

    def ready(self, **facts: Any) -> None:
        """Say what this side is, and wait for the first order."""
        self._reply(facts)
        self._next()

    def path(self) -> Path:
        """Return the path that the driver wants in this step."""
        return self._paths[len(self._ran)]

    def done(self, path: Path) -> None:
        """Note a step; after the last one of a block answer, and wait for the next order."""
        self._ran.append(path)
        self._left -= 1
        if self._left == 0:
            wall, processor = time.perf_counter() - self._wall, time.process_time() - self._processor
            self._reply({"wall": wall, "processor": processor, "paths": self._ran})
            self._next()

    def _reply(self, message: dict[str, Any]) -> None:
        self._replies.write(json.dumps(message) + "\n")
        self._replies.flush()

    def _next(self) -> None:
        line = sys.stdin.readline()
        if not line:  # the driver is done; from inside a training loop this is the short way out
            os._exit(0)
        order = json.loads(line)
        self._left, self._ran, self._paths = order["steps"], [], [tuple(path) for path in order.get("paths", [])]
        self._wall, self._processor = time.perf_counter(), time.process_time()


def logits(network: nn.Module, image_size: int, run: Callable[[nn.Module, Tensor, Path], Tensor]) -> list[Any]:
    """Return what a copy of the network gives with fixed weights and images: the same on both sides, or they differ."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        images = torch.randn((8, 3, image_size, image_size), generator=generator)
        return [run(network, images, path)[:2].tolist() for path in CHECKED]
