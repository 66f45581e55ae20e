"""The best predicted architecture under limits on a cost: evolutionary (Algorithm 2, App. C) or exhaustive."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sumnas.digested import Digested
from sumnas.errors import UserError
from sumnas.sampling import HALF_A_MAC, Accept, Architecture, Feasible, collect
from sumnas.seeding import numpy_stream

Limit = Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
"""The largest cost allowed, above 0 and in the cost's unit; None: no limit."""

LABELS = {"macs": "MACs", "params": "number of parameters"}
"""What messages call the costs that are sums over layers."""
UNITS = {"macs": " million MACs", "params": " million parameters"}
"""Of the costs that are sums over layers; what is measured carries its own name."""

LATENCY = "latency_ms"
"""Name of the cost that `search.latency` gives."""

BREEDING_TRIES = 50
"""Tries allowed for each mutant or crossover wanted; what is then missing is drawn at random, as in SPOS."""


class LatencyFile(BaseModel):
    """A table that `sumnas latency` wrote, and its digest: what was measured cannot be made anew."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(min_length=1, description="the CSV file, from the project's root")
    sha256: str = Field(pattern=r"^[0-9a-f]{16,64}$", description="of the file, or its first 16 digits or more")


class SearchSettings(Digested):
    """Block `search`. The defaults are those of Algorithm 2 in the paper, where the one limit is 400."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    left_out = {"engine": "auto"}

    strategy: Literal["evolution", "exhaustive"] = Field(
        description="evolution: Algorithm 2 of the paper; exhaustive: every architecture of the space is scored"
    )
    memoise: Literal["operations", "function"] = Field(
        "operations",
        description="exhaustive: scored once are architectures that run the same operations (equal bit by bit), or "
        "that sum the same terms (equal up to rounding)",
    )
    engine: Literal["auto", "sequential", "lockstep"] = Field(
        "auto",
        description="exhaustive: sub-models are scored one by one, or those of an orbit all at once (lockstep); auto: "
        "one by one",
    )
    limits: tuple[Limit, ...] = Field(
        min_length=1, description="one search each: at most so much of `cost`; null is no limit"
    )
    cost: str = Field(
        "macs",
        description="what is limited: macs, params (millions), a further cost of the benchmark table by its name, or "
        "latency_ms where `latency` gives it",
    )
    latency: LatencyFile | None = Field(
        None, description="milliseconds per layer and operator, measured by `sumnas latency`"
    )
    population: int = Field(default=20, ge=1, description="P: survivors of a generation")
    generations: int = Field(default=30, ge=0, description="G; 0 leaves the best of P random architectures")
    offspring: int = Field(default=64, ge=2, multiple_of=2, description="C: half mutants, half crossovers")
    mutation_probability: float = Field(default=0.1, gt=0, le=1, description="p, per layer")
    seed: int = Field(0, description="of all random choices of the evolution")

    @model_validator(mode="after")
    def _latency_is_limited(self) -> Self:
        if self.latency is not None and self.cost != LATENCY:
            raise ValueError(f"latency names a table, but cost is {self.cost!r}; set cost: {LATENCY}, or latency: null")
        return self

    @field_validator("limits")
    @classmethod
    def _unique(cls, limits: tuple[float | None, ...]) -> tuple[float | None, ...]:
        if len(set(limits)) < len(limits):
            raise ValueError("each limit may be listed once")
        return limits


class InfeasibleLimit(UserError, ValueError):
    """No architecture meets a limit; the message states the smallest cost there is."""


@dataclass(frozen=True)
class Found:
    """The best predicted architecture under one limit; `cost` in the limit's unit; limit None: no limit."""

    limit: float | None
    architecture: Architecture
    predicted: float
    cost: float


@dataclass(frozen=True)
class Generation:
    """One row of history: `best`, `mean` and `worst` score of the population after `generation` (0: the random start).

    In the stage `search` scores are accuracies in percent. `limit` is in its cost's unit, None for none.
    `scored` counts the distinct architectures whose score all limits together have needed so far.
    """

    limit: float | None
    generation: int
    best: float
    mean: float
    worst: float
    scored: int


@dataclass(frozen=True)
class SearchResult:
    """What one evolution found, and its last population (best first).

    `history` has a row per generation, the random start first.
    """

    found: Found
    population: list[Architecture]
    history: list[Generation]


class Scores:
    """A memo over `score`, so that no architecture is ever scored twice, whatever the limit.

    `known` can be saved and given to a new memo: the same search then goes the same way and computes only
    what is missing. `computed` counts the calls of `score`; `asked` holds all that was needed, known before
    or not.
    """

    def __init__(
        self, score: Callable[[Architecture], float], known: Mapping[Architecture, float] | None = None
    ) -> None:
        """Remember nothing yet, or the scores of an earlier memo."""
        self.known: dict[Architecture, float] = dict(known or {})
        self.asked: set[Architecture] = set()
        self.computed = 0
        self._score = score

    def __call__(self, architecture: Architecture) -> float:
        """Return the score, higher is better; ValueError if it is not a finite number, which has no rank."""
        if architecture not in self.known:
            self.known[architecture] = float(self._score(architecture))
            self.computed += 1
        self.asked.add(architecture)
        value = self.known[architecture]
        if not math.isfinite(value):
            raise ValueError(f"architecture {architecture}: a score of {value} has no rank")
        return value


def mutate(parent: Architecture, candidates: int, probability: float, rng: np.random.Generator) -> Architecture:
    """Change each layer with `probability` to one of the other operators, uniformly (App. C)."""
    changed = rng.random(len(parent)) < probability
    other = (np.array(parent) + rng.integers(1, max(candidates, 2), size=len(parent))) % candidates
    return tuple(np.where(changed, other, parent).tolist())


