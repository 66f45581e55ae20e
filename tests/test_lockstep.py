"""The lockstep step equals the one that goes path by path, and a training can change from one to the other."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from sumnas import params, training
from sumnas.errors import UserError
from sumnas.lockstep.descent import JointGradient
from sumnas.methods import base, fairnas, sumnas
from sumnas.methods.base import Method
from sumnas.spaces.base import Architecture
from sumnas.spaces.nasbench201 import CONV1, CONV3, NONE, POOL, SKIP
from tests import trainings
from tests.replayed import ReplayedGraph, without_gpu
from tests.steps import SEED, TOTAL, name_of, rounds_for, supernet
from tests.tiny import assert_same_bytes, smooth, through_file

NETWORK = {"channels": 4, "image_size": 8}
PLAIN = {"adaptation_steps": 2, "weight_decay": 0.01}
SUMNAS: list[dict[str, Any]] = [
    *[
        {"adaptation_steps": k, "inner_momentum": momentum, "weight_decay": 0.01, "inner_weight_decay": decay}
        for k in (1, 2, 3)
        for momentum in (0.0, 0.9)
        for decay in (0.0, 0.05)
    ],
    *[{**PLAIN, "adaptation_steps": k, "clip_norm": 0.5, "inner_weight_decay": 0.05} for k in (1, 3)],
    {**PLAIN, "clip_norm": 1e6},
    *[{**PLAIN, "rounds": 3, "round_reduction": reduction, "clip_norm": 0.5} for reduction in ("mean", "sum")],
    *[{**PLAIN, "rounds": 2, "batches": batches, "outer_momentum": 0.5} for batches in ("fresh", "reuse")],
    {**PLAIN, "batches": "reuse", "adaptation_steps": 3},
    {**PLAIN, "outer_learning_rate": 0.7},
    {**PLAIN, "outer_learning_rate": 1.5, "outer_momentum": 0.6, "outer_schedule": "constant"},
    {**PLAIN, "inner_schedule": "cosine", "path_reduction": "mean"},
    {**PLAIN, "momentum_buffer": "carry", "inner_momentum": 0.0},
]
FAIRNAS: list[dict[str, Any]] = [
    {"momentum": momentum, "weight_decay": decay, "schedule": schedule}
    for momentum, decay, schedule in [(0.0, 0.0, "constant"), (0.0, 0.01, "cosine"), (0.9, 0.01, "cosine")]
] + [{"rounds": 3, "round_reduction": reduction, "momentum": 0.5} for reduction in ("mean", "sum")]
CASES = [("sumnas", case) for case in SUMNAS] + [("fairnas", case) for case in FAIRNAS]


def make(strategy: str, case: dict[str, Any], dtype: torch.dtype = torch.float64, **network: Any) -> list[Method]:
    """The same method twice: path by path, and in lockstep."""
    module = base.module_of(strategy)
    made: list[Method] = []
    for engine in ("sequential", "lockstep"):
        method = module.METHOD(
            supernet(dtype, **{**NETWORK, **network}), module.Settings(strategy=strategy, **case), TOTAL, SEED
        )
        method.use(engine)
        made.append(method)
    return made


def assert_close(one: Method, other: Method, atol: float = 1e-10) -> None:
    for (name, p), q in zip(one.supernet.named_parameters(), other.supernet.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("strategy", "case"), CASES, ids=lambda v: v if isinstance(v, str) else name_of(v))
def test_step_is_the_sequential_one(strategy: str, case: dict[str, Any]) -> None:
    one, other = make(strategy, case)
    for step in range(3 if one.rounds == 1 else 2):
        given = rounds_for(one, step, size=8)
        expected, found = one.step(given, []), other.step(given, [])
        assert_close(one, other)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert float(found[name]) == pytest.approx(float(value), abs=1e-10), name
        # The paths are the same ones, in the order that they were drawn in.
        assert [path for path, _ in other.passes] == [path for path, _ in one.passes]
        for (_, a), (_, b) in zip(one.passes, other.passes, strict=True):
            assert float(b) == pytest.approx(float(a), abs=1e-10)
    assert other.done_steps == one.done_steps
    assert all(p.requires_grad for p in other.supernet.parameters())


@pytest.mark.parametrize("strategy", ["sumnas", "fairnas"])
@pytest.mark.parametrize("network", [{"affine": False}, {"cells": 2}], ids=name_of)
def test_step_is_the_sequential_one_in_other_networks(strategy: str, network: dict[str, Any]) -> None:
    one, other = make(strategy, PLAIN if strategy == "sumnas" else {}, **network)
    given = rounds_for(one, 0, size=8)
    one.step(given, [])
    other.step(given, [])
    assert_close(one, other)


DEAD: list[Architecture] = [
    (NONE, NONE, NONE, CONV3, CONV1, CONV3),  # convolutions of empty nodes
    (CONV3, NONE, CONV1, NONE, NONE, NONE),  # edges that lead nowhere, and a cell that gives zeros
    (SKIP, SKIP, SKIP, SKIP, SKIP, SKIP),
    (NONE, CONV1, NONE, POOL, POOL, CONV1),  # a pool of an empty node
    (POOL, POOL, POOL, CONV1, CONV3, POOL),
]


def round_with(path: Architecture) -> list[Architecture]:
    """A strictly fair round with this path in it."""
    return [tuple((operator + shift) % 5 for operator in path) for shift in range(5)]


@pytest.mark.parametrize("path", DEAD, ids=str)
def test_edges_from_nowhere_and_to_nowhere(path: Architecture) -> None:
    network, paths = supernet(**NETWORK), round_with(path)
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(6, 2, 8, 8, generator=generator, dtype=torch.float64), torch.arange(6) % 3
    losses, gradients = JointGradient(network)(paths, (images, labels))
    expected = [F.cross_entropy(network(images, p), labels) for p in paths]
    torch.testing.assert_close(losses, torch.stack(expected).detach(), rtol=0, atol=1e-12)
    parameters = list(network.parameters())
    wanted = torch.autograd.grad(sum(expected, torch.zeros(())), parameters, materialize_grads=True)
    for gradient, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=0, atol=1e-10)
    # The operators that the loss does not reach have no gradient, and decay all the same.
    network.zero_grad()
    F.cross_entropy(network(images, path), labels).backward()  # type: ignore[no-untyped-call]
    unreached = {id(p) for p in network.path_choices(path) if p.grad is None}
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if id(parameter) in unreached:
            assert not gradient.any()


def test_weight_decay_reaches_what_the_loss_does_not() -> None:
    one, other = make("sumnas", {"adaptation_steps": 1, "weight_decay": 0.5})
    before = {name: p.detach().clone() for name, p in other.supernet.named_parameters()}
    given = rounds_for(one, 0, size=8)
    one.step(given, [])
    other.step(given, [])
    assert_close(one, other)
    assert all(not torch.equal(p, before[name]) for name, p in other.supernet.named_parameters())


def test_only_one_shape_is_ever_traced() -> None:
    for strategy, case in (("sumnas", {"adaptation_steps": 2, "rounds": 2}), ("fairnas", {"rounds": 2})):
        _, method = make(strategy, case)
        assert isinstance(method, sumnas.SUMNAS | fairnas.FairNAS) and method.joint is not None
        for step in range(3):  # other paths, other rates
            method.step(rounds_for(method, step, size=8), [])
        larger = [
            [(torch.cat([x, x]), torch.cat([y, y])) for x, y in streams] for streams in rounds_for(method, 3, size=8)
        ]
        with pytest.raises(ValueError, match="constant shape"):
            method.step(larger, [])


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[ReplayedGraph]:
    return without_gpu(monkeypatch)


@pytest.mark.parametrize("strategy", ["sumnas", "fairnas"])
def test_a_replayed_graph_gets_new_batches_paths_and_rates(strategy: str, graphs: list[ReplayedGraph]) -> None:
    """What a CUDA graph does to its inputs and outputs, with what it computes done on the CPU."""
    case = {**PLAIN, "rounds": 2, "inner_schedule": "cosine"} if strategy == "sumnas" else {"rounds": 2}
    one, other = make(strategy, case)
    assert isinstance(other, sumnas.SUMNAS | fairnas.FairNAS) and other.joint is not None
    other.joint.captured.graphs = True
    seen = []
    for step in range(3):
        given = rounds_for(one, step, size=8)
        seen.append((one.step(given, []), one.passes, other.step(given, []), other.passes))
        assert_close(one, other)
    assert len(graphs) == other.joint.captured.captures == 1
    # Figures are looked at many steps later: the graph's outputs are overwritten by then.
    for expected, passes, found, others in seen:
        for name, value in expected.items():
            assert float(found[name]) == pytest.approx(float(value), abs=1e-10)
        for (path, loss), (other_path, other_loss) in zip(passes, others, strict=True):
            assert path == other_path and float(other_loss) == pytest.approx(float(loss), abs=1e-10)


# Trainings.

BLOCKS = {
    "sumnas": sumnas.Settings(
        strategy="sumnas", adaptation_steps=2, inner_learning_rate=0.05, outer_momentum=0.5, rounds=2
    ),
    "fairnas": fairnas.Settings(strategy="fairnas", momentum=0.5),
}


def start(strategy: str, engine: str, dtype: torch.dtype = torch.float64) -> tuple[Method, Any]:
    data = trainings.prepared()
    settings = trainings.settings(2, engine=engine)
    network = trainings.network()
    method, batches, _ = training.assemble(network, data, settings, BLOCKS[strategy], trainings.SEED)
    assert method.engine == engine
    network.to(dtype)
    return method, trainings.Widened(batches)


@functools.cache
def undisturbed(strategy: str, engine: str) -> tuple[Method, list[training.Row]]:
    """Return what a training comes to, for several tests: to look at alone."""
    method, batches = start(strategy, engine)
    return method, training.train(method, batches, None, 2)


@pytest.mark.parametrize("strategy", BLOCKS)
def test_history_and_weights_of_a_training_are_the_same(strategy: str) -> None:
    methods, histories = zip(*(undisturbed(strategy, engine) for engine in ("sequential", "lockstep")), strict=True)
    assert_close(*methods)
    for one, other in zip(*histories, strict=True):
        assert one.keys() == other.keys()
        assert other == {name: pytest.approx(value, abs=1e-10) for name, value in one.items()}


class Stop(Exception):
    pass


@functools.cache
def killed(strategy: str, engine: str) -> dict[str, Any]:
    """Return the state of a training after the first step of its second epoch, for several tests: to look at alone."""
    method, batches = start(strategy, engine)
    saved: list[dict[str, Any]] = []

    def on_step(now: training.Progress) -> None:
        if method.done_steps == batches.steps + 1:
            saved.append(training.capture(method, now))
            raise Stop

    with pytest.raises(Stop):
        training.train(method, batches, None, 2, on_step=on_step)
    return saved[0]


@pytest.mark.parametrize("strategy", BLOCKS)
@pytest.mark.parametrize("engines", list(itertools.product(("sequential", "lockstep"), repeat=2)), ids="-".join)
def test_a_killed_training_goes_on_in_either_engine(strategy: str, engines: tuple[str, str]) -> None:
    expected, history = undisturbed(strategy, engines[0])
    second, batches = start(strategy, engines[1])
    state = through_file(killed(strategy, engines[0]))
    again = training.train(second, batches, None, 2, progress=training.restore(second, state))
    if engines[0] == engines[1]:
        assert_same_bytes(second.supernet, expected.supernet)
        assert again == history
    else:
        assert_close(expected, second)
        assert again[-1]["loss"] == pytest.approx(history[-1]["loss"], abs=1e-10)
    assert expected.state_dict().keys() == second.state_dict().keys()


def test_same_seed_same_bytes() -> None:
    def trained() -> Method:
        _, method = make("sumnas", {**PLAIN, "clip_norm": 1.0}, torch.float32)
        for step in range(2):
            method.step(rounds_for(method, step, torch.float32, size=8), [])
        return method

    assert_same_bytes(trained().supernet, trained().supernet)


# bfloat16.


@pytest.mark.parametrize("strategy", ["sumnas", "fairnas"])
def test_autocast_to_bfloat16_rounds_no_worse_than_the_sequential_step(strategy: str) -> None:
    """The loss is float32's within 0.5 %; the update is at most 1.25 times as far from float32's as path by path."""
    case = {"adaptation_steps": 2, "inner_learning_rate": 0.02} if strategy == "sumnas" else {"learning_rate": 0.02}
    exact, _ = make(strategy, case, torch.float32)
    begun = [p.detach().clone() for p in exact.supernet.parameters()]
    generator = torch.Generator().manual_seed(0)
    shape = (64, 2, 8, 8)
    given = [[(torch.randn(shape, generator=generator), torch.arange(64) % 3) for _ in range(exact.streams)]]
    loss = float(exact.step(given, [])["loss"])
    update = _flat([p - q for p, q in zip(exact.supernet.parameters(), begun, strict=True)])
    errors = []
    for method in make(strategy, case, torch.float32):
        # Without the cache of cast weights: an inner step changes them.
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            found = float(method.step(given, [])["loss"])
        assert found == pytest.approx(loss, rel=0.005)
        other = _flat([p - q for p, q in zip(method.supernet.parameters(), begun, strict=True)])
        assert all(p.dtype == torch.float32 for p in method.supernet.parameters())
        errors.append(float((other - update).norm() / update.norm()))
    assert 0.5 * errors[0] < errors[1] < 1.25 * errors[0], errors  # not less either: it does compute in bfloat16


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


# Which engine.


def test_auto_is_sequential_on_a_cpu() -> None:
    _, method = make("sumnas", PLAIN)
    method.use("auto")
    assert method.engine == "sequential"


def test_a_method_without_a_lockstep_step_names_those_that_have_one() -> None:
    module = base.module_of("spos")
    method = module.METHOD(supernet(), module.Settings(strategy="spos"), TOTAL, SEED)
    method.use("auto")
    with pytest.raises(UserError, match=r"supernet\.engine = 'lockstep': .*'spos'.*fairnas, sumnas"):
        method.use("lockstep")


def test_settings_with_an_engine_that_a_method_has_not_are_refused(tmp_path: Path) -> None:
    blocks = yaml.safe_load((Path(__file__).parents[1] / "params.yaml").read_text())
    assert blocks["supernet"]["engine"] == "auto"
    blocks["supernet"]["engine"] = "lockstep"
    blocks["methods"]["sumnas-k4"]["momentum_buffer"] = "carry"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(blocks))
    with pytest.raises(UserError) as failure:
        params.load(tmp_path / "params.yaml")
    lines = str(failure.value).splitlines()
    assert len(lines) == 2 and all("supernet.engine = 'lockstep'" in line for line in lines)
    assert "methods.spos" in lines[0] and "fairnas, sumnas" in lines[0] and "engine: auto" in lines[0]
    assert "methods.sumnas-k4" in lines[1] and "momentum_buffer" in lines[1]
    blocks["run"]["methods"] = ["fairnas", "sumnas-k2"]  # blocks that no run uses do no harm
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(blocks))
    assert params.load(tmp_path / "params.yaml").supernet.engine == "lockstep"


def test_carried_momentum_has_an_order_of_paths_and_no_lockstep_step() -> None:
    settings = sumnas.Settings(strategy="sumnas", adaptation_steps=1, momentum_buffer="carry")
    method = sumnas.SUMNAS(supernet(), settings, TOTAL, SEED)
    with pytest.raises(UserError, match="momentum_buffer"):
        method.use("lockstep")


def test_a_space_without_a_lockstep_form_is_refused() -> None:
    method = sumnas.SUMNAS(smooth(), sumnas.Settings(strategy="sumnas", adaptation_steps=1), TOTAL, SEED)
    method.use("auto")
    with pytest.raises(UserError, match="space has no lockstep form"):
        method.use("lockstep")
