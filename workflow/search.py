"""Find the best predicted architecture under each cost limit."""

from __future__ import annotations

import numpy as np

from sumnas import files
from sumnas.benchmark import table
from sumnas.checkpoint import Work
from sumnas.errors import UserError
from sumnas.progress import Progress
from sumnas.search import Found, Scores, best_under_limits, evolve_under_limits
from sumnas.spaces.base import Architecture, Space
from workflow import inputs
from workflow.stage import Job, execute
from workflow.stages import FOUND, GENERATIONS, PREPARED, SCORES, TABLE, WEIGHTS

COLUMNS = ("limit", "generation", "best", "mean", "worst", "scored")
"""Of history.csv: limit in millions of MACs (empty: none), accuracies of the population in percent, scored so far."""


def main(job: Job) -> str:
    """Write found.json and history.csv under results/search/<run>/."""
    space, settings = job.space(), job.params.search
    known = table.read(job.path(TABLE), space)
    if settings.strategy == "exhaustive":
        found, history, scored = exhaustive(job, space)
    else:
        found, history, scored = evolutionary(job, space)
    accuracy = known.lookup()
    entries = [
        {
            "limit": f.limit,
            "architecture": space.encode(f.architecture),
            "predicted": f.predicted,
            "macs": f.macs,
            "params": space.params(f.architecture),
            "benchmark_accuracy": accuracy.get(f.architecture),
        }
        for f in found
    ]
    files.write_csv(job.path(GENERATIONS), COLUMNS, history)
    result = {
        "run": job.names["run"],
        "method": job.names["method"],
        "seed": job.seed,
        "strategy": settings.strategy,
        "split": job.params.evaluation.split,
        "scored": scored,
        "settings_digest": job.params.digest(),
        "benchmark_architectures": len(known.architectures),
        "benchmark_best": float(known.accuracy.max()),
        "found": entries,
    }
    files.write_json(job.path(FOUND), result)
    last = entries[-1]
    return f"{scored} scored, best predicted {last['predicted']:.2f} % at {last['macs']:.4g}M MACs -> {job.path(FOUND)}"


def evolutionary(job: Job, space: Space) -> tuple[list[Found], list[dict[str, object]], int]:
    """Run Algorithm 2 under each limit; finished scores survive an interruption."""
    settings, predictor = job.params.search, inputs.predictor(job, space)
    total = len(settings.limits) * (settings.generations + 1)
    bar = Progress(f"search {job.names['run']}", total)
    rows: list[dict[str, object]] = []
    digest = job.digest(inputs=(job.path(PREPARED) / "manifest.json", job.path(WEIGHTS)))
    with Work("search", digest) as work:
        job.tracker.resume(work.folder)

        def score(architecture: Architecture) -> float:
            return work.remember(space.encode(architecture), lambda: predictor(architecture).accuracy)

        scores = Scores(score)

        def on_generation(generation: object) -> None:
            row = {name: getattr(generation, name) for name in COLUMNS}
            rows.append({name: "" if value is None else value for name, value in row.items()})
            bar.update(len(rows))
            limit = "unlimited" if row["limit"] is None else f"{row['limit']:g}M"
            job.tracker.metrics({f"{name}/{limit}": row[name] for name in COLUMNS[2:]}, row["generation"])

        costs = space.mac_costs
        results = evolve_under_limits(settings, scores, costs.table, costs.base, space.connected, on_generation)
        work.clear()
    return [result.found for result in results], rows, len(scores.asked)


def exhaustive(job: Job, space: Space) -> tuple[list[Found], list[dict[str, object]], int]:
    """Take the best of all scores under each limit."""
    rows = [row for path in job.paths(SCORES) for row in files.read_csv(path, ("architecture", "predicted", "macs"))]
    if not rows:
        raise UserError("results/scores: no scores, though search.strategy is exhaustive; run score again")
    architectures = [space.decode(row["architecture"]) for row in rows]
    predicted, macs = (np.array([float(row[name]) for row in rows]) for name in ("predicted", "macs"))
    return best_under_limits(architectures, predicted, macs, job.params.search.limits), [], len(rows)


if __name__ == "__main__":
    execute("search", main)
