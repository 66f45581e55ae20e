"""NAS-Bench-201 from its official .pth file, read whole (github.com/D-X-Y/NAS-Bench-201).

A dict with `meta_archs` (strings in official order) and `arch2infos`: index -> {"full": results after 200 epochs,
"less": after 12}. Unlike NATS-Bench's records it cannot be read piece by piece: it needs many times its size in memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from sumnas.benchmark import pickles
from sumnas.benchmark.official import Imported, accuracies, index_architectures, start
from sumnas.benchmark.settings import OfficialSettings
from sumnas.errors import UserError
from sumnas.spaces.base import Space

PARTS = {200: "full", 12: "less"}
"""The part of an architecture's results, by number of epochs."""

MEMORY_FACTOR = 8.5
"""Memory needed, as a multiple of the file's size: 7.3 to 8.3 were measured (old and new format of torch.save)."""


def read(
    settings: OfficialSettings, space: Space, on_done: Callable[[int, int], None] = lambda _done, _total: None
) -> Imported:
    """Read the wanted accuracies of all architectures, in official order.

    `on_done` gets the number of architectures taken over so far and their total; loading the file comes before that.
    UserError where there is too little memory, or the file is absent, damaged, refused or of another kind.
    """
    path = Path(settings.path)
    whole = _load(path)
    for key in ("meta_archs", "arch2infos"):
        if not isinstance(whole, dict) or key not in whole:
            raise UserError(f"{path}: no {key} in it; not a file of NAS-Bench-201")
    architectures = index_architectures(whole["meta_archs"], space, str(path))
    infos = whole["arch2infos"]
    if not isinstance(infos, dict) or not all(isinstance(info, dict) for info in infos.values()):
        raise UserError(f"{path}: arch2infos is not a dict of dicts; not a file of NAS-Bench-201")
    imported = start(architectures, {i for i in infos if type(i) is int}, settings, str(path))
    part = PARTS[settings.epochs]
    for done, (index, architecture) in enumerate(imported.indices.items(), 1):
        label = f"{path}: architecture {index}"
        if part not in infos[index]:
            raise UserError(f"{label}: no results after {settings.epochs} epochs ({part!r})")
        imported.accuracies[architecture] = accuracies(infos[index][part], space.encode(architecture), settings, label)
        on_done(done, len(imported.indices))
    return imported


def needed_memory(path: Path) -> int:
    """Return how many bytes of memory it takes to read the file."""
    return int(MEMORY_FACTOR * path.stat().st_size)


def available_memory(
    meminfo: Path = Path("/proc/meminfo"),
    membership: Path = Path("/proc/self/cgroup"),
    groups: Path = Path("/sys/fs/cgroup"),
) -> int | None:
    """Return how many bytes of memory are free for use; None where the system does not tell.

    That is what the machine has available, or less where the process is in control groups (of a container or a Slurm
    job) that may use less: exceeding their limit kills it.
    """
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", _text(meminfo), re.M)
    sizes = [int(found[1]) * 1024] if found else []
    # Version 2 has one line, "0::/path"; version 1 a line per controller, "9:memory:/path". In a container the path may
    # be the host's and lead nowhere here; its own limit then stands at the top.
    for controllers, own in re.findall(r"^\d+:([^:]*):(/.*)$", _text(membership), re.M):
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = (groups / "memory", "memory.limit_in_bytes") if controllers else (groups, "memory.max")
        group = PurePosixPath(own)
        texts = [_text(top / part.relative_to("/") / name).strip() for part in (group, *group.parents)]
        sizes += [int(text) for text in texts if text.isdecimal()]  # "max": no limit
    return min(sizes, default=None)


def _text(path: Path) -> str:
    """Return what a file of the system says; nothing where it is not there."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _load(path: Path) -> Any:
    import torch

    if not path.is_file():
        raise UserError(f"{path}: no such file; docs/benchmarks.md says where the official one is")
    needed, available = needed_memory(path), available_memory()
    if available is not None and needed > available:
        raise UserError(
            f"{path}: takes about {needed / 1e9:.1f} GB of memory to read, {available / 1e9:.1f} GB are free; use "
            "NATS-Bench's files (benchmark.source: nats), which hold as much and take less than 1 GB"
        )
    # The same stand-ins for numpy's numbers as in NATS-Bench's records: no code of numpy runs on bytes of the file.
    numpy: list[Any] = [(stand_in, name) for name, stand_in in pickles.NAMES.items() if name.startswith("numpy")]
    try:
        with torch.serialization.safe_globals(numpy):
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise UserError(f"{path}: not enough memory; use NATS-Bench's files (benchmark.source: nats)") from None
    except Exception as error:  # bad bytes can bring about anything; torch's own text suggests to trust the file
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickles.Refused) or refused:
            what = f"the class or function {refused[1][:100]!r}" if refused else str(error)
            raise UserError(f"{path}: refused: {what}; {pickles.HINT}") from None
        raise UserError(
            f"{path}: damaged, or no .pth file ({type(error).__name__}); get it again from the official source"
        ) from None
