"""Small networks and batches for the tests of the training methods, and a note of what they ran."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor, nn

from sumnas import seeding
from sumnas.data import Batch
from sumnas.spaces import nasbench201
from sumnas.spaces.base import Architecture, Supernet


def network(dtype: torch.dtype = torch.float64) -> nasbench201.Network:
    """A NAS-Bench-201 supernet of three cells with two to eight channels for images of 2x4x4."""
    settings = nasbench201.Settings(
        name="nasbench201", channels=2, cells=1, image_size=4, image_channels=2, classes=3
    )  # fmt: skip
    with seeding.scoped(3, "network"):
        return nasbench201.build(settings).supernet().to(dtype)


class Smooth(Supernet):
    """Vectors of four instead of images, tanh instead of ReLU: finite differences hold everywhere."""

    def __init__(self, layers: int = 3, candidates: int = 4) -> None:
        super().__init__()
        self.scales = nn.Parameter(torch.randn(1, 4, dtype=torch.float64))
        self.operators = nn.ParameterList(
            nn.Parameter(torch.randn(4, dtype=torch.float64)) for _ in range(layers * candidates)
        )
        self.head = nn.Linear(4, 3, dtype=torch.float64)
        self.choices = [[[self.operators[candidates * i + o]] for o in range(candidates)] for i in range(layers)]
        self.shared = [self.scales, *self.head.parameters()]

    def forward(self, x: Tensor, architecture: Architecture) -> Tensor:
        x = x * self.scales
        for layer, operator in enumerate(architecture):
            x = x + torch.tanh(x * self.choices[layer][operator][0])
        logits: Tensor = self.head(x)
        return logits

    def forward_mixture(self, x: Tensor, weights: Tensor, architecture: Architecture | None = None) -> Tensor:
        x = x * self.scales
        for layer, row in enumerate(weights):
            every = range(len(row)) if architecture is None else (architecture[layer],)
            x = x + sum(row[o] * torch.tanh(x * self.choices[layer][o][0]) for o in every)  # type: ignore[arg-type]
        logits: Tensor = self.head(x)
        return logits

    def macs(self, architecture: Architecture) -> float:
        return float(sum(architecture))


def smooth(layers: int = 3, candidates: int = 4) -> Smooth:
    with seeding.scoped(3, "smooth"):
        return Smooth(layers, candidates)


def batch(supernet: Supernet, number: int, size: int = 6) -> Batch:
    """One of many fixed batches that fit this network."""
    generator = torch.Generator().manual_seed(number)
    like = supernet.shared[0]
    shape = (size, 4) if isinstance(supernet, Smooth) else (size, 2, 4, 4)
    images = torch.randn(shape, generator=generator, dtype=like.dtype)
    return images, torch.randint(3, (size,), generator=generator)


def record(supernet: Supernet) -> list[Architecture]:
    """Let the supernet note every path it runs from now on."""
    ran: list[Architecture] = []
    run = getattr(supernet, _noted(supernet))

    def noting(x: Tensor, architecture: Architecture) -> Tensor:
        ran.append(architecture)
        logits: Tensor = run(x, architecture)
        return logits

    setattr(supernet, _noted(supernet), noting)
    return ran


def stop_recording(supernet: Supernet) -> None:
    delattr(supernet, _noted(supernet))


def _noted(supernet: Supernet) -> str:
    """What follows the part that paths may share, where a supernet has one and its `forward` calls it."""
    return "forward" if type(supernet).rest is Supernet.rest else "rest"


def assert_only_moves(supernet: Supernet, before: dict[str, Tensor], paths: list[Architecture]) -> None:
    """Every parameter of the paths has moved, and no other."""
    on_path = {id(p) for path in paths for p in supernet.path_choices(path) + supernet.shared}
    for name, p in supernet.named_parameters():
        assert torch.equal(p, before[name]) == (id(p) not in on_path), name


def weights(supernet: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter."""
    return {name: p.detach().clone() for name, p in supernet.named_parameters()}


def through_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def assert_same_bytes(one: nn.Module, other: nn.Module) -> None:
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name
