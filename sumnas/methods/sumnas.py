"""SUMNAS: Reptile over strictly fair paths (Algorithm 1, paper sec. 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sumnas.adaptation import Buffers, adapt
from sumnas.data import Batch
from sumnas.lockstep.descent import Inner, JointAdaptation
from sumnas.methods.base import Engine, Method, MethodSettings, Rounds
from sumnas.paths import strictly_fair_paths
from sumnas.schedules import Schedule, factor
from sumnas.sharing import shared_batch
from sumnas.spaces.base import Supernet


class Settings(MethodSettings):
    """A block of `methods` with `strategy: sumnas`. The defaults are the paper's for CIFAR-10 (table 6, App. D)."""

    strategy: Literal["sumnas"]
    adaptation_steps: int = Field(ge=1, description="k: SGD steps of every path before the outer update")
    inner_learning_rate: float = Field(0.2, gt=0, description="at k = 1; divided by k where scale_inner is set")
    scale_inner: bool = Field(True, description="keep the size of an outer update: 0.2/k, that is 0.05 at k = 4")
    inner_momentum: float = Field(0.9, ge=0, lt=1, description="of the inner SGD")
    inner_weight_decay: float = Field(0.0, ge=0, description="of the inner SGD")
    inner_schedule: Schedule = Field("constant", description="of the inner rate over the training")
    outer_learning_rate: float = Field(
        1.0, gt=0, description="of the outer SGD on the Reptile difference, where its schedule begins"
    )
    outer_momentum: float = Field(0.0, ge=0, lt=1, description="of the outer SGD")
    outer_schedule: Schedule = Field("cosine", description="of the outer rate over the training; cosine ends at 0")
    weight_decay: float = Field(4e-5, ge=0, description="of the outer SGD step")
    batches: Literal["fresh", "reuse"] = Field(
        "fresh", description="each of the k inner steps reads its own batch (App. H), or all read one (Algorithm 1)"
    )
    momentum_buffer: Literal["reset", "carry"] = Field(
        "reset", description="inner momentum starts at zero at every adaptation, or is carried over"
    )
    rounds: int = Field(1, ge=1, description="task batching: strictly fair rounds per outer step (ImageNet: 3)")
    round_reduction: Literal["mean", "sum"] = Field("mean", description="over the rounds of an outer step")
    path_reduction: Literal["sum", "mean"] = Field("sum", description="over the m paths of a round (Algorithm 1: sum)")
    clip_norm: float | None = Field(None, gt=0, description="largest gradient norm of an inner step; null: any")


