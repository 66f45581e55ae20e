"""A mixture of all operators, and a weighted sub-model, against the cell's sum written out edge by edge."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sumnas.spaces.base import Architecture, Space, Supernet
from sumnas.spaces.nasbench201 import Cell, Network
from tests.tiny import batch, network

INTO = {1: ((0, 0),), 2: ((1, 0), (2, 1)), 3: ((3, 0), (4, 1), (5, 2))}
"""For each node its incoming edges: (index of the edge, source node)."""
PATHS: list[Architecture] = [(3, 2, 1, 4, 0, 3), (0, 2, 3, 0, 2, 1), (2, 0, 0, 3, 4, 0), (1, 4, 0, 0, 0, 0), (0,) * 6]


def naive(supernet: Network, x: Tensor, weights: Tensor) -> Tensor:
    """Every operator of every edge runs, `none` too, whatever its weight."""
    x = supernet.stem(x)
    for module in supernet.body:
        if not isinstance(module, Cell):
            x = module(x)
            continue
        nodes = [x]
        for node in (1, 2, 3):
            terms = [w * module.operators[e][o](nodes[source])
                     for e, source in INTO[node] for o, w in enumerate(weights[e])]  # fmt: skip
            nodes.append(torch.stack(terms).sum(0))
        x = nodes[3]
    logits: Tensor = supernet.classifier(F.relu(supernet.norm(x)).mean((2, 3)))
    return logits


def mixed(seed: int = 0) -> Tensor:
    weights = torch.rand(6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (weights / weights.sum(1, keepdim=True)).requires_grad_()


def test_a_mixture_is_the_sum_written_out() -> None:
    supernet, weights = network(), mixed()
    images, labels = batch(supernet, 0)
    parameters = [weights, *supernet.parameters()]
    results = []
    for logits in (supernet.forward_mixture(images, weights), naive(supernet, images, weights)):
        results.append((logits, *torch.autograd.grad(F.cross_entropy(logits, labels), parameters)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    slopes = results[0][1]
    assert not slopes[:, 0].any() and (slopes[:, 1:] != 0).all()  # `none` adds zeros, whatever its weight


@pytest.mark.parametrize("path", PATHS)
def test_weights_of_zero_and_one_give_the_sub_model(path: Architecture) -> None:
    supernet = network()
    images, labels = batch(supernet, 0)
    weights = torch.zeros(6, 5, dtype=torch.float64)
    for edge, operator in enumerate(path):
        weights[edge, operator] = 1
    weights.requires_grad_()
    alone = supernet.forward_mixture(images, weights, path)
    assert torch.equal(alone, supernet(images, path))
    torch.testing.assert_close(supernet.forward_mixture(images, weights), alone, rtol=0, atol=1e-12)

    slopes = []
    for logits in (alone, naive(supernet, images, weights)):
        loss = F.cross_entropy(logits, labels)
        found = torch.autograd.grad(loss, weights, allow_unused=True)[0]
        slopes.append(torch.zeros_like(weights) if found is None else found)
    for edge, operator in enumerate(path):
        torch.testing.assert_close(slopes[0][edge, operator], slopes[1][edge, operator], rtol=0, atol=1e-12)
        slopes[0].detach()[edge, operator] = 0
    assert not slopes[0].any()  # no other operator has run


def test_only_the_sub_models_operators_run() -> None:
    supernet, weights = network(), mixed()
    ran: list[str] = []
    for name, module in supernet.named_modules():
        if ".edges." in name and "." not in name.partition(".edges.")[2].partition(".")[2]:
            module.register_forward_hook(lambda *_, name=name: ran.append(name.rpartition(".")[2]))
    supernet.forward_mixture(batch(supernet, 0)[0], weights, (3, 0, 3, 2, 0, 3))
    assert ran == ["nor_conv_3x3", "nor_conv_3x3", "nor_conv_1x1", "nor_conv_3x3"] * 3
    ran.clear()
    supernet.forward_mixture(batch(supernet, 0)[0], weights)
    assert len(ran) == 3 * 6 * 3  # three cells, six edges, three operators: identities are not called


def test_macs_are_the_spaces() -> None:
    from sumnas.spaces.nasbench201 import NASBench201

    supernet = network()
    space: Space = NASBench201(supernet.settings)
    assert [supernet.macs(path) for path in PATHS] == [space.macs(path) for path in PATHS]


def test_a_space_may_do_without() -> None:
    with pytest.raises(NotImplementedError, match="Supernet has no mixture"):
        Supernet().forward_mixture(torch.zeros(1), torch.zeros(1, 1))
    with pytest.raises(NotImplementedError, match="Supernet does not know"):
        Supernet().macs((0,))
