"""`supernet.engine: auto`: lockstep on a GPU where it can be, path by path elsewhere, and never a broken graph."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from sumnas import training
from sumnas.distributed import Ranks
from sumnas.errors import UserError
from sumnas.lockstep.capture import Captured, CaptureError, distance
from sumnas.methods import base, fairnas, sumnas
from sumnas.methods.base import Method
from tests import trainings
from tests.replayed import ReplayedGraph, without_gpu
from tests.steps import SEED, TOTAL, rounds_for, supernet
from tests.tiny import assert_same_bytes, smooth

CASES: dict[str, dict[str, Any]] = {
    "sumnas": {"adaptation_steps": 2, "rounds": 2, "inner_schedule": "cosine"},
    "fairnas": {"rounds": 2, "momentum": 0.5},
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[ReplayedGraph]:
    """A supernet that seems to be on a GPU, whose graphs are computed on the CPU; those that were made."""
    monkeypatch.setattr(Method, "on_gpu", True)
    return without_gpu(monkeypatch)


def make(strategy: str, engine: Any, **changes: Any) -> Method:
    module = base.module_of(strategy)
    settings = module.Settings(strategy=strategy, **{**CASES.get(strategy, {}), **changes})
    method: Method = module.METHOD(supernet(channels=4, image_size=8), settings, TOTAL, SEED)
    method.use(engine)
    if isinstance(method, sumnas.SUMNAS | fairnas.FairNAS) and method.joint is not None:
        method.joint.captured.graphs = method.on_gpu
    return method


def steps(method: Method, count: int = 2) -> list[float]:
    return [float(method.step(rounds_for(method, number, size=8), [])["loss"]) for number in range(count)]


@pytest.mark.parametrize("strategy", CASES)
def test_on_a_gpu_auto_is_lockstep(strategy: str, gpu: list[ReplayedGraph]) -> None:
    one, other = make(strategy, "sequential"), make(strategy, "auto")
    assert (one.engine, other.engine) == ("sequential", "lockstep")
    assert steps(other) == pytest.approx(steps(one), abs=1e-10)
    assert len(gpu) == 1 and other.engine == "lockstep"
    for p, q in zip(one.supernet.parameters(), other.supernet.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=0, atol=1e-10)


def test_what_has_no_lockstep_step_goes_path_by_path_on_a_gpu_too(gpu: list[ReplayedGraph]) -> None:
    assert make("spos", "auto").engine == "sequential"
    assert make("sumnas", "auto", momentum_buffer="carry", inner_momentum=0.9).engine == "sequential"
    method = sumnas.SUMNAS(smooth(), sumnas.Settings(strategy="sumnas", adaptation_steps=1), TOTAL, SEED)
    method.use("auto")
    assert method.engine == "sequential" and not gpu


def test_several_processes_share_paths_in_the_place_of_lockstep(gpu: list[ReplayedGraph]) -> None:
    def started(ranks: Ranks, **changes: Any) -> Method:
        settings, block = trainings.settings(**changes), trainings.METHODS["sumnas"]
        return training.assemble(trainings.network(), trainings.prepared(), settings, block, SEED, ranks)[0]

    assert started(Ranks()).engine == "lockstep"
    method = started(Ranks(0, 2))
    assert isinstance(method, sumnas.SUMNAS) and method.engine == "sequential" and method.joint is None
    with pytest.raises(UserError, match="lockstep runs all paths in one"):
        started(Ranks(0, 2), engine="lockstep")


def out_of_memory(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the second inner step, when the weights have moved."""
    assert isinstance(method, sumnas.SUMNAS | fairnas.FairNAS) and method.joint is not None
    loss, calls = method.joint.loss, [0]

    def full(*given: Any) -> Tensor:
        calls[0] += 1
        if calls[0] == getattr(method.settings, "adaptation_steps", 1):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has\nmuch to say")
        return loss(*given)

    method.joint.loss = full  # type: ignore[assignment]


def stale(_method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that leaves its results as they happened to be."""
    monkeypatch.setattr(ReplayedGraph, "replay", lambda self: [out.zero_() for out in self.captured._outputs])


def refused(_method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    def graph(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "graph", graph)


FAULTS = {
    out_of_memory: "CUDA out of memory",
    stale: "the captured graph's results are off by 100%",
    refused: "CUDA error: operation not permitted when stream is capturing",
}


@pytest.mark.parametrize("strategy", CASES)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_a_graph_that_cannot_be_leaves_the_training_as_path_by_path(
    strategy: str,
    fault: Any,
    gpu: list[ReplayedGraph],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, other = make(strategy, "sequential"), make(strategy, "auto")
    fault(other, monkeypatch)
    assert steps(other) == steps(one)
    assert_same_bytes(one.supernet, other.supernet)
    assert other.engine == "sequential" and one.state_dict()["rng"] == other.state_dict()["rng"]
    said = capsys.readouterr().err
    assert said == f"supernet.engine: auto goes path by path, not in lockstep: {FAULTS[fault]}\n"


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_where_lockstep_is_named_it_is_an_error(
    fault: Any, gpu: list[ReplayedGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make("sumnas", "lockstep")
    before = make("sumnas", "sequential").supernet
    fault(method, monkeypatch)
    with pytest.raises(UserError, match=f"^supernet.engine = 'lockstep': {re.escape(FAULTS[fault])}; set .*sequential"):
        steps(method)
    assert_same_bytes(method.supernet, before)


def test_large_losses_hide_no_other_result(gpu: list[ReplayedGraph], monkeypatch: pytest.MonkeyPatch) -> None:
    captured = Captured(lambda x: [x * 100, x * 0.01, x * 0.02], torch.device("cpu"))
    captured.graphs = True
    monkeypatch.setattr(ReplayedGraph, "replay", lambda self: self.captured._outputs[2].zero_())
    with pytest.raises(CaptureError, match="off by 100%"):
        captured.prepare(torch.ones(3))


@pytest.mark.parametrize("end_fails", [True, False])
def test_a_broken_capture_tells_of_what_broke_it(
    gpu: list[ReplayedGraph], monkeypatch: pytest.MonkeyPatch, end_fails: bool
) -> None:
    """As torch has it: after a failure inside, to end the capture may fail as well."""

    class Broken(contextlib.AbstractContextManager[None]):
        def __exit__(self, *_: object) -> None:
            if end_fails:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    calls: list[int] = []

    def function(x: Tensor) -> list[Tensor]:
        calls.append(1)
        if len(calls) > 3:
            try:
                raise KeyError("of a cache, and handled")
            except KeyError:
                raise RuntimeError("CUDA error: not permitted when stream is capturing")  # noqa: B904
        return [x]

    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: Broken())
    captured = Captured(function, torch.device("cpu"))
    captured.graphs = True
    with pytest.raises(CaptureError, match="^CUDA error: not permitted when stream is capturing$"):
        captured.prepare(torch.ones(3))


def test_how_far_a_graph_may_be() -> None:
    expected = [torch.tensor([3.0, 4.0]), torch.tensor([1e-9])]
    assert distance(expected, expected) == 0
    assert distance([torch.tensor([3.0, 4.5]), expected[1]], expected) == pytest.approx(0.1)
    assert distance([expected[0], torch.tensor([-1e-9])], expected) < 1e-7  # nothing but rounding
    assert distance([torch.tensor([3.0, torch.nan]), expected[1]], expected) == torch.inf
    assert distance(expected, [torch.tensor([torch.inf, 1.0]), expected[1]]) == 0
    assert distance([torch.zeros(2)], [torch.zeros(2)]) == 0
