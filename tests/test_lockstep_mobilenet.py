"""The MobileNet space's lockstep form against its path by path step, from the setting `supernet.engine` on."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sumnas import params, seeding, training
from sumnas.errors import UserError
from sumnas.lockstep.descent import JointLoss
from sumnas.lockstep.rounds import indices
from sumnas.methods import base, sumnas
from sumnas.methods.base import Method
from sumnas.paths import strictly_fair_paths
from sumnas.spaces.mobilenet import Network
from tests.chains import space
from tests.steps import name_of, rounds_for
from tests.tiny import assert_same_bytes, through_file
from tests.trainings import SEED, Widened, prepared, settings

PLAIN = {"adaptation_steps": 2, "weight_decay": 0.01, "outer_learning_rate": 0.7}
SUMNAS: list[dict[str, Any]] = [
    *[
        {"adaptation_steps": k, "inner_momentum": momentum, "weight_decay": 0.01, "inner_weight_decay": decay}
        for k, momentum, decay in ((1, 0.9, 0.0), (2, 0.0, 0.05), (3, 0.9, 0.05))
    ],
    {**PLAIN, "adaptation_steps": 1, "outer_learning_rate": 1.5, "outer_momentum": 0.6},
    {**PLAIN, "momentum_buffer": "reset", "clip_norm": 0.5, "inner_schedule": "cosine"},
    *[{**PLAIN, "rounds": 3, "round_reduction": reduction} for reduction in ("mean", "sum")],
]
FAIRNAS: list[dict[str, Any]] = [
    {"momentum": 0.0, "weight_decay": 0.0},
    {"momentum": 0.9, "weight_decay": 0.01},
    *[{"rounds": 3, "round_reduction": reduction, "momentum": 0.5} for reduction in ("mean", "sum")],
]
CASES = [("sumnas", case) for case in SUMNAS] + [("fairnas", case) for case in FAIRNAS]
ENGINES = ("sequential", "lockstep")


def supernet(dtype: torch.dtype = torch.float64, **changes: Any) -> Network:
    """The small chain of tests/chains.py, off its initial values: no weight is at exactly zero or one."""
    with seeding.scoped(SEED, "network"):
        network = space(**changes).supernet().to(dtype)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def start(strategy: str, case: dict[str, Any], engine: str, network: Network | None = None) -> tuple[Method, Any]:
    """The method as a training makes it, and its batches."""
    block = base.module_of(strategy).Settings(strategy=strategy, **case)
    network = supernet() if network is None else network
    method, batches, _ = training.assemble(network, prepared(), settings(engine=engine), block, SEED)
    assert method.engine == engine
    return method, Widened(batches)


def assert_close(one: Method, other: Method) -> None:
    for (name, p), q in zip(one.supernet.named_parameters(), other.supernet.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=0, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def assert_same_step(one: Method, other: Method, step: int) -> None:
    given = rounds_for(one, step)
    expected, found = one.step(given, []), other.step(given, [])
    assert_close(one, other)
    assert {name: float(value) for name, value in found.items()} == {
        name: pytest.approx(float(value), abs=1e-10) for name, value in expected.items()
    }
    assert [path for path, _ in other.passes] == [path for path, _ in one.passes]


@pytest.mark.parametrize(("strategy", "case"), CASES, ids=lambda v: v if isinstance(v, str) else name_of(v))
def test_step_is_the_sequential_one(strategy: str, case: dict[str, Any]) -> None:
    one, other = (start(strategy, case, engine)[0] for engine in ENGINES)
    begun = [p.detach().clone() for p in one.supernet.parameters()]
    for step in range(2):
        assert_same_step(one, other, step)
    if strategy == "sumnas" or case["momentum"]:
        assert all(not torch.equal(p, q) for p, q in zip(other.supernet.parameters(), begun, strict=True))


@pytest.mark.parametrize("strategy", ["sumnas", "fairnas"])
@pytest.mark.parametrize("network", [{"se_ratio": 0}, {"stem_stride": 2, "image_size": 8}], ids=name_of)
def test_step_is_the_sequential_one_in_other_networks(strategy: str, network: dict[str, Any]) -> None:
    case = PLAIN if strategy == "sumnas" else {}
    one, other = (start(strategy, case, engine, supernet(**network))[0] for engine in ENGINES)
    given = rounds_for(one, 0, size=network.get("image_size", 4))
    one.step(given, [])
    other.step(given, [])
    assert_close(one, other)


def test_every_operator_runs_once_on_one_path_and_a_round_costs_what_its_paths_cost() -> None:
    """Inner widths differ, so nothing is padded to the widest: as many operations as path by path, stem included."""
    network, calls = supernet(), []
    for layer, operators in enumerate(network.operators):
        for index, operator in operators.items():
            operator.register_forward_hook(
                lambda _, given, out, at=(layer, index): calls.append((at, len(given[0]), len(out)))
            )
    names = {id(p): name for name, p in network.named_parameters()}
    versions = {names[id(p)]: p.detach().expand(6, *p.shape).clone() for p in network.shared}
    images, labels = torch.randn(5, 2, 4, 4, dtype=torch.float64), torch.arange(5) % 3
    paths = strictly_fair_paths(4, 6, np.random.default_rng(0))
    with FlopCounterMode(display=False) as joint:
        losses = JointLoss(network)(indices(paths), images, labels, versions, True)
    assert calls == [((layer, operator), 5, 5) for layer in range(4) for operator in range(6)]
    with FlopCounterMode(display=False) as alone:
        expected = torch.stack([F.cross_entropy(network(images, path), labels) for path in paths])
    torch.testing.assert_close(losses, expected, rtol=0, atol=1e-10)
    assert joint.get_total_flops() == alone.get_total_flops()


# Trainings.


BLOCKS: dict[str, dict[str, Any]] = {
    "sumnas": {"adaptation_steps": 2, "inner_learning_rate": 0.05, "outer_momentum": 0.5, "rounds": 2},
    "fairnas": {"momentum": 0.5},
}


@pytest.mark.parametrize("strategy", BLOCKS)
def test_a_killed_training_goes_on_in_either_engine(strategy: str) -> None:
    trained, saved = {}, {}
    for engine in ENGINES:
        method, batches = start(strategy, BLOCKS[strategy], engine)

        def on_step(now: training.Progress, method: Method = method, at: int = batches.steps + 1) -> None:
            if method.done_steps == at:
                saved[method.engine] = through_file(training.capture(method, now))

        trained[engine] = method, training.train(method, batches, None, 2, on_step=on_step)
    assert_close(trained["sequential"][0], trained["lockstep"][0])
    for before, after in itertools.product(ENGINES, repeat=2):
        second, batches = start(strategy, BLOCKS[strategy], after)
        again = training.train(second, batches, None, 2, progress=training.restore(second, through_file(saved[before])))
        undisturbed, history = trained[before]
        if before == after:
            assert_same_bytes(second.supernet, undisturbed.supernet)
            assert again == history
        else:
            assert_close(undisturbed, second)
            assert again[-1]["loss"] == pytest.approx(history[-1]["loss"], abs=1e-10)


def test_autocast_to_bfloat16_rounds_no_worse_than_the_sequential_step() -> None:
    """Over four batches: one alone scatters, between 0.8 and 1.3 times the sequential step's error."""

    def step(engine: str, given: Any) -> tuple[float, Tensor]:
        method, _ = start("sumnas", {"adaptation_steps": 2, "inner_learning_rate": 0.02}, engine, copy.deepcopy(begun))
        return float(method.step(given, [])["loss"]), _flat(method.supernet) - _flat(begun)

    begun, errors = supernet(torch.float32), dict.fromkeys(ENGINES, 0.0)
    for number in range(4):
        generator = torch.Generator().manual_seed(number)
        given = [[(torch.randn(64, 2, 4, 4, generator=generator), torch.arange(64) % 3) for _ in range(2)]]
        loss, update = step("sequential", given)
        for engine in ENGINES:
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                found, other = step(engine, given)
            assert found == pytest.approx(loss, rel=0.005)
            errors[engine] += float((other - update).square().sum() / update.square().sum())
    # Not less either: it does compute in bfloat16.
    assert 0.5 < (errors["lockstep"] / errors["sequential"]) ** 0.5 < 1.25, errors


