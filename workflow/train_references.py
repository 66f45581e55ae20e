"""Train this shard's share of the pool from scratch, with every seed: the true accuracies.

Where the benchmark is a table there is nothing to train, and the shard is empty.
"""

from __future__ import annotations

from sumnas import files
from sumnas.benchmark import pool
from sumnas.progress import Progress
from workflow.stage import Job, execute
from workflow.stages import PREPARED, SHARD


def main(job: Job) -> str:
    """Write results/benchmark/shards/<shard>.csv."""
    path, settings = job.path(SHARD), job.params.pool
    if job.params.source != "pool":
        files.write_csv(path, pool.COLUMNS, [])
        return "the benchmark is a table: nothing to train"
    space = job.space()
    prepared = job.data(space)
    share = pool.share(pool.draw(space, settings), int(job.names["shard"]), len(job.params.shards))
    bar = Progress("train_references", len(share) * len(settings.seeds))
    manifest = job.path(PREPARED) / "manifest.json"
    with job.work(job.names["shard"], inputs=(manifest,)) as work:
        rows = pool.train_share(space, share, prepared, settings, work.remember, bar.update, work.resumable)
        files.write_csv(path, pool.COLUMNS, rows)
        work.clear()
    return f"{len(share)} architectures x {len(settings.seeds)} seeds trained -> {path}"


if __name__ == "__main__":
    execute("train_references", main)
