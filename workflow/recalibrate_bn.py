"""Re-estimate the statistics of batch normalisation for every sampled sub-model of one supernet."""

from __future__ import annotations

from sumnas import files
from sumnas.batchnorm import get_statistics, recalibrate
from sumnas.evaluation import Fit, calibration_batches
from sumnas.progress import Progress
from workflow import inputs
from workflow.stage import Job, execute
from workflow.stages import STATISTICS


def main(job: Job) -> str:
    """Write results/calibrated/<run>/statistics.safetensors: [2, channels] means and variances by architecture."""
    space = job.space()
    data = job.data(space)
    batches, fit = calibration_batches(data, job.params.calibration), Fit(data, job.params)
    supernet, architectures, path = inputs.supernet(job, space), inputs.samples(job, space), job.path(STATISTICS)
    bar = Progress(f"recalibrate_bn {job.names['run']}", len(architectures))
    statistics = {}
    for number, architecture in enumerate(architectures, 1):
        network = space.extract(supernet, architecture)
        fit(network)
        recalibrate(network, batches)
        statistics[space.encode(architecture)] = get_statistics(network)
        bar.update(number)
    metadata = {
        "layout": "per architecture [2, channels]: running means, running variances; layers in order of registration",
        "calibration": job.params.calibration.model_dump(mode="json"),
        "settings_digest": job.params.digest(),
    }
    files.write_tensors(path, statistics, metadata)
    return f"{len(statistics)} sub-models -> {path}"


if __name__ == "__main__":
    execute("recalibrate_bn", main)
