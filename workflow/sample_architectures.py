"""Choose the architectures that are ranked: by interval of the true accuracy, evenly in MACs, or all."""

from __future__ import annotations

import numpy as np

from sumnas import files, sampling
from sumnas.benchmark import table
from workflow.stage import Job, execute
from workflow.stages import SAMPLES, TABLE


def main(job: Job) -> str:
    """Write results/samples.csv."""
    space, settings, path = job.space(), job.params.sampling, job.path(SAMPLES)
    known = table.read(job.path(TABLE), space)
    connected = np.array([space.connected(a) for a in known.architectures])
    chosen = sampling.sample(settings, known.accuracy, known.macs, connected)
    rows = [{"architecture": space.encode(a)} for a in known.take(chosen).architectures]
    files.write_csv(path, ("architecture",), rows)
    return f"{len(rows)} of {len(known.architectures)} architectures, strategy {settings.strategy} -> {path}"


if __name__ == "__main__":
    execute("sample_architectures", main)
