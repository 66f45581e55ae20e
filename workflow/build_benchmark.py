"""Bring the true accuracies into the one table: from the trained shards, or from a published benchmark.

docs/benchmarks.md says which files can be read and where they come from.
"""

from __future__ import annotations

from sumnas.benchmark import importers, pool, table
from sumnas.benchmark.official import Imported
from workflow.stage import Job, execute
from workflow.stages import SHARD, TABLE


def main(job: Job) -> str:
    """Write results/benchmark/table.csv."""
    space, settings, path = job.space(), job.params.benchmark, job.path(TABLE)
    if settings.source == "pool":
        imported = Imported(pool.merge(job.paths(SHARD), space, settings.pool))
    else:
        imported = importers.read_telling("build_benchmark", settings, space)
    if settings.costs:
        importers.add_costs(imported, settings.costs, space)
    table.write(path, space, imported.accuracies, imported.costs)
    best = max(sum(by_seed.values()) / len(by_seed) for by_seed in imported.accuracies.values())
    absence = f"; {imported.absence()}" if imported.absent else ""
    return f"{len(imported.accuracies)} architectures, best accuracy {best:.2f} %{absence} -> {path}"


if __name__ == "__main__":
    execute("build_benchmark", main)
