"""The protocol between the training loop and a method: how batches become an update of the supernet."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from sumnas import seeding, sharing
from sumnas.data import Batch
from sumnas.distributed import ALONE, Ranks, dealt
from sumnas.errors import UserError
from sumnas.lockstep.capture import CaptureError
from sumnas.progress import say
from sumnas.schedules import Schedule, factor
from sumnas.spaces.base import Architecture, Supernet


class MethodSettings(BaseModel):
    """What every block of `methods` may hold; a strategy's own `Settings` add to it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: str = Field(description="name of the file in sumnas/methods")
    epochs: int | None = Field(None, ge=1, description="instead of supernet.epochs: comparisons at equal passes")


class GradientSettings(MethodSettings):
    """Rates of one SGD step. The defaults are what SUMNAS's table 1 uses for every method but its own (App. D)."""

    learning_rate: float = Field(0.2, gt=0, description="of SGD, where the schedule begins")
    momentum: float = Field(0.0, ge=0, lt=1, description="of SGD")
    schedule: Schedule = Field("cosine", description="of the rate over the training; cosine ends at 0")
    weight_decay: float = Field(4e-5, ge=0, description="of every parameter that a step's paths use")


Engine = Literal["sequential", "lockstep"]
"""How a step runs its paths: one after another, or all of a strictly fair round at once."""

Rounds = Sequence[Sequence[Batch]]
"""The training batches of one step: a list of rounds, each with one batch per stream."""


Pass = tuple[Architecture, Tensor]
"""A sub-model that a step ran, and its training loss."""


