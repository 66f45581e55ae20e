"""Recalibration against statistics pooled in float64 from what each normalisation really received."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sumnas import seeding
from sumnas.batchnorm import CalibrationSettings, get_statistics, norms, recalibrate, set_statistics
from sumnas.data import Prepared
from sumnas.errors import UserError
from sumnas.evaluation import EvaluationSettings, Predictor, calibration_batches
from sumnas.spaces import nasbench201
from sumnas.spaces.base import Architecture, Supernet
from sumnas.spaces.nasbench201 import NASBench201

A: Architecture = (3, 2, 1, 4, 3, 2)
B: Architecture = (1, 3, 4, 2, 0, 3)
UNREACHED: Architecture = (3, 3, 2, 1, 0, 0)  # edges 0, 1 and 2 lead to nodes that lead nowhere


def supernet_of(space: NASBench201) -> Supernet:
    with seeding.scoped(2, "test"):
        supernet = space.supernet()
        with torch.no_grad():
            for parameter in supernet.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return supernet


def random_batches(sizes: Sequence[int], seed: int = 0) -> list[Tensor]:
    """Batches whose means differ a lot, so that means of means and of variances are far off."""
    generator = torch.Generator().manual_seed(seed)
    noise = (torch.randn(size, 1, 8, 8, generator=generator) for size in sizes)
    return [(1 + i) * images + 3.0 * i for i, images in enumerate(noise)]


def pooled(network: nn.Module, batches: Sequence[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Collect each BN's inputs in a copy that trains, all batches; return mean and population variance."""
    network = copy.deepcopy(network).train()
    received: dict[str, list[Tensor]] = defaultdict(list)

    def hook(name: str) -> Any:
        def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            received[name].append(inputs[0].double().transpose(0, 1).flatten(1))

        return keep

    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(hook(name))
    with torch.no_grad():
        for images in batches:
            network(images)
    values = {name: torch.cat(chunks, 1) for name, chunks in received.items()}
    return {name: (value.mean(1), value.var(1, unbiased=False)) for name, value in values.items()}


