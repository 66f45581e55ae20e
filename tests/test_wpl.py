"""SPOS + WPL against the loss written out and differentiated, the Fisher estimate by hand, alpha by table."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sumnas.methods.wpl import WPL, Settings
from sumnas.schedules import factor
from sumnas.spaces.base import Supernet
from tests.tiny import assert_only_moves, batch, network, record, weights

TOTAL = 6


def make(supernet: Supernet, **changes: Any) -> WPL:
    return WPL(supernet, Settings(strategy="wpl", **{"batches_per_path": 2, **changes}), TOTAL, 5)


@pytest.mark.parametrize("limit", [1e-4, 1e6])
def test_steps_are_those_of_the_loss_written_out(limit: float) -> None:
    supernet = network()
    reference = copy.deepcopy(supernet)
    rate, momentum, decay, alpha = 0.05, 0.5, 0.01, 20.0
    method = make(
        supernet, learning_rate=rate, momentum=momentum, weight_decay=decay, alpha=alpha, alpha_epochs=99,
        fisher_norm=limit,
    )  # fmt: skip
    ran = record(supernet)
    anchors = {id(p): p.detach().clone() for p in reference.parameters()}
    fisher = {id(p): torch.zeros_like(p) for p in reference.parameters()}
    velocity: dict[int, Tensor] = {}
    seen, penalties = [], []
    for step in range(TOTAL):
        rounds, held = (
            [[batch(supernet, 10 * step)], [batch(supernet, 10 * step + 1)]],
            [batch(supernet, 10 * step + 2)],
        )
        ran.clear()
        figures = method.step(rounds, held)
        assert len(ran) == 3 == method.passes_per_step and len(set(ran)) == 1
        path = ran[0]
        on_path = reference.path_choices(path) + reference.shared
        losses, own = [], []
        for ((images, labels),) in rounds:
            penalty: Any = sum((fisher[id(p)] * (p - anchors[id(p)]) ** 2).sum() for p in on_path) * alpha / 2
            loss = F.cross_entropy(reference(images, path), labels)
            found = torch.autograd.grad(loss + penalty, on_path, allow_unused=True)
            losses.append(loss.item())
            own.append(penalty.item())
            now = rate * factor("cosine", step / TOTAL)
            with torch.no_grad():
                for p, g in zip(on_path, found, strict=True):
                    moving = velocity.setdefault(id(p), torch.zeros_like(p))
                    moving.mul_(momentum).add_(torch.zeros_like(p) if g is None else g).add_(p, alpha=decay)
                    p.sub_(now * moving)
        loss = F.cross_entropy(reference(held[0][0], path), held[0][1])
        found = torch.autograd.grad(loss, on_path, allow_unused=True)
        for p, g in zip(on_path, found, strict=True):
            fisher[id(p)] = 0.1 * fisher[id(p)] + (0 if g is None else 0.9 * g**2)
        norm = torch.cat([fisher[id(p)].flatten() for p in on_path]).norm().item()
        assert float(figures["fisher_norm"]) == pytest.approx(norm)
        if norm > limit:
            for p in on_path:
                fisher[id(p)] = fisher[id(p)] * (limit / norm)
        for p in reference.parameters():  # all of them, where the method sets the path's
            anchors[id(p)] = p.detach().clone()
        assert float(figures["loss"]) == pytest.approx(sum(losses) / 2, abs=1e-11)
        assert float(figures["penalty"]) == pytest.approx(sum(own) / 2, rel=1e-8, abs=1e-14)
        penalties.append(float(figures["penalty"]))
        seen.append(norm)
        for (name, p), q in zip(supernet.named_parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")
            torch.testing.assert_close(
                method.fisher[id(p)],
                fisher[id(q)],
                rtol=1e-6,
                atol=1e-12,
                msg=lambda text, name=name: f"{name}: {text}",
            )
            torch.testing.assert_close(
                method.anchors[id(p)], anchors[id(q)], rtol=0, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}"
            )
    assert penalties[0] == 0 and min(penalties[1:]) > 0  # no Fisher yet, then the shared parameters' at the least
    assert all(norm > limit for norm in seen) if limit < 1 else all(norm < limit for norm in seen)


def test_only_the_path_moves() -> None:
    supernet = network()
    method = make(supernet, momentum=0.9, weight_decay=0.01)
    ran = record(supernet)
    for step in range(3):
        before = weights(supernet)
        method.step([[batch(supernet, step)], [batch(supernet, step + 50)]], [batch(supernet, step + 90)])
        assert_only_moves(supernet, before, ran[-1:])


def test_alpha_falls_by_one_an_epoch_after_the_fifteenth() -> None:
    method = make(network())
    seen = [method.end_epoch()["alpha"] for _ in range(80)]
    assert seen == [60.0] * 15 + [float(value) for value in range(59, -1, -1)] + [0.0] * 5


def test_the_step_takes_seven_batches_and_a_held_out_one() -> None:
    method = WPL(network(), Settings(strategy="wpl"), TOTAL, 5)
    assert (method.rounds, method.heldout, method.passes_per_step, method.train_share) == (7, 1, 8, 0.9)