def cross(first: Architecture, second: Architecture, rng: np.random.Generator) -> Architecture:
    """Take each layer from one of the two parents, with equal chances (App. C)."""
    return tuple(np.where(rng.random(len(first)) < 0.5, first, second).tolist())


def evolve(
    settings: SearchSettings,
    scores: Scores,
    feasible: Feasible,
    rng: np.random.Generator,
    on_generation: Callable[[Generation], None] | None = None,
) -> SearchResult:
    """Run Algorithm 2 among the feasible architectures: every member of every population is one.

    Survivors are the best P of parents and children, ties by the lowest tuple; fewer than P where no more
    exist. `on_generation` gets each row of history. InfeasibleLimit (a ValueError) where nothing is feasible.
    """
    population: list[Architecture] = []
    history: list[Generation] = []
    for generation in range(settings.generations + 1):
        new = _breed(settings, population, feasible, rng) if generation else feasible.draw(settings.population, rng)
        ranked = sorted(population + new, key=lambda a: (-scores(a), a))
        population = ranked[: settings.population]
        if not population:
            raise _infeasible(feasible.limit, feasible.smallest(), settings.cost)
        values = [scores(a) for a in population]
        mean = float(np.mean(values))
        history.append(Generation(feasible.limit, generation, values[0], mean, values[-1], len(scores.asked)))
        if on_generation:
            on_generation(history[-1])
    best = population[0]
    return SearchResult(Found(feasible.limit, best, scores(best), feasible.cost(best)), population, history)


def _breed(
    settings: SearchSettings, parents: list[Architecture], feasible: Feasible, rng: np.random.Generator
) -> list[Architecture]:
    """Return the children of one generation, all of them new: half mutants, half crossovers."""
    if feasible.members is not None and len(feasible.members) == len(parents):
        return []
    half, size, candidates = settings.offspring // 2, len(parents), feasible.costs.shape[1]
    taken = set(parents)

    def mutant() -> Architecture:
        return mutate(parents[rng.integers(size)], candidates, settings.mutation_probability, rng)

    def crossover() -> Architecture:
        first, step = rng.integers(size), rng.integers(1, max(size, 2))
        return cross(parents[first], parents[(first + step) % size], rng)

    def fresh(child: Architecture) -> bool:
        return child not in taken and feasible.admits(child)

    children: list[Architecture] = []
    for make in (mutant, crossover):
        children += collect(make, half, fresh, BREEDING_TRIES * half)
        taken.update(children)
    return children + feasible.draw(2 * half - len(children), rng, taken)


def evolve_under_limits(
    settings: SearchSettings,
    scores: Scores,
    costs: NDArray[np.float64],
    base: float,
    accept: Accept | None = None,
    on_generation: Callable[[Generation], None] | None = None,
    measured: Mapping[Architecture, float] | None = None,
) -> list[SearchResult]:
    """Run `evolve` for each limit of the settings, with one memo and a random stream of its own each.

    Limits are on the additive cost `base` + `costs`, or on the `measured` one of single architectures.
    """
    results = []
    for limit in settings.limits:
        rng = numpy_stream(settings.seed, "search", limit)
        results.append(evolve(settings, scores, Feasible(costs, base, limit, accept, measured), rng, on_generation))
    return results


def best_under_limits(
    architectures: Sequence[Architecture],
    predicted: NDArray[np.float64],
    costs: NDArray[np.float64],
    limits: Sequence[float | None],
    cost: str = "macs",
) -> list[Found]:
    """Return the best predicted of all architectures under each limit (sec. 4.2, exhaustive search).

    `predicted` and `costs` are [A], as `architectures`; `cost` is the costs' name. Ties go to the lowest index. Equal
    MACs meet a limit: the paper writes "<", but no architecture of NAS-Bench-201 lies on 20, 50 or 100 million.
    InfeasibleLimit (a ValueError) where nothing meets a limit.
    """
    sizes = len(architectures), len(predicted), len(costs)
    if len(set(sizes)) > 1 or not (np.isfinite(predicted).all() and np.isfinite(costs).all()):
        raise ValueError(f"one finite prediction and one finite cost per architecture, got {sizes}")
    found = []
    for limit in limits:
        within = np.flatnonzero(costs <= (math.inf if limit is None else limit) + HALF_A_MAC)
        if not len(within):
            raise _infeasible(limit, float(np.min(costs, initial=math.inf)), cost)
        best = within[np.argmax(predicted[within])]
        found.append(Found(limit, architectures[best], float(predicted[best]), float(costs[best])))
    return found


def pareto_front(accuracy: NDArray[np.float64], costs: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the indices, by ascending cost, of the architectures that no other beats.

    Another beats one of [A] with at least its accuracy at most its cost, one of the two better. Of equals the first
    counts.
    """
    order = np.lexsort((-accuracy, costs))
    best = np.maximum.accumulate(accuracy[order])
    ahead = np.concatenate(([True], best[1:] > best[:-1]))[: len(order)]
    return order[ahead]


def _infeasible(limit: float | None, smallest: float, cost: str) -> InfeasibleLimit:
    if math.isinf(smallest):
        return InfeasibleLimit(f"search: no architecture meets the conditions, whatever its {LABELS.get(cost, cost)}")
    unit = UNITS.get(cost, f" ({cost})")
    least = f"the smallest reachable is {smallest:.6f}{unit}"
    if limit is None or smallest <= limit + HALF_A_MAC:  # then it is a bound that leaves the conditions aside
        text = f"found nothing within {limit}{unit} that meets the conditions; without them {least}"
        return InfeasibleLimit(f"search.limits: {text}")
    return InfeasibleLimit(f"search.limits: nothing is within {limit}{unit}; {least}: raise the limit")
