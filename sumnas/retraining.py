"""Training one architecture from scratch: for true accuracies and for the network that was found (method sec. 7)."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from sumnas import seeding
from sumnas.data import Batches, Prepared
from sumnas.digested import Digested
from sumnas.distributed import ALONE, Ranks
from sumnas.errors import UserError
from sumnas.evaluation import Score, evaluate
from sumnas.recipe import Recipe
from sumnas.sharing import check, mean_loss, shared_batch
from sumnas.spaces.base import Architecture, Space


class RetrainSettings(Digested):
    """Block `retrain`."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    left_out = {"processes": "auto"}

    enabled: bool = Field(description="whether the architectures found are trained from scratch")
    seed: int = Field(0, ge=0, description="of initial weights, order and augmentation")
    processes: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="that share the images of every batch; auto: as many as torchrun starts, else one"
    )
    recipe: Recipe = Field(description="how every found architecture is trained")


class Trained(NamedTuple):
    """A trained network, in evaluation mode, and its `scores`, top-5 included.

    These are by held-out split that has images: test, and validation where there is one. Where the recipe averages
    weights, it is the averaged network.
    """

    network: nn.Module
    scores: dict[str, Score]


def train_network(
    space: Space,
    architecture: Architecture,
    data: Prepared,
    recipe: Recipe,
    seed: int,
    on_epoch: Callable[[int, float], None] | None = None,
    state: dict[str, Any] | None = None,
    on_step: Callable[[Callable[[], dict[str, Any]]], None] | None = None,
    ranks: Ranks = ALONE,
) -> Trained:
    """Train one architecture from scratch on the training split; `on_epoch` gets the epoch and its mean loss.

    `on_step` gets a function that returns the state after the step, for torch.save; it may raise to stop. A training
    that starts with such a `state` goes on from there to the same result.

    Streams depend on the seed and the architecture's string, so a network's result does not depend on which others
    are trained beside it. UserError at the first loss that is not finite.

    With several `ranks` each of them calls this alike, and they share the images of every batch: the same training up
    to the order of summation, the weights and scores the very same on all. The first alone scores.
    """
    name = space.encode(architecture)
    with seeding.scoped(seed, "weights", name):
        network = space.network(architecture)
    check(network, ranks, recipe.batch_size)
    device = data.labels["train"].device
    recipe.arithmetic.place(network, device)
    everything = torch.arange(len(data.labels["train"]))
    batches = Batches(
        data, everything, recipe.batch_size, seeding.derive(seed, name), recipe.augmentation,
        keep_last=recipe.last_batch == "keep", part=ranks.part,
    )  # fmt: skip
    recipe.set_dropout(network)
    optimizer, average = recipe.optimizer(network), recipe.average(network)
    for parameter in network.parameters():  # out of the loss's reach, some still decay, as in the benchmark
        parameter.grad = torch.zeros_like(parameter)
    at, seen, total = 0, 0, torch.zeros((), device=device)
    if state is not None:
        network.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        if average is not None:
            average.load_state_dict(state["average"])
        at, seen, total = state["epoch"], state["steps"], state["loss_sum"].to(device)
    network.train()
    for epoch in range(at, recipe.epochs):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(epoch)
        for step, (((images, labels),),) in enumerate(batches.epoch(epoch, seen), seen + 1):
            # A stream for every step, so that a training that goes on draws what it would have drawn.
            drops = seeding.scoped(seed, "dropout", name, epoch, step) if recipe.dropout else contextlib.nullcontext()
            whole = batches.size(step - 1)
            with drops, recipe.arithmetic.autocast(device), shared_batch(network, ranks, whole):
                logits = network(recipe.arithmetic.images(images))
                loss = mean_loss(logits, labels, recipe.label_smoothing, ranks, whole)
            optimizer.zero_grad(set_to_none=False)
            loss.backward()  # type: ignore[no-untyped-call]
            seen_loss = loss.detach()
            ranks.add([*(p.grad for p in network.parameters() if p.grad is not None), seen_loss])
            optimizer.step()
            if average is not None:
                recipe.average_in(average, network, epoch, step - 1)
            total += seen_loss
            if on_step:
                on_step(partial(_capture, name, network, optimizer, average, epoch, step, total))
        mean = float(total) / batches.steps
        _check(name, mean, epoch)
        if on_epoch:
            on_epoch(epoch, mean)
        seen, total = 0, torch.zeros((), device=device)
    result = network if average is None else average.module
    return Trained(result.eval(), _scored(result, data, name, ranks))


def _scored(network: nn.Module, data: Prepared, name: str, ranks: Ranks) -> dict[str, Score]:
    """Score the network on the first rank. It lets the others know of every batch: one long wait would end them."""
    if not ranks.first:
        while not ranks.largest(0):
            pass
        return ranks.from_first({})

    def goes_on(*_: Any) -> None:
        ranks.largest(0)

    watched = network.register_forward_hook(goes_on)
    try:
        scores = {split: evaluate(network, data.split(split), 512, name, top5=True) for split in data.held_out}
    finally:
        watched.remove()
    ranks.largest(1)
    return ranks.from_first(scores)


def _capture(
    name: str,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    epoch: int,
    steps: int,
    loss_sum: Tensor,
) -> dict[str, Any]:
    """Return what the rest of a training depends on; the random streams follow from seed and epoch."""
    _check(name, float(loss_sum), epoch)
    return {
        "weights": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch, "steps": steps,
        "loss_sum": loss_sum, **({} if average is None else {"average": average.state_dict()}),
    }  # fmt: skip


def _check(name: str, loss: float, epoch: int) -> None:
    if not math.isfinite(loss):
        raise UserError(f"{name}: the loss became {loss} in epoch {epoch + 1}; lower the recipe's learning rate")
