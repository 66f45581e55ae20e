"""A one-node Slurm of the tests' own, and runs of Snakemake that end with the tests whatever happens."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.workflow.conftest import Clone, make_clone

SCRIPT = Path(__file__).with_name("start-slurm.sh")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "munged")
INSTALL = (
    "Slurm is not installed; on Debian, as root: apt-get install --no-install-recommends slurmctld slurmd slurm-client "
    "munge (or make test-slurm SUMNAS_TEST_SLURM=install; SUMNAS_TEST_SLURM=auto skips these tests)"
)
LIMIT = 900
"""Seconds that one call of Snakemake may take. Waiting for jobs, it does not end on SIGTERM: timeout -k."""


def lasting(params: dict[str, Any]) -> dict[str, Any]:
    """Make the trainings last for seconds, so that one can be caught; one shard saves the time of some jobs."""
    params["run"] |= {"shards": [0]}
    params["supernet"] |= {"epochs": 20, "batch_size": 64, "probe_every": 10}
    return params


@dataclass
class Slurm:
    """A running Slurm. `root` holds everything: its files, the clones, their checkpoints."""

    root: Path
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    def clone(self, name: str) -> Clone:
        """Return a clone of the project in which this Slurm is found, with tiny settings."""
        clone = make_clone(self.root / name)
        clone.params = lasting(clone.params)
        clone.env |= {
            "PATH": f"{self.root / 'bin'}{os.pathsep}{clone.env['PATH']}",
            "SLURM_CONF": str(self.root / "slurm.conf"),
            "XDG_CACHE_HOME": str(self.root / "cache"),
            "OMP_NUM_THREADS": "1",
            "SUMNAS_TRACKING": "off",
            "SUMNAS_CHECKPOINT_SECONDS": "1e9",  # so that only a signal can have saved
        }
        return clone

    def start(self, clone: Clone, *command: str) -> subprocess.Popen[str]:
        """Start a command in a clone, in a process group of its own."""
        process = subprocess.Popen(
            ["timeout", "-k", "20", str(LIMIT), *command],
            cwd=clone.folder, env=clone.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        self.running.append(process)
        return process

    def ask(self, *command: str) -> str:
        """Return what one of Slurm's own commands says."""
        env = {**os.environ, "SLURM_CONF": str(self.root / "slurm.conf")}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True).stdout

    def jobs(self) -> list[dict[str, str]]:
        """Return number, state, times and rule of every job so far, in the order of submission."""
        lines = self.ask("squeue", "-h", "--states=all", "-o", "%i|%T|%S|%e|%k").splitlines()
        names = ("id", "state", "began", "ended", "rule")
        return sorted((dict(zip(names, line.split("|"), strict=True)) for line in lines), key=lambda j: int(j["id"]))

    def stop(self) -> None:
        """End the runs, their jobs and Slurm itself, and delete every file."""
        for process in self.running:  # Snakemake first, or it would submit again what is cancelled
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.script("stop")
        shutil.rmtree(self.root)

    def script(self, action: str) -> None:
        """Call start-slurm.sh."""
        subprocess.run([SCRIPT, action], env={**os.environ, "SLURM_ROOT": str(self.root)}, timeout=300, check=True)


def missing() -> list[str]:
    """Return which of Slurm's programs are not there; the daemons may lie outside of a user's PATH."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    return [program for program in PROGRAMS if shutil.which(program, path=path) is None]


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """A Slurm that nothing is left of afterwards, also after a failure, Ctrl-C or SIGTERM."""
    mode = os.environ.get("SUMNAS_TEST_SLURM", "")
    if missing() and mode == "install":
        subprocess.run([SCRIPT, "install"], check=True, timeout=600)
    if missing():
        pytest.skip(INSTALL) if mode == "auto" else pytest.exit(INSTALL, returncode=1)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    made = Slurm(Path(tempfile.mkdtemp(prefix="sumnas-slurm-")))
    try:
        made.script("start")
        yield made
    finally:
        asked = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        made.stop()
        for number, handler in asked.items():
            signal.signal(number, handler)
        signal.signal(signal.SIGTERM, before)
        assert not made.root.exists() and left_of(made.root) == []


def left_of(root: Path) -> list[str]:
    """Return the command lines of processes that name a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(str(root) in word for word in words):
            found.append(" ".join(words))
    return found
