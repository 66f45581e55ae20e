"""Which architectures are ranked or trained: by accuracy interval, evenly in MACs, at random (sec. 4.2)."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from sumnas.errors import UserError

Architecture = tuple[int, ...]
"""One operator index per choice layer."""

Accept = Callable[[Architecture], bool]
"""A condition on architectures, such as that the output depends on the input."""

ENUMERABLE = 100_000
"""Up to so many architectures are gone through one by one where drawing at random does not find enough."""

TRIES = 1_000
"""Random draws allowed for each architecture wanted, in a space too large to go through."""

HALF_A_MAC = 5e-7
"""In millions. MACs are whole numbers: sums that differ by less are equal; rounding decides on no limit."""


class SamplingSettings(BaseModel):
    """Block `sampling`: which architectures of the table a supernet's predictions are ranked on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: Literal["intervals", "macs", "all"] = Field(
        description="best of each accuracy interval (sec. 4.2), evenly in MACs (sec. 4.3), or the whole table"
    )
    intervals: int = Field(default=400, ge=1, description="strategy intervals: even parts of the range")
    count: int = Field(default=20, ge=2, description="strategy macs: number of architectures")
    floor: float | None = Field(
        default=10.0,
        description="strategy intervals: accuracies (percent) at or below this are left out before the range "
        "is split; null keeps all. The 341 disconnected architectures of NAS-Bench-201 have exactly 10.0",
    )
    disconnected: Literal["drop", "keep"] = Field(
        default="drop",
        description="any strategy: whether architectures disconnected from their input are left out first",
    )


class CannotSample(UserError, ValueError):
    """Fewer architectures than were asked for; the message says how many there are and what to change."""


def by_interval(accuracy: NDArray[np.float64], intervals: int, floor: float | None) -> NDArray[np.intp]:
    """Return the table indices, ascending, of the best of each non-empty accuracy interval (sec. 4.2).

    `accuracy` [A] is in percent. Those at or below `floor` are left out; [min, max] of the rest is split into
    `intervals` even parts, closed below and open above, but the maximum belongs to the last. Ties go to the
    lowest index. How many intervals are non-empty depends on the table; nothing above the floor gives none.
    """
    _check_finite("accuracy", accuracy)
    kept = np.arange(len(accuracy)) if floor is None else np.flatnonzero(accuracy > floor)
    values = accuracy[kept]
    if not len(kept) or np.ptp(values) == 0:
        return kept[:1]
    interval = ((values - values.min()) / np.ptp(values) * intervals).astype(np.intp)
    interval = np.minimum(interval, intervals - 1)
    # The sort is stable: equal accuracies stay in table order, and the first row of an interval is its best.
    order = np.lexsort((-values, interval))
    first = np.unique(interval[order], return_index=True)[1]
    return np.sort(kept[order[first]])


