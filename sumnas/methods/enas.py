"""ENAS: a controller draws the paths that are trained, and learns from held-out accuracies (Pham et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sumnas import seeding
from sumnas.data import Batch
from sumnas.methods.base import GradientMethod, MethodSettings, Rounds
from sumnas.schedules import Schedule
from sumnas.spaces.base import Architecture, Supernet


class Settings(MethodSettings):
    """A block of `methods` with `strategy: enas`. NAS-Bench-201's values: 250 epochs, batches of 128."""

    strategy: Literal["enas"]
    learning_rate: float = Field(0.05, gt=0, description="of SGD on the weights, where the schedule begins")
    minimum_rate: float = Field(0.0005, ge=0, description="where the schedule ends")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD on the weights")
    nesterov: bool = Field(True, description="Nesterov's momentum for the weights")
    schedule: Schedule = Field(
        "cosine", description="of the weights' rate over the training; that of the controller is constant"
    )
    weight_decay: float = Field(2.5e-4, ge=0, description="of the weights")
    clip_norm: float | None = Field(5.0, gt=0, description="largest gradient norm of a step of the weights; null: any")
    train_share: float = Field(0.5, gt=0, lt=1, description="of the training images, for weights; the rest for rewards")
    controller_steps: int = Field(50, ge=1, description="of the controller after every epoch")
    controller_samples: int = Field(20, ge=1, description="paths of a controller's step, each on a batch of its own")
    controller_learning_rate: float = Field(1e-3, gt=0, description="of Adam")
    controller_betas: tuple[float, float] = Field((0.0, 0.999), description="of Adam")
    controller_eps: float = Field(1e-3, gt=0, description="of Adam")
    controller_clip_norm: float = Field(5.0, gt=0, description="largest gradient norm of a controller's step")
    hidden: int = Field(32, ge=1, description="units of each of the controller's two LSTM layers")
    temperature: float = Field(5.0, gt=0, description="of the controller's choices: higher is more even")
    tanh_constant: float = Field(2.5, gt=0, description="logits are this times tanh(output / temperature)")
    entropy_weight: float = Field(1e-4, ge=0, description="of a path's entropy in its reward")
    baseline_decay: float = Field(
        0.99, ge=0, le=1, description="share of the old baseline of the rewards in the new one"
    )
    choice: int = Field(100, ge=1, description="paths drawn at the end, of which the most accurate is the method's own")


