"""Scores against a loop over single images, and training from scratch against a naive loop."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sumnas import seeding
from sumnas.augmentation import Augmentation
from sumnas.batchnorm import CalibrationSettings, get_statistics, recalibrate, set_statistics
from sumnas.data import Batches, Prepared
from sumnas.errors import UserError
from sumnas.evaluation import EvaluationSettings, Fit, Predictor, Score, calibration_batches, evaluate
from sumnas.recipe import Recipe
from sumnas.retraining import train_network
from sumnas.schedules import factor
from sumnas.spaces.base import Architecture, Supernet
from sumnas.spaces.nasbench201 import NASBench201
from tests.interrupted import Stop, stopping

ARCHITECTURE: Architecture = (3, 2, 1, 4, 3, 2)
UNREACHED: Architecture = (3, 3, 2, 3, 0, 0)  # edges 0, 1 and 2 lead to nodes that lead nowhere
CALIBRATION = CalibrationSettings(images=100, batch_size=50, seed=0)


def recipe(**changes: Any) -> Recipe:
    values = {"epochs": 1, "batch_size": 256, "learning_rate": 0.1, "augmentation": Augmentation(), **changes}
    return Recipe(**values)


def supernet_of(space: NASBench201) -> Supernet:
    with seeding.scoped(2, "test"):
        supernet = space.supernet()
        with torch.no_grad():
            for parameter in supernet.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return supernet


def bytes_of(network: nn.Module) -> dict[str, bytes]:
    return {name: value.contiguous().numpy().tobytes() for name, value in network.state_dict().items()}


def naive_score(network: nn.Module, images: Tensor, labels: Tensor) -> Score:
    """One image at a time, the cross-entropy in Python's own floats."""
    correct, loss = 0, 0.0
    network.eval()
    for image, label in zip(images, labels.tolist(), strict=True):
        with torch.no_grad():
            logits = network(image[None])[0].tolist()
        highest = max(logits)
        correct += logits.index(highest) == label
        loss += highest + math.log(sum(math.exp(value - highest) for value in logits)) - logits[label]
    return Score(100 * correct / len(labels), loss / len(labels))


# Scores.


@pytest.fixture(scope="module")
def network(tiny_space: NASBench201, digits: Prepared) -> nn.Module:
    """A network that knows something, so that its accuracy is neither chance nor 100 %."""
    return train_network(tiny_space, ARCHITECTURE, digits, recipe(batch_size=64), seed=0).network


def test_scores_are_those_of_a_naive_loop(network: nn.Module, digits: Prepared) -> None:
    images, labels = digits.split("validation")
    expected = naive_score(network, images, labels)
    found = evaluate(network, (images, labels), 100)
    assert 20 < expected.accuracy < 99 and found.accuracy == expected.accuracy
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)


def test_scores_do_not_depend_on_the_batch_size(network: nn.Module, digits: Prepared) -> None:
    split = digits.split("validation")
    whole = evaluate(network, split, len(split[1]))
    for batch_size in (1, 7, 64, 10000):
        score = evaluate(network, split, batch_size)
        assert score.accuracy == whole.accuracy
        assert score.loss == pytest.approx(whole.loss, rel=1e-5)


def test_scoring_changes_nothing_but_the_mode(network: nn.Module, digits: Prepared) -> None:
    before = bytes_of(network)
    network.train()
    first = evaluate(network, digits.split("test"), 200)
    assert bytes_of(network) == before and not network.training
    assert evaluate(network, digits.split("test"), 200) == first
    assert all(p.grad is None or not p.grad.requires_grad for p in network.parameters())


def test_scores_of_known_logits() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    images = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 0, 2], [0, 0, 2], [2, 0, 0]])[:, :, None, None]
    score = evaluate(Fixed(), (images, torch.tensor([0, 1, 2, 0, 1])), 2)
    right, wrong = (-math.log(math.exp(value) / (math.exp(2) + 2)) for value in (2, 0))
    assert score.accuracy == 60.0 and score.loss == pytest.approx((3 * right + 2 * wrong) / 5, rel=1e-6)


