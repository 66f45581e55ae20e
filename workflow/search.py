"""Find the best predicted architecture under each cost limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sumnas import files, latency
from sumnas.benchmark import table
from sumnas.errors import UserError
from sumnas.progress import Progress
from sumnas.sampling import HALF_A_MAC
from sumnas.search import (
    LABELS,
    LATENCY,
    Found,
    Generation,
    Scores,
    SearchSettings,
    best_under_limits,
    evolve_under_limits,
    pareto_front,
)
from sumnas.shown import limit_name
from sumnas.spaces.base import Architecture, Costs, Space
from workflow import inputs
from workflow.stage import Job, execute
from workflow.stages import FOUND, GENERATIONS, PARETO, PREPARED, SCORED, SCORES, TABLE, WEIGHTS

COLUMNS = ("limit", "generation", "best", "mean", "worst", "scored")
"""Of history.csv: limit in the unit of `search.cost` (MACs and parameters in millions; empty: none), accuracies of the
population in percent, scored so far."""
SCORED_COLUMNS = ("architecture", "predicted", "macs", "params", "pareto")
"""Of scored.csv: every architecture that was scored; accuracy in percent, MACs and parameters in millions, and whether
no other has at least its accuracy for fewer MACs, or more for as many. Where the search limits what was measured, as
latency is, `cost` has it in the limit's unit (empty: not known), and stands in the place of MACs on the front."""

Scored = list[tuple[Architecture, float]]
"""Architectures with their predicted accuracies."""


def main(job: Job) -> str:
    """Write found.json, history.csv, scored.csv and pareto.svg under results/search/<run>/."""
    space, settings = job.space(), job.params.search
    known = table.read(job.path(TABLE), space)
    additive = additive_costs(space, settings)
    measured = measured_costs(known, settings.cost) if additive is None else None
    if settings.strategy == "exhaustive":
        found, history, scored = exhaustive(job, space, additive, measured)
    else:
        found, history, scored = evolutionary(job, space, additive, measured)
    accuracy, best = known.lookup(), oracle(known, space, settings.cost, settings.limits, additive)
    entries = [
        {
            "limit": f.limit,
            "architecture": space.encode(f.architecture),
            "predicted": f.predicted,
            "macs": space.macs(f.architecture),
            "params": space.params(f.architecture),
            "cost": f.cost,
            "benchmark_accuracy": accuracy.get(f.architecture),
            "benchmark_best": best_known,
        }
        for f, best_known in zip(found, best, strict=True)
    ]
    files.write_csv(job.path(GENERATIONS), COLUMNS, history)
    result = {
        "run": job.names["run"],
        "method": job.names["method"],
        "seed": job.seed,
        "strategy": settings.strategy,
        "cost": settings.cost,
        "split": job.params.evaluation.split,
        "scored": len(scored),
        "settings_digest": job.params.digest(),
        "benchmark_architectures": len(known.architectures),
        "benchmark_best": float(known.accuracy.max()),
        "found": entries,
    }
    if settings.strategy == "exhaustive":
        result["scores"] = spread([value for _, value in scored])
    costs = None if settings.cost in LABELS else [_cost(a, additive, measured) for a, _ in scored]
    write_scored(job, space, scored, entries, costs)
    files.write_json(job.path(FOUND), result)
    last = entries[-1]
    limited = f"{last['macs']:.4g}M MACs" if costs is None else f"{last['cost']:.4g} {settings.cost}"
    best_found = f"best predicted {last['predicted']:.2f} % at {limited}"
    return f"{len(scored)} scored, {best_found} -> {job.path(FOUND)}"


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Return count, mean and standard deviation of all sub-models' accuracies in percent (paper fig. 3, right).

    Each architecture counts, those that share a score too. One alone has no standard deviation: None.
    """
    several = len(values) > 1
    return {
        "count": len(values),
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)) if several else None,
    }


def write_scored(
    job: Job, space: Space, scored: Scored, entries: Sequence[Mapping[str, Any]], costs: Sequence[float | None] | None
) -> None:
    """Write every scored architecture, and draw accuracy against MACs with the Pareto front and what was found.

    Against `costs` where they are given, of those that have one.
    """
    from sumnas import plots

    macs = [space.macs(architecture) for architecture, _ in scored]
    over = macs if costs is None else costs
    known = [number for number, value in enumerate(over) if value is not None]
    predicted = np.array([scored[number][1] for number in known])
    front = {known[i] for i in pareto_front(predicted, np.array([over[number] for number in known])).tolist()}
    rows = [
        {
            "architecture": space.encode(architecture), "predicted": value, "macs": macs[number],
            "params": space.params(architecture), "pareto": int(number in front),
        }
        for number, (architecture, value) in enumerate(scored)
    ]  # fmt: skip
    columns = list(SCORED_COLUMNS)
    if costs is not None:
        columns.insert(columns.index("pareto"), "cost")
        rows = [{**row, "cost": "" if cost is None else cost} for row, cost in zip(rows, costs, strict=True)]
    files.write_csv(job.path(SCORED), columns, rows)
    found = [{**entry, "label": limit_name(entry["limit"], job.params.search.cost)} for entry in entries]
    title = f"{job.names['run']}: {len(rows)} sub-models scored"
    plots.pareto(job.path(PARETO), rows, found, title, job.params.evaluation.split, job.params.search.cost)


def _cost(
    architecture: Architecture, additive: Costs | None, measured: Mapping[Architecture, float] | None
) -> float | None:
    """Return an architecture's limited cost, or None where the table does not have it."""
    return additive.of(architecture) if additive else (measured or {}).get(architecture)