def evenly_in_macs(macs: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Return the table indices, ascending, of `count` architectures evenly spaced in MACs (sec. 4.3).

    `macs` [A], in any unit. The targets are `count` even steps from min to max; each gets an architecture of
    its own, so that the summed distance to the targets is the smallest possible. Ties go to fewer MACs, then
    to the lowest index. CannotSample (a ValueError) where the table holds fewer than `count`.
    """
    _check_finite("macs", macs)
    if len(macs) < count:
        raise CannotSample(f"sampling.count = {count}: only {len(macs)} architectures exist; lower it to that")
    order = np.argsort(macs, kind="stable")
    ascending = macs[order]
    # Sorted, the best assignment never crosses: ending[j][i] is the least total of targets 0..j where j gets
    # architecture i. The nearest, target by target, would not do: an early one takes what a later one needs.
    ending: list[NDArray[np.float64]] = []
    before = np.zeros(len(macs))
    for target in np.linspace(ascending[0], ascending[-1], count):
        ending.append(before + np.abs(ascending - target))
        before = np.concatenate(([np.inf], np.minimum.accumulate(ending[-1])[:-1]))
    chosen: list[int] = []
    bound = len(macs)
    for totals in reversed(ending):
        bound = int(np.argmin(totals[:bound]))
        chosen.append(bound)
    return np.sort(order[chosen])


def sample(
    settings: SamplingSettings,
    accuracy: NDArray[np.float64],
    macs: NDArray[np.float64],
    connected: NDArray[np.bool_],
) -> NDArray[np.intp]:
    """Return the table indices, ascending, of the architectures to rank.

    `accuracy` (percent), `macs` (any unit) and `connected` (does the output depend on the input?) are [A], as
    the rows of the table. CannotSample (a ValueError) where fewer than two are left: nothing to rank.
    """
    if len({len(accuracy), len(macs), len(connected)}) > 1:
        raise ValueError("accuracy, macs, connected: one entry per architecture each")
    kept = np.arange(len(accuracy)) if settings.disconnected == "keep" else np.flatnonzero(connected)
    if settings.strategy == "intervals":
        chosen = kept[by_interval(accuracy[kept], settings.intervals, settings.floor)]
    elif settings.strategy == "macs":
        chosen = kept[evenly_in_macs(macs[kept], settings.count)]
    else:
        chosen = kept
    if len(chosen) < 2:
        remedies = "set sampling.disconnected to keep, " if len(kept) < len(accuracy) else ""
        if settings.strategy == "intervals":
            remedies += "raise sampling.intervals, lower sampling.floor, "
        left = f"{len(chosen)} of {len(accuracy)} architectures left, a ranking needs 2"
        raise CannotSample(f"sampling.strategy = {settings.strategy}: {left}; {remedies}or extend the table")
    return chosen


class Feasible:
    """The architectures whose cost is at most `limit` (None: no limit) and that `accept` allows.

    The cost is `base` plus one entry per layer of `costs` [layers, candidates], such as MACs in millions; or, with
    `measured`, what that says, and an architecture that it lacks is out. `members` lists all of them, once that was
    needed and if they are few enough.
    """

    def __init__(
        self,
        costs: NDArray[np.float64],
        base: float,
        limit: float | None,
        accept: Accept | None = None,
        measured: Mapping[Architecture, float] | None = None,
    ) -> None:
        """Describe them; nothing is drawn or listed yet."""
        self.costs, self.base, self.limit, self.measured = costs, base, limit, measured
        self.accept: Accept = accept or (lambda architecture: True)
        self._most = (math.inf if limit is None else limit) + HALF_A_MAC
        self._extra = costs - costs.min(axis=1, keepdims=True)
        self._least = base + float(costs.min(axis=1).sum())
        self._slack = (self._most if measured is None else math.inf) - self._least
        self._rare = self._slack < 0
        self.members: list[Architecture] | None = [] if self._rare else None

    def cost(self, architecture: Architecture) -> float:
        """Return the limited cost, in the unit of `costs` or `measured`; infinite where it is not known."""
        if self.measured is not None:
            return self.measured.get(architecture, math.inf)
        return self._sum(architecture)

    def _sum(self, architecture: Architecture) -> float:
        return self.base + float(self.costs[np.arange(len(architecture)), list(architecture)].sum())

    def admits(self, architecture: Architecture) -> bool:
        """Whether the architecture is one of them."""
        if self.measured is not None:
            return self.cost(architecture) <= min(self._most, sys.float_info.max) and self.accept(architecture)
        return self._sum(architecture) - self._least <= self._slack and self.accept(architecture)

    def draw(self, count: int, rng: np.random.Generator, exclude: Iterable[Architecture] = ()) -> list[Architecture]:
        """Return `count` distinct members outside `exclude`, or as many as there are.

        Uniform where random draws find enough or the members can be listed. Else layer by layer in random
        order, each operator uniform among those that leave the rest affordable: not uniform over members, but
        it finds some however close the limit is to the smallest MACs.
        """
        layers, candidates = len(self.costs), self.costs.shape[1]
        taken = set(exclude)

        def more(draw: Callable[[], Architecture], wanted: int) -> list[Architecture]:
            # More draws than there are architectures would be dearer than listing them.
            tries = min(TRIES * wanted, candidates**layers)
            return collect(draw, wanted, lambda a: a not in taken and self.admits(a), tries)

        drawn: list[Architecture] = []
        if not self._rare:
            drawn = more(lambda: tuple(rng.integers(candidates, size=layers).tolist()), count)
            if len(drawn) == count:
                return drawn
            taken.update(drawn)
            self._rare, self.members = True, self._list(self._slack)  # random draws are not tried again
        if self.members is None:
            return drawn + more(lambda: self._compose(rng), count - len(drawn))
        rest = [a for a in self.members if a not in taken]
        return drawn + [rest[i] for i in rng.permutation(len(rest))[: count - len(drawn)]]

    def smallest(self) -> float:
        """Return the smallest cost reachable, in the unit of `costs` or `measured`; infinite if nothing is accepted.

        In a space of more than ENUMERABLE architectures `accept` is left aside: a lower bound.
        """
        if self.measured is not None:
            return min((cost for a, cost in self.measured.items() if self.accept(a)), default=math.inf)
        every = self._list(math.inf)
        return self._least if every is None else min(map(self.cost, every), default=math.inf)

    def _list(self, slack: float) -> list[Architecture] | None:
        prefixes, spent = np.zeros((1, 0), dtype=np.intp), np.zeros(1)
        for extra in self._extra:
            longer = spent[:, None] + extra
            row, operator = np.nonzero(longer <= slack)
            # Each prefix can be completed, so there are never more of them than architectures.
            if len(row) > ENUMERABLE:
                return None
            prefixes, spent = np.column_stack((prefixes[row], operator)), longer[row, operator]
        listed = map(tuple, prefixes.tolist())
        return [a for a in listed if (self.accept(a) if self.measured is None else self.admits(a))]

    def _compose(self, rng: np.random.Generator) -> Architecture:
        architecture, slack = [0] * len(self._extra), self._slack
        for layer in rng.permutation(len(architecture)):
            affordable = np.flatnonzero(self._extra[layer] <= max(slack, 0.0))
            architecture[layer] = int(rng.choice(affordable))
            slack -= float(self._extra[layer, architecture[layer]])
        return tuple(architecture)


def draw_uniform(
    layers: int, candidates: int, count: int, rng: np.random.Generator, accept: Accept
) -> list[Architecture]:
    """Return `count` distinct architectures, drawn uniformly from those that `accept` allows.

    The space has `candidates` operators in each of `layers` layers. Equal generator states give equal lists.
    CannotSample (a ValueError): fewer exist, with their number, in a space of at most ENUMERABLE; in a larger
    one, too few found in a bounded number of draws.
    """
    feasible = Feasible(np.zeros((layers, candidates)), 0.0, None, accept)
    found = feasible.draw(count, rng)
    if len(found) < count:
        verb = "exist" if feasible.members is not None else f"found among {candidates}^{layers}"
        raise CannotSample(f"{count} architectures asked for, only {len(found)} {verb}; ask for fewer")
    return found


def collect(draw: Callable[[], Architecture], count: int, accept: Accept, tries: int) -> list[Architecture]:
    """Return up to `count` distinct architectures that `accept` allows: what at most `tries` draws find."""
    found: dict[Architecture, None] = {}
    while len(found) < count and tries > 0:
        tries -= 1
        architecture = draw()
        if architecture not in found and accept(architecture):
            found[architecture] = None
    return list(found)


def _check_finite(name: str, values: NDArray[np.float64]) -> None:
    for row in np.flatnonzero(~np.isfinite(values)):
        raise ValueError(f"{name}: row {row} is {values[row]}; every architecture needs a finite value")
