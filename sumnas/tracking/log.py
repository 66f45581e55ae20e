"""log.jsonl: everything that is tracked of one run, a JSON object per line, in the order in which it happened.

The field `event` says what a line is:

- `start`: `run` (the key, a random hex string), `name`, `group`, `work` (the digest of resumable work, or null)
- `params`, `tags`: `values`, by name
- `metrics`: `values` by name, and their `step`
- `input`: a data set that was read: `name`, `context` (what for), `path`, and the content's `sha256`
- `model`: a network to register: the registry's `name`, `network` (which of the run's), `architecture`, `about` it, and
  `path` and `sha256` of the file that has its weights
- `artifact`: `path`, relative to the project's root, and the content's `sha256`
- `resume`: the stage goes on from a checkpoint
- `end`: `status` (FINISHED, FAILED, KILLED)
- `sent`: all lines above have arrived at `to`

Every line has `time`, in milliseconds since 1970. A run that was killed has no `end`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sumnas.tracking import locks

Line = dict[str, Any]
"""One line; empty where it is damaged, so that lines keep their numbers."""


class Busy(Exception):
    """Another process is writing this log."""


def now() -> int:
    """Return the time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def line(event: str, **fields: object) -> Line:
    """Return a line of now."""
    return {"event": event, "time": now(), **fields}


class Writer:
    """Appends whole lines to a log, and holds its lock while it is open."""

    def __init__(self, path: Path, handle: int) -> None:
        self.path, self._handle = path, handle

    @classmethod
    def anew(cls, path: Path, lines: Sequence[Mapping[str, object]], *, keep: bool) -> Writer:
        """Begin the log anew with `lines`; Busy where another process is writing it.

        With `keep`, an older log that has not arrived at MLflow is moved aside, where `sync` finds it.
        """
        with contextlib.suppress(FileNotFoundError):
            os.close(_locked(path))
            old = read(path)
            if keep and old and "run" in old[0] and old[-1].get("event") != "sent":
                os.replace(path, path.with_suffix(f".{old[0]['run'][:8]}.jsonl"))
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        # Not truncated but replaced: a sender may still be reading the old one.
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o644)
        _lock(handle, path)
        writer = cls(path, handle)
        try:
            for entry in lines:
                writer.write(entry)
            os.replace(part, path)
        except OSError:
            writer.close()
            part.unlink(missing_ok=True)
            raise
        return writer

    @classmethod
    def again(cls, path: Path) -> Writer:
        """Go on with the log; a last line that a kill cut off is removed. Busy where another process is writing it."""
        handle = _locked(path)
        os.ftruncate(handle, path.read_bytes().rfind(b"\n") + 1)
        return cls(path, handle)

    def write(self, entry: Mapping[str, object]) -> None:
        """Append a line in one go. OSError where not all of it went in, as on a disk that has got full."""
        line = (json.dumps(entry, sort_keys=True, allow_nan=False) + "\n").encode()
        if os.write(self._handle, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def close(self) -> None:
        """Release the lock."""
        os.close(self._handle)


class Reader:
    """Gives the whole lines that a growing log has gained. Stays with its file where another takes the path."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._rest = b""

    def read(self) -> list[Line]:
        """Return the lines written since the last call."""
        *whole, self._rest = (self._rest + self._file.read()).split(b"\n")
        return [_parsed(text) for text in whole]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read(path: Path) -> list[Line]:
    """Return all whole lines."""
    reader = Reader(path)
    try:
        return reader.read()
    finally:
        reader.close()


def running(path: Path) -> bool:
    """Whether a living stage is writing this log."""
    return locks.held(path)


def mark_sent(path: Path, lines: Sequence[Line], to: str) -> None:
    """Note at the end of a log that it has arrived, unless it goes on or says so already."""
    with contextlib.suppress(OSError, Busy):
        writer = Writer.again(path)
        try:
            there = read(path)
            if len(there) == len(lines) and there[0] == lines[0] and there[-1].get("event") != "sent":
                writer.write(line("sent", to=to))
        finally:
            writer.close()


def _parsed(text: bytes) -> Line:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _locked(path: Path) -> int:
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    try:
        _lock(handle, path)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _lock(handle: int, path: Path) -> None:
    if not locks.take(handle):
        raise Busy(f"{path}: another process is writing it")
