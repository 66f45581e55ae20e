"""Score this shard's share of all architectures, for the exhaustive search.

Where the search is evolutionary there is nothing to score, and the shard is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain

from sumnas import files
from sumnas.checkpoint import in_blocks
from sumnas.evaluation import Score
from sumnas.exhaustive import cases, in_orbits
from sumnas.lockstep.scoring import OrbitPredictor
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
    # On a GPU, too, auto goes one by one until the captured graph has been watched on one.
    engine = "sequential" if job.params.engine == "auto" else job.params.engine
    job.facts |= {"engine": engine}
    served = {group[0]: group for group in cases(space, flatten=job.params.memoise == "function")}
    together = [[a] for a in served] if engine == "sequential" else in_orbits(served, len(space.candidates))
    share = together[int(job.names["shard"]) :: len(job.params.shards)]
    if not share:
        files.write_csv(path, COLUMNS, [])
        return f"nothing is left to score: {len(job.params.shards)} shards share {len(together)} pieces of work"
    predictor = inputs.predictor(job, space)
    predict: Callable[[Sequence[Architecture]], list[Score]] = (
        OrbitPredictor(predictor) if engine == "lockstep" else lambda one: [predictor(a) for a in one]
    )
    bar = Progress(f"score {job.names['run']} {job.names['shard']}", sum(map(len, share)))

    def scored(block: Sequence[Sequence[Architecture]]) -> list[float]:
        return [score.accuracy for architectures in block for score in predict(architectures)]

    values: list[float] = []
    with job.work(job.names["shard"], inputs=(job.path(PREPARED) / "manifest.json", job.path(WEIGHTS))) as work:
        for key, block in in_blocks(share, max(1, BLOCK // max(map(len, share)))):
            values += work.remember(key, partial(scored, block))
            bar.update(len(values))
        rows = [
            {"architecture": space.encode(a), "predicted": value, "macs": space.macs(a)}
            for first, value in zip(chain.from_iterable(share), values, strict=True)
            for a in served[first]
        ]
        files.write_csv(path, COLUMNS, rows)
        work.clear()
    return f"{len(rows)} sub-models ({len(values)} scored), best {max(values):.2f} % -> {path}"


if __name__ == "__main__":
    execute("score", main)
