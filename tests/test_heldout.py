"""Images that the weights are not trained on: the stream that methods with a held-out share look at."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sumnas import training
from sumnas.augmentation import Augmentation
from sumnas.data import Batch, Batches, Prepared
from sumnas.methods.base import Method, Rounds
from sumnas.spaces.base import Architecture, Supernet
from sumnas.training import Heldout, Progress, train
from tests.trainings import BATCH, SEED, Stop, settings, stop_at


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


def test_what_a_method_does_between_epochs_is_in_the_history() -> None:
    progress = Progress()
    look(Looking, progress=progress)
    assert [row["turns"] for row in progress.history] == [1.0, 2.0, 3.0]
    assert progress.history[-1]["passes"] == 15 * 3