class Method(ABC):
    """Trains one supernet. Owns its optimisers, schedules and random streams.

    A subclass declares what one step takes: `rounds` consecutive batches of each of `streams` independent
    permutations of its `train_share` of the training images, and `heldout` batches of the rest; between two epochs it
    takes `heldout_between` more of these. `passes_per_step` is the number of sub-model passes (forward and backward of
    one batch) that a step costs, for comparisons at equal compute. `passes` are those of the last step, so that it can
    be said where a loss went wrong; they stay empty where a step runs no single sub-model. A subclass lives in a module
    of its strategy's name beside a pydantic model `Settings`.

    With `lockstep` it has a second form of its step, which runs all paths of a strictly fair round at once and does the
    same up to rounding; its random stream, weights and state are the same, so that a training can go on in the other.

    With `spreads` a step can share its paths out among several processes, each of which then takes the same step up to
    the order of summation; a training can go on in any number of them. `sharers` are those of them that run the same
    paths, each on its part of every batch, which has `batch_size` images in all. `loads` are the millions of
    multiply-adds that the last step has dealt out to each group of ranks with the same paths, where there are several.
    """

    lockstep: bool = False
    spreads: bool = False

    streams: int = 1
    rounds: int = 1
    heldout: int = 0
    heldout_between: int = 0
    train_share: float = 1.0
    passes_per_step: int = 1

    def __init__(self, supernet: Supernet, settings: Any, total_steps: int, seed: int) -> None:
        self.supernet = supernet
        self.settings = settings
        self.total_steps = total_steps
        self.done_steps = 0
        self.rng = seeding.numpy_stream(seed, "paths")
        self.passes: list[Pass] = []
        self.layers = len(supernet.choices)
        self.candidates = len(supernet.choices[0])
        self.engine: Engine = "sequential"
        self.tentative = False
        self.untried = False
        self.ranks = ALONE
        self.sharers = ALONE
        self.batch_size = 0
        self.loads: list[float] = []

    @classmethod
    def no_lockstep(cls, settings: Any) -> str | None:
        """Say why there is no lockstep step with these settings and what to do; None where there is one."""
        if cls.lockstep:
            return None
        return f"strategy {settings.strategy!r} runs no strictly fair rounds; these do: {_having('lockstep')}"

    def use(self, engine: Literal[Engine, "auto"]) -> None:
        """Take an engine. UserError where lockstep is asked for and there is no such step.

        `auto` is lockstep on a GPU where there is such a step, and sequential elsewhere. It is `tentative`: several
        processes, or a graph that cannot be made, turn it to sequential.
        """
        why = self.no_lockstep(self.settings)
        if why is None and type(self.supernet).lockstep is Supernet.lockstep:
            why = "this space has no lockstep form"
        if engine == "lockstep" and why is not None:
            raise UserError(f"supernet.engine = 'lockstep': {why}; set supernet.engine: auto")
        self.tentative = engine == "auto"
        if engine == "auto":
            engine = "lockstep" if why is None and self.on_gpu else "sequential"
        self.engine = engine
        self.untried = engine == "lockstep"

    @property
    def on_gpu(self) -> bool:
        """Whether the supernet is on a GPU."""
        return next(self.supernet.parameters()).device.type == "cuda"

    def rehearse(self, trial: Callable[[], None]) -> None:
        """Before the first lockstep step make its graph by `trial`, which leaves the weights as they are.

        Where that fails, `auto` goes on path by path and says why; UserError where lockstep was asked for.
        """
        self.untried, why = False, ""
        try:
            trial()
        except (torch.OutOfMemoryError, CaptureError) as error:
            why = str(error).partition("\n")[0].partition(". ")[0].rstrip(".")
        except RuntimeError as error:
            if not self.tentative:
                raise
            why = str(error).partition("\n")[0].rstrip(".")
        if not why:
            return
        if not self.tentative:
            mend = "set supernet.engine: sequential, or a smaller supernet.batch_size"
            raise UserError(f"supernet.engine = 'lockstep': {why}; {mend}")
        say(f"supernet.engine: auto goes path by path, not in lockstep: {why}")
        self.use("sequential")
        torch.cuda.empty_cache()  # else the other way's passes find what the attempt took

    @classmethod
    def no_ranks(cls, settings: Any) -> str | None:
        """Say why several processes cannot share a step with these settings; None where they can."""
        if cls.spreads:
            return None
        return f"strategy {settings.strategy!r} has no independent paths to share out; these have: {_having('spreads')}"

    def share(self, ranks: Ranks, split_batch: int = 1, batch_size: int = 0) -> None:
        """Share the paths of every step with other processes; UserError where that cannot be.

        `split_batch` of them run the same paths, each on its part of every batch of `batch_size` images.
        """
        why = self.no_ranks(self.settings)
        if why is not None and not ranks.several:
            return  # in one process in spite of the settings, which are for all methods
        groups, rest = divmod(ranks.world, split_batch)
        if why is None and (rest or split_batch > max(batch_size, 1)):
            said = f"more than the {batch_size} images of a batch; lower it"
            if rest:
                said = f"{ranks.world} process{'es' * ranks.several} cannot stand in groups of so many; "
                said += "set supernet.processes to a multiple of it, or split_batch: 1"
            raise UserError(f"supernet.split_batch = {split_batch}: {said}")
        if ranks.several:
            if self.tentative:
                self.use("sequential")
            paths = self.rounds * self.candidates
            if why is None and self.engine == "lockstep":
                why = "lockstep runs all paths in one; set supernet.engine: sequential"
            if why is None and groups > paths:
                why = f"a step has only {paths} paths to share out"
            if why is not None:
                raise UserError(f"training in {ranks.world} processes: {why}; or take one process")
        self.ranks, self.sharers, self.batch_size = ranks, ranks.split(split_batch), batch_size
        sharing.check(self.supernet, self.sharers, batch_size)

    def own(self, turn: int, paths: Sequence[Architecture]) -> Sequence[int]:
        """Return which paths of a step's round number `turn` are this rank's; a step asks for its rounds in turn.

        Over a step no rank has two more than another. Which ones they are is such that all have about as much to
        compute, by their multiply-adds, where the supernet knows these.
        """
        together, before = self.sharers.world, turn * self.candidates
        groups = self.ranks.world // together
        try:
            costs = [self.supernet.macs(path) for path in paths] if groups > 1 else []
        except NotImplementedError:
            costs = []
        if not costs:
            return self.ranks.own(len(paths), before, together)
        if turn == 0:
            self.loads = [0.0] * groups
        room = [len(Ranks(group, groups).own(len(paths), before)) for group in range(groups)]
        return dealt(costs, room, self.loads)[self.ranks.rank // together]

    def gather(self, sums: Sequence[Tensor], alike: bool = False) -> None:
        """Add up over the ranks, in place, what each of its own paths has left in `sums`, and let all see all losses.

        `passes` has every path of the step, in the order of their drawing; the loss of another rank's path is zero.
        With `alike` those that share a batch have all left what the whole of it gives, which counts once.
        """
        if not self.ranks.several or (alike and self.sharers.world == self.ranks.world):
            return
        losses = torch.stack([loss.to(sums[0].dtype) for _, loss in self.passes])
        if alike and not self.sharers.first:
            # Zeros, in one sum over all, and not a sum over one of each group: every rank gets the very same bytes.
            torch._foreach_zero_([*sums, losses])
        self.ranks.add([*sums, losses])
        self.passes = [(path, loss) for (path, _), loss in zip(self.passes, losses.unbind(), strict=True)]

    @property
    def progress(self) -> float:
        """Share of the training that is done, in [0, 1]."""
        return self.done_steps / self.total_steps

    @property
    def mean_loss(self) -> Tensor:
        """Scalar tensor: mean loss over the passes of the last step."""
        return torch.stack([loss for _, loss in self.passes]).mean()

    @abstractmethod
    def step(self, batches: Rounds, heldout: Sequence[Batch]) -> Mapping[str, Tensor | float]:
        """Update the supernet once; return what happened, `loss` (mean over the passes) among it."""

    def end_epoch(self, heldout: Iterable[Batch] = ()) -> Mapping[str, float]:
        """Act between epochs (a controller's turn, say); return figures for the history.

        `heldout` gives `heldout_between` batches, each made when it is asked for.
        """
        return {}

    def architecture(self) -> Architecture | None:
        """Return the method's own choice of an architecture so far; None where it makes none."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Everything besides the supernet's weights that the next step depends on."""
        return {"done_steps": self.done_steps, "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        self.done_steps = state["done_steps"]
        self.rng = np.random.default_rng()
        self.rng.bit_generator.state = state["rng"]


class GradientMethod(Method):
    """A method whose step is one SGD step; its settings give learning_rate, momentum, schedule and weight_decay.

    They may also give minimum_rate, where the schedule ends, nesterov, and clip_norm, the largest gradient norm.
    """

    def __init__(self, supernet: Supernet, settings: Any, total_steps: int, seed: int) -> None:
        super().__init__(supernet, settings, total_steps, seed)
        self.optimizer = torch.optim.SGD(
            supernet.parameters(), settings.learning_rate, settings.momentum,
            weight_decay=settings.weight_decay, foreach=True,
            nesterov=settings.momentum > 0 and getattr(settings, "nesterov", False),
        )  # fmt: skip

    def set_rate(self) -> float:
        """Set the optimiser's rate for the next step, and return it."""
        low: float = getattr(self.settings, "minimum_rate", 0.0)
        rate: float = low + (self.settings.learning_rate - low) * factor(self.settings.schedule, self.progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def descend(self, paths: Iterable[Architecture]) -> None:
        """Take one SGD step with the gradients at hand, which must be of these paths; no other parameter moves."""
        # Weight decay reaches the whole path, also where the loss does not (edges that cannot reach the output).
        for path in paths:
            for parameter in self.supernet.path_choices(path):
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        if (norm := getattr(self.settings, "clip_norm", None)) is not None:
            torch.nn.utils.clip_grad_norm_(self.supernet.parameters(), norm, foreach=True)
        self.optimizer.step()
        # None, not zero: the optimiser would go on moving other paths' parameters by decay and old momentum.
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Add the optimiser's state."""
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put the optimiser's state back."""
        super().load_state_dict(state)
        self.optimizer.load_state_dict(state["optimizer"])


def filled(gradients: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients with zeros where there is none: parameters that the loss does not reach."""
    return [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, like, strict=True)]


def _having(feature: str) -> str:
    """Return the strategies whose method has a form of its step, for a message."""
    return ", ".join(name for name in names() if getattr(module_of(name).METHOD, feature))


def names() -> list[str]:
    """Return the strategies there are: one file each in sumnas/methods/."""
    import sumnas.methods as package

    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name != "base")


def module_of(strategy: str) -> Any:
    """Return the module of a strategy, which has `Settings` and `METHOD`; UserError if unknown."""
    if strategy not in names():
        near = difflib.get_close_matches(strategy, names(), n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UserError(f"strategy = {strategy!r}: no such method; {hint}there are: {', '.join(names())}")
    return importlib.import_module(f"sumnas.methods.{strategy}")
