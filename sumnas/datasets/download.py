"""Files from the network: whole and checked, or not there at all."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import math
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sumnas import files
from sumnas.errors import UserError
from sumnas.progress import Progress, say

MIRROR = "SUMNAS_DATA_URL"
"""Environment variable: the address of a copy of a `data/raw` folder, asked instead of the official ones."""
WAITS = (1.0, 3.0, 9.0)
"""Seconds before the second, third and last attempt at one address."""
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as dead."""
PASSING = {408, 425, 429, 500, 502, 503, 504}
"""Answers of a server that may be another a moment later."""


class RawFile(NamedTuple):
    """A published file: its `path` under the folder of raw files, what it must be, where it comes from.

    `md5` is in hexadecimal digits, `size` in bytes and None where it is not known. Of `urls` the first that gives the
    whole file counts.
    """

    path: str
    md5: str
    urls: tuple[str, ...]
    size: int | None = None

    def describe(self, root: Path) -> str:
        """Return one line with all that is needed to fetch the file by hand."""
        size = f"{self.size:,} bytes, " if self.size else ""
        return f"put {self.urls[0]} ({size}md5 {self.md5}) at {root / self.path}"


class _Failed(Exception):
    """One attempt failed; `passing` where another may succeed."""

    def __init__(self, reason: str, *, passing: bool) -> None:
        super().__init__(reason)
        self.passing = passing


def md5(path: Path) -> str:
    """Return the checksum by which the publishers name their files."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def ensure(root: Path, wanted: Sequence[RawFile]) -> list[Path]:
    """Return the paths of the files under `root`, fetching those that are absent or damaged.

    UserError, with a line for every file that is still missing, where one cannot be had.
    """
    paths = [root / file.path for file in wanted]
    missing = []
    for file, path in zip(wanted, paths, strict=True):
        if path.exists():
            if md5(path) == file.md5:
                continue
            say(f"{path}: not the published file (another md5: damaged, or a partial copy); fetching it again")
        missing.append(file)
    for number, file in enumerate(missing):
        try:
            _fetch(file, root / file.path)
        except _Failed as failure:
            lines = [f"{failure}; {file.describe(root)}, or set {MIRROR} to a mirror of {root}"]
            raise UserError(
                "\n".join([*lines, *(f"also {rest.describe(root)}" for rest in missing[number + 1 :])])
            ) from None
    return paths


def _fetch(file: RawFile, path: Path) -> None:
    """Fetch from the first address that gives the whole file."""
    urls = file.urls
    if mirror := os.environ.get(MIRROR):
        if urllib.parse.urlsplit(mirror).scheme not in ("http", "https"):
            raise _Failed(f"{MIRROR} = {mirror}: must start with http:// or https://", passing=False)
        urls = (f"{mirror.rstrip('/')}/{urllib.parse.quote(file.path)}",)
    _clear_remains(path)
    reasons = []
    for url in urls:
        for wait in (*WAITS, None):
            try:
                return _attempt(url, file, path)
            except _Failed as failure:
                reason = f"{url}: {failure}"
                if wait is None or not failure.passing:
                    break
                say(f"{reason}; trying again in {wait:g} s")
                time.sleep(wait)
        reasons.append(reason)
    raise _Failed("; ".join(reasons), passing=False)


def _attempt(url: str, file: RawFile, path: Path) -> None:
    """Fetch once into a temporary file, and move it into place when it is the published one."""
    digest, done = hashlib.md5(usedforsecurity=False), 0
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "sumnas"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response, files.replacing(path) as part:
            length = response.headers.get("Content-Length")
            total = int(length) if length else file.size
            bar = Progress(f"fetching {path.name} (MB)", math.ceil((total or 0) / 1e6))
            with part.open("wb") as target:
                while block := response.read(1 << 20):
                    target.write(block)
                    digest.update(block)
                    done += len(block)
                    if total:
                        bar.update(min(done, total) // 1_000_000 if done < total else bar.total)
            if length and done < int(length):
                raise _Failed(f"the transfer broke off after {done:,} of {int(length):,} bytes", passing=True)
            if digest.hexdigest() != file.md5:
                raise _Failed(
                    f"gave another file ({done:,} bytes, md5 {digest.hexdigest()}, not {file.md5})", passing=True
                )
    except urllib.error.HTTPError as error:
        raise _Failed(f"the server says {error.code} {error.reason}", passing=error.code in PASSING) from None
    except urllib.error.URLError as error:
        raise _Failed(f"no connection ({error.reason})", passing=True) from None
    except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise _Failed(f"the transfer broke off ({error or type(error).__name__})", passing=True) from None


def _clear_remains(path: Path) -> None:
    """Delete what a killed download left; one that another process is at may be minutes old, but not a day."""
    for part in path.parent.glob(f".{path.name}.*.part"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > 86400:
                part.unlink()