def bytes_of(network: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(24,), (8, 8, 8), (7, 1, 13, 3)], ids=str)
def test_statistics_are_pooled_over_all_inputs(
    tiny_space: NASBench201, sizes: Sequence[int], dtype: torch.dtype
) -> None:
    network = tiny_space.extract(supernet_of(tiny_space), A).to(dtype)
    batches = [images.to(dtype) for images in random_batches(sizes)]
    expected = pooled(network, batches)
    recalibrate(network, batches)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-12
    found = {name: m for name, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert found.keys() == expected.keys() and len(found) > 15
    for name, layer in found.items():
        assert layer.running_mean is not None and layer.running_var is not None
        mean, variance = expected[name]
        torch.testing.assert_close(layer.running_mean.double(), mean, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(layer.running_var.double(), variance, rtol=tolerance, atol=tolerance)
    assert not network.training


def test_large_means_do_not_cancel() -> None:
    """float32 sums of squares would lose the variance at this mean."""
    layer = nn.Sequential(nn.BatchNorm2d(2))
    generator = torch.Generator().manual_seed(0)
    batches = [1000 + 0.1 * torch.randn(9, 2, 5, 5, generator=generator) + 0.5 * i for i in range(4)]
    everything = torch.cat(batches).double().transpose(0, 1).flatten(1)
    recalibrate(layer, batches)
    statistics = get_statistics(layer).double()
    torch.testing.assert_close(statistics[0], everything.mean(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(statistics[1], everything.var(1, unbiased=False), rtol=1e-3, atol=0)


def test_a_recalibrated_network_normalises_by_the_pooled_statistics() -> None:
    """On the calibration images themselves a lone BN gives mean 0 and variance 1."""
    layer = nn.Sequential(nn.BatchNorm2d(3, affine=False))
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(size, 3, 4, 4, generator=generator) * size + size for size in (5, 2, 9)]
    recalibrate(layer, batches)
    out = torch.cat([layer(images) for images in batches]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(out.mean(1), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(out.var(1, unbiased=False), torch.ones(3), rtol=0, atol=1e-4)


def test_nothing_leaks_from_one_sub_model_to_the_next(tiny_space: NASBench201) -> None:
    supernet, batches = supernet_of(tiny_space), random_batches((9, 6))
    before = bytes_of(supernet)

    def statistics(architecture: Architecture) -> Tensor:
        network = tiny_space.extract(supernet, architecture)
        recalibrate(network, batches)
        return get_statistics(network)

    alone = statistics(B)
    first = statistics(A)
    assert torch.equal(statistics(B), alone)
    assert torch.equal(statistics(A), first)
    assert bytes_of(supernet) == before


def test_a_network_forgets_earlier_statistics(tiny_space: NASBench201) -> None:
    supernet = supernet_of(tiny_space)
    fresh, used = (tiny_space.extract(supernet, A) for _ in range(2))
    recalibrate(used, random_batches((30,), seed=5))
    first = get_statistics(used)
    for network in (fresh, used):
        recalibrate(network, random_batches((9, 6)))
    assert bytes_of(fresh) == bytes_of(used)
    assert not torch.equal(get_statistics(used), first)
    recalibrate(used, random_batches((30,), seed=5))
    assert torch.equal(get_statistics(used), first)


def test_the_predictor_keeps_sub_models_apart(tiny_space: NASBench201, digits: Prepared) -> None:
    supernet = supernet_of(tiny_space)
    calibration = CalibrationSettings(images=60, batch_size=30)
    evaluation = EvaluationSettings(split="validation", batch_size=400)
    settings = (calibration, evaluation)
    before = bytes_of(supernet)
    alone = {a: Predictor(tiny_space, supernet, digits, *settings)(a) for a in (A, B)}
    together = Predictor(tiny_space, supernet, digits, *settings)
    assert [together(a) for a in (A, B, A, B, B)] == [alone[a] for a in (A, B, A, B, B)]
    assert bytes_of(supernet) == before


def test_a_normalisation_that_no_input_reaches_keeps_zero_and_one(tiny_space: NASBench201) -> None:
    network = tiny_space.extract(supernet_of(tiny_space), UNREACHED)
    set_statistics(network, torch.full_like(get_statistics(network), 7.0))  # nothing of it may stay
    batches = random_batches((9, 6))
    reached = pooled(network, batches)
    recalibrate(network, batches)
    unreached = 0
    for name, layer in network.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            untouched = not layer.running_mean.any() and bool((layer.running_var == 1).all())
            assert untouched == (name not in reached), name
            unreached += untouched
    assert unreached == 3 * 3  # three edges of three cells


def test_recalibration_without_images_gives_zero_and_one(tiny_space: NASBench201) -> None:
    network = tiny_space.extract(supernet_of(tiny_space), A)
    recalibrate(network, [])
    statistics = get_statistics(network)
    assert not statistics[0].any() and (statistics[1] == 1).all()


def test_a_single_value_per_channel_is_refused() -> None:
    space = nasbench201.build(
        nasbench201.Settings(
            name="nasbench201", channels=2, cells=1, image_size=4, image_channels=1, classes=3, affine=True
        )
    )
    with seeding.scoped(0, "test"):
        network = space.network(A)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        recalibrate(network, [torch.zeros(1, 1, 4, 4)])


def test_hooks_and_momenta_are_put_back_also_after_an_error(tiny_space: NASBench201) -> None:
    network = tiny_space.extract(supernet_of(tiny_space), A)
    layers = norms(network)
    for number, layer in enumerate(layers):
        layer.momentum = None if number == 0 else number / 100

    def breaks() -> Iterator[Tensor]:
        yield torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recalibrate(network, breaks())
    recalibrate(network, random_batches((4,)))
    assert [layer.momentum for layer in layers] == [None, *[n / 100 for n in range(1, len(layers))]]
    assert not any(layer._forward_hooks for layer in layers) and not network.training


# Stored statistics.


def test_statistics_come_back(tiny_space: NASBench201) -> None:
    supernet = supernet_of(tiny_space)
    network = tiny_space.extract(supernet, A)
    recalibrate(network, random_batches((9, 6)))
    statistics = get_statistics(network)
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert statistics.shape == (2, sum(layer.num_features for layer in layers))
    assert statistics.dtype == torch.float32
    at = 0
    for layer in layers:  # means, then variances, layer after layer
        assert layer.running_mean is not None and layer.running_var is not None
        stop = at + layer.num_features
        assert torch.equal(statistics[0, at:stop], layer.running_mean)
        assert torch.equal(statistics[1, at:stop], layer.running_var)
        at = stop
    other = tiny_space.extract(supernet, A)
    set_statistics(other, statistics)
    assert torch.equal(get_statistics(other), statistics)
    x = random_batches((5,), seed=9)[0]
    assert torch.equal(other.eval()(x), network(x))
    statistics.zero_()  # a copy: the networks keep theirs
    assert get_statistics(network).any() and get_statistics(other).any()


def test_statistics_of_another_network_are_refused(tiny_space: NASBench201) -> None:
    supernet = supernet_of(tiny_space)
    network, other = (tiny_space.extract(supernet, a) for a in (A, (1, 1, 1, 1, 1, 1)))
    statistics, own = get_statistics(other), get_statistics(network)
    width = own.shape[1]
    text = rf"shape \(2, {statistics.shape[1]}\), the network needs \(2, {width}\)"
    with pytest.raises(ValueError, match=text):
        set_statistics(network, statistics)
    for wrong in (own[0], own[:1], own[:, :-1], own.T):
        with pytest.raises(ValueError, match="the network needs"):
            set_statistics(network, wrong)
    assert torch.equal(get_statistics(network), own)


# The images.


@pytest.mark.parametrize("count", [10, 500, 503, 777])
def test_the_draw_is_balanced_and_shuffled(digits: Prepared, count: int) -> None:
    order = digits.labels["train"].argsort(stable=True)  # data sets come sorted by class
    images, ordered = digits.images["train"][order], digits.labels["train"][order]
    data = Prepared({"train": images}, {"train": ordered}, digits.mean, digits.std, 10)
    index = data.balanced_draw(count, 0)
    assert len(index) == count == len(set(index.tolist()))
    labels = ordered[index]
    counts = torch.bincount(labels, minlength=10)
    assert counts.max() - counts.min() <= 1
    # Not sorted by class: about nine neighbours in ten are of another class, and every half has all classes.
    if count >= 500:
        assert (labels[1:] != labels[:-1]).double().mean() > 0.85
        assert torch.bincount(labels[: count // 2], minlength=10).min() > 10


def test_the_draw_follows_from_the_seed(digits: Prepared) -> None:
    same, other = digits.balanced_draw(500, 0), digits.balanced_draw(500, 1)
    assert torch.equal(digits.balanced_draw(500, 0), same)
    assert set(same.tolist()) != set(other.tolist())
    # Which classes get the one image more is drawn too.
    labels = digits.labels["train"]
    extra = {tuple(torch.bincount(labels[digits.balanced_draw(12, seed)]).tolist()) for seed in range(10)}
    assert len(extra) > 5


def test_each_image_of_a_class_is_as_likely(digits: Prepared) -> None:
    """800 draws of one image per class: no image is preferred (a bound of five standard deviations)."""
    labels = digits.labels["train"]
    hits = torch.zeros(len(labels))
    for seed in range(800):
        hits[digits.balanced_draw(10, seed)] += 1
    for label in range(10):
        mine = hits[labels == label]
        assert mine.sum() == 800
        mean = 800 / len(mine)
        assert mine.max() < mean + 5 * mean**0.5


def test_a_small_class_gives_what_it_has() -> None:
    labels = torch.tensor([0] * 3 + [1] * 50 + [2] * 50)
    images = torch.zeros(103, 4, 4, 1, dtype=torch.uint8)
    data = Prepared({"train": images}, {"train": labels}, torch.zeros(1), torch.ones(1), 3)
    assert torch.bincount(labels[data.balanced_draw(41, 0)]).tolist() == [3, 19, 19]
    assert sorted(data.balanced_draw(103, 0).tolist()) == list(range(103))
    with pytest.raises(UserError, match=r"calibration\.images = 104: the training split has only 103 images"):
        data.balanced_draw(104, 0)


@pytest.mark.parametrize(
    ("images", "batch_size", "sizes"),
    [(500, 250, [250, 250]), (500, 240, [250, 250]), (100, 30, [34, 33, 33]), (20, 250, [20])],
)
def test_calibration_batches_are_the_drawn_images(
    digits: Prepared, images: int, batch_size: int, sizes: list[int]
) -> None:
    settings = CalibrationSettings(images=images, batch_size=batch_size, seed=3)
    batches = calibration_batches(digits, settings)
    assert [len(batch) for batch in batches] == sizes
    raw = digits.images["train"][digits.balanced_draw(images, 3)]
    expected = ((raw.double() - digits.mean.double()) / digits.std.double()).permute(0, 3, 1, 2)
    torch.testing.assert_close(torch.cat(list(batches)).double(), expected, rtol=0, atol=1e-5)
