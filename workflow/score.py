"""Score this shard's share of all architectures, for the exhaustive search.

Where the search is evolutionary there is nothing to score, and the shard is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from sumnas import files
from sumnas.checkpoint import in_blocks
from sumnas.exhaustive import cases
from sumnas.progress import Progress
from sumnas.spaces.base import Architecture
from workflow import inputs
from workflow.stage import Job, execute
from workflow.stages import PREPARED, SCORES, WEIGHTS

COLUMNS = ("architecture", "predicted", "macs")
BLOCK = 64
"""Sub-models in a block."""


def main(job: Job) -> str:
    """Write results/scores/<run>/<shard>.csv."""
    path = job.path(SCORES)
    if job.params.strategy != "exhaustive":
        files.write_csv(path, COLUMNS, [])
        return "the search is evolutionary: nothing to score"
    space = job.space()
    groups = cases(space, flatten=job.params.memoise == "function")
    share = groups[int(job.names["shard"]) :: len(job.params.shards)]
    predictor = inputs.predictor(job, space)
    bar = Progress(f"score {job.names['run']} {job.names['shard']}", len(share))

    def scored(block: Sequence[Architecture]) -> list[float]:
        return [predictor(architecture).accuracy for architecture in block]

    values: list[float] = []
    with job.work(job.names["shard"], inputs=(job.path(PREPARED) / "manifest.json", job.path(WEIGHTS))) as work:
        for key, block in in_blocks([group[0] for group in share], BLOCK):
            values += work.remember(key, partial(scored, block))
            bar.update(len(values))
        rows = [
            {"architecture": space.encode(a), "predicted": value, "macs": space.macs(a)}
            for group, value in zip(share, values, strict=True)
            for a in group
        ]
        files.write_csv(path, COLUMNS, rows)
        work.clear()
    return f"{len(rows)} sub-models ({len(values)} scored), best {max(values):.2f} % -> {path}"


if __name__ == "__main__":
    execute("score", main)
