"""SPOS: one uniformly drawn path per step (Guo et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from sumnas.data import Batch
from sumnas.methods.base import GradientMethod, GradientSettings, Rounds
from sumnas.paths import uniform_path


class Settings(GradientSettings):
    """A block of `methods` with `strategy: spos`. The defaults are what SUMNAS's table 1 uses (App. D)."""

    strategy: Literal["spos"]


class SPOS(GradientMethod):
    """One path, one batch, one SGD step. Only the path's parameters move."""

    settings: Settings
    """The block of `methods` that it was made with."""

    def step(self, batches: Rounds, heldout: Sequence[Batch] = ()) -> Mapping[str, Tensor | float]:
        """Take one SGD step on a fresh path; report its loss and the rate."""
        rate = self.set_rate()
        ((images, labels),) = batches[0]
        path = uniform_path(self.layers, self.candidates, self.rng)
        loss = F.cross_entropy(self.supernet(images, path), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.passes = [(path, loss.detach())]
        self.descend([path])
        self.done_steps += 1
        return {"loss": loss.detach(), "learning_rate": rate}


METHOD = SPOS
"""The method of `strategy: spos`, by the name that every strategy's module has for its own."""
