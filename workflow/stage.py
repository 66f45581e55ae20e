"""The command line that all stages share: which job, its settings, its files, and how it ends."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import platform
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sumnas import distributed, files, machine
from sumnas.distributed import ALONE, Ranks
from sumnas.errors import UserError
from sumnas.tracking import Tracker
from workflow import engine, launch, sources, tracked
from workflow.stages import NAMED, SHARED, STAGES, Stage

if TYPE_CHECKING:
    from sumnas.checkpoint import Work
    from sumnas.data import Prepared
    from sumnas.params import Params
    from sumnas.spaces.base import Space

PARAMS = Path("params.yaml")
PATIENCE = 10.0
"""Seconds that a process beside the first waits before it says what went wrong: mostly the first has said the same, and
its end ends this one."""


@dataclass
class Job:
    """One call of a stage: its declared settings, and where its files lie. `tracker` makes no result."""

    stage: Stage
    params: Params
    names: dict[str, str]
    accept_code_change: bool = False
    params_digest: str = ""
    tracker: Tracker = field(default_factory=Tracker)
    workers: int = 0
    """run.workers, which no stage declares: it changes no result, and so may not rerun anything."""
    facts: dict[str, str] = field(default_factory=dict)
    """What a stage adds to its run.json: what it chose because of the machine."""
    keep: int = 0
    """run.keep_gb, in bytes: the same holds."""
    seconds_before: float = 0.0
    """What earlier calls, which were stopped, have put into this one's work."""
    ranks: Ranks = ALONE
    """The processes that share this call. The first alone writes, reports, saves and tracks."""

    def path(self, template: str, **names: object) -> Path:
        """Return the path of one of this job's files; `names` replace the job's own."""
        return Path(template.format(**{**self.names, **{k: str(v) for k, v in names.items()}}))

    def paths(self, template: str) -> list[Path]:
        """Return the path of every shard."""
        return [self.path(template, shard=shard) for shard in self.params.shards]

    def beside(self, name: str) -> Path:
        """Return the path of a file that lies beside the result: nobody's dependency, never compared."""
        first = self.path(self.stage.outputs[0])
        if not first.suffix:
            return first / name
        alone = "seed" in self.stage.per and "shard" not in self.stage.per
        return first.with_name(name if alone else f"{first.stem}.{name}")

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.names["seed"])

    @property
    def device(self) -> str:
        """Where to compute."""
        import torch

        wanted: str = self.params.device
        if wanted == "cuda" and not torch.cuda.is_available():
            raise UserError("run.device = 'cuda': torch finds no GPU here; set run.device: auto or cpu")
        return wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"

    def space(self) -> Space:
        """Build the space of the `space` block."""
        from sumnas.spaces import base

        return base.build(self.params.space)

    def data(self, space: Space) -> Prepared:
        """Load the prepared data and check that it fits the space."""
        from sumnas import data, progress

        prepared = data.load(self.path(STAGES["prepare_data"].outputs[0]), self.device, self.workers, self.keep)
        data.check_fits(prepared, space)
        streamed, cpus = isinstance(prepared.split("train"), data.Streamed), len(os.sched_getaffinity(0))
        if streamed and self.workers > cpus and self.ranks.first:
            progress.say(f"run.workers is {self.workers}, but this job has {cpus} processors: so many decode pictures")
        return prepared

    @contextlib.contextmanager
    def work(
        self, *parts: object, inputs: tuple[Path, ...] = (), code: tuple[str, ...] = (), wait: bool = False
    ) -> Iterator[Work]:
        """Enter the folder of this job's work in progress, with its log of tracked figures.

        Its digest covers the settings, the inputs' content, the sources, `parts` and further `code`.
        """
        from sumnas.checkpoint import Work

        names = {*sources.of_stage(self.stage.name, self._space_name()), *code}
        settled = self.params.plain()
        for block, key in itertools.product(SHARED.values(), ("processes", "split_batch")):
            settled.get(block, {}).pop(key, None)  # any number of them can go on from a checkpoint
        about: dict[str, Any] = {
            "params": settled,
            "inputs": [files.sha256(path) for path in inputs],
            "parts": [str(part) for part in parts],
        }
        settings = files.digest(about)
        about["sources"] = [files.sha256(sources.ROOT / name) for name in sorted(names)]
        with Work(
            self.stage.name,
            files.digest(about),
            wait=wait,
            settings=settings,
            accept_code_change=self.accept_code_change,
            ranks=self.ranks,
        ) as work:
            self.seconds_before += work.before
            if not self.tracker.begun:  # a stage with several pieces of work has one log
                self.tracker.resume(work.folder)
            yield work

    def _space_name(self) -> str | None:
        try:
            return str(self.params.space.name)
        except AttributeError:
            return None


