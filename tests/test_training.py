"""The training loop: history, interruption and resumption, failing losses, probes."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from sumnas import training
from sumnas.data import Batch
from sumnas.errors import UserError
from sumnas.methods.base import Rounds
from sumnas.training import Progress, assemble, capture, columns, restore, train
from tests.tiny import assert_same_bytes, through_file
from tests.trainings import IMAGES, METHODS, SEED, Stop, network, prepared, settings, start, stop_at

# History.


@pytest.mark.parametrize(
    ("name", "steps", "passes", "extra"),
    [
        ("spos", 5, 1, []),
        ("fairnas", 5, 5, []),
        ("sumnas", 5, 10, ["shared_update_norm"]),
        ("sumnas with all state", 2, 20, ["shared_update_norm"]),
    ],
)
def test_history_counts_steps_and_passes(name: str, steps: int, passes: int, extra: list[str]) -> None:
    method, batches, heldout = start(name)
    assert heldout is None and batches.steps == steps and method.total_steps == 2 * steps
    rows: list[training.Row] = []
    history = train(method, batches, heldout, 2, on_epoch=rows.append)
    assert rows == history
    assert columns(history) == ["epoch", "steps", "passes", "loss", "learning_rate", *extra]
    assert [row["epoch"] for row in history] == [1, 2]
    assert [row["steps"] for row in history] == [steps, 2 * steps]
    assert [row["passes"] for row in history] == [steps * passes, 2 * steps * passes]
    assert all(math.isfinite(row["loss"]) and row["loss"] > 0 for row in history)
    assert history[0]["learning_rate"] > history[1]["learning_rate"] > 0  # cosine
    assert all(type(value) in (int, float) for row in history for value in row.values())


OPERATORS = [f"operator_{number}" for number in range(5)]
FOLLOWED = {
    "wpl": ["penalty", "fisher_norm", "alpha"],
    "nsas": ["constraint_loss", "novelty", "distinct_members"],
    "darts": ["heldout_loss", "alpha_entropy", *OPERATORS],
    "darts, second order": ["heldout_loss", "alpha_entropy", *OPERATORS],
    "gdas": ["heldout_loss", "alpha_entropy", "tau", *OPERATORS],
    "cream": ["distillation", "rho", "board", "board_accuracy", "board_macs"],
    "enas": ["reward", "controller_entropy", "baseline"],
}
"""What every epoch of a method reports beside loss and rate: the diagnostics that docs/methods.md names."""


@pytest.mark.parametrize("name", FOLLOWED)
def test_history_follows_what_a_method_is_known_to_fail_by(name: str) -> None:
    method, batches, heldout = start(name)
    rows: list[training.Row] = []
    history = train(method, batches, heldout, 2, on_epoch=rows.append)  # what the stage gives to MLflow
    common = ["epoch", "steps", "passes", "loss", "learning_rate"]
    assert rows == history and columns(history) == [*common, *FOLLOWED[name]]
    assert all(math.isfinite(row[key]) for row in history for key in FOLLOWED[name])
    has_own_choice = name not in ("wpl", "nsas")
    assert (method.architecture() is not None) == has_own_choice


def test_history_holds_the_means_over_the_steps() -> None:
    method, batches, heldout = start("fairnas")
    seen: list[dict[str, float]] = []
    take = method.step

    def step(rounds: Rounds, extra: Sequence[Batch]) -> Mapping[str, Tensor | float]:
        figures = take(rounds, extra)
        seen.append({key: float(value) for key, value in figures.items()})
        return figures

    method.step = step  # type: ignore[method-assign]
    running: list[float] = []
    history = train(method, batches, heldout, 2, on_step=lambda progress: running.append(progress.loss))
    for epoch, row in enumerate(history):
        own = seen[5 * epoch : 5 * epoch + 5]
        for key in ("loss", "learning_rate"):
            assert row[key] == pytest.approx(sum(figures[key] for figures in own) / 5)
        assert running[5 * epoch + 1] == pytest.approx((own[0]["loss"] + own[1]["loss"]) / 2)


def test_training_lowers_the_loss() -> None:
    method, batches, heldout = start("fairnas", epochs=12)
    history = train(method, batches, heldout, 12)
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]


def test_columns_keep_their_order_and_lose_none() -> None:
    assert columns([{"epoch": 1, "loss": 2.0}, {"epoch": 2, "probe_loss": 1.0, "loss": 1.0}]) == [
        "epoch", "loss", "probe_loss"
    ]  # fmt: skip


# Interruption.


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("epoch", "step"), [(0, 1), (1, 2)])
def test_a_resumed_run_is_the_undisturbed_one(name: str, epoch: int, step: int) -> None:
    undisturbed, batches, heldout = start(name)
    expected = train(undisturbed, batches, heldout, 2)

    method, batches, heldout = start(name)
    kept: list[Progress] = []
    with pytest.raises(Stop):
        train(method, batches, heldout, 2, on_step=stop_at(epoch, step, kept))
    state = through_file(capture(method, kept[0]))

    method, batches, heldout = start(name)
    with torch.no_grad():
        for parameter in method.supernet.parameters():
            parameter.fill_(math.nan)  # everything comes from the state
    progress = restore(method, state)
    assert (progress.epoch, progress.step) == (epoch, step)
    done: list[int] = []
    history = train(method, batches, heldout, 2, progress=progress, on_step=lambda p: done.append(p.step))
    assert history == expected
    assert_same_bytes(method.supernet, undisturbed.supernet)
    assert method.architecture() == undisturbed.architecture()
    assert len(done) == 2 * batches.steps - epoch * batches.steps - step  # no step is taken twice


def test_the_same_objects_go_on_from_a_copied_progress() -> None:
    undisturbed, batches, heldout = start("sumnas")
    expected = train(undisturbed, batches, heldout, 2)
    method, batches, heldout = start("sumnas")
    kept: list[Progress] = []
    with pytest.raises(Stop):
        train(method, batches, heldout, 2, on_step=stop_at(0, 3, kept))
    assert train(method, batches, heldout, 2, progress=copy.deepcopy(kept[0])) == expected
    assert_same_bytes(method.supernet, undisturbed.supernet)


def test_stopping_after_an_epochs_last_step_or_between_epochs_loses_nothing() -> None:
    undisturbed, batches, heldout = start("spos")
    expected = train(undisturbed, batches, heldout, 2)

    def on_epoch(row: training.Row) -> None:
        if row["epoch"] == 1:
            raise Stop

    for hooks in ({"on_step": stop_at(0, 5)}, {"on_epoch": on_epoch}):
        method, batches, heldout = start("spos")
        progress = Progress()
        with pytest.raises(Stop):
            train(method, batches, heldout, 2, progress=progress, **hooks)
        state = through_file(capture(method, progress))
        method, batches, heldout = start("spos")
        assert train(method, batches, heldout, 2, progress=restore(method, state)) == expected
        assert_same_bytes(method.supernet, undisturbed.supernet)


def test_a_checkpoint_taken_in_passing_changes_nothing_and_is_not_changed() -> None:
    undisturbed, batches, heldout = start("sumnas with all state")
    expected = train(undisturbed, batches, heldout, 2)
    files: list[dict[str, Any]] = []
    method, batches, heldout = start("sumnas with all state")
    current = method
    train(method, batches, heldout, 2, on_step=lambda progress: files.append(through_file(capture(current, progress))))
    assert_same_bytes(method.supernet, undisturbed.supernet)
    for state in files[:-1]:
        method, batches, heldout = start("sumnas with all state")
        assert train(method, batches, heldout, 2, progress=restore(method, state)) == expected
        assert_same_bytes(method.supernet, undisturbed.supernet)


def test_a_finished_training_has_nothing_to_do() -> None:
    method, batches, heldout = start("spos")
    progress = Progress()
    history = train(method, batches, heldout, 2, progress=progress)
    before = method.done_steps
    assert train(method, batches, heldout, 2, progress=progress) == history
    assert method.done_steps == before


# Held-out images: see test_heldout.py.


def test_a_method_without_held_out_batches_trains_on_all_images() -> None:
    method, batches, heldout = start("spos")
    assert heldout is None and sorted(batches.indices.tolist()) == list(range(IMAGES))


def test_too_few_images_for_a_batch() -> None:
    with pytest.raises(UserError, match="batch_size = 45"):
        assemble(network(), prepared(), settings(batch_size=45), METHODS["spos"], SEED)


# Probes.


def test_probes_are_looked_at_every_so_many_epochs() -> None:
    method, batches, heldout = start("spos", epochs=5)
    calls: list[int] = []

    def probe() -> float:
        calls.append(method.done_steps)
        return float(len(calls))

    history = train(method, batches, heldout, 5, probe=probe, probe_every=2)
    assert calls == [10, 20]  # after the epoch's last step
    assert [row.get("probe_loss") for row in history] == [None, 1.0, None, 2.0, None]
    assert "probe_loss" in columns(history)


def test_without_probes_there_is_no_such_column() -> None:
    method, batches, heldout = start("spos", epochs=1)
    assert "probe_loss" not in columns(train(method, batches, heldout, 1, probe_every=1))


def test_the_supernet_trains_in_training_mode() -> None:
    method, batches, heldout = start("spos", epochs=1)
    method.supernet.eval()
    train(method, batches, heldout, 1, on_step=lambda _: None)
    assert method.supernet.training
