"""Sub-models recalibrated and scored m at a time: a strictly fair set of them as one graph (paper sec. 4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sumnas.batchnorm import norms
from sumnas.data import in_batches
from sumnas.errors import UserError
from sumnas.evaluation import Predictor, Score
from sumnas.exhaustive import orbit
from sumnas.lockstep.capture import Captured
from sumnas.lockstep.rounds import FairRound, channels_last, function, indices
from sumnas.spaces.base import Architecture, Space, Supernet

LEAST = 2
"""Wanted architectures of an orbit from which on it is scored as a whole; fewer are scored one by one."""


class TrackedRound(FairRound):
    """A round whose modules have running statistics: of those that run on every path, a version per path.

    `several` holds these by the shared module's name, [m, ...] by the buffer's; a module seen for the first time gets
    an entry. What all paths read alike (`first`) has the same statistics on all, and keeps one version.
    """

    def __init__(
        self, network: Supernet, index: Tensor, weights: Mapping[str, Tensor], several: dict[str, dict[str, Tensor]]
    ) -> None:
        super().__init__(network, index, weights, False, index.shape[-1])
        self.several = several

    def shared(self, name: str, x: Tensor) -> Tensor:
        """Run the shared module called `name` on every path, each with its statistics: [m, N, ...] -> [m, N, ...]."""
        module = self.supernet.get_submodule(name)
        if name not in self.several:
            self.several[name] = {
                key: buffer.expand(self.candidates, *buffer.shape).clone()
                for key, buffer in module.named_buffers()
                if buffer.is_floating_point()  # the counter of batches serves nothing
            }
        return channels_last(torch.func.vmap(function(module, x.device.type))(self.several[name], x))


class JointNetwork:
    """The m sub-models of a strictly fair set at once, on a supernet's weights, with running statistics of their own.

    An operator's normalisation is on one path and has that path's statistics; modules on every path have m versions.
    UserError where the space has no lockstep form.
    """

    def __init__(self, space: Space, supernet: Supernet, images: Tensor) -> None:
        """Take some images [N, C, H, W] to find out what runs where; no statistics of them are kept."""
        if type(supernet).lockstep is Supernet.lockstep:
            raise UserError("search.engine = 'lockstep': this space has no lockstep form; set search.engine: auto")
        self.candidates = len(supernet.choices[0])
        self.network = space.tracked(supernet).to(supernet.shared[0].dtype)
        self.weights = dict(self.network.named_parameters())
        self.several: dict[str, dict[str, Tensor]] = {}
        self.means: list[Tensor] = []
        self.variances: list[Tensor] = []
        self.pixels = self._trace(images)

    @torch.no_grad()
    def __call__(self, index: Tensor, images: Tensor) -> Tensor:
        """Return the logits [m, N, classes]; `index` is that of `sumnas.lockstep.rounds.indices`."""
        return self.network.lockstep(images, TrackedRound(self.network, index, self.weights, self.several))

    def batch_statistics(self, index: Tensor, images: Tensor) -> list[Tensor]:
        """Return [2, V]: means and unbiased variances of what the normalisations receive, each V of all paths."""
        self.network.train()
        self(index, images)
        return [torch.stack([torch.cat([t.flatten() for t in of]) for of in (self.means, self.variances)])]

    @torch.no_grad()
    def recalibrate(self, batches: Sequence[Tensor], statistics_of: Callable[[Tensor], Tensor]) -> None:
        """Set all running statistics to the pooled ones over `batches` of images, as `sumnas.batchnorm.recalibrate`.

        `statistics_of` a batch is what `batch_statistics` gives for the paths, captured or not.
        """
        # Momentum 1 leaves nothing of the values before, but that 0 times infinity is none.
        torch._foreach_zero_(self.means + self.variances)
        count, mean, square = torch.zeros_like(self.pixels).expand(3, -1).clone()
        for images in batches:
            n = len(images) * self.pixels
            batch_mean, batch_variance = statistics_of(images).double()
            total, delta = count + n, batch_mean - mean
            mean = mean + delta * (n / total)
            square = square + (batch_variance * (n - 1) + delta.square() * (count * n / total))
            count = total
        sizes = [t.numel() for t in self.means]
        for tensors, flat in ((self.means, mean), (self.variances, square / count)):
            parts = torch.split(flat, sizes)
            torch._foreach_copy_(tensors, [part.view_as(t) for part, t in zip(parts, tensors, strict=True)])

    def _trace(self, images: Tensor) -> Tensor:
        """Run once to list the running statistics; return how many values of an image each is over, [V]."""
        layers, pixels = norms(self.network), dict[nn.Module, int]()

        def note(layer: nn.Module, inputs: tuple[Tensor, ...], _output: Any) -> None:
            pixels[layer] = inputs[0].shape[-2] * inputs[0].shape[-1]

        for layer in layers:
            layer.momentum = 1.0  # a training pass leaves its batch's own statistics
        handles = [layer.register_forward_hook(note) for layer in layers]
        try:
            self.network.train()
            first = (0,) * len(self.network.choices)
            self(indices(orbit(first, self.candidates)).to(images.device), images)
        finally:
            for handle in handles:
                handle.remove()
        held = {layer: (layer.running_mean, layer.running_var) for layer in layers if layer in pixels}
        for name, own in self.several.items():
            for key, module in self.network.get_submodule(name).named_modules():
                if isinstance(module, nn.BatchNorm2d):
                    head = f"{key}." if key else ""
                    held[module] = own[f"{head}running_mean"], own[f"{head}running_var"]
        counts = []
        for layer, (mean, variance) in held.items():
            assert mean is not None and variance is not None
            self.means.append(mean)
            self.variances.append(variance)
            counts.append(torch.full_like(mean, pixels[layer], dtype=torch.float64).flatten())
        return torch.cat(counts)


class OrbitPredictor:
    """Scores architectures of one orbit together, as a `Predictor` scores them one by one, up to rounding.

    All m of the orbit are computed, wanted or not; where few are wanted, these one by one. The host waits once, at
    the end of an orbit. On a GPU passes are captured graphs: one for each number of images that a batch has.
    UserError where the space has no lockstep form, or sub-models are to be fitted before they are scored.
    """

    def __init__(self, alone: Predictor) -> None:
        if alone.fit.batches:
            raise UserError(
                "search.engine = 'lockstep': sub-models are fitted one by one; set evaluation.adaptation_steps: 0, or "
                "search.engine: auto"
            )
        self.alone = alone
        self.joint = JointNetwork(alone.space, alone.supernet, alone.calibration[0][:2])
        self.device = alone.supernet.shared[0].device
        self.graphs: dict[tuple[str, int], Captured] = {}

    def __call__(self, wanted: Sequence[Architecture]) -> list[Score]:
        """Recalibrate and score the wanted architectures; ValueError where they are not of one orbit."""
        if len(wanted) < LEAST:
            return [self.alone(architecture) for architecture in wanted]
        paths = orbit(wanted[0], self.joint.candidates)
        places = [paths.index(architecture) for architecture in wanted]
        index = indices(paths).to(self.device)
        self.joint.recalibrate(
            self.alone.calibration, lambda x: self._graph("train", x, self.joint.batch_statistics)(index, x)[0]
        )
        count, total = 0, torch.zeros(2, len(paths), dtype=torch.float64, device=self.device)
        for x, y in in_batches(self.alone.split, self.alone.batch_size):
            total += self._graph("eval", x, self._answers)(index, x, y)[0]
            count += len(y)
        correct, losses = total.tolist()
        # Alone, a sub-model whose loss is not finite is an error that names it.
        return [
            Score(100.0 * int(correct[i]) / count, losses[i] / count)
            if math.isfinite(losses[i])
            else self.alone(architecture)
            for i, architecture in zip(places, wanted, strict=True)
        ]

    def _answers(self, index: Tensor, images: Tensor, labels: Tensor) -> list[Tensor]:
        """Return [2, m] float64: correct answers, and the sum of cross-entropies."""
        self.joint.network.eval()
        logits = self.joint(index, images)
        correct = (logits.argmax(2) == labels).sum(1)
        losses = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none")
        return [torch.stack([correct.double(), losses.view(len(logits), -1).sum(1).double()])]

    def _graph(self, mode: str, images: Tensor, function: Callable[..., list[Tensor]]) -> Captured:
        """Return the graph for as many images."""
        key = mode, len(images)
        if key not in self.graphs:
            self.graphs[key] = Captured(function, self.device)
        return self.graphs[key]
