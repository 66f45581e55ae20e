"""SUMNAS's outer step against a literal, naive Algorithm 1; its identity with FairNAS, its state."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sumnas import seeding
from sumnas.data import Batch
from sumnas.methods.base import Rounds
from sumnas.methods.fairnas import FairNAS
from sumnas.methods.fairnas import Settings as FairNASSettings
from sumnas.methods.sumnas import SUMNAS, Settings
from sumnas.schedules import factor
from sumnas.spaces.base import Architecture, Supernet
from sumnas.spaces.nasbench201 import EDGES, OPERATORS
from tests.steps import SEED, TOTAL, name_of, rounds_for, supernet
from tests.tiny import assert_same_bytes, through_file


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in network.named_parameters()}


class Algorithm1:
    """The paper's Algorithm 1, line by line: every path is a copy of the whole supernet with torch's own SGD."""

    def __init__(self, theta: Supernet, settings: Settings) -> None:
        self.theta, self.settings = theta, settings
        self.copy = copy.deepcopy(theta)  # made once, filled for every path: copying the modules takes far longer
        self.weights = dict(theta.named_parameters())
        self.copied = dict(self.copy.named_parameters())
        self.rng = seeding.numpy_stream(SEED, "paths")
        self.steps = 0
        self.inner_momentum: dict[str, Tensor] = {}
        self.outer_momentum: dict[str, Tensor] = {}

    def on_path(self, path: Architecture, name: str) -> bool:
        """Read from the parameter's name alone whether it is on the path."""
        parts = name.split(".")
        if "edges" not in parts:
            return True
        at = parts.index("edges")
        return OPERATORS[path[int(parts[at + 1])]] == parts[at + 2]

    def adapt(self, path: Architecture, streams: Sequence[Batch], rate: float) -> list[float]:
        """Line 10, A^k: leave theta' in the copy; return the losses of the k steps."""
        s = self.settings
        with torch.no_grad():
            for name, p in self.weights.items():
                self.copied[name].copy_(p)
        mine = {name: p for name, p in self.copied.items() if self.on_path(path, name)}
        sgd = torch.optim.SGD(mine.values(), rate, s.inner_momentum, weight_decay=s.inner_weight_decay, foreach=False)
        if s.momentum_buffer == "carry" and s.inner_momentum:
            for name, p in mine.items():
                sgd.state[p]["momentum_buffer"] = self.inner_momentum.get(name, torch.zeros_like(p)).clone()
        losses = []
        for j in range(s.adaptation_steps):
            images, labels = streams[j if s.batches == "fresh" else 0]
            for p in self.copied.values():
                p.grad = None
            loss = F.cross_entropy(self.copy(images, path), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.item())
            for p in mine.values():
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
            if s.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(mine.values(), s.clip_norm)
            sgd.step()
        if s.momentum_buffer == "carry" and s.inner_momentum:
            for name, p in mine.items():
                self.inner_momentum[name] = sgd.state[p]["momentum_buffer"].clone()
        return losses

    def step(self, rounds: Rounds) -> tuple[float, float]:
        """Lines 4 to 15; return the mean loss and the norm of the shared parameters' update."""
        s = self.settings
        done = self.steps / TOTAL
        inner = s.inner_learning_rate / (s.adaptation_steps if s.scale_inner else 1)
        inner *= factor(s.inner_schedule, done)
        outer = s.outer_learning_rate * factor(s.outer_schedule, done)
        gradient = {name: torch.zeros_like(p) for name, p in self.weights.items()}
        losses: list[float] = []
        for streams in rounds:
            permutations = [self.rng.permutation(len(OPERATORS)) for _ in EDGES]
            for i in range(len(OPERATORS)):
                path = tuple(int(permutation[i]) for permutation in permutations)
                losses += self.adapt(path, streams, inner)
                share = 1.0
                if s.round_reduction == "mean":
                    share /= len(rounds)
                if s.path_reduction == "mean":
                    share /= len(OPERATORS)
                for name, p in self.weights.items():
                    gradient[name] += share * (p.detach() - self.copied[name].detach())
        with torch.no_grad():
            for name, p in self.weights.items():
                move = gradient[name] + s.weight_decay * p
                if s.outer_momentum:
                    move += s.outer_momentum * self.outer_momentum.get(name, torch.zeros_like(p))
                    self.outer_momentum[name] = move
                p -= outer * move
        self.steps += 1
        shared = [g.flatten() for name, g in gradient.items() if "edges" not in name.split(".")]
        return sum(losses) / len(losses), outer * torch.cat(shared).norm().item()


