"""What this machine has of what the pipeline needs: findings for `sumnas doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from sumnas import checkpoint, manifest
from sumnas.errors import UserError

State = Literal["ok", "note", "missing"]
"""`note`: the pipeline runs without it, or it is only different from what the results were made with."""

PACKAGES = ("torch", "torchvision", "dvc", "snakemake", "mlflow", "scipy", "pyyaml")
"""Packages that must be installed; their versions are compared with the pinned ones."""
ROOM = 5.0
"""Free GB below which it is said."""


class Finding(NamedTuple):
    """One line of the report: `what` was looked at, and its `state`.

    `detail` says what was found, and what to do where something is missing.
    """

    what: str
    state: State
    detail: str


def all_of(settings: Path) -> list[Finding]:
    """Look at everything; the settings say which data and which device are wanted."""
    from sumnas import params

    loaded, wrong = None, ""
    try:
        loaded = params.load(settings)
    except UserError as error:
        wrong = "; ".join(str(error).splitlines())
    checked = Finding("settings", "missing" if wrong else "ok", wrong or f"{settings}: valid")
    wanted = None if loaded is None else loaded.run.device
    data = [] if loaded is None else _data(loaded.data.source, loaded.data.path)
    return [*_versions(), *_processors(settings, wanted), checked, *data, *_lock(), *_disk(), *_programs()]


def lock_is_whole(path: Path) -> bool:
    """Say whether DVC can read its lock file: killed while it writes, DVC leaves half of one. Absent is whole."""
    if not path.exists():
        return True
    import yaml
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(yaml.load(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except (yaml.YAMLError, UnicodeDecodeError, Invalid):
        return False
    return True


def _lock() -> Iterator[Finding]:
    try:
        whole = lock_is_whole(Path("dvc.lock"))
    except ImportError:  # that DVC is missing has been said
        return
    if not whole:
        yield Finding(
            "dvc.lock", "missing", "half written by a DVC that was killed; rm dvc.lock && dvc repro (DVC's run cache "
            "has what was computed)"
        )  # fmt: skip


def _versions() -> Iterator[Finding]:
    wanted, here = (3, 11), sys.version_info[:2]
    state: State = "ok" if here >= wanted else "missing"
    yield Finding("python", state, platform.python_version() + ("" if state == "ok" else "; 3.11 or newer is needed"))
    pinned = constraints(Path("constraints.txt"))
    for name in PACKAGES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "missing", "not installed; make setup")
            continue
        other = pinned.get(name, version)
        if version.partition("+")[0] == other.partition("+")[0]:
            yield Finding(name, "ok", version)
        else:
            yield Finding(name, "note", f"{version}; the results in docs/ were made with {other}: bytes may differ")


def constraints(path: Path) -> dict[str, str]:
    """Return the pinned versions of a constraints file by lower-case name; none where there is no such file."""
    if not path.exists():
        return {}
    found = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {name.lower(): version for name, version in found}


def _processors(settings: Path, wanted: str | None) -> Iterator[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("processors", "ok", f"{cores} cores that this process may use")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Finding("gpu", "ok", ", ".join(names))
        return
    if wanted == "cuda":
        yield Finding("gpu", "missing", f"torch finds none, and {settings} has run.device: cuda; set it to auto or cpu")
    else:
        yield Finding("gpu", "note", "torch finds none; everything runs on the CPU")


def _data(source: str, path: str | None) -> Iterator[Finding]:
    if source == "digits":
        yield Finding("raw data", "ok", "digits: come with scikit-learn")
    elif path is not None:
        there = Path(path).exists()
        text = str(path) if there else f"{path}: not there; put it there (docs/data.md)"
        yield Finding("raw data", "ok" if there else "missing", text)
    else:
        there = any(p for p in Path("data/raw").rglob("*") if p.is_file() and p.name != ".gitkeep")
        text = f"{source}: files in data/raw, checked by prepare_data" if there else (
            f"{source}: nothing in data/raw; prepare_data fetches it, or says which file to put where"
        )  # fmt: skip
        yield Finding("raw data", "ok" if there else "note", text)
    prepared = Path("data/prepared")
    try:
        counts = manifest.read(prepared).counts
        yield Finding("prepared data", "ok", ", ".join(f"{count} {name}" for name, count in counts.items()))
    except UserError:
        yield Finding("prepared data", "note", f"none in {prepared}; the pipeline's first stage makes them")


def _disk() -> Iterator[Finding]:
    for what, folder in (("room for results", Path()), ("room for checkpoints", checkpoint.root())):
        there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        free = shutil.disk_usage(there).free / 1e9
        able = there.is_dir() and os.access(there, os.W_OK)
        detail = f"{free:.1f} GB free in {folder.absolute()}"
        if not able:
            detail = f"{there}: cannot be written" if there.is_dir() else f"{there}: no folder"
        if able and free < ROOM:
            detail += "; a full disk stops a stage (and loses nothing)"
        yield Finding(what, "missing" if not able else "ok" if free >= ROOM else "note", detail)


def _programs() -> Iterator[Finding]:
    absent: tuple[tuple[str, State, str], ...] = (
        ("git", "missing", "DVC needs it"), ("make", "note", "for the README's commands"),
    )  # fmt: skip
    for name, state, why in absent:
        path = shutil.which(name)
        yield Finding(name, "ok" if path else state, path or f"not found; {why}")
    if not shutil.which("sbatch"):
        yield Finding("slurm", "note", "no sbatch here; `--profile slurm` needs a login node (docs/cluster.md)")
        return
    try:
        said = subprocess.run(["sinfo", "-h", "-o", "%P %D %t"], capture_output=True, text=True, timeout=20, check=True)
        yield Finding("slurm", "ok", "; ".join(said.stdout.split("\n")).strip("; ") or "no partition")
    except (OSError, subprocess.SubprocessError) as error:
        own = error.stderr.strip().rpartition("\n")[2] if isinstance(error, subprocess.CalledProcessError) else ""
        yield Finding("slurm", "note", f"sbatch is there, but sinfo does not answer ({own or error})")