# The predictor.


def test_the_predictor_scores_a_recalibrated_sub_model(tiny_space: NASBench201, digits: Prepared) -> None:
    supernet = supernet_of(tiny_space)
    for split in ("validation", "test"):
        predictor = Predictor(
            tiny_space, supernet, digits, CALIBRATION, EvaluationSettings(split=split, batch_size=128)
        )
        # By hand: a stand-alone network with copies of the weights.
        alone = tiny_space.network(ARCHITECTURE)
        held = alone.state_dict()
        alone.load_state_dict({n: v for n, v in supernet.state_dict().items() if n in held}, strict=False)
        recalibrate(alone, calibration_batches(digits, CALIBRATION))
        expected = naive_score(alone, *digits.split(split))
        score = predictor(ARCHITECTURE)
        assert score.accuracy == expected.accuracy and score.loss == pytest.approx(expected.loss, rel=1e-5)


def test_stored_statistics_give_the_same_score(tiny_space: NASBench201, digits: Prepared) -> None:
    supernet, settings = supernet_of(tiny_space), EvaluationSettings(split="validation", batch_size=128)
    predictor = Predictor(tiny_space, supernet, digits, CALIBRATION, settings)
    for architecture in (ARCHITECTURE, UNREACHED, (0, 3, 1, 2, 4, 1)):
        first, second = (tiny_space.extract(supernet, architecture) for _ in range(2))
        recalibrate(first, predictor.calibration)
        statistics = get_statistics(first)
        set_statistics(second, statistics)
        # The predictor runs all sub-models in one network; a network of their own gives the same, bit by bit.
        assert evaluate(second, predictor.split, 128) == predictor(architecture)
        set_statistics(second, statistics * 2)
        assert evaluate(second, predictor.split, 128) != predictor(architecture)


def test_fitting_takes_sgd_steps_on_copies(tiny_space: NASBench201, digits: Prepared) -> None:
    supernet = supernet_of(tiny_space)
    settings = EvaluationSettings(
        split="validation", batch_size=128, adaptation_steps=3, adaptation_learning_rate=0.02, adaptation_batch_size=50
    )
    before = bytes_of(supernet)
    fit = Fit(digits, settings)
    assert [len(labels) for _, labels in fit.batches] == [50] * 3
    assert all((labels.bincount() == 5).all() for _, labels in fit.batches)
    network = tiny_space.extract(supernet, ARCHITECTURE)
    # By hand: theta <- theta - lr * v, v <- 0.9 v + gradient, one parameter at a time.
    alone = tiny_space.network(ARCHITECTURE)
    held = alone.state_dict()
    alone.load_state_dict({n: v for n, v in supernet.state_dict().items() if n in held}, strict=False)
    velocity: dict[str, Tensor] = {}
    for images, labels in fit.batches:
        alone.train()
        loss = F.cross_entropy(alone(images), labels)
        gradients = torch.autograd.grad(loss, list(alone.parameters()), allow_unused=True)
        with torch.no_grad():
            for (name, p), g in zip(alone.named_parameters(), gradients, strict=True):
                if g is not None:
                    velocity[name] = g if name not in velocity else 0.9 * velocity[name] + g
                    p -= 0.02 * velocity[name]
    fit(network)
    for name, p in alone.named_parameters():
        torch.testing.assert_close(dict(network.named_parameters())[name].detach(), p.detach(), msg=name)
    assert bytes_of(supernet) == before
    # The predictor fits first, and is otherwise the same.
    recalibrate(network, calibration_batches(digits, CALIBRATION))
    predictor = Predictor(tiny_space, supernet, digits, CALIBRATION, settings)
    assert predictor(ARCHITECTURE) == evaluate(network, digits.split("validation"), 128)
    unfitted = Predictor(
        tiny_space, supernet, digits, CALIBRATION, EvaluationSettings(split="validation", batch_size=128)
    )
    assert unfitted(ARCHITECTURE) != predictor(ARCHITECTURE)
    assert bytes_of(supernet) == before