def additive_costs(space: Space, settings: SearchSettings) -> Costs | None:
    """Return the cost that is limited where it is a sum over layers: counted, or from a table of latencies."""
    return latency.load(settings.latency, space) if settings.latency else space.additive(settings.cost)


def measured_costs(known: table.Table, name: str) -> dict[Architecture, float]:
    """Return a further cost of the table by architecture; UserError where it has none of that name."""
    if name not in known.costs:
        there = ", ".join(["macs", "params", *known.costs])
        hint = "; or name a table of `sumnas latency` as search.latency" if name == LATENCY else ""
        raise UserError(f"search.cost = {name!r}: the benchmark table has no such cost; there are: {there}{hint}")
    return dict(zip(known.architectures, known.costs[name].tolist(), strict=True))


def oracle(
    known: table.Table, space: Space, cost: str, limits: Sequence[float | None], additive: Costs | None = None
) -> list[float | None]:
    """Return the best true accuracy that the table has under each limit; None where it has nothing there.

    The costs are the table's own; `additive` gives one that it lacks.
    """
    there = {"macs": known.macs, "params": known.params, **known.costs}
    costs = np.array([additive.of(a) for a in known.architectures]) if additive and cost == LATENCY else there[cost]
    kept = np.array([space.connected(a) for a in known.architectures])
    found = []
    for limit in limits:
        within = known.accuracy[kept & (costs <= (np.inf if limit is None else limit + HALF_A_MAC))]
        found.append(float(within.max()) if len(within) else None)
    return found


def evolutionary(
    job: Job, space: Space, additive: Costs | None, measured: dict[Architecture, float] | None
) -> tuple[list[Found], list[dict[str, object]], Scored]:
    """Run Algorithm 2 under each limit; finished scores survive an interruption."""
    settings, predictor = job.params.search, inputs.predictor(job, space)
    total = len(settings.limits) * (settings.generations + 1)
    bar = Progress(f"search {job.names['run']}", total)
    rows: list[dict[str, object]] = []
    with job.work(inputs=(job.path(PREPARED) / "manifest.json", job.path(WEIGHTS))) as work:

        def score(architecture: Architecture) -> float:
            return work.remember(space.encode(architecture), lambda: predictor(architecture).accuracy)

        scores = Scores(score)

        def on_generation(generation: Generation) -> None:
            row = {name: getattr(generation, name) for name in COLUMNS}
            rows.append({name: "" if value is None else value for name, value in row.items()})
            bar.update(len(rows))
            limit = limit_name(generation.limit, settings.cost)
            job.tracker.metrics({f"{name}/{limit}": row[name] for name in COLUMNS[2:]}, row["generation"])

        costs = additive or space.mac_costs
        results = evolve_under_limits(
            settings, scores, costs.table, costs.base, space.connected, on_generation, measured
        )
        work.clear()
    # In the order in which they were first asked for, which an interruption does not change.
    return [result.found for result in results], rows, list(scores.known.items())


def exhaustive(
    job: Job, space: Space, additive: Costs | None, measured: dict[Architecture, float] | None
) -> tuple[list[Found], list[dict[str, object]], Scored]:
    """Take the best of all scores under each limit; with a measured cost, of those architectures that have it."""
    rows = [row for path in job.paths(SCORES) for row in files.read_csv(path, ("architecture", "predicted"))]
    if not rows:
        raise UserError("results/scores: no scores, though search.strategy is exhaustive; run score again")
    settings = job.params.search
    # In the space's order, so that ties fall the same way however the scores were split into shards.
    every = sorted((space.decode(row["architecture"]), float(row["predicted"])) for row in rows)
    scored = every
    if measured is not None:
        scored = [(architecture, value) for architecture, value in every if architecture in measured]
    architectures = [architecture for architecture, _ in scored]
    costs = np.array([measured[a] if measured is not None else additive.of(a) for a in architectures])  # type: ignore[union-attr]
    predicted = np.array([value for _, value in scored])
    return best_under_limits(architectures, predicted, costs, settings.limits, settings.cost), [], every


if __name__ == "__main__":
    execute("search", main)
