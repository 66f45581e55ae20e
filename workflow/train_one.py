"""Train one architecture from scratch with block `retrain` of params.yaml, outside of the pipeline.

`make preset NAME=cifar10-paper` gives NAS-Bench-201's exact recipe at full scale. Interrupted, the same command goes on
from its checkpoint. The data must have been prepared (`python -m workflow.prepare_data`).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from sumnas import distributed, files, machine
from sumnas.errors import UserError
from sumnas.manifest import NAME
from sumnas.progress import say
from workflow import engine, launch, retrain
from workflow.stage import Job, make_job, reporting, write_run_file
from workflow.stages import PREPARED, STAGES


def main() -> None:
    """Write weights.safetensors, metrics.json and run.json into the output folder."""
    parser = argparse.ArgumentParser(prog="python -m workflow.train_one", description=__doc__)
    parser.add_argument("architecture", help="its string, such as '|nor_conv_3x3~0|+|none~0|skip_connect~1|+|...|'")
    parser.add_argument("--output", type=Path, default=Path("results/one"), help="folder (default: %(default)s)")
    parser.add_argument("--accept-code-change", action="store_true", help="go on from what other sources have begun")
    arguments = parser.parse_args()
    place = distributed.place()
    if place is not None:
        engine.watch(launched=True)  # not to outlive what has started this process
    with launch.leaving(place), reporting("train_one", place.rank if place else 0):
        job = make_job(STAGES["retrain"], arguments)
        machine.keep_freed_memory()
        with launch.together(job, job.params.retrain.processes, "train_one") as job.ranks:
            closing = train(job, arguments.architecture, arguments.output)
    if job.ranks.first:
        say(f"train_one: {closing}")


def train(job: Job, architecture: str, output: Path) -> str:
    """Train it and write the files; return what to say."""
    started = time.time()
    space = job.space()
    try:
        text = space.encode(space.decode(architecture))
    except ValueError as error:
        raise UserError(str(error)) from None
    tensors, entry = retrain.train_once(job, space, job.data(space), text)
    if not job.ranks.first:
        return ""
    about = {"space": job.params.space.model_dump(mode="json"), "architecture": text}
    files.write_tensors(output / "weights.safetensors", tensors, about)
    digests = {"settings_digest": job.params.digest(), "data_digest": files.sha256(job.path(PREPARED) / NAME)}
    files.write_json(output / "metrics.json", {**entry, **digests})
    write_run_file(job, output / "run.json", started, "train_one")
    return f"test accuracy {entry['test_accuracy']:.2f} % -> {output}"


if __name__ == "__main__":
    main()
