"""What a step of SUMNAS holds in memory: one path a few times, never a copy of the supernet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sumnas import seeding
from sumnas.data import Batch
from sumnas.methods import sumnas as module
from sumnas.methods.base import Rounds
from sumnas.methods.sumnas import SUMNAS, Settings
from sumnas.spaces.base import Architecture, Supernet
from tests.meter import Meter
from tests.steps import SEED, TOTAL, name_of, rounds_for, supernet


def size_of(parameters: Sequence[Tensor]) -> int:
    return sum(p.nbytes for p in parameters)


class Wide(Supernet):
    """Many large operators, of which a path holds few."""

    def __init__(self, layers: int, candidates: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(candidates)) for _ in range(layers)
        )
        self.head = nn.Linear(width, 3)
        self.choices = [[list(operator.parameters()) for operator in layer] for layer in self.layers]  # type: ignore[union-attr]
        self.shared = list(self.head.parameters())

    def forward(self, x: Tensor, architecture: Architecture) -> Tensor:
        for layer, operator in zip(self.layers, architecture, strict=True):
            x = x + torch.tanh(layer[operator](x))  # type: ignore[index]
        logits: Tensor = self.head(x)
        return logits


def bare_peak(network: Supernet, path: Architecture, batch: Batch) -> int:
    with Meter() as meter:
        loss = F.cross_entropy(network(batch[0], path), batch[1])
        torch.autograd.grad(loss, network.path_choices(path) + network.shared, allow_unused=True)
    return meter.peak


def step_peak(method: SUMNAS, given: Rounds) -> int:
    with Meter() as meter:
        method.step(given)
    return meter.peak


LATIN = [tuple((i + layer) % 5 for layer in range(6)) for i in range(5)]


@pytest.mark.parametrize("k", [1, 2, 4])
def test_a_step_holds_a_path_three_times_and_the_shared_parameters_twice(
    k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "strictly_fair_paths", lambda *_: LATIN)
    network = supernet(torch.float32, channels=16)
    method = SUMNAS(network, Settings(strategy="sumnas", adaptation_steps=k), TOTAL, SEED)
    given = rounds_for(method, 0, torch.float32)
    images, labels = given[0][0]
    given = [[(images[:2], labels[:2])] * k]  # small images and few: the weights are what fills the memory
    # A bare pass holds the path's gradients; theta and the momentum come on top, and the shared parameters' sum.
    extra = step_peak(method, given) - max(bare_peak(network, path, given[0][0]) for path in LATIN)
    path = max(size_of(network.path_choices(path) + network.shared) for path in LATIN)
    assert extra > path  # the meter saw the copy of theta
    assert extra <= 2 * path + 2 * size_of(network.shared) + 4096


@pytest.mark.parametrize("changes", [{}, {"momentum_buffer": "carry"}, {"weight_decay": 0.0}], ids=name_of)
def test_a_step_does_not_copy_the_supernet(changes: dict[str, Any]) -> None:
    layers, candidates, width = 4, 12, 64
    with seeding.scoped(SEED, "wide"):
        network = Wide(layers, candidates, width)
    method = SUMNAS(network, Settings(strategy="sumnas", adaptation_steps=2, **changes), TOTAL, SEED)
    batch = (torch.randn(4, width, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 1, 2, 0]))
    given = [[batch, batch]]
    method.step(given)  # the carried buffers are state, as large as the supernet: they are made here
    path = (0,) * layers
    peak = step_peak(method, given)
    bare = bare_peak(network, path, batch)
    supernet_bytes = size_of(list(network.parameters()))
    path_bytes = size_of(network.path_choices(path) + network.shared)
    assert peak > bare  # the meter saw the copy of the path
    assert peak - bare <= 2 * path_bytes + 2 * size_of(network.shared) + 4096
    assert peak < 0.5 * supernet_bytes


def test_the_meter_counts_what_lives() -> None:
    with Meter() as meter:
        kept = torch.zeros(1000)
        for _ in range(3):
            torch.ones(500).add_(1).view(10, 50)
        meter_live = meter.live
    assert meter_live == kept.nbytes == 4000
    assert meter.peak == 6000
