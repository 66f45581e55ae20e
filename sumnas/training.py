"""Supernet training: epochs over any method, fixed probes beside it. Knows neither the space nor a method's insides."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from sumnas import seeding
from sumnas.augmentation import Augmentation
from sumnas.data import Batch, Batches, Prepared
from sumnas.digested import Digested
from sumnas.distributed import ALONE, Ranks
from sumnas.errors import UserError
from sumnas.initialisation import Initialisation
from sumnas.methods.base import Engine, Method, Pass, module_of
from sumnas.precision import Arithmetic
from sumnas.spaces.base import Architecture, Supernet

Row = dict[str, Any]
"""One epoch's figures, by column of history.csv."""
Probe = Callable[[], float]
"""Gives the mean loss of the probes."""


class SupernetSettings(Digested):
    """Block `supernet`: what every method is trained with."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    left_out = {"processes": "auto", "split_batch": 1, "initialisation": "default"}

    epochs: int = Field(ge=1, description="an epoch is floor(images / batch size) rounds of every method")
    batch_size: int = Field(ge=2, description="images per pass of one path")
    augmentation: Augmentation = Field(description="what is done at random to every training image")
    initialisation: Initialisation = Field(
        "default", description="torch's own of every layer, or kaiming: normal by fan-out, a small classifier"
    )
    engine: Literal[Engine, "auto"] = Field(
        "auto", description="paths of a strictly fair round one by one or all at once (lockstep); auto: that on a GPU"
    )
    processes: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto",
        description="that share each step of SUMNAS or FairNAS; auto: as many as torchrun starts, else one",
    )
    split_batch: int = Field(
        1, ge=1, description="so many of them share every batch of a path, and wait for each other at every layer"
    )
    arithmetic: Arithmetic = Field(Arithmetic(), description="precision and memory format of the training")
    probes: int = Field(0, ge=0, description="fixed sub-models whose loss is followed over the training (figure 3)")
    probe_every: int = Field(1, ge=1, description="epochs between two looks at the probes")


@dataclass
class Progress:
    """How far a training is: what a checkpoint holds beside the weights and the method's state."""

    epoch: int = 0
    """Epochs that are done: the present one's number, from 0."""
    step: int = 0
    """Steps of the present epoch that are done."""
    sums: dict[str, float] = field(default_factory=dict)
    """Each figure of the method's steps, summed over those of this epoch that have been read from the device."""
    history: list[Row] = field(default_factory=list)
    """One row per epoch that is done."""

    @property
    def loss(self) -> float:
        """Mean loss of the epoch so far."""
        return self.sums.get("loss", math.nan) / max(self.step, 1)