def _flat(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


# Settings.


def test_settings_of_this_space_take_the_engine(tmp_path: Path) -> None:
    blocks = yaml.safe_load((Path(__file__).parents[1] / "presets" / "mobilenet-cpu.yaml").read_text())
    blocks["supernet"]["engine"] = "lockstep"
    fair = [name for name, block in blocks["methods"].items() if block["strategy"] in ("sumnas", "fairnas")]
    assert len({blocks["methods"][name]["strategy"] for name in fair}) == 2
    blocks["run"]["methods"] = fair
    written = tmp_path / "params.yaml"
    written.write_text(yaml.safe_dump(blocks))
    loaded = params.load(written)
    assert loaded.space.name == "mobilenet" and loaded.supernet.engine == "lockstep"
    for name in fair:
        module = base.module_of(loaded.methods[name].strategy)
        method = module.METHOD(supernet(), loaded.methods[name], 4, SEED)
        method.use(loaded.supernet.engine)
        assert method.engine == "lockstep"
    blocks["methods"][fair[-1]] = {"strategy": "sumnas", "adaptation_steps": 1, "momentum_buffer": "carry"}
    written.write_text(yaml.safe_dump(blocks))
    with pytest.raises(UserError, match=rf"engine = 'lockstep': methods\.{fair[-1]}: .*momentum_buffer"):
        params.load(written)


def test_auto_stays_path_by_path_on_a_cpu() -> None:
    method = sumnas.SUMNAS(supernet(), sumnas.Settings(strategy="sumnas", adaptation_steps=1), 4, SEED)
    method.use("auto")
    assert method.engine == "sequential"
