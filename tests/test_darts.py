"""DARTS against plain optimisers step by step; the second order against the unrolled loss differentiated outright."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sumnas.data import Batch
from sumnas.errors import UserError
from sumnas.methods.darts import DARTS, Settings
from sumnas.spaces.base import Architecture, Supernet
from tests.tiny import Smooth, batch, network, smooth, weights

TOTAL = 5


def make(supernet: Supernet, **changes: Any) -> DARTS:
    return DARTS(supernet, Settings(strategy="darts", **changes), TOTAL, 5)


def take(method: DARTS, step: int) -> dict[str, float]:
    given = [[batch(method.supernet, step)]], [batch(method.supernet, 100 + step)]
    return {name: float(value) for name, value in method.step(*given).items()}


def loss_of(supernet: Supernet, given: Batch, alphas: Tensor) -> Tensor:
    return F.cross_entropy(
        supernet.forward_mixture(given[0], alphas.exp() / alphas.exp().sum(1, keepdim=True)), given[1]
    )


@pytest.mark.parametrize("momentum", [{"momentum": 0.0}, {"nesterov": False}, {}], ids=["none", "plain", "nesterov"])
def test_second_order_is_the_gradient_of_the_unrolled_loss(momentum: dict[str, Any]) -> None:
    rate = 0.3
    supernet = smooth()
    method = make(supernet, order=2, learning_rate=rate, weight_decay=0.02, alpha_scale=0.5, clip_norm=None, **momentum)
    for step in range(2):  # momentum has something in it
        take(method, step)
    training, held = batch(supernet, 7), batch(supernet, 8)

    def unrolled(alphas: Tensor) -> float:
        """The held-out loss after torch's own step on the training loss with these alphas."""
        ahead = copy.deepcopy(supernet)
        settings = method.settings
        nesterov = settings.nesterov and settings.momentum > 0
        optimizer = torch.optim.SGD(ahead.parameters(), 0.1, settings.momentum, weight_decay=0.02, nesterov=nesterov)
        optimizer.load_state_dict(copy.deepcopy(method.optimizer.state_dict()))
        optimizer.param_groups[0]["lr"] = rate
        loss_of(ahead, training, alphas).backward()
        optimizer.step()
        return loss_of(ahead, held, alphas).item()

    exact = slopes(unrolled, method.alphas.detach())
    before = weights(supernet)
    direct = torch.autograd.grad(loss_of(supernet, held, method.alphas), method.alphas)[0]
    for length, within in ((1e-4, 1e-6), (1e-2, 1e-3)):
        method.settings = method.settings.model_copy(update={"difference": length})
        loss, found = method.unrolled(training, held, rate)
        assert loss.item() == pytest.approx(unrolled(method.alphas.detach()), abs=1e-12)
        assert (found - exact).norm() < within * exact.norm()
        assert all(torch.equal(p, before[name]) for name, p in supernet.named_parameters())
    assert (direct - exact).norm() > 0.1 * exact.norm()  # the first order is something else


def slopes(function: Callable[[Tensor], float], at: Tensor, step: float = 1e-5) -> Tensor:
    found = torch.zeros_like(at)
    for i in range(at.numel()):
        values = []
        for sign in (1, -1):
            moved = at.clone()
            moved.view(-1)[i] += sign * step
            values.append(function(moved))
        found.view(-1)[i] = (values[0] - values[1]) / (2 * step)
    return found


@pytest.mark.parametrize("order", [1, 2])
def test_steps_are_those_of_plain_optimisers(order: int) -> None:
    supernet = network()
    method = make(supernet, order=order, clip_norm=0.5, alpha_learning_rate=0.05)
    reference, alphas = copy.deepcopy(supernet), nn.Parameter(method.alphas.detach().clone())
    twin = make(reference, order=order, clip_norm=0.5)  # only for `unrolled`, which has its own test
    sgd = torch.optim.SGD(reference.parameters(), 0.025, 0.9, weight_decay=5e-4, nesterov=True)
    twin.optimizer, twin.alphas = sgd, alphas
    adam = torch.optim.Adam([alphas], 0.05, (0.5, 0.999), weight_decay=1e-3)
    for step in range(3):
        training, held = batch(supernet, step), batch(supernet, 100 + step)
        rate = 0.001 + 0.024 * 0.5 * (1 + math.cos(math.pi * step / TOTAL))
        sgd.param_groups[0]["lr"] = rate
        losses = {}
        for what in ("weights", "alphas") if order == 1 else ("alphas", "weights"):
            if what == "weights":
                losses["loss"] = loss_of(reference, training, alphas)
                sgd.zero_grad()
                losses["loss"].backward()
                assert nn.utils.clip_grad_norm_(reference.parameters(), 0.5) > 0.5
                sgd.step()
            else:
                if order == 1:
                    losses["heldout_loss"] = loss_of(reference, held, alphas)
                    gradient = torch.autograd.grad(losses["heldout_loss"], alphas)[0]
                else:
                    losses["heldout_loss"], gradient = twin.unrolled(training, held, rate)
                alphas.grad = gradient
                adam.step()
        figures = take(method, step)
        assert figures["learning_rate"] == pytest.approx(rate)
        for name, value in losses.items():
            assert figures[name] == pytest.approx(value.item(), abs=1e-11)
        torch.testing.assert_close(method.alphas, alphas, rtol=0, atol=1e-9)
        for (name, p), q in zip(supernet.named_parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


def test_alphas_find_the_operator_that_helps() -> None:
    # Only the last layer's operator 2 passes the image on to labels that follow from it.
    supernet = smooth(layers=2, candidates=3)
    with torch.no_grad():
        for layer in supernet.choices:
            for operator in layer:
                operator[0].zero_()
        supernet.choices[1][2][0].fill_(2.0)
    method = make(supernet, learning_rate=1e-9, minimum_rate=0.0, weight_decay=0.0, alpha_learning_rate=0.1)
    images = torch.randn(64, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = supernet(images, (0, 2)).argmax(1)
    for _ in range(20):
        figures = method.step([[(images, target)]], [(images, target)])
    assert method.architecture()[1] == 2
    assert float(figures["alpha_entropy"]) < math.log(3) - 0.05
    probabilities = method.alphas.detach().softmax(1)
    ended = method.end_epoch()
    assert ended == {f"operator_{o}": pytest.approx(float(probabilities[:, o].mean())) for o in range(3)}


def test_alphas_start_small_and_halves_are_kept_apart() -> None:
    method = make(network())
    assert method.alphas.shape == (6, 5) and 0 < float(method.alphas.detach().abs().max()) < 5e-3
    assert (method.train_share, method.heldout, method.passes_per_step) == (0.5, 1, 10)
    assert make(network(), order=2).passes_per_step == 25
    assert not {id(method.alphas)} & {id(p) for p in method.supernet.parameters()}


class NoMixture(Supernet):
    def __init__(self) -> None:
        super().__init__()
        inner: Smooth = smooth()
        self.choices, self.shared, self.head = inner.choices, inner.shared, inner.head

    def forward(self, x: Tensor, architecture: Architecture) -> Tensor:
        return self.head(x)  # type: ignore[no-any-return]


def test_a_space_without_mixtures_is_the_users_error() -> None:
    with pytest.raises(UserError, match="'darts': this space has no mixture"):
        make(NoMixture())