@contextlib.contextmanager
def reporting(name: str, rank: int = 0) -> Iterator[None]:
    """Turn a user's mistake, a file that cannot be used, and a signal into a line and an exit code.

    Exit codes: 1 a mistake that the message tells how to mend, 128 + number stopped by a signal.
    """
    from sumnas import progress
    from sumnas.checkpoint import exit_code

    def say(text: str) -> None:
        if rank:
            # To be ended meanwhile is no failure of its own: the launcher would tell of it in the place of the first's.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
            time.sleep(PATIENCE)
        progress.say(text)

    try:
        with exit_code(say if rank == 0 else lambda text: None):
            yield
    except UserError as error:
        say("\n".join(f"{name}: error: {line}" for line in str(error).splitlines()))
        raise SystemExit(1) from None
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        say(f"{name}: error: {error.filename or 'a file'}: {error.strerror}; free or change it and run this again")
        raise SystemExit(1) from None
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, of a GPU; torch may not be imported here
            raise
        say(
            f"{name}: error: the GPU's memory is used up ({str(error).splitlines()[0]}); end what else runs on it, or "
            "lower the batch sizes in params.yaml"
        )
        raise SystemExit(1) from None


def execute(
    name: str, main: Callable[[Job], str], processes: Callable[[Params], int | Literal["auto"]] | None = None
) -> None:
    """Run a stage from the command line. `main` returns its closing line: what was written and the main number.

    `processes` gives how many may share it, as the settings say, of a stage that several can share.
    """
    from sumnas.progress import say

    started = time.time()
    place = distributed.place()
    rank = place.rank if place else 0
    stage, started_by = STAGES[name], engine.watch(launched=place is not None)
    if name == "prepare_data" and (text := engine.hint(started_by)) is not None:  # the first of a run
        say(f"{name}: {text}")
    arguments = _arguments(stage)
    with launch.leaving(place), reporting(name, rank):
        job = make_job(stage, arguments)
        if "run.threads" in stage.blocks:  # it computes
            machine.keep_freed_memory()
        with launch.together(job, processes and processes(job.params)) as job.ranks:
            if not job.ranks.first:
                main(job)
                return
            with tracked.run(job):
                closing = main(job)
                write_run_file(job, job.beside("run.json"), started)
                tracked.note(job, closing)
    label = " ".join([name, *(v for k, v in job.names.items() if k in ("run", "shard"))])
    say(f"{label}: {closing} ({time.time() - started:.1f} s)")


def _arguments(stage: Stage) -> argparse.Namespace:
    main = sys.modules["__main__"]
    parser = argparse.ArgumentParser(
        prog=f"python -m workflow.{stage.name}",
        description=(main.__doc__ or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"reads from params.yaml: {', '.join(stage.blocks)}\n"
        f"reads: {', '.join(stage.inputs) or '-'}\nwrites: {', '.join(stage.outputs)}",
    )
    if "seed" in stage.per:
        parser.add_argument("--run", required=True, metavar="METHOD-SEED", help="which run, such as sumnas-k2-0")
    elif "method" in stage.per:
        parser.add_argument("--method", required=True, help="a block of `methods`, such as sumnas-k2")
    if "shard" in stage.per:
        parser.add_argument("--shard", required=True, type=int, help="which share of the work: 0, 1, ...")
    if stage.resumes:
        parser.add_argument(
            "--accept-code-change", action="store_true",
            help="go on from a checkpoint that other source files have begun, if settings and inputs are the same",
        )  # fmt: skip
    return parser.parse_args()


def make_job(stage: Stage, arguments: argparse.Namespace) -> Job:
    """Read params.yaml and hand out what the stage declares; without a run of `arguments`, for none in particular."""
    from sumnas import params

    names: dict[str, str] = {}
    if "seed" in stage.per and "run" in arguments:
        method, dash, seed = arguments.run.rpartition("-")
        if not dash or not seed.isdigit():
            raise UserError(f"--run {arguments.run}: must be a method's name, '-' and a seed, such as sumnas-k2-0")
        names |= {"method": method, "seed": seed, "run": arguments.run}
    elif "method" in stage.per and "method" in arguments:
        names["method"] = arguments.method
    if "shard" in stage.per:
        names["shard"] = str(arguments.shard)
    everything = params.load(PARAMS, NAMED)
    if "shard" in stage.per and arguments.shard not in everything.run.shards:
        raise UserError(f"--shard {arguments.shard}: run.shards in {PARAMS} has {everything.run.shards}")
    chosen = everything.select(block.format(**names) for block in stage.blocks)
    if "run.threads" in stage.blocks:
        import torch

        torch.set_num_threads(chosen.threads)
    accept = getattr(arguments, "accept_code_change", False)
    run = everything.run
    digest, keep = everything.digest(), int(run.keep_gb * 1e9)
    return Job(stage, chosen, names, accept, digest, workers=run.workers, keep=keep)


def write_run_file(job: Job, path: Path, started: float, module: str | None = None) -> None:
    """Write what varies from run to run beside the result: `seconds` of this call, and of stopped ones before it.

    `module` is what was called where that was not the stage.
    """
    torch: Any = sys.modules.get("torch")
    files.write_json(
        path,
        {
            "stage": job.stage.name,
            "command": " ".join([f"python -m workflow.{module or job.stage.name}", *sys.argv[1:]]),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
            "seconds": round(time.time() - started, 3),
            "seconds_before": round(job.seconds_before, 3),
            "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "host": platform.node(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "commit": machine.commit_of_code(),
            "params_digest": job.params_digest,
            "python": platform.python_version(),
            "torch": getattr(torch, "__version__", None),
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
            **job.facts,
        },
    )