PLAIN = {"adaptation_steps": 2, "weight_decay": 0.01}
CASES: list[dict[str, Any]] = [
    *[
        {"adaptation_steps": k, "inner_momentum": momentum, "weight_decay": decay}
        for k in (1, 2, 3)
        for momentum in (0.0, 0.9)
        for decay in (0.0, 0.01)
    ],
    {**PLAIN, "outer_learning_rate": 0.7},
    {**PLAIN, "outer_learning_rate": 1.5, "outer_momentum": 0.6},
    {**PLAIN, "outer_momentum": 0.9, "weight_decay": 0.0},
    {**PLAIN, "rounds": 3},
    {**PLAIN, "rounds": 3, "round_reduction": "sum", "inner_learning_rate": 0.05},
    {**PLAIN, "rounds": 3, "outer_momentum": 0.5, "path_reduction": "mean", "momentum_buffer": "carry"},
    {**PLAIN, "batches": "reuse"},
    {**PLAIN, "batches": "reuse", "rounds": 3},
    {**PLAIN, "momentum_buffer": "carry"},
    {**PLAIN, "momentum_buffer": "carry", "adaptation_steps": 1, "outer_momentum": 0.9},
    {**PLAIN, "momentum_buffer": "carry", "inner_momentum": 0.0},
    {**PLAIN, "path_reduction": "mean"},
    {**PLAIN, "clip_norm": 0.5, "adaptation_steps": 3},
    {**PLAIN, "clip_norm": 1e6},
    {**PLAIN, "inner_weight_decay": 0.05},
    {**PLAIN, "inner_weight_decay": 0.05, "clip_norm": 0.5, "momentum_buffer": "carry"},
    {**PLAIN, "scale_inner": False, "inner_learning_rate": 0.05},
    {**PLAIN, "inner_schedule": "cosine"},
    {**PLAIN, "outer_schedule": "constant", "inner_schedule": "cosine", "outer_momentum": 0.5},
]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_step_is_algorithm_1(case: dict[str, Any]) -> None:
    settings = Settings(strategy="sumnas", **case)
    ours, reference = supernet(), supernet()
    method = SUMNAS(ours, settings, TOTAL, SEED)
    naive = Algorithm1(reference, settings)
    steps = 3 if settings.rounds == 1 else 2
    for step in range(steps):
        rounds = rounds_for(method, step)
        figures = method.step(rounds)
        loss, norm = naive.step(rounds)
        for (name, p), q in zip(ours.named_parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")
        assert float(figures["loss"]) == pytest.approx(loss, abs=1e-10)
        assert float(figures["shared_update_norm"]) == pytest.approx(norm, abs=1e-10)
    assert method.done_steps == steps


@pytest.mark.parametrize("changes", [{"affine": False}, {"cells": 2}, {"image_size": 8, "channels": 4}], ids=name_of)
def test_step_is_algorithm_1_in_other_networks(changes: dict[str, Any]) -> None:
    settings = Settings(strategy="sumnas", **PLAIN)
    ours, reference = supernet(**changes), supernet(**changes)
    method, naive = SUMNAS(ours, settings, TOTAL, SEED), Algorithm1(reference, settings)
    rounds = rounds_for(method, 0, size=changes.get("image_size", 4))
    method.step(rounds)
    naive.step(rounds)
    for p, q in zip(ours.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-10)


def test_what_a_step_declares_to_take() -> None:
    def declared(**changes: Any) -> tuple[int, int, int]:
        method = SUMNAS(supernet(), Settings(strategy="sumnas", **changes), TOTAL, SEED)
        return method.streams, method.rounds, method.passes_per_step

    assert declared(adaptation_steps=4) == (4, 1, 20)
    assert declared(adaptation_steps=4, batches="reuse") == (1, 1, 20)
    assert declared(adaptation_steps=2, rounds=3) == (2, 3, 30)


def test_a_step_leaves_no_gradients_behind() -> None:
    network = supernet()
    method = SUMNAS(network, Settings(strategy="sumnas", **PLAIN), TOTAL, SEED)
    method.step(rounds_for(method, 0))
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


# FairNAS is SUMNAS with k = 1.


def pair(decay: float, outer: float, inner: float, rounds: int = 1, reduction: str = "mean") -> tuple[SUMNAS, FairNAS]:
    common = {"rounds": rounds, "round_reduction": reduction, "weight_decay": decay}
    meta = Settings(
        strategy="sumnas", adaptation_steps=1, inner_momentum=0.0, inner_learning_rate=inner,
        outer_learning_rate=outer, **common,
    )  # fmt: skip
    fair = FairNASSettings(strategy="fairnas", learning_rate=outer * inner, **common)
    return SUMNAS(supernet(), meta, TOTAL, SEED), FairNAS(supernet(), fair, TOTAL, SEED)


@pytest.mark.parametrize(("rounds", "reduction"), [(1, "mean"), (3, "mean"), (3, "sum")])
@pytest.mark.parametrize("outer", [1.0, 1.7])
def test_fairnas_is_one_adaptation_step(rounds: int, reduction: str, outer: float) -> None:
    meta, fair = pair(0.0, outer, 0.1, rounds, reduction)
    for step in range(4):
        given = rounds_for(meta, step)
        one, other = meta.step(given), fair.step(given)
        assert float(one["loss"]) == pytest.approx(float(other["loss"]), abs=1e-10)
        assert one["learning_rate"] == pytest.approx(other["learning_rate"])
    for p, q in zip(meta.supernet.parameters(), fair.supernet.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-10)


def test_fairnas_decays_by_the_product_of_the_rates_and_sumnas_by_the_outer_one() -> None:
    decay, outer, inner = 0.03, 1.3, 0.1
    meta, fair = pair(decay, outer, inner)
    theta = weights(meta.supernet)
    given = rounds_for(meta, 0)
    meta.step(given)
    fair.step(given)
    for (name, p), q in zip(meta.supernet.named_parameters(), fair.supernet.parameters(), strict=True):
        expected = outer * decay * (1 - inner) * theta[name]
        torch.testing.assert_close(q - p, expected, rtol=0, atol=1e-10)
        assert float(expected.abs().max()) > 1e-6


# State.


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"outer_momentum": 0.9},
        {"momentum_buffer": "carry", "outer_momentum": 0.5},
        {"rounds": 2, "outer_momentum": 0.5},
    ],
    ids=name_of,
)
def test_saved_and_loaded_state_goes_on_to_the_same_bytes(changes: dict[str, Any]) -> None:
    settings = Settings(strategy="sumnas", **{**PLAIN, **changes})
    undisturbed = SUMNAS(supernet(torch.float32), settings, TOTAL, SEED)
    first = SUMNAS(supernet(torch.float32), settings, TOTAL, SEED)
    batches = [rounds_for(first, step, torch.float32) for step in range(TOTAL)]
    for given in batches:
        undisturbed.step(given)
    for given in batches[:2]:
        first.step(given)
    state = through_file({"weights": first.supernet.state_dict(), "method": first.state_dict()})

    second = SUMNAS(supernet(torch.float32), settings, TOTAL, SEED + 1)  # another seed: the state brings the stream
    second.supernet.load_state_dict(state["weights"])
    second.load_state_dict(state["method"])
    for given in batches[2:]:
        second.step(given)
    assert second.done_steps == undisturbed.done_steps
    assert_same_bytes(second.supernet, undisturbed.supernet)
    one, other = second.state_dict(), undisturbed.state_dict()
    assert one["rng"] == other["rng"]
    for key, filled in (
        ("inner_buffers", settings.momentum_buffer == "carry"),
        ("outer_buffers", settings.outer_momentum),
    ):
        assert one[key].keys() == other[key].keys()
        assert bool(one[key]) == bool(filled)
        assert all(torch.equal(value, other[key][name]) for name, value in one[key].items())


