"""SPOS + NSAS: a novel set of architectures is trained along, so that it is not forgotten (Zhang et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from sumnas.data import Batch
from sumnas.methods.base import GradientMethod, GradientSettings, Rounds
from sumnas.paths import uniform_path
from sumnas.spaces.base import Architecture, Supernet


class Settings(GradientSettings):
    """A block of `methods` with `strategy: nsas`. Rates are those of SPOS, the rest is of the authors' experiments."""

    strategy: Literal["nsas"]
    members: int = Field(8, ge=1, description="M: architectures in the constraint set; a step costs 1 + M passes")
    weight: float = Field(0.5, ge=0, le=1, description="of the constraint set's mean loss; the path's has the rest")
    draws: int = Field(10, ge=1, description="random architectures of which the most novel joins a set not yet full")
    recent: int = Field(50, ge=1, description="latest paths, of which the most novel replaces a member")
    neighbours: int = Field(10, ge=1, description="k: nearest members over which a novelty is averaged")


class NSAS(GradientMethod):
    """One path and the whole constraint set on one batch, one SGD step. Only their parameters move."""

    settings: Settings
    """The block of `methods` that it was made with."""

    def __init__(self, supernet: Supernet, settings: Settings, total_steps: int, seed: int) -> None:
        super().__init__(supernet, settings, total_steps, seed)
        self.passes_per_step = 1 + settings.members  # fewer in the first M steps, while the set fills
        self.members: list[Architecture] = []
        self.recent: list[Architecture] = []

    def step(self, batches: Rounds, heldout: Sequence[Batch] = ()) -> Mapping[str, Tensor | float]:
        """Take one SGD step, then renew the set; report the losses of the path and of the set, and the rate."""
        rate = self.set_rate()
        ((images, labels),) = batches[0]
        path = uniform_path(self.layers, self.candidates, self.rng)
        share = self.settings.weight if self.members else 0.0
        # The stem runs once for all paths: forward, and backward from the sum of what they ask of it.
        common = self.supernet.common(images)
        leaf = common.detach().requires_grad_(common.requires_grad)
        loss = self._backward(leaf, labels, path, 1 - share)
        # Path by path, so that one graph at a time is in memory: the gradients add up in the parameters.
        others = [self._backward(leaf, labels, member, share / len(self.members)) for member in self.members]
        if leaf.grad is not None:
            common.backward(leaf.grad)  # type: ignore[no-untyped-call]
        self.passes = [(path, loss), *zip(self.members, others, strict=True)]
        self.descend([path, *self.members])
        self._renew(path)
        self.done_steps += 1
        constraint = torch.stack(others).mean() if others else torch.zeros_like(loss)
        return {"loss": loss, "learning_rate": rate, "constraint_loss": constraint}

    def _backward(self, common: Tensor, labels: Tensor, path: Architecture, weight: float) -> Tensor:
        loss = F.cross_entropy(self.supernet.rest(common, path), labels)
        (loss * weight).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _renew(self, path: Architecture) -> None:
        """Add a member while there is room, else replace the one most similar to `path`."""
        settings = self.settings
        self.recent = [*self.recent, path][-settings.recent :]
        if len(self.members) < settings.members:
            drawn = [uniform_path(self.layers, self.candidates, self.rng) for _ in range(settings.draws)]
            self.members.append(most_novel(drawn, self.members, settings.neighbours))
        else:
            nearest = int(distances([path], self.members)[0].argmin())
            rest = self.members[:nearest] + self.members[nearest + 1 :]
            self.members[nearest] = most_novel(self.recent, rest, settings.neighbours)

    def end_epoch(self, heldout: Iterable[Batch] = ()) -> Mapping[str, float]:
        """Report how different the members are: the mean of their novelties against the others."""
        novelties = [
            novelty([member], self.members[:i] + self.members[i + 1 :], self.settings.neighbours)[0]
            for i, member in enumerate(self.members)
        ]
        return {"novelty": float(np.mean(novelties)), "distinct_members": float(len(set(self.members)))}

    def state_dict(self) -> dict[str, Any]:
        """Add the constraint set and the latest paths."""
        return {**super().state_dict(), "members": list(self.members), "recent": list(self.recent)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put the constraint set and the latest paths back."""
        super().load_state_dict(state)
        self.members, self.recent = ([tuple(path) for path in state[key]] for key in ("members", "recent"))


def distances(paths: Sequence[Architecture], members: Sequence[Architecture]) -> NDArray[np.float64]:
    """Return [paths, members]: the share of the layers in which the two have different operators."""
    differ = np.asarray(paths)[:, None, :] != np.asarray(members)[None, :, :]
    return np.asarray(differ.mean(2), dtype=np.float64)


def novelty(paths: Sequence[Architecture], members: Sequence[Architecture], neighbours: int) -> NDArray[np.float64]:
    """Return [paths]: the mean distance to the nearest members, to all where there are fewer; 0 against none."""
    if not members:
        return np.zeros(len(paths))
    nearest = np.sort(distances(paths, members), axis=1)[:, :neighbours]
    return np.asarray(nearest.mean(1), dtype=np.float64)


def most_novel(paths: Sequence[Architecture], members: Sequence[Architecture], neighbours: int) -> Architecture:
    """Return the path with the largest novelty against the members, the first among equals."""
    return paths[int(novelty(paths, members, neighbours).argmax())]


METHOD = NSAS
"""The method of `strategy: nsas`, by the name that every strategy's module has for its own."""
