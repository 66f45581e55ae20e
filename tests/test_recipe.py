"""The recipe of a training from scratch, part by part: against torch's own schedulers and against loops by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from sumnas import seeding
from sumnas.augmentation import Augmentation
from sumnas.data import Batches, Prepared
from sumnas.errors import UserError
from sumnas.evaluation import evaluate
from sumnas.recipe import Recipe
from sumnas.retraining import Trained, train_network
from sumnas.spaces.nasbench201 import NASBench201
from tests.chains import space
from tests.interrupted import Stop, stopping
from tests.trainings import prepared

PATH = (0, 4, 2, 5)
STEPS = 5  # of an epoch of 44 images in batches of 8
EVERYTHING: dict[str, Any] = {
    "warmup_epochs": 1, "label_smoothing": 0.1, "ema_decay": 0.8, "ema_every": 2, "dropout": 0.3,
    "norm_weight_decay": 0.0, "augmentation": Augmentation(flip=True, crop_padding=1, random_erasing=0.5),
}  # fmt: skip


def recipe(**changes: Any) -> Recipe:
    values = {"epochs": 3, "batch_size": 8, "learning_rate": 0.05, "augmentation": Augmentation(), **changes}
    return Recipe(**values)


def train(how: Recipe, seed: int = 1, **more: Any) -> Trained:
    return train_network(space(), PATH, prepared(), how, seed, **more)


def bytes_of(network: nn.Module) -> dict[str, bytes]:
    return {name: value.contiguous().numpy().tobytes() for name, value in network.state_dict().items()}


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}


def states(how: Recipe) -> tuple[Trained, list[dict[str, Any]]]:
    """Train, and return what could have been saved after every step, copied."""
    kept: list[dict[str, Any]] = []

    def on_step(capture: Callable[[], dict[str, Any]]) -> None:
        found = capture()
        kept.append({
            "weights": copied(found["weights"]), "rates": [g["lr"] for g in found["optimizer"]["param_groups"]],
            "decays": [(g["weight_decay"], len(g["params"])) for g in found["optimizer"]["param_groups"]],
        })  # fmt: skip

    return train(how, on_step=on_step), kept


# The schedule.


@pytest.mark.parametrize(("epochs", "warmup", "start"), [(10, 3, 0.01), (7, 1, 0.5), (5, 4, 0.0), (6, 0, 0.01)])
def test_warm_up_then_cosine_is_torchs_chain_of_schedulers(epochs: int, warmup: int, start: float) -> None:
    how = recipe(epochs=epochs, learning_rate=0.4, warmup_epochs=warmup, warmup_start=start)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.4)
    parts: list[Any] = [lr_scheduler.CosineAnnealingLR(optimizer, epochs - warmup)]
    chain: Any = parts[0]
    if warmup:
        parts.insert(0, lr_scheduler.LinearLR(optimizer, max(start, 1e-12), total_iters=warmup))
        chain = lr_scheduler.SequentialLR(optimizer, parts, [warmup])
    for epoch in range(epochs):
        assert how.rate(epoch) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9), epoch
        optimizer.step()
        chain.step()
    closed = [
        0.4 * (start + (1 - start) * e / warmup if e < warmup else
               (1 + math.cos(math.pi * (e - warmup) / (epochs - warmup))) / 2)
        for e in range(epochs)
    ]  # fmt: skip
    assert [how.rate(epoch) for epoch in range(epochs)] == pytest.approx(closed, abs=1e-12)


def test_an_epochs_steps_have_its_rate_in_both_groups() -> None:
    how = recipe(warmup_epochs=1, warmup_start=0.2, norm_weight_decay=0.0)
    _, kept = states(how)
    assert [state["rates"] for state in kept] == [[how.rate(e)] * 2 for e in range(3) for _ in range(STEPS)]


def test_a_warm_up_must_leave_an_epoch() -> None:
    with pytest.raises(ValueError, match="warmup_epochs = 3 leaves none of 3 epochs"):
        recipe(warmup_epochs=3)


# The average.


@pytest.mark.parametrize(("every", "warmup"), [(1, 0), (2, 0), (3, 1), (100, 2)])
def test_the_result_is_the_average_of_the_weights_of_a_training_without_one(every: int, warmup: int) -> None:
    plain, kept = states(recipe(warmup_epochs=warmup))
    how = recipe(warmup_epochs=warmup, ema_decay=0.7, ema_every=every)
    averaged = train(how)
    expected: dict[str, Tensor] | None = None
    for number, state in enumerate(kept):
        epoch, step = divmod(number, STEPS)
        if step % every:
            continue
        # A copy at first, and for as long as the rate rises and once after; then the average.
        copy = expected is None or epoch < warmup or (epoch == warmup and step == 0 and warmup > 0)
        now = state["weights"]
        expected = now if copy or expected is None else {k: 0.7 * v + 0.3 * now[k] for k, v in expected.items()}
    assert expected is not None
    for name, value in averaged.network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)
    assert bytes_of(averaged.network) != bytes_of(plain.network)
    for split, score in averaged.scores.items():  # and it is what is scored
        assert score == evaluate(averaged.network, prepared().split(split), 512, top5=True)


# Dropout.


def test_dropout_is_before_the_classifier_and_in_training_alone() -> None:
    with seeding.scoped(0, "network"):
        network = space().network(PATH)
    recipe(dropout=0.4).set_dropout(network)
    seen: list[tuple[Tensor, Tensor]] = []
    network.dropout.register_forward_hook(lambda _module, inputs, out: seen.append((inputs[0], out)))
    images = torch.randn(500, 2, 4, 4)
    with seeding.scoped(0, "noise"):
        network.train()(images)
        network.eval()(images)
    (before, after), (fixed, same) = seen
    assert before.shape == (500, 6) and torch.equal(fixed, same)
    dropped = after == 0
    assert abs(dropped.float().mean() - 0.4) < 4 * math.sqrt(0.24 / 3000)
    assert torch.allclose(after[~dropped], before[~dropped] / 0.6)
    assert torch.equal(network(images), network(images))


def test_dropout_follows_from_the_seed_and_leaves_the_callers_stream() -> None:
    state = torch.get_rng_state()
    try:
        torch.manual_seed(3)
        before = torch.get_rng_state()
        first = bytes_of(train(recipe(dropout=0.3)).network)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(4)
        assert bytes_of(train(recipe(dropout=0.3)).network) == first
    finally:
        torch.set_rng_state(state)
    assert bytes_of(train(recipe()).network) != first


def test_a_space_without_dropout_says_so(tiny_space: NASBench201, digits: Prepared) -> None:
    with pytest.raises(UserError, match=r"recipe\.dropout = 0\.2: the networks of this space have no dropout"):
        train_network(tiny_space, (3,) * 6, digits, recipe(dropout=0.2), 0)


# Weight decay.


def test_normalisation_decays_by_itself() -> None:
    from torchvision.ops._utils import split_normalization_params

    network = space().network(PATH)
    norms, others = split_normalization_params(network)
    groups = recipe(weight_decay=0.1, norm_weight_decay=0.01).optimizer(network).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.01]
    for group, expected in zip(groups, (others, norms), strict=True):
        assert {id(p) for p in group["params"]} == {id(p) for p in expected} and len(group["params"]) == len(expected)
    (single,) = recipe(weight_decay=0.1).optimizer(network).param_groups
    assert [id(p) for p in single["params"]] == [id(p) for p in network.parameters()]
    same, two = (train(recipe(weight_decay=0.05, norm_weight_decay=decay)).network for decay in (None, 0.05))
    for (name, p), q in zip(same.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6, msg=name)


# Top-5.


def test_top_5_by_sorting_every_image() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(333, 9, generator=generator)
    labels = torch.randint(9, (333,), generator=generator)
    expected = sum(
        label in sorted(range(9), key=lambda c: -row[c])[:5]
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
    )
    score = evaluate(nn.Identity(), (logits, labels), 100, top5=True)
    assert score.top5 == pytest.approx(100 * expected / 333) and 40 < 100 * expected / 333 < 70
    assert evaluate(nn.Identity(), (logits, labels), 100) == score._replace(top5=None)
    few = evaluate(nn.Identity(), (logits[:, :5], labels % 5), 100, top5=True)
    assert few.top5 is None  # of five classes it would always be 100 %


# All of it together.


@pytest.mark.parametrize("stop", [1, 4, 5, 8, 13])
def test_a_training_with_everything_goes_on_to_the_same_bytes(stop: int, tmp_path: Path) -> None:
    how, losses = recipe(**EVERYTHING), list[float]()
    whole = train(how, on_epoch=lambda _epoch, loss: losses.append(loss))
    again = losses[: (stop - 1) // STEPS]
    with pytest.raises(Stop):
        train(how, on_step=stopping(stop, tmp_path / "state.pt"))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = train(how, state=state, on_epoch=lambda _epoch, loss: again.append(loss))
    assert bytes_of(resumed.network) == bytes_of(whole.network) and resumed.scores == whole.scores
    assert again == losses
    assert bytes_of(train(how, seed=2).network) != bytes_of(whole.network)


@pytest.mark.parametrize("part", [part for part in EVERYTHING if part != "ema_every"])
def test_each_part_changes_what_is_trained(part: str) -> None:
    assert bytes_of(train(recipe(**{part: EVERYTHING[part]})).network) != bytes_of(train(recipe()).network)


def test_erased_batches_go_on_in_the_middle_of_an_epoch() -> None:
    batches = Batches(prepared(), torch.arange(44), 8, 0, Augmentation(flip=True, random_erasing=0.7), streams=2)
    whole = [[images for images, _ in streams] for (streams,) in batches.epoch(1)]
    rest = [[images for images, _ in streams] for (streams,) in batches.epoch(1, 2)]
    for one, other in zip(whole[2:], rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    plain = Batches(prepared(), torch.arange(44), 8, 0, Augmentation(flip=True), streams=2)
    for streams, ((untouched),) in zip(whole, plain.epoch(1), strict=True):
        for images, (expected, _) in zip(streams, untouched, strict=True):
            kept = images != 0
            assert torch.equal(images[kept], expected[kept]) and not torch.equal(images, expected)
