"""Bring the true accuracies into the one table: from the trained shards, or from a published benchmark.

docs/benchmarks.md says which files can be read and where they come from.
"""

from __future__ import annotations

from sumnas.benchmark import importers, pool, table
from sumnas.benchmark.official import Imported
from sumnas.progress import Progress, say
from workflow.stage import Job, execute
from workflow.stages import SHARD, TABLE


def main(job: Job) -> str:
    """Write results/benchmark/table.csv."""
    space, settings, path = job.space(), job.params.benchmark, job.path(TABLE)
    if settings.source == "pool":
        imported = Imported(pool.merge(job.paths(SHARD), space, settings.pool))
    else:
        if settings.source == "nasbench201":  # one long call of torch, which cannot tell how far it is
            say(f"build_benchmark: reading {settings.nasbench201.path} whole takes about three minutes per GB")
        bar = Progress("build_benchmark", space.size)
        imported = importers.read(settings, space, lambda done, total: _show(bar, done, total))
    if settings.costs:
        importers.add_costs(imported, settings.costs, space)
    table.write(path, space, imported.accuracies, imported.costs, importers.further(settings, space))
    best = max(sum(by_seed.values()) / len(by_seed) for by_seed in imported.accuracies.values())
    absence = f"; {imported.absence()}" if imported.absent else ""
    return f"{len(imported.accuracies)} architectures, best accuracy {best:.2f} %{absence} -> {path}"


def _show(bar: Progress, done: int, total: int) -> None:
    bar.total = total  # known only when the source has been looked at
    bar.update(done)


if __name__ == "__main__":
    execute("build_benchmark", main)