@pytest.mark.parametrize("training", [True, False])
def test_the_supernet_stays_as_it_was(tiny_space: NASBench201, digits: Prepared, training: bool) -> None:
    supernet = supernet_of(tiny_space).train(training)
    before, random_state = bytes_of(supernet), torch.get_rng_state()
    settings = EvaluationSettings(split="validation", batch_size=128)
    predictor = Predictor(tiny_space, supernet, digits, CALIBRATION, settings)
    images = [batch.clone() for batch in predictor.calibration]
    for architecture in (ARCHITECTURE, UNREACHED, (0,) * 6):
        predictor(architecture)
    assert bytes_of(supernet) == before
    assert all(module.training == training for module in supernet.modules())
    assert all(p.requires_grad and p.grad is None and p.is_leaf for p in supernet.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(one, other) for one, other in zip(images, predictor.calibration, strict=True))
    # It still trains.
    supernet(images[0], ARCHITECTURE).sum().backward()
    assert all(p.grad is not None for p in supernet.path_choices(ARCHITECTURE))


# Training one network.


def naive_training(
    space: NASBench201, architecture: Architecture, data: Prepared, how: Recipe, seed: int
) -> tuple[nn.Module, list[float]]:
    """Nesterov's SGD written out, one parameter at a time; return the network and each epoch's mean loss."""
    with seeding.scoped(seed, "weights", space.encode(architecture)):
        network = space.network(architecture)
    stream = seeding.derive(seed, space.encode(architecture))
    everything = torch.arange(len(data.labels["train"]))
    batches = Batches(data, everything, how.batch_size, stream, how.augmentation)
    buffers = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    history = []
    for epoch in range(how.epochs):
        rate = how.learning_rate
        if how.schedule == "cosine":
            rate *= (1 + math.cos(math.pi * epoch / how.epochs)) / 2
        losses = []
        for (((images, labels),),) in batches.epoch(epoch):
            network.zero_grad()
            # Label smoothing: that share of the target is spread evenly over the classes.
            share = how.label_smoothing
            target = F.one_hot(labels, data.classes) * (1 - share) + share / data.classes
            loss = -(target * network(images).log_softmax(1)).sum(1).mean()
            loss.backward()
            losses.append(loss.item())
            with torch.no_grad():
                for name, p in network.named_parameters():
                    g = (torch.zeros_like(p) if p.grad is None else p.grad) + how.weight_decay * p
                    buffers[name].mul_(how.momentum).add_(g)
                    move = g + how.momentum * buffers[name] if how.nesterov else buffers[name]
                    p.sub_(rate * move)
        history.append(sum(losses) / len(losses))
    return network, history


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"schedule": "constant", "nesterov": False, "label_smoothing": 0.1},
        {"augmentation": Augmentation(flip=True, crop_padding=1), "weight_decay": 0.01},
        {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
    ],
    ids=str,
)
def test_training_is_a_naive_loop(tiny_space: NASBench201, digits: Prepared, changes: dict[str, Any]) -> None:
    how = recipe(epochs=2, learning_rate=0.02, batch_size=200, **changes)
    history: list[float] = []
    trained = train_network(tiny_space, UNREACHED, digits, how, 3, lambda _, loss: history.append(loss))
    expected, losses = naive_training(tiny_space, UNREACHED, digits, how, 3)
    assert history == pytest.approx(losses, rel=1e-4)
    for (name, p), q in zip(trained.network.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4, msg=name)
    # The running statistics are those of training.
    for (name, b), c in zip(trained.network.named_buffers(), expected.buffers(), strict=True):
        torch.testing.assert_close(b, c, rtol=1e-3, atol=1e-4, msg=name)
    assert set(trained.scores) == {"validation", "test"}
    for split, score in trained.scores.items():
        assert score == evaluate(trained.network, digits.split(split), 512, top5=True)


