"""Train every distinct architecture that the search found from scratch, and report its true accuracy.

An architecture that several runs found is trained once: its result does not depend on the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sumnas import files
from sumnas.data import Prepared
from sumnas.manifest import NAME
from sumnas.progress import Progress, say
from sumnas.retraining import train_network
from sumnas.spaces.base import Space
from workflow.stage import Job, execute
from workflow.stages import FOUND, PREPARED, RETRAIN, RETRAINED

if TYPE_CHECKING:
    from sumnas.params import Params


def main(job: Job) -> str:
    """Write weights.safetensors and metrics.json under results/retrain/<run>/."""
    settings, found = job.params.retrain, files.read_json(job.path(FOUND))
    result: dict[str, Any] = {
        "run": job.names["run"],
        "method": found["method"],
        "enabled": settings.enabled,
        "cost": found["cost"],
        "settings_digest": job.params.digest(),
        "data_digest": files.sha256(job.path(PREPARED) / NAME),
        "networks": [],
    }
    weights: dict[str, Any] = {}
    job.facts["processes"] = str(job.ranks.world)
    if settings.enabled:
        space = job.space()
        prepared = job.data(space)
        for text in dict.fromkeys(entry["architecture"] for entry in found["found"]):
            tensors, entry = train_once(job, space, prepared, text)
            entry["limits"] = [e["limit"] for e in found["found"] if e["architecture"] == text]
            result["networks"].append(entry)
            weights |= {f"{text}/{name}": tensor for name, tensor in tensors.items()}
    if not job.ranks.first:
        return ""
    metadata = {"space": job.params.space.model_dump(mode="json"), "keys": "architecture/parameter"}
    files.write_tensors(job.path(RETRAINED), weights, metadata)
    files.write_json(job.path(RETRAIN), result)
    if not settings.enabled:
        return "retrain.enabled is false: nothing trained"
    best = max(entry["test_accuracy"] for entry in result["networks"])
    return f"{len(result['networks'])} networks, best test accuracy {best:.2f} % -> {job.path(RETRAIN)}"


def train_once(job: Job, space: Space, prepared: Prepared, text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train one architecture, or take what another run trained under the very same conditions.

    Returns its weights, and its figures; of several processes the first alone has them.
    """
    settings = job.params.retrain
    with job.work(text, inputs=(job.path(PREPARED) / NAME,), wait=True) as work:
        kept: Path = work.folder / "network.safetensors"
        if not job.ranks.from_first(kept.exists()):
            bar = Progress(f"retrain {text}", settings.recipe.epochs)

            def on_epoch(epoch: int, loss: float) -> None:
                if job.ranks.first:
                    bar.update(epoch + 1, f"loss {loss:.3f}")
                job.tracker.metrics({f"loss/{text}": loss}, epoch + 1)

            trained = train_network(
                space, space.decode(text), prepared, settings.recipe, settings.seed, on_epoch, **work.resumable(text),
                ranks=job.ranks,
            )  # fmt: skip
            if job.ranks.first:  # all have the same
                validation = trained.scores.get("validation")
                entry = {
                    "architecture": text,
                    "macs": space.macs(space.decode(text)),
                    "params": space.params(space.decode(text)),
                    "seed": settings.seed,
                    "test_accuracy": trained.scores["test"].accuracy,
                    "validation_accuracy": validation.accuracy if validation else None,
                    "test_top5": trained.scores["test"].top5,
                    "validation_top5": validation.top5 if validation else None,
                }
                files.write_tensors(kept, trained.network.state_dict(), entry)
                work.clear(keep=kept.name)
            work.look()  # a signal that came while the network was scored: the next would know nothing of it
            work.stop_if_asked()
        elif job.ranks.first:
            say(f"retrain {text}: trained before, for another run")
            work.clear(keep=kept.name)  # the notes of this look, too: a third run did not spend its time
        return files.read_tensors(kept) if job.ranks.first else ({}, {})


def processes(params: Params) -> int | Literal["auto"]:
    """Return how many processes are to share the trainings; none is started where there are no trainings."""
    wanted: int | Literal["auto"] = params.retrain.processes
    return wanted if params.retrain.enabled else "auto"


if __name__ == "__main__":
    execute("retrain", main, processes)
