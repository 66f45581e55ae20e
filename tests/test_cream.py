"""Cream: what enters its board, how paths are drawn, its loss written out, its matching by finite differences."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from sumnas.methods.cream import Cream, Member, Settings
from sumnas.spaces.base import Architecture, Supernet
from tests.tiny import assert_only_moves, batch, network, record, smooth, stop_recording, weights

TOTAL = 60


def make(supernet: Supernet, **changes: Any) -> Cream:
    return Cream(supernet, Settings(strategy="cream", **changes), TOTAL, 5)


def filled(supernet: Supernet, paths: list[Architecture], **changes: Any) -> Cream:
    """A method with a board of these paths, and a matching layer far from zero."""
    method = make(supernet, matching_every=10**6, **changes)
    for number, path in enumerate(paths):
        images, _ = batch(supernet, 30 + number, size=4)
        with torch.no_grad():
            softmax = supernet(images, path[::-1]).softmax(1)
        method.board.append(Member(path, 50.0, 1.0, images, softmax))
    with torch.no_grad():
        method._make_matching(12, softmax).weight.mul_(10)
    method.done_steps = 1
    return method


@pytest.mark.parametrize("sampling", ["board", "uniform"])
def test_operators_are_drawn_as_often_as_the_board_has_them(sampling: str) -> None:
    method = make(smooth(), sampling=sampling)
    assert method.probabilities().tolist() == [0.25] * 4
    method = filled(smooth(), [(0, 0, 3), (0, 1, 3), (0, 3, 3), (3, 3, 3)], sampling=sampling)
    expected = np.array([5, 2, 1, 8]) / 16 if sampling == "board" else np.full(4, 0.25)
    assert method.probabilities() == pytest.approx(expected)
    paths = np.array([method.sample() for _ in range(2000)])
    for layer in range(3):
        assert stats.chisquare(np.bincount(paths[:, layer], minlength=4), 2000 * expected).pvalue > 0.01
    pairs = np.bincount(paths[:, 0] * 4 + paths[:, 1], minlength=16)
    assert stats.chisquare(pairs, 2000 * np.outer(expected, expected).ravel()).pvalue > 0.01


def by_hand(method: Cream, path: Architecture, layer: tuple[Tensor, Tensor]) -> tuple[int, Tensor]:
    """The member with the largest score and rho, member by member. `smooth` knows no batch statistics."""
    scores = []
    for member in method.board:
        difference = method.supernet(member.images, path).softmax(1) - member.softmax
        scores.append((layer[0][0] * difference.flatten()).sum() + layer[1][0])
    best = max(range(len(scores)), key=lambda i: float(scores[i].detach()))
    return best, 1 / (1 + (-scores[best]).exp())


PATHS: list[Architecture] = [(0, 1, 2), (3, 3, 1), (2, 0, 0)]


def test_the_loss_is_the_students_and_the_teachers() -> None:
    supernet = smooth()
    rate = 1e-3
    method = filled(supernet, PATHS, learning_rate=rate, schedule="constant", weight_decay=0.0, warmup=0.9)
    assert method.matching is not None
    seen = set()
    for step in range(8):
        images, labels = batch(supernet, step)
        reference = copy.deepcopy(supernet)
        ran = record(supernet)
        before = weights(supernet)
        figures = {key: float(value) for key, value in method.step([[(images, labels)]]).items()}
        stop_recording(supernet)
        path = ran[0]
        assert_only_moves(supernet, before, [path])  # not the teacher

        twin = copy.copy(method)
        twin.supernet = reference
        best, rho = by_hand(twin, path, (method.matching.weight, method.matching.bias))
        rho = rho.detach()
        seen.add(best)
        assert ran == [path, path, PATHS[best]]
        teacher = reference(images, PATHS[best]).softmax(1).detach()
        logarithms = reference(images, path).log_softmax(1)
        kd = -(teacher * logarithms).sum(1).mean()
        ce = -logarithms.gather(1, labels[:, None]).mean()
        assert figures["rho"] == pytest.approx(rho.item()) and 0.01 < figures["rho"] < 0.99
        assert figures["distillation"] == pytest.approx(kd.item())
        assert figures["loss"] == pytest.approx(ce.item())
        ((rho * kd + (2 - rho) * ce) / 2).backward()
        for (name, p), q in zip(supernet.named_parameters(), reference.parameters(), strict=True):
            expected = torch.zeros_like(p) if q.grad is None else q.grad
            torch.testing.assert_close(
                (before[name] - p) / rate, expected, rtol=0, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
            )
    assert len(seen) > 1


def test_matching_follows_the_loss_after_a_virtual_step() -> None:
    supernet = smooth()
    rate, path = 0.4, (1, 2, 3)
    method = filled(supernet, PATHS, matching_learning_rate=1e-2, matching_clip_norm=1e6)
    images, labels = batch(supernet, 1, size=7)
    assert method.matching is not None
    start = [p.detach().clone() for p in method.matching.parameters()]
    before = weights(supernet)
    best, _ = by_hand(method, path, (start[0], start[1]))

    def after(layer: list[Tensor]) -> float:
        """The second slice's loss where torch itself takes the step on the first."""
        ahead = copy.deepcopy(supernet)
        _, rho = by_hand(method, path, (layer[0], layer[1]))
        rho = rho.detach()
        softmax = supernet(images[:3], PATHS[best]).softmax(1).detach()
        logits = ahead(images[:3], path)
        kd, ce = F.cross_entropy(logits, softmax), F.cross_entropy(logits, labels[:3])
        ((rho * kd + (2 - rho) * ce) / 2).backward()
        torch.optim.SGD(ahead.parameters(), rate).step()
        return F.cross_entropy(ahead(images[3:], path), labels[3:]).item()

    loss = method.improve_matching(images, labels, path, rate)
    assert loss.item() == pytest.approx(after(start), abs=1e-12)
    assert all(torch.equal(p, before[name]) for name, p in supernet.named_parameters())
    assert all(p.grad is None for p in supernet.parameters())
    size = 0.0
    for which, (old, new) in enumerate(zip(start, method.matching.parameters(), strict=True)):
        slope = torch.zeros_like(old)
        for i in range(old.numel()):
            values = []
            for sign in (1, -1):
                moved = [p.clone() for p in start]
                moved[which].view(-1)[i] += sign * 1e-5
                values.append(after(moved))
            slope.view(-1)[i] = (values[0] - values[1]) / 2e-5
        torch.testing.assert_close((old - new.detach()) / 1e-2, slope, rtol=1e-5, atol=1e-9)
        size += float(slope.square().sum())
    assert size**0.5 > 1e-4

    for p, old in zip(method.matching.parameters(), start, strict=True):
        p.detach().copy_(old)
    method.settings = method.settings.model_copy(update={"matching_clip_norm": 1e-5})
    method.improve_matching(images, labels, path, rate)
    moved = sum(
        float((p.detach() - q).square().sum()) for p, q in zip(method.matching.parameters(), start, strict=True)
    )
    assert moved**0.5 == pytest.approx(1e-2 * 1e-5 * size**0.5 / (size**0.5 + 1e-6), rel=1e-4)


