"""The machine and the commit, in words, and what is asked of the machine. Never part of a compared result."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def cpu_model() -> str:
    """Return the processor's name, or its architecture where the system does not tell the name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def commit(folder: Path = Path()) -> str | None:
    """Return the commit that is checked out there, with `-dirty` where tracked files differ; None outside git."""
    command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # DVC may be writing git's index
    try:
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None


def commit_of_code() -> str | None:
    """Return the commit of this package's own checkout; None where it is none."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None  # installed: a repository further up would be another's
    return commit(root)


def keep_freed_memory() -> bool:
    """Have this process keep what it frees for its next allocations; return whether that was done.

    glibc hands the memory of large blocks back at once, so that every activation of every step comes as fresh pages,
    each zeroed by the system at a fault of its own. No result depends on it. Blocks of more than 32 MiB are handed back
    as before; the peak of memory may differ. Not done where the C library is another one, and where the environment
    already says how it is to allocate.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc; without a name, a library cannot be asked for on Windows
        return False
    trim, mmap_from = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    return bool(mallopt(trim, -1)) and bool(mallopt(mmap_from, 32 << 20))  # never; the most that glibc takes


def compute_with(threads: int) -> None:
    """Have this process compute as a stage does: with so many threads, keeping the memory that it frees."""
    import torch

    torch.set_num_threads(threads)
    keep_freed_memory()


def spent(record: Mapping[str, Any]) -> float:
    """Return the seconds that a result took by its run.json, those of calls that were stopped before included."""
    return float(record["seconds"]) + float(record.get("seconds_before", 0.0))  # older files do not have the latter
