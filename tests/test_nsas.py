"""SPOS + NSAS: its step against finite differences of the whole loss, its constraint set by brute force."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sumnas.methods import nsas
from sumnas.methods.nsas import NSAS, Settings
from sumnas.spaces.base import Architecture, Supernet
from tests.tiny import assert_only_moves, batch, network, record, smooth, stop_recording, weights


def make(supernet: Supernet, **changes: Any) -> NSAS:
    return NSAS(supernet, Settings(strategy="nsas", **changes), 100, 5)


def test_the_gradient_is_that_of_path_and_set_together() -> None:
    supernet = smooth()
    rate, share = 1e-3, 0.3
    method = make(supernet, learning_rate=rate, schedule="constant", weight_decay=0.0, weight=share, members=3)
    given = [[batch(supernet, 1)]]
    for _ in range(4):
        method.step(given)
    members = list(method.members)
    assert len(members) == 3
    before = weights(supernet)
    ran = record(supernet)
    figures = method.step(given)
    assert len(ran) == 4 == method.passes_per_step and ran[1:] == members
    after = weights(supernet)

    def total() -> float:
        images, labels = given[0][0]
        losses = [float(F.cross_entropy(supernet(images, path), labels)) for path in (ran[0], *members)]
        return (1 - share) * losses[0] + share * fmean(losses[1:])

    only_in_set = 0
    with torch.no_grad():
        for name, p in supernet.named_parameters():
            p.copy_(before[name])
        for name, p in supernet.named_parameters():
            slope = torch.zeros_like(p)
            for i in range(p.numel()):
                values = []
                for sign in (1, -1):
                    p.view(-1)[i] += sign * 1e-6
                    values.append(total())
                    p.copy_(before[name])
                slope.view(-1)[i] = (values[0] - values[1]) / 2e-6
            torch.testing.assert_close(
                (before[name] - after[name]) / rate,
                slope,
                rtol=0,
                atol=1e-8,
                msg=lambda text, name=name: f"{name}: {text}",
            )
            on_path = {id(q) for q in supernet.path_choices(ran[0])}
            only_in_set += bool(slope.any()) and id(p) not in on_path and id(p) not in {id(q) for q in supernet.shared}
        images, labels = given[0][0]
        assert float(figures["loss"]) == pytest.approx(float(F.cross_entropy(supernet(images, ran[0]), labels)))
    assert only_in_set > 0  # the second term does carry gradient


def test_sharing_the_stem_changes_nothing() -> None:
    supernet, reference = network(), network()
    rate = 0.01
    method = make(supernet, learning_rate=rate, schedule="constant", weight_decay=0.0, members=2)
    for step in range(4):
        ran = record(supernet)
        images, labels = batch(supernet, step)
        method.step([[(images, labels)]])
        stop_recording(supernet)
        shares = [1.0] if len(ran) == 1 else [0.5] + [0.5 / (len(ran) - 1)] * (len(ran) - 1)
        reference.zero_grad()
        for path, share in zip(ran, shares, strict=True):
            (share * F.cross_entropy(reference(images, path), labels)).backward()
        torch.optim.SGD(reference.parameters(), rate).step()
        for (name, p), q in zip(supernet.named_parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")
    assert len(ran) == 3


def novelty_by_hand(path: Architecture, members: list[Architecture], k: int) -> float:
    away = sorted(sum(a != b for a, b in zip(path, member, strict=True)) / len(path) for member in members)
    return fmean(away[:k]) if away else 0.0


@pytest.mark.parametrize(("k", "recent"), [(10, 50), (2, 4)])
def test_the_set_fills_and_renews_as_told(k: int, recent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Architecture] = []
    draw = nsas.uniform_path

    def noting(*arguments: Any) -> Architecture:
        drawn.append(draw(*arguments))
        return drawn[-1]

    monkeypatch.setattr(nsas, "uniform_path", noting)
    supernet = smooth(layers=6, candidates=5)
    method = make(supernet, members=8, neighbours=k, recent=recent)
    given = [[batch(supernet, 1)]]
    paths: list[Architecture] = []
    replaced = 0
    for step in range(70):
        old = list(method.members)
        drawn.clear()
        method.step(given)
        path, others = drawn[0], drawn[1:]
        paths.append(path)
        if step < 8:
            assert len(others) == 10 and len(old) == step and method.members[:-1] == old
            best = max(novelty_by_hand(one, old, k) for one in others)
            assert method.members[-1] in others
            assert novelty_by_hand(method.members[-1], old, k) == pytest.approx(best)
            continue
        assert not others and len(method.members) == 8
        changed = [i for i in range(8) if method.members[i] != old[i]]
        assert len(changed) <= 1
        similar = [sum(a == b for a, b in zip(path, member, strict=True)) for member in old]
        at = similar.index(max(similar))
        assert changed in ([], [at])
        rest = old[:at] + old[at + 1 :]
        best = max(novelty_by_hand(one, rest, k) for one in paths[-recent:])
        assert method.members[at] in paths[-recent:]
        assert novelty_by_hand(method.members[at], rest, k) == pytest.approx(best)
        replaced += bool(changed)
    assert replaced > 10
    figures = method.end_epoch()
    by_hand = [
        novelty_by_hand(m, method.members[:i] + method.members[i + 1 :], k) for i, m in enumerate(method.members)
    ]
    assert figures["novelty"] == pytest.approx(fmean(by_hand)) and figures["novelty"] > 0.6


def test_only_path_and_set_move() -> None:
    supernet = network()
    method = make(supernet, momentum=0.9, weight_decay=0.01, members=2)
    ran = record(supernet)
    for step in range(5):
        ran.clear()
        before = weights(supernet)
        method.step([[batch(supernet, step)]])
        assert len(ran) == 1 + min(step, 2)
        assert_only_moves(supernet, before, ran)


def test_without_members_the_path_has_the_whole_weight() -> None:
    supernet, other = smooth(), smooth()
    for network_, share in ((supernet, 0.5), (other, 0.0)):
        make(network_, weight=share).step([[batch(network_, 1)]])
    for (name, p), q in zip(supernet.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name
