"""Numbers gone wrong stop a training at once, in words, and reach neither a checkpoint nor a score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sumnas import training
from sumnas.checkpoint import Work
from sumnas.data import Batch
from sumnas.errors import UserError
from sumnas.evaluation import evaluate
from sumnas.methods import fairnas
from sumnas.methods.base import Method, Rounds
from sumnas.training import Progress, assemble, capture, train
from tests.trainings import SEED, network, prepared, settings, start


@pytest.mark.parametrize("rate", [1e20, 1e30])
def test_a_loss_that_is_not_finite_names_step_and_rate(rate: float) -> None:
    supernet = network()
    block = fairnas.Settings(strategy="fairnas", learning_rate=rate, schedule="constant")
    method, batches, heldout = assemble(supernet, prepared(), settings(3), block, SEED)
    with pytest.raises(
        UserError,
        match=r"loss became (nan|inf) in step \d+ \(epoch \d\) on path \(.*\) at learning rate 1e\+\d0: lower",
    ):
        train(method, batches, heldout, 3)


class Failing(Method):
    """Its loss is not finite in one step."""

    def step(self, batches: Rounds, heldout: Sequence[Batch]) -> Mapping[str, Tensor | float]:
        self.done_steps += 1
        return {"loss": math.nan if self.done_steps == 8 else 1.0, "learning_rate": 0.25}


def test_the_step_named_is_the_one_that_failed() -> None:
    method = Failing(network(), None, 15, SEED)
    batches, heldout = training.batches_for(method, prepared(), settings(3), SEED)
    with pytest.raises(UserError, match=r"became nan in step 7 \(epoch 2\) at learning rate 0\.25: lower the method's"):
        train(method, batches, heldout, 3)


@pytest.mark.parametrize("name", ["spos", "fairnas", "sumnas", "nsas", "wpl", "cream", "enas"])
def test_the_path_named_is_the_one_that_failed(name: str) -> None:
    method, batches, heldout = start(name, epochs=20)
    convolution = 3
    with torch.no_grad():
        for parameter in method.supernet.choices[0][convolution]:
            parameter.fill_(math.nan)
    with pytest.raises(UserError, match=r"the loss became nan in step \d+ \(epoch \d+\) on path <(\d ?)+> at") as error:
        train(method, batches, heldout, 20, encode=lambda path: f"<{' '.join(map(str, path))}>")
    named = [int(operator) for operator in str(error.value).partition("<")[2].partition(">")[0].split()]
    assert len(named) == method.layers and named[0] == convolution


@pytest.mark.parametrize("name", ["sumnas", "fairnas", "darts"])
def test_figures_read_late_are_the_same(name: str) -> None:
    method, batches, heldout = start(name)
    expected = train(method, batches, heldout, 2)
    method, batches, heldout = start(name)
    seen: list[tuple[int, int]] = []
    found = train(method, batches, heldout, 2, look_every=3, on_step=lambda now: seen.append((now.epoch, now.step)))
    assert found == expected
    per_epoch = [step for step in range(1, batches.steps + 1) if step % 3 == 0 or step == batches.steps]
    assert seen == [(epoch, step) for epoch in (0, 1) for step in per_epoch]


def test_a_step_read_late_is_named_as_itself_and_saved_by_nobody() -> None:
    method = Failing(network(), None, 15, SEED)
    batches, heldout = training.batches_for(method, prepared(), settings(3), SEED)
    seen: list[int] = []
    with pytest.raises(UserError, match=r"became nan in step 7 \(epoch 2\)"):
        train(method, batches, heldout, 3, look_every=4, on_step=lambda now: seen.append(now.epoch * 5 + now.step))
    assert seen == [4, 5]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_gone_wrong_are_neither_saved_nor_returned(value: float) -> None:
    method, batches, heldout = start("spos")

    def spoil(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (1, 5):  # after the last step, so that no loss can show it
            with torch.no_grad():
                method.supernet.path_choices((3,) * method.layers)[0][0, 0, 0, 1] = value
            with pytest.raises(UserError, match=r"and 0 more weights are not finite after step 9: lower"):
                capture(method, progress)

    with pytest.raises(
        UserError,
        match=r"body\.0\.edges\.0\.nor_conv_3x3\.conv\.weight and 0 more weights are not finite after step 9: lower",
    ):
        train(method, batches, heldout, 2, on_step=spoil)


def test_no_accuracy_of_a_network_gone_wrong() -> None:
    data = prepared()
    supernet = network().eval()
    with torch.no_grad():
        supernet.shared[-1].fill_(math.nan)

    class Broken(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return supernet(x, (1,) * 6)

    with pytest.raises(UserError, match="the one asked for: the loss on the scored images is nan"):
        evaluate(Broken(), data.split("test"), 16, "the one asked for")


def test_a_path_that_was_moved_too_far_is_named_without_a_loss_that_shows_it() -> None:
    method, batches, heldout = start("sumnas")
    step = method.step

    def spoiled(rounds: Rounds, heldout: Sequence[Batch]) -> Mapping[str, Tensor | float]:
        figures = step(rounds, heldout)
        with torch.no_grad():
            next(iter(method.supernet.path_choices(method.passes[2][0])))[0, 0, 0, 0] = math.inf
        return {**figures, "shared_update_norm": math.inf}

    method.step = spoiled  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"the shared update norm became inf in step 0 \(epoch 1\) on path \(") as error:
        train(method, batches, heldout, 1)
    assert f"on path {method.passes[2][0]} at" in str(error.value)


def test_the_last_good_checkpoint_stays_and_is_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUMNAS_CHECKPOINTS", str(tmp_path))
    method, batches, heldout = start("sumnas")
    whole = train(method, batches, heldout, 2)
    expected = {name: value.clone() for name, value in method.supernet.state_dict().items()}
    method, batches, heldout = start("sumnas")
    step, steps = method.step, iter(range(1, 100))

    def failing(rounds: Rounds, heldout: Sequence[Batch]) -> Mapping[str, Tensor | float]:
        figures = step(rounds, heldout)
        return {**figures, "loss": math.inf} if next(steps) == 8 else figures

    method.step = failing  # type: ignore[method-assign]
    with Work("stage", "a" * 64) as work, pytest.raises(UserError, match="became inf in step 7"):
        train(method, batches, heldout, 2, on_step=lambda now: work.save(capture(method, now)))
    with Work("stage", "a" * 64) as work:
        kept = work.load()
    assert kept is not None
    method, batches, heldout = start("sumnas")
    progress = training.restore(method, kept)
    assert (progress.epoch, progress.step, method.done_steps) == (1, 2, 7)
    rows = train(method, batches, heldout, 2, progress=progress)
    assert rows == whole
    assert all(torch.equal(value, expected[name]) for name, value in method.supernet.state_dict().items())
