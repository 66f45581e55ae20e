"""Train one supernet with one method and seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from sumnas import distributed, files, seeding, training
from sumnas.batchnorm import CalibrationSettings
from sumnas.data import Prepared
from sumnas.evaluation import EvaluationSettings, Predictor
from sumnas.initialisation import initialise
from sumnas.methods.base import module_of
from sumnas.paths import uniform_path
from sumnas.progress import Progress, say
from sumnas.spaces.base import Architecture, Space, Supernet
from workflow.live import Live
from workflow.stage import Job, execute
from workflow.stages import HISTORY, METHOD, PREPARED, WEIGHTS

if TYPE_CHECKING:
    from sumnas.params import Params

LOOK_EVERY = 16
"""Steps between two looks at losses and signals on an accelerator, which has to wait for each look."""


def main(job: Job) -> str:
    """Write results/supernet/<run>/weights.safetensors and history.csv."""
    settings, method_settings = job.params.supernet, job.params.method
    space = job.space()
    prepared = job.data(space)
    with seeding.scoped(job.seed, "supernet"):
        supernet = space.supernet()
        initialise(supernet, settings.initialisation)
    settings.arithmetic.place(supernet, job.device)
    method, batches, heldout = training.assemble(supernet, prepared, settings, method_settings, job.seed, job.ranks)
    progress = training.Progress()
    epochs = training.epochs_of(method_settings, settings)
    bar = Progress(f"train_supernet {job.names['run']}", epochs * batches.steps)
    inputs = (job.path(PREPARED) / "manifest.json", job.path(METHOD))
    code = (f"sumnas/methods/{method_settings.strategy}.py",)
    with job.work(job.seed, inputs=inputs, code=code) as work:
        if (state := work.load()) is not None:
            progress = training.restore(method, state)
            if job.ranks.first:
                say(f"going on from step {method.done_steps} of {method.total_steps}")

        def on_step(now: training.Progress) -> None:
            if job.ranks.first:
                bar.update(now.epoch * batches.steps + now.step, f"loss {now.loss:.3f}")
            work.look()
            if work.due():
                work.save(training.capture(method, now))
            work.stop_if_asked()

        live = Live(job.names["run"])

        def on_epoch(row: training.Row) -> None:
            job.tracker.metrics(row, row["epoch"])
            if job.ranks.first:
                live(progress.history)

        probe = probes(space, supernet, prepared, settings, job.seed) if settings.probes else None
        history = training.train(
            method, batches, heldout, epochs, probe, settings.probe_every, progress, on_step,
            on_epoch, space.encode, 1 if job.device == "cpu" else LOOK_EVERY,
            settings.arithmetic,
        )  # fmt: skip
        # Now, not before: on a GPU `auto` may have found that lockstep cannot be.
        job.facts |= {"engine": method.engine, "processes": str(job.ranks.world)}
        if job.ranks.first:  # all have the same
            files.write_csv(job.path(HISTORY), training.columns(history), history)
            metadata = {
                "space": job.params.space.model_dump(mode="json"),
                "method": method_settings.model_dump(mode="json"),
                "seed": job.seed,
                "settings_digest": job.params.digest(),
            }
            if (derived := method.architecture()) is not None:
                metadata["derived"] = space.encode(derived)
            files.write_tensors(job.path(WEIGHTS), supernet.state_dict(), metadata)
            live.end()
            work.clear()
    return f"{history[-1]['passes']} sub-model passes, loss {history[-1]['loss']:.4f} -> {job.path(WEIGHTS)}"


def probes(
    space: Space, supernet: Supernet, prepared: Prepared, settings: training.SupernetSettings, seed: int
) -> training.Probe:
    """Return a function that gives the mean validation loss of fixed, recalibrated sub-models (figure 3, left)."""
    rng: np.random.Generator = seeding.numpy_stream(seed, "probes")
    paths: list[Architecture] = []
    while len(paths) < settings.probes:
        path = uniform_path(space.layers, len(space.candidates), rng)
        if space.connected(path):
            paths.append(path)
    calibration = CalibrationSettings(images=min(512, len(prepared.labels["train"])), batch_size=512, seed=seed)
    evaluation = EvaluationSettings(split=prepared.held_out[0], batch_size=512)
    predictor = Predictor(space, supernet, prepared, calibration, evaluation)
    return lambda: float(np.mean([predictor(path).loss for path in paths]))


def processes(params: Params) -> int | Literal["auto"]:
    """Return how many processes are to share the training: one where the method's steps cannot be shared."""
    wanted: int | Literal["auto"] = params.supernet.processes
    why = module_of(params.method.strategy).METHOD.no_ranks(params.method)
    if wanted not in ("auto", 1) and why is not None and distributed.place() is None:
        say(f"in one process in spite of supernet.processes: {why}")
        return 1
    return wanted


if __name__ == "__main__":
    execute("train_supernet", main, processes)