class Heldout:
    """An endless seeded stream of batches of images that the weights are not trained on."""

    def __init__(self, data: Prepared, indices: Tensor, batch_size: int, seed: int) -> None:
        self.batches = Batches(data, indices, batch_size, seeding.derive(seed, "heldout"))
        self._next = 0
        self._from_next = self._endless(0)

    def take(self, first: int, count: int) -> list[Batch]:
        """Return batches number `first` to `first + count - 1` of the stream."""
        return list(self.each(first, count))

    def each(self, first: int, count: int) -> Iterator[Batch]:
        """Yield batches number `first` to `first + count - 1` of the stream, each made when it is asked for."""
        if first != self._next:
            self._from_next = self._endless(*divmod(first, self.batches.steps))
        self._next = first
        for batch in itertools.islice(self._from_next, count):
            self._next += 1
            yield batch

    def _endless(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        for number in itertools.count(epoch):
            for rounds in self.batches.epoch(number, start if number == epoch else 0):
                yield rounds[0][0]


def assemble(
    supernet: Supernet,
    data: Prepared,
    settings: SupernetSettings,
    method_settings: BaseModel,
    seed: int,
    ranks: Ranks = ALONE,
) -> tuple[Method, Batches, Heldout | None]:
    """Return the method that a block of `methods` describes, its training batches and its held-out stream.

    With several `ranks` each of them calls this and then `train` alike, and they share the paths of every step, or, as
    many of them as the settings say, the images of a path's batches.
    """
    strategy: str = method_settings.strategy  # type: ignore[attr-defined]
    method: Method = module_of(strategy).METHOD(supernet, method_settings, 1, seed)
    method.use(settings.engine)
    method.share(ranks, settings.split_batch, settings.batch_size)
    batches, heldout = batches_for(method, data, settings, seed)
    # The method says what a step takes, which says how many steps there are: only now can it be told.
    method.total_steps = epochs_of(method_settings, settings) * batches.steps
    return method, batches, heldout


def epochs_of(method_settings: BaseModel, settings: SupernetSettings) -> int:
    """Return the method's own number of epochs, or everyone's."""
    return getattr(method_settings, "epochs", None) or settings.epochs


def batches_for(
    method: Method, data: Prepared, settings: SupernetSettings, seed: int
) -> tuple[Batches, Heldout | None]:
    """Split the training images as the method asks, and return its training batches and held-out stream."""
    count = len(data.labels["train"])
    order = torch.randperm(count, generator=seeding.torch_stream(seed, "shares"))
    cut = round(count * method.train_share)
    batches = Batches(
        data, order[:cut].sort().values, settings.batch_size, seed, settings.augmentation,
        streams=method.streams, rounds=method.rounds, part=method.sharers.part,
    )  # fmt: skip
    needed = method.heldout or method.heldout_between
    heldout = Heldout(data, order[cut:].sort().values, settings.batch_size, seed) if needed else None
    return batches, heldout


def train(
    method: Method,
    batches: Batches,
    heldout: Heldout | None,
    epochs: int,
    probe: Probe | None = None,
    probe_every: int = 1,
    progress: Progress | None = None,
    on_step: Callable[[Progress], None] | None = None,
    on_epoch: Callable[[Row], None] | None = None,
    encode: Callable[[Architecture], str] = str,
    look_every: int = 1,
    arithmetic: Arithmetic = Arithmetic(),  # noqa: B008 - it is frozen
) -> list[Row]:
    """Train `method`'s supernet in place and return one history row per epoch.

    Starts where `progress` is. `probe` returns the mean loss of the probes. `on_step` and `on_epoch` see what
    happened; they may raise to stop. UserError at the first figure that is not finite, with the path that `encode`
    puts in words, or where the trained weights are not.

    Figures are read from the device every `look_every` steps, and at an epoch's end; `on_step` is called only then, so
    that it never sees a step of which nobody knows whether it went wrong. More than 1 keeps an accelerator busy.
    """
    progress = progress or Progress()
    supernet = method.supernet
    supernet.train()
    device = supernet.shared[0].device
    between, per_epoch = method.heldout_between, batches.steps * method.heldout
    while progress.epoch < epochs:
        first = progress.epoch * (per_epoch + between)
        unread: list[tuple[int, Mapping[str, Tensor | float], list[Pass]]] = []
        for number, rounds in enumerate(batches.epoch(progress.epoch, progress.step), progress.step):
            extra = heldout.take(first + number * method.heldout, method.heldout) if heldout else []
            with arithmetic.autocast(device):
                found = method.step(*_laid_out(arithmetic, rounds, extra))
            unread.append((number, found, method.passes))
            progress.step = number + 1
            if len(unread) < look_every and progress.step < batches.steps:
                continue
            for at, figures, passes in unread:
                where = f"step {progress.epoch * batches.steps + at} (epoch {progress.epoch + 1})"
                for name, value in _finite(method, where, figures, passes, encode).items():
                    progress.sums[name] = progress.sums.get(name, 0.0) + value
            unread.clear()
            if on_step:
                on_step(progress)
        row: Row = {
            "epoch": progress.epoch + 1,
            "steps": method.done_steps,
            "passes": method.done_steps * method.passes_per_step,
            **{name: value / batches.steps for name, value in progress.sums.items()},
            **method.end_epoch(heldout.each(first + per_epoch, between) if heldout else ()),
        }
        if probe and (progress.epoch + 1) % probe_every == 0:
            row["probe_loss"] = probe()
        progress.history.append(row)
        progress.epoch, progress.step, progress.sums = progress.epoch + 1, 0, {}
        if on_epoch:
            on_epoch(row)
    check_weights(method)
    return progress.history


def _laid_out(
    arithmetic: Arithmetic, rounds: list[list[Batch]], heldout: list[Batch]
) -> tuple[list[list[Batch]], list[Batch]]:
    """Return the batches of a step with their images in the memory format that is asked for."""

    def each(batches: list[Batch]) -> list[Batch]:
        return [(arithmetic.images(images), labels) for images, labels in batches]

    return [each(streams) for streams in rounds], each(heldout)


def _finite(
    method: Method,
    where: str,
    figures: Mapping[str, Tensor | float],
    passes: Sequence[Pass],
    encode: Callable[[Architecture], str],
) -> dict[str, float]:
    """Return a step's figures as numbers; UserError where one is not finite."""
    found = {name: float(value) for name, value in figures.items()}
    # The loss first: what else is not finite follows from it.
    for name in sorted(found, key=lambda name: name != "loss"):
        if not math.isfinite(found[name]):
            wrong = next((path for path, loss in passes if not math.isfinite(loss)), None)
            if wrong is None:  # its losses were finite, but what it was moved to is not
                wrong = next((p for p, _ in passes if not all_finite(method.supernet.path_choices(p))), None)
            raise UserError(
                f"the {name.replace('_', ' ')} became {found[name]} in {where}"
                + (f" on path {encode(wrong)}" if wrong is not None else "")
                + f" at learning rate {found.get('learning_rate', math.nan):g}: lower the method's learning rate"
            )
    return found


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether every value of all of them is finite; waits for the device."""
    with torch.no_grad():
        norms = torch._foreach_norm(list(tensors), math.inf) if tensors else []
        return not norms or bool(torch.stack(list(norms)).isfinite().all())


def check_weights(method: Method) -> None:
    """Raise UserError where a weight is not finite, which no loss may have shown yet."""
    weights = [tensor for tensor in method.supernet.state_dict().values() if tensor.is_floating_point()]
    if not all_finite(weights):
        wrong = [n for n, p in method.supernet.state_dict().items() if not bool(p.isfinite().all())]
        raise UserError(
            f"{wrong[0]} and {len(wrong) - 1} more weights are not finite after step {method.done_steps - 1}: "
            "lower the method's learning rate"
        )


def capture(method: Method, progress: Progress) -> dict[str, Any]:
    """Return everything that the rest of a training depends on, for torch.save; UserError where it went wrong."""
    check_weights(method)
    weights = {name: tensor.detach().clone() for name, tensor in method.supernet.state_dict().items()}
    return {"weights": weights, "method": method.state_dict(), "progress": asdict(progress)}


def restore(method: Method, state: dict[str, Any]) -> Progress:
    """Put back what `capture` gave, in place, and return the progress to go on from."""
    method.supernet.load_state_dict(state["weights"])
    method.load_state_dict(state["method"])
    return Progress(**state["progress"])


def columns(history: Sequence[Row]) -> list[str]:
    """Return every column of a history, in order of first appearance."""
    return list(dict.fromkeys(name for row in history for name in row))
