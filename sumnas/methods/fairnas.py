"""FairNAS: the summed gradients of a strictly fair round of m paths in one SGD step (Chu et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from sumnas.data import Batch
from sumnas.lockstep.descent import JointGradient
from sumnas.methods.base import Engine, GradientMethod, GradientSettings, Rounds
from sumnas.paths import strictly_fair_paths
from sumnas.sharing import mean_loss, shared_batch
from sumnas.spaces.base import Supernet


class Settings(GradientSettings):
    """A block of `methods` with `strategy: fairnas`. The defaults are what SUMNAS's table 1 uses (App. D)."""

    strategy: Literal["fairnas"]
    rounds: int = Field(1, ge=1, description="task batching: strictly fair rounds per step (ImageNet: 3)")
    round_reduction: Literal["mean", "sum"] = Field(
        "mean", description="over the rounds of a step; their gradients are averaged or summed"
    )


class FairNAS(GradientMethod):
    """Equal to SUMNAS with one adaptation step at learning rate outer x inner, where weight decay is 0."""

    settings: Settings
    """The block of `methods` that it was made with."""
    lockstep = True
    spreads = True

    def __init__(self, supernet: Supernet, settings: Settings, total_steps: int, seed: int) -> None:
        super().__init__(supernet, settings, total_steps, seed)
        self.joint: JointGradient | None = None
        self.rounds = settings.rounds
        self.passes_per_step = settings.rounds * self.candidates

    def use(self, engine: Literal[Engine, "auto"]) -> None:
        """Prepare the gradient of a whole round where that is asked for."""
        super().use(engine)
        self.joint = JointGradient(self.supernet) if self.engine == "lockstep" else None

    def step(self, batches: Rounds, heldout: Sequence[Batch] = ()) -> Mapping[str, Tensor | float]:
        """Take one SGD step over all m paths; report the mean loss and the rate."""
        rate = self.set_rate()
        # Zero, not None: under strict fairness every parameter is on a path, so every one decays.
        for parameter in self.supernet.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.optimizer.zero_grad(set_to_none=False)
        if self.joint is not None and self.untried:
            self.rehearse(partial(self.joint.rehearse, batches[0][0]))
        weight = 1 / len(batches) if self.settings.round_reduction == "mean" else 1.0
        self.passes = []
        others = self.supernet.shared[0].new_zeros(())  # the loss of other ranks' paths
        for turn, (batch,) in enumerate(batches):
            paths = strictly_fair_paths(self.layers, self.candidates, self.rng)
            if self.joint is not None:
                losses, gradients = self.joint(paths, batch)
                self.passes += zip(paths, losses.clone().unbind(), strict=True)
                torch._foreach_add_([p.grad for p in self.supernet.parameters()], gradients, alpha=weight)  # type: ignore[misc]
                continue
            images, labels = batch
            own = self.own(turn, paths)
            self.passes += [(path, others) for path in paths]
            if not own:
                continue
            with shared_batch(self.supernet, self.sharers, self.batch_size):
                # The stem runs once for all paths: forward, and backward from the sum of what they ask of it.
                common = self.supernet.common(images)
                leaf = common.detach().requires_grad_(common.requires_grad)
                for number in own:
                    logits = self.supernet.rest(leaf, paths[number])
                    loss = mean_loss(logits, labels, 0.0, self.sharers, self.batch_size)
                    (loss * weight).backward()  # type: ignore[no-untyped-call]
                    self.passes[turn * self.candidates + number] = (paths[number], loss.detach())
                if leaf.grad is not None:
                    common.backward(leaf.grad)  # type: ignore[no-untyped-call]
        self.gather([p.grad for p in self.supernet.parameters()])  # type: ignore[misc]
        self.optimizer.step()
        self.done_steps += 1
        return {"loss": self.mean_loss, "learning_rate": rate}


METHOD = FairNAS
"""The method of `strategy: fairnas`, by the name that every strategy's module has for its own."""
