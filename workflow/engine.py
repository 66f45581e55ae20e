"""Ends a stage whose engine is gone: a killed DVC or Snakemake would leave its stages running unseen."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

ENGINES = ("dvc", "snakemake")
SECONDS = 2.0
"""Between two looks."""


def find(pid: int | None = None) -> tuple[str, int, str] | None:
    """Return name, process number and start time of the engine among a process's ancestors; None by hand.

    An engine's shell stands between it and the stage and outlives it, so the stage's own parent tells nothing.
    """
    pid = os.getppid() if pid is None else pid
    while pid > 1:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            parent = int(_fields(pid)[1])
        except (OSError, IndexError, ValueError):
            return None
        names = {Path(word).name for word in words[:3]}  # python, script; or python -m module
        for engine in ENGINES:
            if engine in names:
                return engine, pid, _start(pid)
        pid = parent
    return None


def hint(name: str, root: Path = Path()) -> str | None:
    """Return what to know where DVC meets Snakemake's results, which it makes anew; None where there are none.

    DVC has made none here while its cache is missing; dvc.lock comes with a clone. Snakemake notes every file that it
    has made.
    """
    made = any((root / ".snakemake/metadata").glob("*")) and any((root / "results").glob("*/*"))
    if name != "dvc" or not made or (root / ".dvc/cache/files").exists():
        return None
    return (
        "the results here are Snakemake's, and DVC makes all of them anew; to adopt them as they are, stop this and "
        "run `dvc commit -f`. One engine per clone is simpler."
    )


def watch(seconds: float = SECONDS, *, launched: bool = False) -> str:
    """Look at the engine from a thread, and send this process SIGTERM once it is gone; return the engine's name.

    The stage then saves its checkpoint and ends as for any SIGTERM. Started by hand (no engine, "hand"), it is left
    alone: its own shell may well be gone, as after nohup. `launched`: its parent is a launcher of several processes,
    which is watched, too.
    """
    found = find()
    engine, watched = (found[0], {found[1]: found[2]}) if found else ("hand", {})
    if launched:
        watched[os.getppid()] = _start(os.getppid())
    if not watched:
        return engine

    def look() -> None:
        while not gone.wait(seconds):
            if any(_start(pid) != started for pid, started in watched.items()):
                os.kill(os.getpid(), signal.SIGTERM)
                return

    gone = threading.Event()
    threading.Thread(target=look, name="engine-watch", daemon=True).start()
    return engine


def _fields(pid: int) -> list[str]:
    """Return /proc/<pid>/stat behind the command's name, which may hold spaces: state, parent, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _start(pid: int) -> str:
    """Return when the process started, in clock ticks; a number may come back, a start time not. Empty if gone."""
    try:
        fields = _fields(pid)
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]
