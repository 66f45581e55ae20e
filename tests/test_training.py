"""The training loop: history, interruption and resumption, failing losses, held-out images, probes."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sumnas import training
from sumnas.augmentation import Augmentation
from sumnas.data import Batch, Batches, Prepared
from sumnas.errors import UserError
from sumnas.methods.base import Method, Rounds
from sumnas.spaces.base import Architecture, Supernet
from sumnas.training import Heldout, Progress, assemble, capture, columns, restore, train
from tests.tiny import assert_same_bytes, through_file
from tests.trainings import BATCH, IMAGES, METHODS, SEED, network, prepared, settings, start


class Stop(Exception):
    pass


def stop_at(epoch: int, step: int, kept: list[Progress] | None = None) -> Any:
    """Return an on_step that stops after step number `step` (from 1) of that epoch (from 0)."""

    def on_step(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (epoch, step):
            if kept is not None:
                kept.append(progress)
            raise Stop

    return on_step


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


# Held-out images.


class Plain(Supernet):
    """Needs no images: for methods that only look at what they are given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.choices, self.shared = [[[], []]], [self.weight]

    def forward(self, x: Tensor, architecture: Architecture) -> Tensor:
        return self.weight.expand(len(x), 3)


class Looking(Method):
    """Notes the images it gets, each of which carries its own number."""

    streams, rounds, heldout, train_share, passes_per_step = 2, 1, 1, 0.5, 3

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.trained: list[list[list[int]]] = []
        self.held: list[list[list[int]]] = []
        self.turns = 0

    def step(self, batches: Rounds, heldout: Sequence[Batch]) -> Mapping[str, Tensor | float]:
        self.trained.append([numbers(batch) for streams in batches for batch in streams])
        self.held.append([numbers(batch) for batch in heldout])
        self.done_steps += 1
        return {"loss": 1.0}

    def end_epoch(self, heldout: Iterable[Batch] = ()) -> Mapping[str, float]:
        self.turns += 1
        return {"turns": float(self.turns)}


class Looking3(Looking):
    """Takes three held-out batches a step, across the ends of the held-out stream's own epochs."""

    heldout = 3


class Between(Looking):
    """Takes two more held-out batches after every epoch."""

    heldout_between = 2

    def end_epoch(self, heldout: Iterable[Batch] = ()) -> Mapping[str, float]:
        self.held.append([numbers(batch) for batch in heldout])
        return super().end_epoch()


class OnlyBetween(Between):
    heldout = 0


def numbers(batch: Batch) -> list[int]:
    images, labels = batch
    assert torch.equal(images[:, 0, 0, 0].long() % 3, labels)
    return [int(number) for number in images[:, 0, 0, 0]]


def numbered(count: int) -> Prepared:
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 4, 4, 1)
    labels = torch.arange(count) % 3
    return Prepared({"train": images}, {"train": labels}, torch.zeros(1), torch.ones(1), 3)


COUNT = 90  # 45 for training, 45 held out: five batches of eight each, and five images left over


def look(
    kind: type[Looking], seed: int = SEED, epochs: int = 3, progress: Progress | None = None, on_step: Any = None
) -> tuple[Looking, Batches, Heldout]:
    method = kind(Plain(), None, 15, seed)
    batches, heldout = training.batches_for(method, numbered(COUNT), settings(augmentation=Augmentation()), seed)
    assert heldout is not None
    try:
        train(method, batches, heldout, epochs, progress=progress, on_step=on_step)
    except Stop:
        assert on_step is not None
    return method, batches, heldout


@pytest.mark.parametrize("kind", [Looking, Looking3])
def test_held_out_images_are_never_trained_on(kind: type[Looking]) -> None:
    method, batches, _ = look(kind)
    assert batches.steps == 5 and len(method.held) == 15
    assert all(len(streams) == 2 for streams in method.trained)
    assert all(len(held) == kind.heldout for held in method.held)
    trained = {number for streams in method.trained for batch in streams for number in batch}
    held = {number for step in method.held for batch in step for number in batch}
    assert not trained & held
    assert trained == {int(i) for i in batches.indices}
    assert len(held) > 40 and len(trained) == 45
    # Both streams and every epoch have permutations of their own.
    assert method.trained[0][0] != method.trained[0][1]
    assert method.trained[0] != method.trained[5]
    assert method.held[0] != method.held[5]
    # Within an epoch a stream shows no image twice.
    first = [number for streams in method.trained[:5] for number in streams[0]]
    assert len(set(first)) == 40


@pytest.mark.parametrize("kind", [Looking, Looking3])
@pytest.mark.parametrize(("epoch", "step"), [(0, 2), (1, 3), (1, 5)])
def test_the_held_out_stream_goes_on_after_an_interruption(kind: type[Looking], epoch: int, step: int) -> None:
    whole, _, _ = look(kind)
    progress = Progress()
    before, _, _ = look(kind, progress=progress, on_step=stop_at(epoch, step))
    after, _, _ = look(kind, progress=copy.deepcopy(progress))  # everything anew, as in another process
    assert len(before.held) == 5 * epoch + step
    assert before.held + after.held == whole.held
    assert before.trained + after.trained == whole.trained


@pytest.mark.parametrize("kind", [Between, OnlyBetween])
@pytest.mark.parametrize(("epoch", "step"), [(0, 5), (1, 2)])
def test_held_out_batches_between_epochs_are_the_streams_next(kind: type[Looking], epoch: int, step: int) -> None:
    whole, _, heldout = look(kind)
    assert [len(held) for held in whole.held] == [*[kind.heldout] * 5, 2] * 3
    seen = [images for held in whole.held for images in held]
    assert seen == [numbers(batch) for batch in heldout.take(0, len(seen))]
    progress = Progress()
    before, _, _ = look(kind, progress=progress, on_step=stop_at(epoch, step))
    after, _, _ = look(kind, progress=copy.deepcopy(progress))
    assert before.held + after.held == whole.held


def test_the_shares_follow_from_the_seed() -> None:
    def share(seed: int) -> list[int]:
        return look(Looking, seed)[1].indices.tolist()  # type: ignore[no-any-return]

    assert share(1) == share(1) != share(2)


def test_the_held_out_stream_gives_the_same_batches_in_any_order_and_makes_each_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stream() -> Heldout:
        return Heldout(numbered(COUNT), torch.arange(45, 90), BATCH, SEED)

    in_order, at_random = stream(), stream()
    expected = [numbers(batch) for batch in in_order.take(0, 17)]
    for first, count in ((12, 3), (0, 1), (1, 2), (3, 9), (12, 5), (4, 0), (4, 1)):
        assert [numbers(batch) for batch in at_random.take(first, count)] == expected[first : first + count]

    made: list[int] = []
    make = Batches._batch

    def counting(self: Batches, index: Tensor, generator: torch.Generator) -> Batch:
        made.append(len(index))
        return make(self, index, generator)

    monkeypatch.setattr(Batches, "_batch", counting)
    method, batches, _ = look(Looking)
    assert len(made) == 15 * (2 + 1)


def test_a_method_without_held_out_batches_trains_on_all_images() -> None:
    method, batches, heldout = start("spos")
    assert heldout is None and sorted(batches.indices.tolist()) == list(range(IMAGES))


def test_what_a_method_does_between_epochs_is_in_the_history() -> None:
    progress = Progress()
    look(Looking, progress=progress)
    assert [row["turns"] for row in progress.history] == [1.0, 2.0, 3.0]
    assert progress.history[-1]["passes"] == 15 * 3


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