class Controller(nn.Module):
    """Two LSTM layers over the choice layers: each operator is drawn knowing those before it."""

    def __init__(self, layers: int, settings: Settings, candidates: int) -> None:
        super().__init__()
        self.layers, self.settings = layers, settings
        self.start = nn.Parameter(torch.empty(settings.hidden).uniform_(-0.1, 0.1))
        self.embedding = nn.Embedding(candidates, settings.hidden)
        self.lstm = nn.LSTM(settings.hidden, settings.hidden, num_layers=2)
        self.head = nn.Linear(settings.hidden, candidates)

    def forward(
        self, count: int, generator: torch.Generator | None = None, given: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw `count` paths, or take those `given`: paths [count, layers], their log p [count], entropies [count].

        A path's entropy is the sum of those of the choices along it.
        """
        settings = self.settings
        x, state = self.start.expand(1, count, -1), None
        paths, log_p, entropies = [], [], []
        for layer in range(self.layers):
            out, state = self.lstm(x, state)
            logits = settings.tanh_constant * torch.tanh(self.head(out[0]) / settings.temperature)
            logarithms = logits.log_softmax(1)
            probabilities = logarithms.exp()
            if given is None:
                chosen = torch.multinomial(probabilities.detach(), 1, generator=generator)[:, 0]
            else:
                chosen = given[:, layer]
            paths.append(chosen)
            log_p.append(logarithms.gather(1, chosen[:, None])[:, 0])
            entropies.append(-(probabilities * logarithms).sum(1))
            x = self.embedding(chosen)[None]
        return torch.stack(paths, 1), torch.stack(log_p).sum(0), torch.stack(entropies).sum(0)


class ENAS(GradientMethod):
    """One drawn path per step, as in SPOS. After every epoch the controller takes its steps by REINFORCE.

    `passes_per_step` leaves out the controller's forward passes, `controller_steps` x `controller_samples` an epoch.
    """

    settings: Settings
    """The block of `methods` that it was made with."""

    def __init__(self, supernet: Supernet, settings: Settings, total_steps: int, seed: int) -> None:
        super().__init__(supernet, settings, total_steps, seed)
        self.train_share = settings.train_share
        self.heldout_between = settings.controller_steps * settings.controller_samples
        self.generator = seeding.torch_stream(seed, "controller draws")
        with seeding.scoped(seed, "controller"):
            self.controller = Controller(self.layers, settings, self.candidates)  # small: on the CPU, always
        self.controller_optimizer = torch.optim.Adam(
            self.controller.parameters(), settings.controller_learning_rate, settings.controller_betas,
            settings.controller_eps,
        )  # fmt: skip
        self.baseline: float | None = None
        self.chosen: Architecture | None = None

    def step(self, batches: Rounds, heldout: Sequence[Batch] = ()) -> Mapping[str, Tensor | float]:
        """Take one SGD step on a path of the controller's; report its loss and the rate."""
        rate = self.set_rate()
        ((images, labels),) = batches[0]
        path = self._draw(1)[0]
        loss = F.cross_entropy(self.supernet(images, path), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        self.passes = [(path, loss.detach())]
        self.descend([path])
        self.done_steps += 1
        return {"loss": loss.detach(), "learning_rate": rate}

    def end_epoch(self, heldout: Iterable[Batch] = ()) -> Mapping[str, float]:
        """Take the controller's steps; report its mean reward and entropy, and the baseline."""
        settings, stream = self.settings, iter(heldout)
        rewards, entropies = [], []
        for _ in range(settings.controller_steps):
            batches = [next(stream) for _ in range(settings.controller_samples)]
            paths, log_p, entropy = self.controller(len(batches), self.generator)
            pairs = zip(paths.tolist(), batches, strict=True)
            accuracies = torch.stack([self._accuracy(tuple(path), [batch]) for path, batch in pairs]).tolist()
            own = [a + settings.entropy_weight * e for a, e in zip(accuracies, entropy.tolist(), strict=True)]
            self.controller_optimizer.zero_grad()
            self.reinforce(log_p, own).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.controller.parameters(), settings.controller_clip_norm)
            self.controller_optimizer.step()
            rewards += own
            entropies += entropy.tolist()
        if self.done_steps >= self.total_steps:
            self._choose(batches)
        figures = {"reward": sum(rewards) / len(rewards), "controller_entropy": sum(entropies) / len(entropies)}
        return {**figures, "baseline": self.baseline or 0.0}

    def reinforce(self, log_p: Tensor, rewards: Sequence[float]) -> Tensor:
        """Return the loss whose gradient is REINFORCE's, minus the mean of log p x (reward - baseline).

        `log_p` [paths] are the drawn paths' log probabilities, rewards are fractions of 1 with their entropy's share.
        Each reward is measured against the baseline before it: that leaves the gradient's mean as it is.
        """
        advantages = []
        for reward in rewards:
            baseline = reward if self.baseline is None else self.baseline
            advantages.append(reward - baseline)
            self.baseline = baseline + (1 - self.settings.baseline_decay) * (reward - baseline)
        return -(log_p * torch.tensor(advantages)).mean()

    @torch.no_grad()
    def _draw(self, count: int) -> list[Architecture]:
        paths, _, _ = self.controller(count, self.generator)
        return [tuple(path) for path in paths.tolist()]

    @torch.no_grad()
    def _accuracy(self, path: Architecture, batches: Sequence[Batch]) -> Tensor:
        """Return the share of right answers (a scalar), normalised by each batch as in training."""
        right = [(self.supernet(images, path).argmax(1) == labels).float().mean() for images, labels in batches]
        return torch.stack(right).mean()

    def _choose(self, batches: Sequence[Batch]) -> None:
        """Choose among drawn paths by their accuracy on the controller's last batches, the first among equals."""
        paths = list(dict.fromkeys(self._draw(self.settings.choice)))
        accuracies = torch.stack([self._accuracy(path, batches) for path in paths])
        self.chosen = paths[int(accuracies.argmax())]

    def architecture(self) -> Architecture | None:
        """Return the best of the paths drawn after the last epoch; None before."""
        return self.chosen

    def state_dict(self) -> dict[str, Any]:
        """Add the controller, its optimiser, its draws and the baseline."""
        return {
            **super().state_dict(), "controller": self.controller.state_dict(),
            "controller_optimizer": self.controller_optimizer.state_dict(), "baseline": self.baseline,
            "draws": self.generator.get_state(), "chosen": self.chosen,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put the controller, its optimiser, its draws, the baseline and the chosen path back."""
        super().load_state_dict(state)
        self.controller.load_state_dict(state["controller"])
        self.controller_optimizer.load_state_dict(state["controller_optimizer"])
        self.generator.set_state(state["draws"])
        self.baseline, self.chosen = state["baseline"], state["chosen"] and tuple(state["chosen"])


METHOD = ENAS
"""The method of `strategy: enas`, by the name that every strategy's module has for its own."""
