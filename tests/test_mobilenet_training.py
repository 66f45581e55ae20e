"""Every method trains supernets of the MobileNet space as it is; task batching against Algorithm 1 by the letter."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from sumnas import seeding
from sumnas.batchnorm import CalibrationSettings, recalibrate
from sumnas.evaluation import EvaluationSettings, Predictor, calibration_batches, evaluate
from sumnas.methods import fairnas, sumnas
from sumnas.paths import strictly_fair_paths
from sumnas.spaces.mobilenet import Network
from sumnas.training import Progress, assemble, capture, restore, train
from tests.chains import sample, space
from tests.steps import rounds_for
from tests.tiny import assert_same_bytes, through_file
from tests.trainings import METHODS, SEED, prepared, settings

ROUNDS, STEPS = 3, 2


def supernet(dtype: torch.dtype = torch.float32) -> Network:
    with seeding.scoped(SEED, "network"):
        return space().supernet().to(dtype, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


class Stop(Exception):
    pass


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_it_and_goes_on_after_an_interruption(name: str) -> None:
    whole = assemble(supernet(), prepared(), settings(), METHODS[name], SEED)
    before = copy.deepcopy(whole[0].supernet)
    history = train(*whole, 2)
    assert [row["epoch"] for row in history] == [1, 2]
    moved = [not torch.equal(p, q) for p, q in zip(whole[0].supernet.parameters(), before.parameters(), strict=True)]
    assert sum(moved) > len(moved) / 4  # of SPOS, ten paths

    def stop(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (1, 1):
            raise Stop

    first = assemble(supernet(), prepared(), settings(), METHODS[name], SEED)
    progress = Progress()
    with pytest.raises(Stop):
        train(*first, 2, progress=progress, on_step=stop)
    state = through_file(capture(first[0], progress))
    second = assemble(supernet(), prepared(), settings(), METHODS[name], SEED)
    assert train(*second, 2, progress=restore(second[0], state)) == history
    assert_same_bytes(second[0].supernet, whole[0].supernet)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_three_rounds_of_sumnas_are_algorithm_1_with_every_path_on_a_copy(reduction: str) -> None:
    network = supernet(torch.float64)
    chosen = sumnas.Settings(
        strategy="sumnas", adaptation_steps=STEPS, inner_learning_rate=0.3, scale_inner=False, rounds=ROUNDS,
        round_reduction=reduction, weight_decay=0.01,
    )  # fmt: skip
    method = sumnas.SUMNAS(network, chosen, 4, SEED)
    theta = copy.deepcopy(network)
    rng = seeding.numpy_stream(SEED, "paths")
    for number in range(2):
        batches = rounds_for(method, number)
        assert len(batches) == ROUNDS and all(len(streams) == STEPS for streams in batches)
        sums = {name: torch.zeros_like(p) for name, p in theta.named_parameters()}
        for streams in batches:
            for path in strictly_fair_paths(4, 6, rng):
                clone = copy.deepcopy(theta)
                optimizer = torch.optim.SGD(clone.parameters(), 0.3, momentum=0.9)
                for images, labels in streams:
                    optimizer.zero_grad(set_to_none=True)
                    F.cross_entropy(clone(images, path), labels).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                for (name, p), q in zip(theta.named_parameters(), clone.parameters(), strict=True):
                    sums[name] += (p - q).detach() / (ROUNDS if reduction == "mean" else 1)
        rate = method.outer_learning_rate
        method.step(batches)
        with torch.no_grad():
            for name, p in theta.named_parameters():
                p -= rate * (sums[name] + 0.01 * p)
        for (name, p), q in zip(theta.named_parameters(), network.parameters(), strict=True):
            torch.testing.assert_close(q, p, rtol=0, atol=1e-9, msg=name)
    assert method.passes_per_step == ROUNDS * 6 * STEPS == len(method.passes) * STEPS


def test_three_rounds_of_fairnas_are_the_mean_gradient_of_18_paths() -> None:
    network = supernet(torch.float64)
    chosen = fairnas.Settings(strategy="fairnas", learning_rate=0.6, rounds=ROUNDS, weight_decay=0.0)
    method = fairnas.FairNAS(network, chosen, 4, SEED)
    theta = copy.deepcopy(network)
    batches = rounds_for(method, 0)
    method.step(batches)
    rng = seeding.numpy_stream(SEED, "paths")
    total = torch.zeros((), dtype=torch.float64)
    for ((images, labels),) in batches:
        for path in strictly_fair_paths(4, 6, rng):
            total = total + F.cross_entropy(theta(images, path), labels) / ROUNDS
    gradients = torch.autograd.grad(total, list(theta.parameters()))
    for p, g, q in zip(theta.parameters(), gradients, network.parameters(), strict=True):
        torch.testing.assert_close(q, p - 0.6 * g, rtol=0, atol=1e-10)


def test_a_trained_supernet_is_scored_as_its_extracted_networks_are() -> None:
    of, network, data = space(), supernet(), prepared()
    calibration = CalibrationSettings(images=20, batch_size=8)
    evaluation = EvaluationSettings(split="validation", batch_size=16)
    predictor = Predictor(of, network, data, calibration, evaluation)
    for architecture in sample(of, 4):
        alone = of.extract(network, architecture)
        recalibrate(alone, calibration_batches(data, calibration))
        assert predictor(architecture) == evaluate(alone, data.split("validation"), 16)
