"""GDAS: which paths it draws, its straight-through gradient by hand, and its steps."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from sumnas.methods.gdas import GDAS, Settings
from sumnas.spaces.base import Supernet
from tests.tiny import assert_only_moves, batch, network, record, smooth, stop_recording, weights

TOTAL = 10


def make(supernet: Supernet, **changes: Any) -> GDAS:
    return GDAS(supernet, Settings(strategy="gdas", **changes), TOTAL, 5)


def noise_to_come(method: GDAS) -> Tensor:
    """The Gumbel noise of the next draw, without taking it."""
    ahead = torch.Generator()
    ahead.set_state(method.generator.get_state())
    shape = (method.layers, method.candidates)
    return -torch.empty(shape, dtype=torch.float64).exponential_(generator=ahead).log()


def test_paths_are_drawn_with_the_alphas_probabilities_at_any_temperature() -> None:
    method = make(smooth(layers=2, candidates=3))
    with torch.no_grad():
        method.alphas.copy_(torch.tensor([[0.0, 1.0, -1.0], [2.0, 0.0, 1.0]]))
    expected = method.alphas.detach().softmax(1).numpy()
    for done in (0, 9):
        method.done_steps = done
        with torch.no_grad():
            paths = np.array([method.draw()[1] for _ in range(2000)])
        for layer in range(2):
            counts = np.bincount(paths[:, layer], minlength=3)
            assert stats.chisquare(counts, 2000 * expected[layer]).pvalue > 0.01


def test_the_gradient_goes_straight_through_the_draw() -> None:
    supernet = smooth()
    method = make(supernet, alpha_scale=0.7)
    method.done_steps = 7
    tau = method.tau
    assert tau == pytest.approx(10 - 9.9 * 0.7)
    images, labels = batch(supernet, 1)
    noise = noise_to_come(method)
    drawn, path = method.draw()
    logits = (method.alphas.detach().log_softmax(1) + noise) / tau
    assert path == tuple(logits.argmax(1).tolist())
    assert torch.equal(drawn.detach(), F.one_hot(torch.tensor(path), 4).double())  # to the bit
    loss = F.cross_entropy(supernet.forward_mixture(images, drawn, path), labels)
    (found,) = torch.autograd.grad(loss, method.alphas)

    expected = torch.zeros_like(found)
    soft = logits.softmax(1)
    for layer, chosen in enumerate(path):
        values = []
        for sign in (1, -1):  # the loss by the size of the one operator that runs
            sizes = torch.eye(4, dtype=torch.float64)[list(path)]
            sizes[layer, chosen] += sign * 1e-6
            values.append(float(F.cross_entropy(supernet.forward_mixture(images, sizes, path), labels).detach()))
        slope = (values[0] - values[1]) / 2e-6
        for operator in range(4):
            same = float(operator == chosen)
            # d soft[chosen] / d alpha[operator]; log p falls equally for all operators, which the softmax undoes.
            expected[layer, operator] = slope * soft[layer, chosen] * (same - soft[layer, operator]) / tau
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    assert (found != 0).all()


def test_steps_are_those_of_plain_optimisers() -> None:
    supernet = network()
    method = make(supernet, alpha_learning_rate=0.05)
    reference, alphas = copy.deepcopy(supernet), nn.Parameter(method.alphas.detach().clone())
    adam = torch.optim.Adam([alphas], 0.05, (0.5, 0.999), weight_decay=1e-3)
    twin = make(reference)
    twin.alphas, velocity = alphas, {id(p): torch.zeros_like(p) for p in reference.parameters()}
    for step in range(TOTAL):
        (images, labels), (held, targets) = batch(supernet, step), batch(supernet, 50 + step)
        before = weights(supernet)
        ran = record(supernet)
        figures = method.step([[(images, labels)]], [(held, targets)])
        stop_recording(supernet)
        assert_only_moves(supernet, before, ran)

        assert (twin.draw()[1],) == tuple(ran)
        parameters = reference.path_choices(ran[0]) + reference.shared
        loss = F.cross_entropy(reference(images, ran[0]), labels)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
        norm = torch.cat([g.flatten() for g in filled]).norm()
        with torch.no_grad():
            for p, g in zip(parameters, filled, strict=True):
                moved = g * min(1.0, 5 / (float(norm) + 1e-6)) + 5e-4 * p
                velocity[id(p)].mul_(0.9).add_(moved)
                p.sub_(float(figures["learning_rate"]) * (moved + 0.9 * velocity[id(p)]))
        drawn, path = twin.draw()
        held_loss = F.cross_entropy(reference.forward_mixture(held, drawn, path), targets)
        found = torch.autograd.grad(held_loss, alphas, allow_unused=True)[0]
        alphas.grad = torch.zeros_like(alphas) if found is None else found
        adam.step()
        twin.done_steps += 1
        assert float(figures["tau"]) == pytest.approx(10 - 9.9 * step / TOTAL)
        assert float(figures["loss"]) == pytest.approx(loss.item(), abs=1e-9)
        assert float(figures["heldout_loss"]) == pytest.approx(held_loss.item(), abs=1e-9)
        torch.testing.assert_close(method.alphas, alphas, rtol=0, atol=1e-7)
        for (name, p), q in zip(supernet.named_parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")
    assert method.architecture() == tuple(alphas.detach().argmax(1).tolist())


def test_a_path_without_output_leaves_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    method = make(network())
    nothing = torch.eye(5, dtype=torch.float64)[[0] * 6], (0,) * 6
    monkeypatch.setattr(method, "draw", lambda: nothing)
    supernet = method.supernet
    figures = method.step([[batch(supernet, 0)]], [batch(supernet, 1)])
    assert float(figures["heldout_loss"]) > 0