class SUMNAS(Method):
    """Every path adapts in place, then leaves its difference; nothing is copied but the path's own weights.

    Under strict fairness a choice parameter is on one path of a round. With one round its outer update therefore
    happens right after its path, and only the shared parameters wait for the others. A step needs, beside the
    supernet, three times one path's parameters (theta, gradient, momentum) and twice the shared ones. Where several
    processes share the paths, all parameters wait for one sum over the ranks, which takes twice the supernet's.
    """

    settings: Settings
    """The block of `methods` that it was made with."""
    lockstep = True
    spreads = True

    def __init__(self, supernet: Supernet, settings: Settings, total_steps: int, seed: int) -> None:
        super().__init__(supernet, settings, total_steps, seed)
        self.streams = streams(settings)
        self.rounds = settings.rounds
        self.passes_per_step = settings.rounds * self.candidates * settings.adaptation_steps
        self.buffers: Buffers | None = {} if settings.momentum_buffer == "carry" else None
        self.outer_buffers: Buffers = {}
        self.joint: JointAdaptation | None = None

    @classmethod
    def no_lockstep(cls, settings: Settings) -> str | None:
        """A shared parameter's carried momentum goes from path to path: these have an order then."""
        if settings.momentum_buffer == "carry" and settings.inner_momentum:
            return "momentum_buffer: carry hands the momentum of shared weights from path to path"
        return None

    @classmethod
    def no_ranks(cls, settings: Settings) -> str | None:
        """As with lockstep: each path would need the momentum that the one before it has left."""
        return cls.no_lockstep(settings)

    def use(self, engine: Literal[Engine, "auto"]) -> None:
        """Prepare the adaptation of a whole round where that is asked for."""
        super().use(engine)
        s = self.settings
        inner = Inner(s.adaptation_steps, s.inner_momentum, s.inner_weight_decay, s.clip_norm)
        self.joint = JointAdaptation(self.supernet, inner) if self.engine == "lockstep" else None

    @property
    def inner_learning_rate(self) -> float:
        """The rate of the next inner steps."""
        settings = self.settings
        scale = settings.adaptation_steps if settings.scale_inner else 1
        return settings.inner_learning_rate / scale * factor(settings.inner_schedule, self.progress)

    @property
    def outer_learning_rate(self) -> float:
        """The rate of the next outer step."""
        return self.settings.outer_learning_rate * factor(self.settings.outer_schedule, self.progress)

    def step(self, batches: Rounds, heldout: Sequence[Batch] = ()) -> Mapping[str, Tensor | float]:
        """Take one outer step; report the mean inner loss, the rates, and the norm of the shared update."""
        inner, outer, weight = self.inner_learning_rate, self.outer_learning_rate, 1.0
        if self.settings.round_reduction == "mean":
            weight /= self.settings.rounds
        if self.settings.path_reduction == "mean":
            weight /= self.candidates
        self.passes = []
        if self.joint is not None and self.untried:
            self.rehearse(partial(self.joint.rehearse, batches[0], inner))
        if self.joint is not None:
            norm = self._step_together(self.joint, batches, inner, outer, weight)
        else:
            with shared_batch(self.supernet, self.sharers, self.batch_size):
                norm = self._step_in_turn(batches, inner, outer, weight)
        self.done_steps += 1
        return {"loss": self.mean_loss, "learning_rate": outer * inner, "shared_update_norm": norm}

    def _step_together(
        self, joint: JointAdaptation, batches: Rounds, inner: float, outer: float, weight: float
    ) -> Tensor:
        """Adapt all paths of a round at once; every difference waits for the last round."""
        sums: list[Tensor] = []
        for streams in batches:
            paths = strictly_fair_paths(self.layers, self.candidates, self.rng)
            losses, *differences = joint(paths, streams, inner)
            self.passes += zip(paths, losses.clone().unbind(), strict=True)
            if not sums:
                sums = list(torch._foreach_mul(differences, weight))
            else:
                torch._foreach_add_(sums, differences, alpha=weight)
        choices = joint.choices.parameters
        with torch.no_grad():
            norm = torch.nn.utils.get_total_norm(sums[len(choices) :]) * outer
            self._outer_update([*choices, *self.supernet.shared], sums, outer)
        return norm

    def _step_in_turn(self, batches: Rounds, inner: float, outer: float, weight: float) -> Tensor:
        settings, supernet = self.settings, self.supernet
        # With several rounds a choice parameter, too, is on several paths and has to wait for the last of them.
        spread = self.ranks.world > self.sharers.world
        waits = settings.rounds > 1 or spread
        shared_sum: list[Tensor] = [torch.zeros_like(p) for p in supernet.shared]
        choice_sum: dict[int, tuple[nn.Parameter, Tensor]] = {}
        if spread:  # all of them, in the same order on every rank
            every = [p for layer in supernet.choices for operator in layer for p in operator]
            choice_sum = {id(p): (p, torch.zeros_like(p)) for p in every}
        others = supernet.shared[0].new_zeros(())  # the loss of other ranks' paths
        for turn, streams in enumerate(batches):
            inputs = streams if settings.batches == "fresh" else [streams[0]] * settings.adaptation_steps
            paths = strictly_fair_paths(self.layers, self.candidates, self.rng)
            own = self.own(turn, paths)
            self.passes += [(path, others) for path in paths]
            if not own:
                continue
            # All paths start from the same shared weights and the same batch, so the stem runs once for all.
            common = supernet.common(inputs[0][0])
            for number in own:
                path = paths[number]
                choices = supernet.path_choices(path)
                parameters = choices + supernet.shared
                theta = [p.detach().clone() for p in parameters]
                loss = adapt(
                    supernet, path, parameters, inputs, inner, settings.inner_momentum,
                    settings.inner_weight_decay, self.buffers, settings.clip_norm, common, self.sharers,
                    self.batch_size,
                )  # fmt: skip
                self.passes[turn * self.candidates + number] = (path, loss)
                with torch.no_grad():
                    adapted = [p.data for p in parameters]
                    difference = list(torch._foreach_sub(theta, adapted))
                    torch._foreach_copy_(adapted, theta)
                    torch._foreach_add_(shared_sum, difference[len(choices) :], alpha=weight)
                    if waits:
                        self._collect(choice_sum, choices, difference[: len(choices)], weight)
                    else:
                        self._outer_update(choices, difference[: len(choices)], outer, weight)
                del theta, difference  # else they would live on beside the next path's
            del common
        with torch.no_grad():
            pairs = list(choice_sum.values())
            self.gather([*shared_sum, *(total for _, total in pairs)], alike=True)
            if waits:
                self._outer_update([p for p, _ in pairs], [g for _, g in pairs], outer)
            norm = torch.nn.utils.get_total_norm(shared_sum) * outer
            self._outer_update(supernet.shared, shared_sum, outer)
        return norm

    def _outer_update(
        self, parameters: Sequence[nn.Parameter], gradients: list[Tensor], rate: float, weight: float = 1.0
    ) -> None:
        """theta <- theta - rate * (weight * g + weight_decay * theta), with momentum where set; overwrites g."""
        weights = [p.detach() for p in parameters]
        if not weights:  # a path without a convolution has no choice parameters
            return
        if weight != 1.0:
            torch._foreach_mul_(gradients, weight)
        if self.settings.weight_decay:
            torch._foreach_add_(gradients, weights, alpha=self.settings.weight_decay)
        if self.settings.outer_momentum:
            velocity = [self.outer_buffers.setdefault(id(p), torch.zeros_like(p)) for p in parameters]
            torch._foreach_mul_(velocity, self.settings.outer_momentum)
            torch._foreach_add_(velocity, gradients)
            gradients = velocity
        torch._foreach_add_(weights, gradients, alpha=-rate)

    @staticmethod
    def _collect(
        sums: dict[int, tuple[nn.Parameter, Tensor]],
        parameters: Sequence[nn.Parameter],
        difference: Sequence[Tensor],
        weight: float,
    ) -> None:
        for parameter, value in zip(parameters, difference, strict=True):
            if id(parameter) in sums:
                sums[id(parameter)][1].add_(value, alpha=weight)
            else:
                sums[id(parameter)] = (parameter, value * weight)

    def state_dict(self) -> dict[str, Any]:
        """Add the momentum buffers, by name of the parameter."""
        names = {id(p): name for name, p in self.supernet.named_parameters()}
        state = super().state_dict()
        state["inner_buffers"] = {names[key]: value for key, value in (self.buffers or {}).items()}
        state["outer_buffers"] = {names[key]: value for key, value in self.outer_buffers.items()}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put the buffers back."""
        super().load_state_dict(state)
        parameters = dict(self.supernet.named_parameters())

        def placed(kept: Mapping[str, Tensor]) -> Buffers:  # copies: steps change them in place
            return {id(parameters[n]): value.to(parameters[n].device, copy=True) for n, value in kept.items()}

        if self.buffers is not None:
            self.buffers = placed(state["inner_buffers"])
        self.outer_buffers = placed(state["outer_buffers"])


def streams(settings: Settings) -> int:
    """Return how many independent permutations of the data an outer step reads."""
    return settings.adaptation_steps if settings.batches == "fresh" else 1


METHOD = SUMNAS
"""The method of `strategy: sumnas`, by the name that every strategy's module has for its own."""
