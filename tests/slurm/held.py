"""A training held in the middle: stands for one that takes long, at no cost and on a machine of any speed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

CPU_SECONDS = 0.2
"""Of computing after the stage has locked its folder: then it is in its training."""


@dataclass
class Held:
    """A stage's process that was sent SIGSTOP."""

    pid: int

    @property
    def job(self) -> str:
        """The Slurm job that it runs in."""
        words = (Path(f"/proc/{self.pid}") / "environ").read_bytes().split(b"\0")
        return next(word.decode().partition("=")[2] for word in words if word.startswith(b"SLURM_JOB_ID="))

    @property
    def parent(self) -> list[str]:
        """The command line of the process that waits for it."""
        return _words(int(_stat(self.pid)[1]))

    @property
    def signalled(self) -> bool:
        """Whether a signal waits for it to go on; or it went on, since Slurm sends SIGCONT before most of them."""
        try:
            lines = (Path(f"/proc/{self.pid}") / "status").read_text().splitlines()
        except OSError:
            return True
        waiting = any(int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd")))
        return waiting or "T (stopped)" not in next(line for line in lines if line.startswith("State"))

    def go_on(self) -> None:
        """Let it run again."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)


def hold(run: str, folder: Path, process: subprocess.Popen[str]) -> Held:
    """Wait for the training of a run's supernet in a clone, which `process` will start, and stop it in the middle."""
    while process.poll() is None:
        for pid in _trainings(run, folder):
            began = _cpu(pid)
            while True:
                if _cpu(pid) - began >= CPU_SECONDS:
                    os.kill(pid, signal.SIGSTOP)
                    return Held(pid)
                time.sleep(0.01)
        time.sleep(0.02)
    said, _ = process.communicate()
    raise AssertionError(f"the training of {run} was not seen:\n{said}")


def _trainings(run: str, folder: Path) -> list[int]:
    """Return the processes that hold the lock of their work."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if _words(int(process.name))[1:5] == ["-m", "workflow.train_supernet", "--run", run]:
                open_files = [os.readlink(path) for path in (process / "fd").iterdir()]
                if (process / "cwd").resolve() == folder.resolve() and any(f.endswith("/lock") for f in open_files):
                    found.append(int(process.name))
        except OSError:  # gone meanwhile
            continue
    return found


def _words(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _cpu(pid: int) -> float:
    return sum(map(int, _stat(pid)[11:13])) / os.sysconf("SC_CLK_TCK")
