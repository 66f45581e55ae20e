"""Lockstep on tensors that claim to be a GPU's: torch's own dispatch for CUDA, without its kernels.

What cuDNN and autocast do under vmap differs from the CPU in more than rounding: a batch normalisation that takes a
channels_last input alone raises under vmap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sumnas.lockstep.descent import JointLoss
from sumnas.lockstep.scoring import TrackedRound
from sumnas.spaces.base import Space, Supernet
from tests import cells, chains

pytestmark = pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this torch is built without CUDA")
IMAGES = 6
PLACE = torch.device("cuda:0")


@pytest.fixture(autouse=True)
def _fake() -> Iterator[None]:
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


@pytest.fixture(params=["cells", "chain"])
def space(request: pytest.FixtureRequest) -> Space:
    return cells.space(channels=4) if request.param == "cells" else chains.space()


def images(space: Space, dtype: torch.dtype) -> Tensor:
    """[N, C, H, W], channels_last."""
    s: Any = space.settings
    shape = (IMAGES, s.image_size, s.image_size, s.image_channels)
    return torch.empty(shape, device=PLACE, dtype=dtype).permute(0, 3, 1, 2)


def on_gpu(make: Callable[[], Supernet], dtype: torch.dtype) -> Any:
    """Made there, since fake tensors cannot be moved in place; weights of convolutions are channels_last."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with PLACE:
            network = make()
    finally:
        torch.set_default_dtype(before)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight = nn.Parameter(module.weight.detach().contiguous(memory_format=torch.channels_last))
    return network


def any_index(space: Space) -> Tensor:
    """[2, L, m]; what stands in it decides nothing here."""
    return torch.zeros(2, space.layers, len(space.candidates), dtype=torch.int64, device=PLACE)


@pytest.mark.parametrize("versions", [True, False], ids=["sumnas", "fairnas"])
@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, False), (torch.float64, False), (torch.float32, True)],
    ids=["float32", "float64", "bfloat16"],
)  # fmt: skip
def test_the_loss_of_a_round(space: Space, dtype: torch.dtype, autocast: bool, versions: bool) -> None:
    supernet = on_gpu(space.supernet, dtype).train()
    m = len(space.candidates)
    weights = dict(supernet.named_parameters())
    if versions:
        weights = {name: p.detach().expand(m, *p.shape).clone() for name, p in weights.items()}
    # As `Arithmetic.autocast` sets it; entering torch.autocast itself asks for a GPU.
    torch.set_autocast_enabled("cuda", autocast)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        labels = torch.zeros(IMAGES, dtype=torch.int64, device=PLACE)
        losses = JointLoss(supernet)(any_index(space), images(space, dtype), labels, weights, versions)
    finally:
        torch.set_autocast_enabled("cuda", False)
    assert losses.shape == (m,) and losses.device == PLACE


@pytest.mark.parametrize("train", [True, False], ids=["recalibration", "scores"])
def test_recalibration_and_scores_of_an_orbit(space: Space, train: bool) -> None:
    network = on_gpu(lambda: space.supernet(track=True), torch.float32).train(train)
    with torch.no_grad():
        joint = TrackedRound(network, any_index(space), dict(network.named_parameters()), {})
        logits = network.lockstep(images(space, torch.float32), joint)
    assert logits.shape[:2] == (len(space.candidates), IMAGES) and logits.device == PLACE
