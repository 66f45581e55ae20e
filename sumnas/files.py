"""Result files: written whole or not at all, and the same bytes for the same content."""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sumnas.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

CHECK = "crc32"
"""The last column of a CSV file of ours."""
SEAL = "sha256"
"""The key of a tensor file's metadata that holds the digest of its values."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder, and move it over `path` at the end: no reader sees half a file.

    An OSError that names no file, as of a full disk, or the temporary one, gets `path`'s name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.chmod(0o644)  # mkstemp makes it private to its owner
        os.replace(part, path)
    except OSError as error:
        if error.filename is None:  # of a write: the system names no file
            raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from None
        raise
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON, keys sorted, NaN refused."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; UserError names the file where it is absent or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage that writes it (`dvc repro` runs them all)") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged JSON ({error}); delete it and run the stage that writes it") from None


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]], *, checked: bool = True) -> None:
    """Write rows under a header. Floats are written with as many digits as they need to be read back exactly.

    With `checked` a last column, CHECK, has a checksum of every row, by which `read_csv` notices a row that is not
    what was written. ValueError where a row has a key without a column.
    """
    if strange := {key for row in rows for key in row}.difference(columns):
        raise ValueError(f"{path}: no column for {sorted(strange)}")
    # None and what a row lacks become empty, as the csv module writes them: the checksums are of what will be read.
    cells = [[row.get(column) for column in columns] for row in rows]
    table = [list(columns), *(["" if cell is None else str(cell) for cell in line] for line in cells)]
    if checked:
        table = [[*fields, check] for fields, check in zip(table, [CHECK, *_checks(table)], strict=True)]
    with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(table)


def read_csv(path: Path, columns: Sequence[str] = (), *, ours: bool = True) -> list[dict[str, str]]:
    """Read rows; UserError where the file or one of `columns` is absent, or the file is damaged.

    A file of `ours` ends with a line's end, and its checksums, where it has any, are right; the rows are given without.
    """
    remedy = "; delete it and run the stage that writes it" if ours else ""
    try:
        text = path.read_bytes().decode("utf-8")
        header, *table = list(csv.reader(io.StringIO(text, newline=""))) or [[]]
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage that writes it (`dvc repro` runs them all)") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: damaged CSV ({error}){remedy}") from None
    table = [fields for fields in table if fields]  # others' files may have empty lines
    missing = [c for c in columns if c not in header]
    if missing:
        there = ", ".join(header or ["nothing"])
        raise UserError(f"{path}: no column {missing[0]!r}; the file has {there}{remedy}")
    if ours and not text.endswith("\n"):
        raise UserError(f"{path}: cut off in line {len(table) + 1}{remedy}")
    for number, fields in enumerate(table, 2):
        if len(fields) != len(header):
            raise UserError(f"{path}, line {number}: not as many fields as the header has{remedy}")
    if ours and CHECK in header:
        *header, _ = header
        found = [fields.pop() for fields in table]
        for number, (one, other) in enumerate(zip(found, _checks([header, *table]), strict=True), 2):
            if one != other:
                raise UserError(
                    f"{path}, line {number}: not what was written there{remedy}, or, "
                    f"if it was changed by intent, take the column {CHECK} away"
                )
    return [dict(zip(header, fields, strict=True)) for fields in table]


def _checks(table: Sequence[Sequence[str]]) -> Iterator[str]:
    """Give a checksum of every row below the header, which covers header, number of rows and the rows before, too."""
    value = zlib.crc32(repr((len(table), list(table[0]))).encode())
    for fields in table[1:]:
        value = zlib.crc32(repr(list(fields)).encode(), value)
        yield f"{value:08x}"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write safetensors. The metadata lies as sorted JSON under one key: several keys come in random order.

    A digest of all of it lies there too, since the format itself does not notice a flipped bit.
    """
    from safetensors.torch import save

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(plain, {"sumnas": json.dumps({**metadata, SEAL: _seal(plain, metadata)}, sort_keys=True)})
    with replacing(path) as part:
        part.write_bytes(content)  # an OSError where it fails: safetensors' own writer has another error for it


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read safetensors with this package's metadata; UserError where absent or damaged."""
    with _opened(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        metadata = json.loads((file.metadata() or {}).get("sumnas", "{}"))
        seal = metadata.pop(SEAL, None)
        if seal is not None and seal != _seal(tensors, metadata):
            raise ValueError("its values are not those that were written")
        return tensors, metadata


def read_metadata(path: Path) -> dict[str, Any]:
    """Read what a safetensors file says of itself, without its tensors; UserError where absent or damaged."""
    with _opened(path, "np") as file:
        text = (file.metadata() or {}).get("sumnas")
        if text is None:
            raise ValueError("no metadata of this package's")
        metadata: dict[str, Any] = json.loads(text)
        metadata.pop(SEAL, None)
        return metadata


def _seal(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """Return a digest of the metadata and of the tensors' names, types, shapes and bytes."""
    import torch

    found = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


@contextlib.contextmanager
def _opened(path: Path, framework: str) -> Iterator[Any]:
    """Open safetensors; what goes wrong until it is closed becomes a UserError that names the file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework) as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage that writes it (`dvc repro` runs them all)") from None
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it and run the stage that writes it") from None


def sha256(path: Path) -> str:
    """Return the digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Return the digest of JSON-ready data, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
