"""Cream: paths learn from the best matching teacher on a board of prioritized paths (Peng et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from sumnas import seeding
from sumnas.data import Batch
from sumnas.methods.base import GradientMethod, GradientSettings, Rounds, filled
from sumnas.spaces.base import Architecture, Supernet


class Settings(GradientSettings):
    """A block of `methods` with `strategy: cream`. Rates are those of SPOS, the rest is of the authors' experiments."""

    strategy: Literal["cream"]
    warmup: float = Field(1 / 6, ge=0, lt=1, description="share of the training before the board opens: 20/120 epochs")
    board: int = Field(10, ge=1, description="prioritized paths")
    margin: float = Field(5.0, ge=0, description="points of accuracy that a path with more MACs has to be better by")
    stored: int = Field(4, ge=1, description="images that are kept with each path, for matching")
    sampling: Literal["board", "uniform"] = Field(
        "board", description="operators are drawn by how often the board has them, or all are equally likely"
    )
    matching_every: int = Field(200, ge=1, description="steps between two updates of the matching layer")
    matching_learning_rate: float = Field(1e-4, gt=0, description="of plain SGD")
    matching_clip_norm: float = Field(1.0, gt=0, description="largest gradient norm of an update of the matching layer")


@dataclass
class Member:
    """A `path` on the board, with its `macs` (millions) and what it had when it entered.

    That is its training `accuracy` (percent) on a batch, the first `images` [stored, C, H, W] of that batch, and its
    `softmax` [stored, classes] on them.
    """

    path: Architecture
    accuracy: float
    macs: float
    images: Tensor
    softmax: Tensor