def test_without_momentum_nesterov_is_left_out(tiny_space: NASBench201, digits: Prepared) -> None:
    networks = [
        train_network(tiny_space, ARCHITECTURE, digits, recipe(momentum=0.0, nesterov=nesterov), 0).network
        for nesterov in (True, False)
    ]
    assert bytes_of(networks[0]) == bytes_of(networks[1])


def test_training_follows_from_seed_and_architecture_alone(tiny_space: NASBench201, digits: Prepared) -> None:
    how = recipe(augmentation=Augmentation(flip=True, crop_padding=1))

    def train(seed: int, architecture: Architecture = ARCHITECTURE) -> dict[str, bytes]:
        return bytes_of(train_network(tiny_space, architecture, digits, how, seed).network)

    state = torch.get_rng_state()
    try:
        torch.manual_seed(1)
        first = train(0)
        torch.manual_seed(2)
        before = torch.get_rng_state()
        train(0, UNREACHED)  # another one before it changes nothing
        assert train(0) == first
        assert torch.equal(torch.get_rng_state(), before)  # and the caller's stream stays where it was
    finally:
        torch.set_rng_state(state)
    other = train(1)
    assert other.keys() == first.keys() and all(
        other[name] != value for name, value in first.items() if name.endswith("conv.weight")
    )


def test_a_network_learns_the_digits(tiny_space: NASBench201, digits: Prepared) -> None:
    epochs: list[tuple[int, float]] = []
    trained = train_network(
        tiny_space, (3, 3, 3, 3, 3, 3), digits, recipe(epochs=3, batch_size=64), 0,
        lambda epoch, loss: epochs.append((epoch, loss)),
    )  # fmt: skip
    assert min(score.accuracy for score in trained.scores.values()) > 60
    assert [epoch for epoch, _ in epochs] == [0, 1, 2]
    assert epochs[0][1] > epochs[1][1] > epochs[2][1]


def test_a_loss_that_is_no_number_stops_the_training(tiny_space: NASBench201, digits: Prepared) -> None:
    text = tiny_space.encode(ARCHITECTURE)
    with pytest.raises(UserError) as error:
        train_network(tiny_space, ARCHITECTURE, digits, recipe(epochs=3, learning_rate=1e30), 0)
    assert str(error.value).startswith(f"{text}: the loss became ")
    assert "in epoch 1; lower the recipe's learning rate" in str(error.value)


def test_schedules() -> None:
    assert [factor("constant", t) for t in (0.0, 0.3, 1.0)] == [1.0] * 3
    for t, expected in ((0.0, 1.0), (1 / 3, 0.75), (0.5, 0.5), (2 / 3, 0.25), (1.0, 0.0)):
        assert factor("cosine", t) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("stop", [1, 4, 8, 9])
def test_a_training_that_goes_on_gives_the_same_bytes(
    tiny_space: NASBench201, digits: Prepared, stop: int, tmp_path: Path
) -> None:
    how = recipe(epochs=3, batch_size=200, augmentation=Augmentation(flip=True, crop_padding=1))  # 4 steps an epoch
    losses: list[float] = []
    whole = train_network(tiny_space, ARCHITECTURE, digits, how, 3, lambda _epoch, loss: losses.append(loss))
    again = losses[: (stop - 1) // 4]
    with pytest.raises(Stop):
        train_network(tiny_space, ARCHITECTURE, digits, how, 3, on_step=stopping(stop, tmp_path / "state.pt"))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = train_network(
        tiny_space, ARCHITECTURE, digits, how, 3, lambda _epoch, loss: again.append(loss), state=state
    )
    assert bytes_of(resumed.network) == bytes_of(whole.network) and resumed.scores == whole.scores
    assert again == losses
