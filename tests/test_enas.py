"""ENAS: its controller against the recurrences written out, REINFORCE against enumeration, and its turn."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from sumnas.data import Batch
from sumnas.methods.enas import ENAS, Controller, Settings
from sumnas.spaces.base import Architecture, Supernet
from tests.tiny import assert_only_moves, batch, network, record, smooth, weights

TOTAL = 4
ALL = torch.tensor(list(itertools.product(range(3), repeat=2)))


def make(supernet: Supernet, **changes: Any) -> ENAS:
    values = {"controller_steps": 2, "controller_samples": 3, **changes}
    return ENAS(supernet, Settings(strategy="enas", **values), TOTAL, 5)


def two_edges(**changes: Any) -> ENAS:
    method = make(smooth(layers=2, candidates=3), **changes)
    with torch.no_grad():
        for parameter in method.controller.parameters():
            parameter.mul_(4)  # far from uniform
    return method


def by_hand(controller: Controller, path: Architecture) -> tuple[Tensor, Tensor]:
    """log p and entropy of one path from the weights alone: gates i, f, g, o of two LSTM layers."""
    lstm, hidden = controller.lstm, controller.settings.hidden
    states = [(torch.zeros(hidden), torch.zeros(hidden)) for _ in range(2)]
    x, log_p, entropy = controller.start, torch.zeros(()), torch.zeros(())
    for operator in path:
        for layer in range(2):
            h, c = states[layer]
            w_x, w_h, b_x, b_h = (getattr(lstm, f"{name}_l{layer}") for name in
                                  ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))  # fmt: skip
            i, f, g, o = (w_x @ x + b_x + w_h @ h + b_h).chunk(4)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            states[layer], x = (h, c), h
        logits = 2.5 * torch.tanh((controller.head.weight @ x + controller.head.bias) / 5)
        p = logits.exp() / logits.exp().sum()
        log_p, entropy = log_p + p[operator].log(), entropy - (p * p.log()).sum()
        x = controller.embedding.weight[operator]
    return log_p, entropy


def test_the_controller_is_the_recurrence_written_out() -> None:
    controller = two_edges().controller
    paths, log_p, entropy = controller(len(ALL), given=ALL)
    assert torch.equal(paths, ALL) and float(log_p.exp().sum().detach()) == pytest.approx(1)
    assert float((log_p.max() - log_p.min()).detach()) > 0.2
    for path, found, spread in zip(ALL.tolist(), log_p, entropy, strict=True):
        expected = by_hand(controller, tuple(path))
        torch.testing.assert_close((found, spread), expected, rtol=1e-4, atol=1e-5)


def test_paths_are_drawn_as_the_controller_says() -> None:
    method = two_edges()
    _, log_p, _ = method.controller(len(ALL), given=ALL)
    drawn, own, _ = method.controller(5000, method.generator)
    counts = np.bincount(drawn[:, 0] * 3 + drawn[:, 1], minlength=9)
    expected = log_p.double().softmax(0).detach().numpy()
    assert stats.chisquare(counts, 5000 * expected).pvalue > 0.01
    torch.testing.assert_close(own, log_p[drawn[:, 0] * 3 + drawn[:, 1]], rtol=0, atol=1e-5)


REWARDS = torch.tensor([0.1, 0.9, 0.3, 0.5, 0.2, 0.8, 0.4, 0.7, 0.6])


def gradient(method: ENAS, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(method.controller.parameters()))])


def test_reinforce_is_the_gradient_of_the_expected_reward() -> None:
    method = two_edges(baseline_decay=1.0)
    exact = gradient(method, -(method.controller(len(ALL), given=ALL)[1].exp() * REWARDS).sum())
    for baseline in (0.0, 0.45):  # a fixed one changes the spread only
        mean = torch.zeros_like(exact)
        for number, path in enumerate(ALL):
            method.baseline = baseline
            _, log_p, _ = method.controller(1, given=path[None])
            probability = float(log_p.exp().detach())
            mean += probability * gradient(method, method.reinforce(log_p, [float(REWARDS[number])]))
        torch.testing.assert_close(mean, exact, rtol=1e-4, atol=1e-6)
    drawn, log_p, _ = method.controller(20000, method.generator)
    method.baseline = 0.45
    found = gradient(method, method.reinforce(log_p, REWARDS[drawn[:, 0] * 3 + drawn[:, 1]].tolist()))
    assert (found - exact).norm() < 0.1 * exact.norm()


def test_the_baseline_follows_the_rewards() -> None:
    method = make(smooth())
    log_p = torch.ones(3, requires_grad=True)
    loss = method.reinforce(log_p, [0.5, 0.9, 0.1])
    second = 0.5
    third = second + 0.01 * (0.9 - second)
    expected = torch.tensor([0.0, 0.9 - second, 0.1 - third])
    assert method.baseline == pytest.approx(third + 0.01 * (0.1 - third))
    torch.testing.assert_close(torch.autograd.grad(loss, log_p)[0], -expected / 3)


def held_out(supernet: Supernet, count: int) -> list[Batch]:
    return [batch(supernet, 200 + number) for number in range(count)]


def test_a_turn_is_adams_steps_on_the_rewards() -> None:
    supernet = network(torch.float32)
    method, twin = make(supernet, controller_learning_rate=0.01), make(supernet, controller_learning_rate=0.01)
    batches = held_out(supernet, 6)
    before = weights(supernet)
    ran = record(supernet)
    figures = method.end_epoch(iter(batches))
    paths = list(ran)
    assert all(torch.equal(p, before[name]) for name, p in supernet.named_parameters())
    assert method.heldout_between == len(paths) == 6 and method.heldout == 0

    adam = torch.optim.Adam(twin.controller.parameters(), 0.01, (0.0, 0.999), 1e-3)
    baseline, seen = None, []
    for step in range(2):
        terms = []
        for path, (images, labels) in list(zip(paths, batches, strict=True))[3 * step : 3 * step + 3]:
            log_p, entropy = by_hand(twin.controller, path)
            with torch.no_grad():
                right = (supernet(images, path).argmax(1) == labels).float().mean()
            reward = float(right) + 1e-4 * entropy.item()
            baseline = reward if baseline is None else baseline
            terms.append(-log_p * (reward - baseline))
            baseline += 0.01 * (reward - baseline)
            seen.append(reward)
        adam.zero_grad()
        torch.stack(terms).mean().backward()
        nn.utils.clip_grad_norm_(twin.controller.parameters(), 5.0)
        adam.step()
    assert figures["reward"] == pytest.approx(np.mean(seen), abs=1e-6)
    assert figures["baseline"] == pytest.approx(baseline, abs=1e-6)
    for p, q in zip(method.controller.parameters(), twin.controller.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-4)
    assert method.architecture() is None  # the training is not over


def test_weights_are_trained_on_the_controllers_paths() -> None:
    supernet = network()
    method, twin = make(supernet), make(network())
    ran = record(supernet)
    for step in range(TOTAL):
        before = weights(supernet)
        figures = method.step([[batch(supernet, step)]])
        (expected,) = twin.controller(1, twin.generator)[0].tolist()
        assert ran[-1] == tuple(expected)
        assert_only_moves(supernet, before, ran[-1:])
        cosine = 0.5 * (1 + np.cos(np.pi * step / TOTAL))
        assert figures["learning_rate"] == pytest.approx(0.0005 + 0.0495 * cosine)


def test_the_own_choice_is_the_most_accurate_of_the_last_draws() -> None:
    supernet = smooth()
    method = make(supernet, choice=30)
    method.done_steps = TOTAL
    batches = held_out(supernet, 6)
    ran = record(supernet)
    method.end_epoch(iter(batches))
    chosen = method.architecture()

    def right(path: Architecture) -> float:
        return sum(float((supernet(x, path).argmax(1) == y).sum()) for x, y in batches[3:])

    drawn = set(ran[6:])
    assert chosen in drawn and len(drawn) > 10
    assert right(chosen) == max(map(right, drawn)) > min(map(right, drawn))


def test_the_controller_learns_which_operator_helps() -> None:
    supernet = smooth(layers=2, candidates=3)
    with torch.no_grad():
        for layer in supernet.choices:
            for operator in layer:
                operator[0].zero_()
        supernet.choices[1][2][0].fill_(-3.0)
    images = torch.randn(64, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = supernet(images, (0, 2)).argmax(1)
    assert float((supernet(images, (0, 0)).argmax(1) == labels).float().mean()) < 0.9
    method = make(supernet, controller_steps=60, controller_samples=10, controller_learning_rate=0.02)
    before = F.one_hot(method.controller(200, method.generator)[0][:, 1], 3).float().mean(0)
    method.end_epoch([(images, labels)] * 600)
    after = F.one_hot(method.controller(200, method.generator)[0][:, 1], 3).float().mean(0)
    assert after[2] > 0.6 > before[2]
