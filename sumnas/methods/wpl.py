"""SPOS + WPL: a weight plasticity loss holds what other paths need of the weights (Benyahia et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sumnas.data import Batch
from sumnas.methods.base import GradientMethod, GradientSettings, Rounds, filled
from sumnas.paths import uniform_path
from sumnas.spaces.base import Supernet


class Settings(GradientSettings):
    """A block of `methods` with `strategy: wpl`. Rates are those of SPOS, the rest is of the authors' experiments."""

    strategy: Literal["wpl"]
    batches_per_path: int = Field(7, ge=1, description="SGD steps of one path before the Fisher estimate is renewed")
    alpha: float = Field(60.0, ge=0, description="weight of the plasticity loss")
    alpha_decay: float = Field(1.0, ge=0, description="what alpha loses per epoch, never below 0")
    alpha_epochs: int = Field(15, ge=0, description="epochs before alpha begins to fall")
    fisher_decay: float = Field(0.1, ge=0, lt=1, description="share of the old Fisher estimate in the new one")
    fisher_norm: float = Field(10.0, gt=0, description="largest norm of the Fisher estimate of one path")
    train_share: float = Field(0.9, gt=0, lt=1, description="of the training images; the rest is for the Fisher")


class WPL(GradientMethod):
    """A step is one path: SGD steps on `batches_per_path` batches, then a Fisher estimate on a held-out one.

    The loss is CE + alpha / 2 * sum of F (theta - anchor)^2 over the path's parameters. Anchors are where parameters
    were after the last path; only the path's have moved since, so only theirs have to be set anew.
    """

    settings: Settings
    """The block of `methods` that it was made with."""
    heldout = 1

    def __init__(self, supernet: Supernet, settings: Settings, total_steps: int, seed: int) -> None:
        super().__init__(supernet, settings, total_steps, seed)
        self.rounds = settings.batches_per_path
        self.passes_per_step = settings.batches_per_path + 1
        self.train_share = settings.train_share
        self.epochs_done = 0
        self.anchors = {id(p): p.detach().clone() for p in supernet.parameters()}
        self.fisher = {id(p): torch.zeros_like(p) for p in supernet.parameters()}

    @property
    def alpha(self) -> float:
        """The penalty's weight in the present epoch."""
        late = max(0, self.epochs_done + 1 - self.settings.alpha_epochs)
        return max(0.0, self.settings.alpha - self.settings.alpha_decay * late)

    def step(self, batches: Rounds, heldout: Sequence[Batch]) -> Mapping[str, Tensor | float]:
        """Train a fresh path, then renew its Fisher estimate; report means over its batches."""
        rate, alpha = self.set_rate(), self.alpha
        path = uniform_path(self.layers, self.candidates, self.rng)
        parameters = self.supernet.path_choices(path) + self.supernet.shared
        anchors, fisher = ([kept[id(p)] for p in parameters] for kept in (self.anchors, self.fisher))
        penalties = []
        self.passes = []
        for ((images, labels),) in batches:
            loss = F.cross_entropy(self.supernet(images, path), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            penalties.append(penalise(parameters, anchors, fisher, alpha))
            self.passes.append((path, loss.detach()))
            self.descend([path])
        images, labels = heldout[0]
        loss = F.cross_entropy(self.supernet(images, path), labels)
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        with torch.no_grad():
            norm = self._renew(fisher, filled(found, parameters))
            torch._foreach_copy_(anchors, [p.detach() for p in parameters])
        self.done_steps += 1
        return {
            "loss": self.mean_loss, "learning_rate": rate, "penalty": torch.stack(penalties).mean(),
            "fisher_norm": norm,
        }  # fmt: skip

    def _renew(self, fisher: list[Tensor], gradients: list[Tensor]) -> Tensor:
        """F <- decay F + (1 - decay) g^2, rescaled to a norm of at most `fisher_norm`; return the norm before that."""
        decay = self.settings.fisher_decay
        torch._foreach_mul_(fisher, decay)
        torch._foreach_addcmul_(fisher, gradients, gradients, value=1 - decay)
        norm = torch.nn.utils.get_total_norm(fisher)
        torch._foreach_mul_(fisher, (self.settings.fisher_norm / norm.clamp_min(1e-30)).clamp(max=1.0))
        return norm

    def end_epoch(self, heldout: Iterable[Batch] = ()) -> Mapping[str, float]:
        """Count the epochs, by which alpha falls."""
        figures = {"alpha": self.alpha}
        self.epochs_done += 1
        return figures

    def state_dict(self) -> dict[str, Any]:
        """Add anchors and Fisher estimates, by name of the parameter."""
        names = {id(p): name for name, p in self.supernet.named_parameters()}
        kept = {key: {names[i]: value for i, value in getattr(self, key).items()} for key in ("anchors", "fisher")}
        return {**super().state_dict(), "epochs_done": self.epochs_done, **kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put anchors, Fisher estimates and the number of epochs back."""
        super().load_state_dict(state)
        self.epochs_done = state["epochs_done"]
        with torch.no_grad():
            for name, parameter in self.supernet.named_parameters():
                self.anchors[id(parameter)].copy_(state["anchors"][name])
                self.fisher[id(parameter)].copy_(state["fisher"][name])


@torch.no_grad()
def penalise(
    parameters: Sequence[nn.Parameter], anchors: Sequence[Tensor], fisher: Sequence[Tensor], alpha: float
) -> Tensor:
    """Add the penalty's gradient, alpha F (theta - anchor), to the parameters' own; return the penalty, a scalar."""
    away = list(torch._foreach_sub(list(parameters), list(anchors)))
    pull = list(torch._foreach_mul(away, list(fisher)))
    torch._foreach_mul_(away, pull)
    for parameter, value in zip(parameters, pull, strict=True):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad.add_(value, alpha=alpha)
    return 0.5 * alpha * torch.stack([value.sum() for value in away]).sum()


METHOD = WPL
"""The method of `strategy: wpl`, by the name that every strategy's module has for its own."""
