"""How supernets begin, against the variances that the source of the scheme asks for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sumnas import seeding
from sumnas.augmentation import Augmentation
from sumnas.initialisation import Initialisation, initialise
from sumnas.spaces import nasbench201
from sumnas.training import SupernetSettings


def network(how: Initialisation, *, affine: bool = True, seed: int = 1) -> nn.Module:
    settings = nasbench201.Settings(
        name="nasbench201", channels=16, cells=1, image_size=8, image_channels=3, classes=10, affine=affine
    )
    with seeding.scoped(seed, "supernet"):
        supernet = nasbench201.build(settings).supernet()
        initialise(supernet, how)
    return supernet


def state(of: nn.Module) -> dict[str, Tensor]:
    return dict(of.named_parameters())


def test_kaiming_has_the_variances_of_its_source() -> None:
    layers = list(network("kaiming", affine=False).modules())
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) > 40
    for layer in convolutions:
        wanted = 2 / (layer.out_channels * math.prod(layer.kernel_size))  # He et al. 2015, eq. 14
        count = layer.weight.numel()
        # The sum of squares over the variance is chi-squared with `count` degrees: six standard deviations of room.
        assert abs(layer.weight.square().mean().item() / wanted - 1) < 6 * math.sqrt(2 / count)
        assert layer.bias is None or not layer.bias.any()
    (classifier,) = (layer for layer in layers if isinstance(layer, nn.Linear))
    assert classifier.weight.std().item() == pytest.approx(0.01, rel=0.2) and not classifier.bias.any()


def test_normalisation_layers_begin_as_ever() -> None:
    layers = [layer for layer in network("kaiming").modules() if isinstance(layer, nn.BatchNorm2d)]
    assert layers and all(bool((layer.weight == 1).all()) and not layer.bias.any() for layer in layers)


def test_the_default_is_torchs_and_each_is_drawn_from_its_seed() -> None:
    plain = nasbench201.Settings(name="nasbench201", channels=16, cells=1, image_size=8, image_channels=3, classes=10)
    with seeding.scoped(1, "supernet"):
        untouched = state(nasbench201.build(plain).supernet())
    default, kaiming = state(network("default")), state(network("kaiming"))
    assert all(torch.equal(default[name], untouched[name]) for name in untouched)
    again, other = state(network("kaiming")), state(network("kaiming", seed=2))
    weights = [name for name in kaiming if kaiming[name].dim() > 1]
    assert all(torch.equal(kaiming[name], again[name]) for name in kaiming)
    assert not any(torch.equal(kaiming[n], default[n]) or torch.equal(kaiming[n], other[n]) for n in weights)


def test_a_digest_is_that_of_before_unless_another_one_is_named() -> None:
    least = {"epochs": 1, "batch_size": 2, "augmentation": Augmentation()}
    assert "initialisation" not in SupernetSettings(**least).model_dump()
    assert SupernetSettings(**least, initialisation="kaiming").model_dump()["initialisation"] == "kaiming"
