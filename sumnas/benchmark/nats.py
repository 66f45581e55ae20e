"""NATS-Bench's topology space from its official files, one small record at a time (github.com/D-X-Y/NATS-Bench).

`NATS-tss-v1_0-3ffb9-simple` is a folder, distributed as a .tar file: `meta.pickle.pbz2` with the architecture strings
in official order, and a record per architecture, `000000.pickle.pbz2` to `015624.pickle.pbz2`: bzip2-compressed
pickles. The archive is read where it is, without unpacking it to disk; settings that name the folder find it, too.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from sumnas.benchmark import pickles
from sumnas.benchmark.official import Imported, accuracies, index_architectures, start
from sumnas.benchmark.settings import OfficialSettings
from sumnas.errors import UserError
from sumnas.spaces.base import Space

ENDING = ".pickle.pbz2"
"""How the names of the official files end."""
META = "meta"
"""Name, without ENDING, of the file that lists the strings of the architectures."""
LIMIT = 2_000_000
"""Bytes that one unpacked file may have: official records have 0.33 million, the meta file 1.4 million."""


def read(
    settings: OfficialSettings, space: Space, on_done: Callable[[int, int], None] = lambda _done, _total: None
) -> Imported:
    """Read the wanted accuracies of all architectures, in official order.

    `on_done` gets the number of records read so far and their total. UserError names the file that is absent,
    damaged, refused, or of another architecture than its name says.
    """
    path = located(settings.path)
    with _archive(path) as (names, fetch):
        meta = pickles.load(pickles.unpack(fetch(META), LIMIT, _label(path, META)), _label(path, META))
        strings = meta.get("meta_archs") if isinstance(meta, dict) else None
        architectures = index_architectures(strings, space, _label(path, META))
        present = {int(name) for name in names if name != META and int(name) < len(architectures)}
        imported = start(architectures, present, settings, str(path))
        for done, (index, architecture) in enumerate(imported.indices.items(), 1):
            name = f"{index:06d}"
            label = _label(path, name)
            record = pickles.load(pickles.unpack(fetch(name), LIMIT, label), label)
            state = record.get(str(settings.epochs)) if isinstance(record, dict) else None
            if state is None:
                raise UserError(f"{label}: no results after {settings.epochs} epochs")
            imported.accuracies[architecture] = accuracies(state, space.encode(architecture), settings, label)
            on_done(done, len(imported.indices))
    return imported


def located(named: str) -> Path:
    """Return the folder or .tar file that a path names; for a folder that is absent, the .tar file that holds it.

    So settings that name the folder go with the archive as it was fetched. UserError where there is neither.
    """
    path = Path(named)
    archive = path.with_name(f"{path.name}.tar")
    if path.exists() or not archive.is_file():
        archive = path
    if not archive.exists():
        beside = "" if path.suffix == ".tar" else f" (nor a file {path.name}.tar)"
        raise UserError(
            f"{path}: no such folder or .tar file{beside}; docs/benchmarks.md says where the official ones are"
        )
    return archive


def _label(path: Path, name: str) -> str:
    """Return a file's name for messages."""
    return f"{path}: {name}{ENDING}"


def _name(path: str) -> str | None:
    """Return "meta" or the six digits of a file's name; None where it is no file of the benchmark."""
    file = PurePosixPath(path).name
    name = file.removesuffix(ENDING)
    return name if name != file and (name == META or (len(name) == 6 and name.isdecimal() and name.isascii())) else None


@contextmanager
def _archive(path: Path) -> Iterator[tuple[set[str], Callable[[str], bytes]]]:
    """Give the names there are, and what fetches the packed bytes of one, from a folder or a .tar file."""
    if path.is_dir():
        inside = {name: entry for entry in path.iterdir() if (name := _name(entry.name)) and entry.is_file()}

        def fetch(name: str) -> bytes:
            if name not in inside:
                raise UserError(f"{path}: no {name}{ENDING} in it")
            _check_size(inside[name].stat().st_size, f"{path}: {name}{ENDING}")
            return inside[name].read_bytes()

        yield set(inside), fetch
        return
    try:
        with tarfile.open(path, "r:") as tar:
            members = {name: member for member in tar if (name := _name(member.name)) and member.isreg()}

            def fetch_member(name: str) -> bytes:
                if name not in members:
                    raise UserError(f"{path}: no {name}{ENDING} in it")
                _check_size(members[name].size, f"{path}: {name}{ENDING}")
                file = tar.extractfile(members[name])
                return file.read() if file else b""

            yield set(members), fetch_member
    except tarfile.TarError as error:
        raise UserError(f"{path}: no whole .tar file ({error}); get it again from the official source") from None


def _check_size(size: int, label: str) -> None:
    if size > LIMIT:
        raise UserError(f"{label}: refused: {size / 1e6:.0f} MB packed; {pickles.HINT}")
