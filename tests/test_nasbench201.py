"""The NAS-Bench-201 space against its closed forms and a naive network (method sec. 8)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sumnas import seeding
from sumnas.batchnorm import recalibrate
from sumnas.evaluation import SubModel, evaluate
from sumnas.spaces.base import Architecture, Supernet
from sumnas.spaces.nasbench201 import NASBench201, plan
from tests.cells import ALL, CONV1, CONV3, INTO, NAMES, NONE, PAPER, POOL, SKIP, sample, space


def noisy(network: nn.Module, seed: int = 0) -> nn.Module:
    """Move every parameter off its initial value: biases of zero would hide what zeros turn into."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return network


def supernet_of(of: NASBench201, dtype: torch.dtype = torch.float64) -> Supernet:
    with seeding.scoped(1, "test"):
        supernet = of.supernet().to(dtype)
    noisy(supernet)
    return supernet


def images_for(of: NASBench201, count: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    s = of.settings
    generator = torch.Generator().manual_seed(seed)
    shape = (count, s.image_channels, s.image_size, s.image_size)
    return torch.randn(shape, generator=generator, dtype=dtype)


def naive(weights: Mapping[str, Tensor], architecture: Architecture, x: Tensor, train: bool = True) -> Tensor:
    """Method sec. 8 from a state dict alone: every edge of every cell runs, `none` gives zeros."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance = weights.get(f"{name}.running_mean"), weights.get(f"{name}.running_var")
        if train:
            mean = variance = None
        return F.batch_norm(
            x, mean, variance, weights.get(f"{name}.weight"), weights.get(f"{name}.bias"), train, eps=1e-5
        )

    def convolve(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = weights[f"{name}.conv.weight"]
        x = F.conv2d(F.relu(x), kernel, weights.get(f"{name}.conv.bias"), stride, kernel.shape[-1] // 2)
        return norm(x, f"{name}.norm")

    def edge(x: Tensor, name: str, operator: int) -> Tensor:
        if operator == SKIP:
            return x
        if operator == POOL:
            inside = F.avg_pool2d(torch.ones_like(x), 3, 1, 1, divisor_override=1)
            return F.avg_pool2d(x, 3, 1, 1, divisor_override=1) / inside
        return torch.zeros_like(x) if operator == NONE else convolve(x, f"{name}.{NAMES[operator]}")

    x = norm(F.conv2d(x, weights["stem.0.weight"], padding=1), "stem.1")
    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("body."))
    for index in range(depth):
        name = f"body.{index}"
        if f"{name}.shortcut.weight" in weights:
            inner = convolve(convolve(x, f"{name}.first", 2), f"{name}.second")
            x = inner + F.conv2d(F.avg_pool2d(x, 2), weights[f"{name}.shortcut.weight"])
            continue
        nodes = [x]
        for node in (1, 2, 3):
            total = torch.zeros_like(x)
            for e, source in INTO[node]:
                total = total + edge(nodes[source], f"{name}.edges.{e}", architecture[e])
            nodes.append(total)
        x = nodes[3]
    x = F.relu(norm(x, "norm"))
    return F.linear(x.mean((2, 3)), weights["classifier.weight"], weights["classifier.bias"])


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, the parameters as leaves of the graph."""
    return dict(itertools.chain(network.named_parameters(), network.named_buffers()))


def bytes_of(network: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in network.state_dict().items()}


def paths(architecture: Architecture) -> Iterator[tuple[int, ...]]:
    """Every chain of edges other than `none` that leads from some node to node 3, as edge indices."""

    def into(node: int) -> Iterator[tuple[int, ...]]:
        for index, source in INTO.get(node, ()):
            if architecture[index] != NONE:
                yield (index,)
                for before in into(source):
                    yield (*before, index)

    yield from into(3)


# Costs.


def test_costs_are_the_closed_forms() -> None:
    for architecture in ALL:
        n1, n3 = architecture.count(CONV1), architecture.count(CONV3)
        assert PAPER.macs(architecture) == pytest.approx(7.78305 + 35.38944 * n3 + 3.93216 * n1, abs=1e-9)
        assert PAPER.params(architecture) == pytest.approx(0.073306 + 0.243040 * n3 + 0.028 * n1, abs=1e-9)


OTHER = space(cells=2, channels=6, image_size=12, image_channels=2, classes=7)


@pytest.mark.parametrize(("of", "count"), [(PAPER, 50), (OTHER, 10)], ids=["paper", "other"])
def test_costs_are_those_of_the_whole_network(of: NASBench201, count: int) -> None:
    image = images_for(of, 1, dtype=torch.float32)
    for architecture in sample(count, seed=3):
        with torch.device("meta"):
            network = of.network(architecture)
        weights = {name: torch.zeros(value.shape) for name, value in network.state_dict().items()}
        # The naive network runs every edge; the one under test leaves out those that reach nothing.
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            naive(weights, architecture, image)
        macs = counter.get_total_flops() // 2 + of.settings.classes
        assert round(of.macs(architecture) * 1e6) == macs
        assert round(of.params(architecture) * 1e6) == sum(p.numel() for p in network.parameters())


def test_counting_costs_leaves_the_random_stream_alone() -> None:
    before = torch.get_rng_state()
    counted = space(channels=2)
    assert counted.macs(ALL[-1]) > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_costs_are_counted_with_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number is; it is left as it was, also where counting fails."""
    counted, seen = space(channels=2), list[int]()
    before = torch.get_num_threads()

    def failing() -> Any:
        seen.append(torch.get_num_threads())
        raise ValueError("no costs")

    monkeypatch.setattr(counted, "count_costs", failing)
    torch.set_num_threads(3)
    try:
        with pytest.raises(ValueError, match="no costs"):
            counted.macs(ALL[-1])
        assert seen == [1] and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


# The network.


def test_plan_leaves_out_only_what_changes_nothing() -> None:
    sources = {index: (source, node) for node, edges in INTO.items() for index, source in edges}
    for architecture in ALL:
        # Whatever flows starts at the input, or at a convolution (of zeros it gives the normalisation's shift).
        starts = {path: sources[path[0]][0] == 0 for path in paths(architecture)}
        flowing = [p for p, input_ in starts.items() if input_ or architecture[p[0]] in (CONV1, CONV3)]
        useful = {edge for path in flowing for edge in path}
        assert [tuple(step) for step in plan(architecture)] == [
            (edge, architecture[edge], *sources[edge]) for edge in sorted(useful)
        ]
        assert PAPER.connected(architecture) == any(starts.values())


def test_architectures_with_equal_keys_give_equal_logits() -> None:
    """10,405 cases run different operations, 8,720 sum different terms (counted independently)."""
    for flatten, count in ((False, 10_405), (True, 8_720)):
        groups: dict[Any, list[Architecture]] = {}
        for architecture in ALL:
            groups.setdefault(PAPER.equivalence(architecture, flatten=flatten), []).append(architecture)
        assert len(groups) == count
        of = space()
        supernet, x = supernet_of(of), images_for(of, 4)
        # As it is scored: with statistics of its own, then in evaluation mode.
        scored, calibration = SubModel(of.tracked(supernet).double(), ()), [images_for(of, 4, seed=1)]
        several = sorted((group for group in groups.values() if len(group) > 1), key=len, reverse=True)
        # Of the largest, which have hundreds of members, about forty.
        for group in several[:5] + several[5 :: 16 if flatten else 8]:
            logits: list[Tensor] = []
            for architecture in group[:: max(1, len(group) // 40)]:
                scored.architecture = architecture
                recalibrate(scored, calibration)
                with torch.no_grad():
                    logits.append(torch.stack([supernet(x, architecture), scored.eval()(x)]))
            assert not torch.allclose(*logits[0]) or not PAPER.connected(group[0])
            for other in logits[1:]:
                if flatten:
                    torch.testing.assert_close(other, logits[0], rtol=0, atol=1e-10)
                else:
                    assert torch.equal(other, logits[0])
    # And not too many are thrown together: distinct keys give distinct logits. In evaluation mode, since batch
    # statistics would hide that one sums an input twice that the other takes once.
    network = of.tracked(supernet).double().eval()
    with torch.no_grad():
        seen = [network(x, group[0]) for group in several[:60]]
    for number, one in enumerate(seen):
        assert not any(torch.allclose(one, other, rtol=0, atol=1e-9) for other in seen[:number])


BIASED = {"affine": False, "cells": 2, "channels": 3}


@pytest.mark.parametrize(("changes", "count"), [({}, 200), (BIASED, 25)], ids=["affine", "biased"])
def test_logits_and_gradients_are_those_of_running_every_edge(changes: dict[str, Any], count: int) -> None:
    of = space(**changes)
    supernet = supernet_of(of)
    parameters = dict(supernet.named_parameters())
    labels = torch.tensor([0, 3, 7])
    for number, architecture in enumerate(sample(count)):
        x = images_for(of, 3, seed=number)
        logits, expected = supernet(x, architecture), naive(parameters, architecture, x)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
        ours, theirs = (
            torch.autograd.grad(F.cross_entropy(out, labels), list(parameters.values()), allow_unused=True)
            for out in (logits, expected)
        )
        for (name, p), g, h in zip(parameters.items(), ours, theirs, strict=True):
            g, h = (torch.zeros_like(p) if value is None else value for value in (g, h))
            torch.testing.assert_close(g, h, rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("operator", [CONV1, CONV3])
def test_an_edge_fed_by_a_zero_node_is_not_silent(operator: int, affine: bool) -> None:
    of = space(affine=affine)
    fed_by_zeros = (NONE, CONV3, NONE, SKIP, operator, POOL)  # node 1 has no input; edge 1 -> 3 runs on zeros
    skipped = (NONE, CONV3, NONE, SKIP, NONE, POOL)
    assert 4 in [step.edge for step in plan(fed_by_zeros)]
    supernet, x = supernet_of(of), images_for(of, 4)
    network = of.extract(supernet, fed_by_zeros)
    generator = torch.Generator().manual_seed(0)
    for name, buffer in network.named_buffers():  # statistics of its own, as after recalibration
        if name.endswith(("running_mean", "running_var")):
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    network.double().eval()
    weights = weights_of(network)
    logits = network(x)
    torch.testing.assert_close(logits, naive(weights, fed_by_zeros, x, train=False), rtol=0, atol=1e-10)
    assert (logits - naive(weights, skipped, x, train=False)).abs().max() > 1e-3
    # While the supernet trains, the shift of an affine normalisation is what remains of such an edge.
    difference = (supernet(x, fed_by_zeros) - supernet(x, skipped)).abs().max()
    assert difference > 1e-3 if affine else difference < 1e-10


def test_identity_and_pool_of_a_zero_node_are_zeros() -> None:
    of = space()
    supernet, x = supernet_of(of), images_for(of, 4)
    for operator in (SKIP, POOL):
        through = (NONE, NONE, operator, SKIP, NONE, CONV3)  # zeros from node 1 to node 2, then a convolution
        logits = supernet(x, through)
        torch.testing.assert_close(logits, naive(weights_of(supernet), through, x), rtol=0, atol=1e-10)
        assert torch.equal(logits, supernet(x, (NONE, NONE, NONE, SKIP, NONE, CONV3)))


def test_a_cell_without_output_gives_zeros() -> None:
    of = space()
    supernet, x = supernet_of(of), images_for(of, 4)
    assert plan((CONV3, CONV3, CONV3, NONE, NONE, NONE)) == ()
    logits = supernet(x, (CONV3, CONV3, CONV3, NONE, NONE, NONE))
    torch.testing.assert_close(logits, naive(weights_of(supernet), (0,) * 6, x), rtol=0, atol=1e-10)
    assert torch.allclose(logits, logits[:1].expand_as(logits))


def test_a_supernet_needs_an_architecture() -> None:
    of = space()
    with pytest.raises(ValueError, match="a supernet needs the architecture"):
        of.supernet()(images_for(of, 1, dtype=torch.float32))


# Sub-models.


@pytest.mark.parametrize("affine", [True, False])
def test_a_sub_model_is_the_stand_alone_network_with_its_weights(affine: bool) -> None:
    of = space(affine=affine, cells=2)
    supernet, x = supernet_of(of, torch.float32), images_for(of, 5, dtype=torch.float32)
    weights = supernet.state_dict()
    assert not list(supernet.buffers())  # no running statistics, so nothing of a pass is left behind
    for architecture in sample(15, seed=1):
        alone = of.network(architecture)
        held = alone.state_dict()
        missing, _ = alone.load_state_dict({n: v for n, v in weights.items() if n in held}, strict=False)
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        assert all(name.endswith(statistics) for name in missing)
        for network in (alone, of.extract(supernet, architecture)):
            assert torch.equal(network.train()(x), supernet.train()(x, architecture))
        assert torch.equal(supernet.eval()(x, architecture), supernet.train()(x, architecture))


def test_extract_shares_the_weights_and_leaves_the_supernet_as_it_was() -> None:
    of = space()
    supernet, x = supernet_of(of, torch.float32), images_for(of, 40, dtype=torch.float32)
    before, own = bytes_of(supernet), dict(supernet.named_parameters())
    architecture = (CONV3, CONV1, NONE, SKIP, POOL, CONV3)
    network = of.extract(supernet, architecture)
    held = dict(network.named_parameters())
    assert set(held) == {n for n in own if "edges" not in n or NAMES[architecture[int(n.split(".")[3])]] in n}
    for name, parameter in held.items():
        assert parameter.untyped_storage().data_ptr() == own[name].untyped_storage().data_ptr(), name
        assert not parameter.requires_grad and parameter.device.type == "cpu"
    recalibrate(network, torch.split(x, 16))
    statistics = bytes_of(network)
    evaluate(network, (x, torch.zeros(40, dtype=torch.long)), 7)
    assert bytes_of(network) == statistics
    assert bytes_of(supernet) == before
    assert all(p.requires_grad and p.grad is None for p in supernet.parameters())
    # In evaluation mode it is the naive network with these weights and statistics.
    expected = naive(network.state_dict(), architecture, x, train=False)
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)
    # A second one has statistics of its own.
    other = of.extract(supernet, architecture)
    assert all(not b.any() for n, b in other.named_buffers() if n.endswith("running_mean"))
    # The weights are the supernet's: what is trained there shows here.
    with torch.no_grad():
        own["classifier.bias"].add_(1.0)
    assert torch.equal(held["classifier.bias"], own["classifier.bias"])


@pytest.mark.parametrize("affine", [True, False])
def test_convolutions_carry_a_bias_where_the_normalisation_has_none(affine: bool) -> None:
    network = space(affine=affine).supernet()
    inside = 0
    for name, module in network.named_modules():
        in_cell = ".edges." in name
        if isinstance(module, nn.Conv2d):
            assert (module.bias is not None) == (in_cell and not affine), name
            inside += in_cell
        elif isinstance(module, nn.BatchNorm2d):
            assert module.affine == (affine or not in_cell), name
            assert not module.track_running_stats
    assert inside == 3 * 6 * 2
    # Costs are those of the benchmark's networks, whichever normalisation the supernet has.
    assert space(affine=affine).params(ALL[-1]) == space().params(ALL[-1])
    assert space(affine=affine).macs(ALL[-1]) == space().macs(ALL[-1])


@pytest.mark.parametrize("affine", [True, False])
def test_shared_and_choices_partition_the_parameters(affine: bool) -> None:
    of = space(affine=affine, cells=2)
    supernet = of.supernet()
    flat = [p for layer in supernet.choices for operator in layer for p in operator] + supernet.shared
    assert len(flat) == len({id(p) for p in flat})
    assert {id(p) for p in flat} == {id(p) for p in supernet.parameters()}
    names_of = {id(p): name for name, p in supernet.named_parameters()}
    for edge, layer in enumerate(supernet.choices):
        for operator, parameters in enumerate(layer):
            # Two tensors of a convolution, and two of its normalisation or one bias, in each of six cells.
            assert len(parameters) == (6 * (3 if affine else 2) if operator in (CONV1, CONV3) else 0)
            assert all(f".edges.{edge}.{NAMES[operator]}." in names_of[id(p)] for p in parameters)
    assert not any(".edges." in names_of[id(p)] for p in supernet.shared)
    for architecture in sample(20, seed=2):
        mine = {names_of[id(p)] for p in supernet.path_choices(architecture) + supernet.shared}
        alone = of.network(architecture)
        assert mine == {name for name, _ in alone.named_parameters()}
        held = [p for layer in alone.choices for operator in layer for p in operator] + alone.shared
        assert {id(p) for p in held} == {id(p) for p in alone.parameters()}