def test_matching_is_updated_every_so_many_steps() -> None:
    supernet = smooth()
    method = filled(supernet, PATHS, warmup=0.9)
    method.settings = method.settings.model_copy(update={"matching_every": 4})
    method.done_steps = 0
    assert method.matching is not None
    changed = []
    for step in range(10):
        before = method.matching.weight.detach().clone()
        method.step([[batch(supernet, step)]])
        if not torch.equal(before, method.matching.weight):
            changed.append(step)
    assert changed == [0, 4, 8]


def test_the_board_opens_after_the_warm_up_and_keeps_its_rule() -> None:
    supernet = smooth(layers=4)
    method = make(supernet, board=4, margin=5.0, warmup=0.25, learning_rate=1e-6, sampling="uniform")
    entered = refused = 0
    ran = record(supernet)
    for step in range(TOTAL):
        images, labels = batch(supernet, step, size=50)
        old = [copy.copy(member) for member in method.board]
        ran.clear()
        with torch.no_grad():
            before = copy.deepcopy(supernet.state_dict())
        method.step([[(images, labels)]])
        path = ran[0]
        if step < 0.25 * TOTAL:
            assert not method.board
            continue
        twin = smooth(layers=4)
        twin.load_state_dict(before)
        logits = twin(images, path).detach()
        accuracy = 100 * float((logits.argmax(1) == labels).float().mean())
        new = [member for member in method.board if all(member.images is not other.images for other in old)]
        if any(member.path == path for member in old):
            assert not new
            continue
        expected = len(old) < 4
        if not expected:
            worst = min(old, key=lambda member: member.accuracy)
            expected = accuracy > worst.accuracy + 5 or (accuracy > worst.accuracy and sum(path) < worst.macs)
            if expected:
                assert all(member.images is not worst.images for member in method.board)
        assert len(new) == expected
        entered, refused = entered + expected, refused + (not expected)
        for member in new:
            assert (member.path, member.macs) == (path, sum(path)) and member.accuracy == pytest.approx(accuracy)
            assert torch.equal(member.images, images[:4]) and member.images.shape == (4, 4)
            torch.testing.assert_close(member.softmax, logits[:4].softmax(1), rtol=0, atol=1e-12)
    assert entered > 6 and refused > 6 and len(method.board) == 4
    figures = method.end_epoch()
    assert figures["board"] == 4
    assert figures["board_accuracy"] == pytest.approx(np.mean([member.accuracy for member in method.board]))
    best = max(member.accuracy for member in method.board)
    assert method.architecture() in [member.path for member in method.board if member.accuracy == best]


def test_before_the_board_opens_it_is_spos_with_equal_chances() -> None:
    supernet = network()
    method = make(supernet, momentum=0.9, weight_decay=0.01)
    assert method.architecture() is None
    ran = record(supernet)
    for step in range(4):
        before = weights(supernet)
        figures = method.step([[batch(supernet, step)]])
        assert_only_moves(supernet, before, ran[-1:])
        assert float(figures["rho"]) == float(figures["distillation"]) == 0
    assert len(ran) == 4 and method.end_epoch() == {"board": 0.0, "board_accuracy": 0.0, "board_macs": 0.0}


def test_a_training_that_ends_within_the_warm_up_chooses_its_last_path() -> None:
    supernet = network()
    method = Cream(supernet, Settings(strategy="cream", warmup=0.99), 3, 5)
    ran = record(supernet)
    for step in range(3):
        assert method.architecture() is None
        method.step([[batch(supernet, step)]])
    assert [method.architecture()] == ran[-1:] and len(method.board) == 1
