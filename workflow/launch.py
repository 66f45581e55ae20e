"""The processes that share a stage: started by torchrun, or by the stage itself with torchrun's launcher."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from sumnas import distributed
from sumnas.distributed import ALONE, Place, Ranks
from sumnas.errors import UserError
from sumnas.progress import say
from workflow.stages import SHARED

if TYPE_CHECKING:
    from workflow.stage import Job


@contextlib.contextmanager
def together(job: Job, wanted: int | Literal["auto"] | None, name: str = "") -> Iterator[Ranks]:
    """Give the processes that share this call of a stage; None is for a stage that runs in one.

    Where several are wanted and this is none of them yet, start them, and end as they end: SystemExit. `name` is the
    command's own where it is not the stage's.
    """
    place = distributed.place()
    world = place.world if place else 1
    if wanted is None and world > 1:
        raise UserError(f"{job.stage.name} runs in one process: start it without torchrun")
    key = f"{SHARED.get(job.stage.name)}.processes"
    if place is None and isinstance(wanted, int) and wanted > 1:
        raise SystemExit(start(name or job.stage.name, wanted))
    if place is not None and isinstance(wanted, int) and wanted != world:
        raise UserError(
            f"{key} = {wanted}: torchrun has started {world}, and another number gives other rounding; "
            f"set {key}: auto, or start the stage without torchrun"
        )
    if place is None:
        yield ALONE
        return
    with distributed.joined(place, job.device) as ranks:
        yield ranks


@contextlib.contextmanager
def leaving(place: Place | None) -> Iterator[None]:
    """End a process that shares a stage at once where the body raises SystemExit, with its code.

    The interpreter's own end would come to gloo's threads, which may still wait for a rank that is gone: SIGABRT then
    stands in the place of the code.
    """
    try:
        yield
    except SystemExit as end:
        if place is None or place.world == 1 or not isinstance(end.code, int):
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code)


def start(stage: str, processes: int) -> int:
    """Start this very command in so many processes of this machine, wait for them, and return their exit code.

    A signal is handed on to all, which have half a minute to save. The first that fails ends the others.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.CRITICAL)  # what the launcher says of its work tells a person nothing
    config = LaunchConfig(
        1, 1, processes, run_id=str(uuid.uuid4()), rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", f"workflow.{stage}", *sys.argv[1:])
    except SignalException as stop:
        return 128 + stop.sigval
    except ChildFailedError as failed:
        rank = cause(failed.failures)
        code = failed.failures[rank].exitcode
        if code > 0:  # it has said why
            return code
        killed = signal.Signals(-code)
        say(
            f"{stage}: error: process {rank} of {processes} was ended by {killed.name}; run the same command again to "
            "go on from the last checkpoint"
        )
        return 128 + killed
    return 0


def cause(failures: Mapping[int, Any]) -> int:
    """Return the process that the others followed; `failures` has exit code and time (whole seconds) of each.

    One that was killed comes before one that met with its end, but not where the launcher did it: at the first failure
    it sends SIGTERM to all others, and SIGKILL much later to those that do not end.
    """
    first = min(failure.timestamp for failure in failures.values())

    def order(rank: int) -> tuple[bool, bool, bool]:
        failure = failures[rank]
        return failure.exitcode == -signal.SIGTERM, failure.timestamp > first + 1, failure.exitcode > 0

    return min(failures, key=order)