def test_same_seed_same_bytes_and_another_seed_others() -> None:
    def trained(seed: int) -> Supernet:
        method = SUMNAS(supernet(torch.float32), Settings(strategy="sumnas", **PLAIN), TOTAL, seed)
        for step in range(2):
            method.step(rounds_for(method, step, torch.float32))
        return method.supernet

    assert_same_bytes(trained(1), trained(1))
    with pytest.raises(AssertionError):
        assert_same_bytes(trained(1), trained(2))


def test_buffers_that_are_put_back_are_copies() -> None:
    settings = Settings(
        strategy="sumnas", adaptation_steps=2, inner_learning_rate=0.1, inner_momentum=0.9, momentum_buffer="carry",
        outer_momentum=0.9,
    )  # fmt: skip
    method = SUMNAS(supernet(), settings, TOTAL, SEED)
    rounds = rounds_for(method, 0)
    method.step(rounds)
    state = copy.deepcopy(method.state_dict())
    before = copy.deepcopy(state)
    method.load_state_dict(state)
    method.step(rounds)
    for kind in ("inner_buffers", "outer_buffers"):
        assert state[kind] and all(torch.equal(state[kind][name], value) for name, value in before[kind].items())
        assert any(not torch.equal(method.state_dict()[kind][name], value) for name, value in before[kind].items())
