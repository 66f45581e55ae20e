"""Score this shard's share of all architectures, for the exhaustive search.

Where the search is evolutionary there is nothing to score, and the shard is empty.
"""

from __future__ import annotations

import itertools

from sumnas import files
from sumnas.checkpoint import Work
from sumnas.progress import Progress
from workflow import inputs
from workflow.stage import Job, execute
from workflow.stages import PREPARED, SCORES, WEIGHTS

COLUMNS = ("architecture", "predicted", "macs")
BLOCK = 64
"""Architectures between two looks at the signals; what is finished is kept block by block."""


def main(job: Job) -> str:
    """Write results/scores/<run>/<shard>.csv."""
    path = job.path(SCORES)
    if job.params.strategy != "exhaustive":
        files.write_csv(path, COLUMNS, [])
        return "the search is evolutionary: nothing to score"
    space = job.space()
    connected = (a for a in space.architectures() if space.connected(a))
    share = list(itertools.islice(connected, int(job.names["shard"]), None, len(job.params.shards)))
    predictor = inputs.predictor(job, space)
    bar = Progress(f"score {job.names['run']} {job.names['shard']}", len(share))
    rows: list[dict[str, object]] = []
    digest = job.digest(job.names["shard"], inputs=(job.path(PREPARED) / "manifest.json", job.path(WEIGHTS)))
    with Work("score", digest) as work:
        job.tracker.resume(work.folder)
        for first in range(0, len(share), BLOCK):
            block = share[first : first + BLOCK]
            values = work.remember(f"block {first}", lambda block=block: [predictor(a).accuracy for a in block])  # type: ignore[misc]
            rows += [
                {"architecture": space.encode(a), "predicted": value, "macs": space.macs(a)}
                for a, value in zip(block, values, strict=True)
            ]
            bar.update(len(rows))
        files.write_csv(path, COLUMNS, rows)
        work.clear()
    return f"{len(rows)} sub-models, best {max(float(str(r['predicted'])) for r in rows):.2f} % -> {path}"


if __name__ == "__main__":
    execute("score", main)
