"""Bring the true accuracies into the one table: from the trained shards, or from a published benchmark."""

from __future__ import annotations

from sumnas.benchmark import importers, pool, table
from workflow.stage import Job, execute
from workflow.stages import SHARD, TABLE


def main(job: Job) -> str:
    """Write results/benchmark/table.csv."""
    space, settings, path = job.space(), job.params.benchmark, job.path(TABLE)
    if settings.source == "pool":
        accuracies = pool.merge(job.paths(SHARD), space, settings.pool)
    else:
        accuracies = importers.from_csv(settings.table, space)
    table.write(path, space, accuracies)
    best = max(sum(by_seed.values()) / len(by_seed) for by_seed in accuracies.values())
    return f"{len(accuracies)} architectures, best accuracy {best:.2f} % -> {path}"


if __name__ == "__main__":
    execute("build_benchmark", main)
