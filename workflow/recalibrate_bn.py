"""Re-estimate the statistics of batch normalisation for every sampled sub-model of one supernet."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from sumnas import files
from sumnas.batchnorm import get_statistics, recalibrate
from sumnas.checkpoint import in_blocks
from sumnas.evaluation import Fit, calibration_batches
from sumnas.progress import Progress
from sumnas.spaces.base import Architecture
from workflow import inputs
from workflow.stage import Job, execute
from workflow.stages import PREPARED, SAMPLES, STATISTICS, WEIGHTS

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 16
"""Sub-models in a block."""


def main(job: Job) -> str:
    """Write results/calibrated/<run>/statistics.safetensors: [2, channels] means and variances by architecture."""
    space = job.space()
    data = job.data(space)
    batches, fit = calibration_batches(data, job.params.calibration), Fit(data, job.params)
    supernet, architectures = inputs.supernet(job), inputs.samples(job, space)
    bar = Progress(f"recalibrate_bn {job.names['run']}", len(architectures))

    def recalibrated(block: Sequence[Architecture]) -> dict[str, Tensor]:
        found = {}
        for architecture in block:
            network = space.extract(supernet, architecture)
            fit(network)
            recalibrate(network, batches)
            found[space.encode(architecture)] = get_statistics(network)
        return found

    statistics: dict[str, Tensor] = {}
    with job.work(inputs=(job.path(PREPARED) / "manifest.json", job.path(WEIGHTS), job.path(SAMPLES))) as work:
        for key, block in in_blocks(architectures, BLOCK):
            statistics |= work.remember_tensors(key, partial(recalibrated, block))
            bar.update(len(statistics))
        write(job, statistics)
        work.clear()
    return f"{len(statistics)} sub-models -> {job.path(STATISTICS)}"


def write(job: Job, statistics: dict[str, Tensor]) -> None:
    """Write what was found, with what it was found from."""
    metadata = {
        "layout": "per architecture [2, channels]: running means, running variances; layers in order of registration",
        "calibration": job.params.calibration.model_dump(mode="json"),
        "settings_digest": job.params.digest(),
    }
    files.write_tensors(job.path(STATISTICS), statistics, metadata)


if __name__ == "__main__":
    execute("recalibrate_bn", main)
