"""Reading what earlier stages wrote, for the stages that need the same things."""

from __future__ import annotations

from sumnas import files, trained
from sumnas.errors import UserError
from sumnas.evaluation import Predictor
from sumnas.spaces.base import Architecture, Space, Supernet
from workflow.stage import Job
from workflow.stages import SAMPLES, WEIGHTS


def supernet(job: Job) -> Supernet:
    """Load the run's trained supernet; UserError where it is of another space."""
    path = job.path(WEIGHTS)
    _, network, metadata = trained.load(path, job.device)
    if metadata["space"] != job.params.space.model_dump(mode="json"):
        raise UserError(f"{path}: trained for another space ({metadata['space']}); run train_supernet again")
    return network


def samples(job: Job, space: Space) -> list[Architecture]:
    """Read the architectures that are ranked."""
    path = job.path(SAMPLES)
    try:
        return [space.decode(row["architecture"]) for row in files.read_csv(path, ("architecture",))]
    except ValueError as error:
        raise UserError(f"{path}: {error}; run sample_architectures again") from None


def predictor(job: Job, space: Space) -> Predictor:
    """Return what scores sub-models of the run's supernet."""
    return Predictor(space, supernet(job), job.data(space), job.params.calibration, job.params.evaluation)