class Cream(GradientMethod):
    """One path, one batch, one SGD step; after the warm-up a teacher path adds its softmax to the loss.

    A step's further cost is without gradient and not in `passes_per_step`: the teacher's forward pass, and the
    path's on all stored images.
    """

    settings: Settings
    """The block of `methods` that it was made with."""

    def __init__(self, supernet: Supernet, settings: Settings, total_steps: int, seed: int) -> None:
        super().__init__(supernet, settings, total_steps, seed)
        self.seed = seed
        self.board: list[Member] = []
        self.matching: nn.Linear | None = None  # made by the first member, which knows the number of classes

    def step(self, batches: Rounds, heldout: Sequence[Batch] = ()) -> Mapping[str, Tensor | float]:
        """Take one SGD step, then see whether the path joins the board; report CE, KD, rho and the rate."""
        rate = self.set_rate()
        ((images, labels),) = batches[0]
        path = self.sample()
        if self.board and self.done_steps % self.settings.matching_every == 0:
            self.improve_matching(images, labels, path, rate)
        logits = self.supernet(images, path)
        loss = F.cross_entropy(logits, labels)
        rho = kd = torch.zeros_like(loss)
        total = loss
        if self.board:
            with torch.no_grad():
                teacher, rho = self.match(path)
            kd = self._distillation(logits, images, teacher)
            total = (rho * kd + (2 - rho) * loss) / 2
        total.backward()  # type: ignore[no-untyped-call]
        self.passes = [(path, total.detach())]
        self.descend([path])
        last = self.done_steps + 1 == self.total_steps  # of a training so short that the warm-up leaves no step
        if self.progress >= self.settings.warmup or last:
            self._offer(path, images, labels, logits.detach())
        self.done_steps += 1
        return {"loss": loss.detach(), "learning_rate": rate, "distillation": kd.detach(), "rho": rho}

    def probabilities(self) -> NDArray[np.float64]:
        """Return [operators] probabilities, summing to 1.

        In proportion to how often the board has each over all layers, plus one so that none dies out; uniform unless
        `sampling` is `board`.
        """
        counts = np.ones(self.candidates)
        if self.settings.sampling == "board":
            counts += np.bincount([o for member in self.board for o in member.path], minlength=self.candidates)
        return np.asarray(counts / counts.sum(), dtype=np.float64)

    def sample(self) -> Architecture:
        """Draw a path, every layer's operator by `probabilities`."""
        return tuple(self.rng.choice(self.candidates, size=self.layers, p=self.probabilities()).tolist())

    def match(self, path: Architecture) -> tuple[Architecture, Tensor]:
        """Return the board's path with the largest score as a teacher of this one, and rho, the sigmoid of its score.

        rho is a scalar tensor that carries the matching layer's gradient.
        Scores are the matching layer's of the difference of two softmaxes on the member's images: this path's now,
        and the member's own when it entered.
        """
        assert self.matching is not None
        with torch.no_grad():
            softmax = self.supernet(torch.cat([member.images for member in self.board]), path).softmax(1)
            before = torch.cat([member.softmax for member in self.board])
        scores = self.matching((softmax - before).view(len(self.board), -1))[:, 0]
        best = int(scores.detach().argmax())
        return self.board[best].path, scores[best].sigmoid()

    def _distillation(self, logits: Tensor, images: Tensor, teacher: Architecture) -> Tensor:
        """Cross entropy with the teacher's softmax on the same images for labels."""
        with torch.no_grad():
            softmax = self.supernet(images, teacher).softmax(1)
        return F.cross_entropy(logits, softmax)

    def _offer(self, path: Architecture, images: Tensor, labels: Tensor, logits: Tensor) -> None:
        """Let a path that is not on the board join it if there is room, or in place of the least accurate one."""
        settings = self.settings
        if any(member.path == path for member in self.board):
            return
        accuracy = 100 * float((logits.argmax(1) == labels).float().mean())
        macs, place = self.supernet.macs(path), len(self.board)
        if place == settings.board:
            place = int(np.argmin([member.accuracy for member in self.board]))
            worst = self.board[place]
            better = accuracy > worst.accuracy and macs < worst.macs
            if not better and accuracy <= worst.accuracy + settings.margin:
                return
        kept = settings.stored
        member = Member(path, accuracy, macs, images[:kept].clone(), logits[:kept].softmax(1))
        self.board[place : place + 1] = [member]
        if self.matching is None:
            self._make_matching(member.softmax.numel(), member.softmax)

    def _make_matching(self, features: int, like: Tensor) -> nn.Linear:
        with seeding.scoped(self.seed, "matching"):
            self.matching = nn.Linear(features, 1).to(like.device, like.dtype)
        return self.matching

    def improve_matching(self, images: Tensor, labels: Tensor, path: Architecture, rate: float) -> Tensor:
        """Move the matching layer to lower the loss of half the batch after a virtual step on the other half.

        Images are [N, C, H, W], labels [N], N at least 2.
        The step is SGD's at the present rate, without momentum or decay: w' = w - rate (rho g_KD + (2 - rho) g_CE)/2.
        It is linear in rho, and only rho depends on the layer, so the loss's derivative by rho is exactly
        -rate <dL/dw', (g_KD - g_CE)/2>. The weights are put back. Returns the loss, a scalar.
        """
        assert self.matching is not None
        half, parameters = len(images) // 2, self.supernet.path_choices(path) + self.supernet.shared
        weights = [p.detach() for p in parameters]
        teacher, rho = self.match(path)
        logits = self.supernet(images[:half], path)
        kd = self._distillation(logits, images[:half], teacher)
        ce = F.cross_entropy(logits, labels[:half])
        g_kd = filled(torch.autograd.grad(kd, parameters, retain_graph=True, allow_unused=True), weights)
        g_ce = filled(torch.autograd.grad(ce, parameters, allow_unused=True), weights)
        theta = [p.clone() for p in weights]
        with torch.no_grad():
            for w, a, b in zip(weights, g_kd, g_ce, strict=True):
                w.sub_(rate / 2 * (rho * a + (2 - rho) * b))
        loss = F.cross_entropy(self.supernet(images[half:], path), labels[half:])
        g_next = filled(torch.autograd.grad(loss, parameters, allow_unused=True), weights)
        torch._foreach_copy_(weights, theta)
        products = [(g * (a - b)).sum() for g, a, b in zip(g_next, g_kd, g_ce, strict=True)]
        slope = -rate / 2 * torch.stack(products).sum()
        layer = list(self.matching.parameters())
        gradients = torch.autograd.grad(rho, layer, slope)
        norm = nn.utils.get_total_norm(gradients)
        scale = self.settings.matching_learning_rate * (self.settings.matching_clip_norm / (norm + 1e-6)).clamp(max=1.0)
        with torch.no_grad():
            for p, g in zip(layer, gradients, strict=True):
                p.sub_(scale * g)
        return loss.detach()

    def end_epoch(self, heldout: Iterable[Batch] = ()) -> Mapping[str, float]:
        """Report the board's size, and the mean accuracy and MACs of its paths."""
        means = [float(np.mean([getattr(m, key) for m in self.board])) if self.board else 0.0
                 for key in ("accuracy", "macs")]  # fmt: skip
        return {"board": float(len(self.board)), "board_accuracy": means[0], "board_macs": means[1]}

    def architecture(self) -> Architecture | None:
        """Return the most accurate path on the board, of equals the one with fewest MACs."""
        return min(self.board, key=lambda m: (-m.accuracy, m.macs)).path if self.board else None

    def state_dict(self) -> dict[str, Any]:
        """Add the board and the matching layer."""
        matching = self.matching.state_dict() if self.matching is not None else None
        return {**super().state_dict(), "board": [dict(vars(member)) for member in self.board], "matching": matching}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put the board and the matching layer back."""
        super().load_state_dict(state)
        device = self.supernet.shared[0].device
        self.board = [
            Member(tuple(m["path"]), m["accuracy"], m["macs"], m["images"].to(device), m["softmax"].to(device))
            for m in state["board"]
        ]
        self.matching = None
        if (weights := state["matching"]) is not None:
            self._make_matching(weights["weight"].shape[1], self.board[0].softmax).load_state_dict(weights)


METHOD = Cream
"""The method of `strategy: cream`, by the name that every strategy's module has for its own."""
