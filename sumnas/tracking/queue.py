"""Tickets of the stages whose logs are to be sent, in `mlflow.queue/` in the project's root.

A stage puts a ticket there and sees to it that a server (serve.py) is running; the server removes the ticket when the
log has arrived. One server serves all stages of one machine and tracking URI, so that MLflow is imported once and not
by every stage. Which tickets belong to a server says the first part of their names.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sumnas import files
from sumnas.errors import UserError
from sumnas.tracking import locks
from sumnas.tracking.store import ENVIRONMENT, uri_of

FOLDER = "mlflow.queue"
"""Folder of the tickets, in the project's root."""
RESTART = 60.0
"""Seconds after which a stage starts a server again, when the one that it started is gone."""
GRACE = 2.0
"""Seconds that the server of another stage may take from its start until it can be seen."""
LOOK = 5.0
"""Seconds between two looks at the server."""


class Queue:
    """The tickets of this machine and tracking URI."""

    def __init__(self, root: Path) -> None:
        self.folder = root / FOLDER
        self.scope = hashlib.sha256(f"{platform.node()} {uri_of(root)}".encode()).hexdigest()[:8]
        self._lock = self.folder / f"{self.scope}.lock"

    def tickets(self) -> list[Path]:
        """Return all tickets, the oldest first."""
        found = []
        for path in self.folder.glob(f"{self.scope}-*.json"):
            with contextlib.suppress(FileNotFoundError):
                found.append((path.stat().st_mtime, path))
        return [path for _, path in sorted(found)]

    def served(self) -> bool:
        """Whether a server is running."""
        return locks.held(self._lock)

    @contextlib.contextmanager
    def serving(self) -> Iterator[bool]:
        """Be the server; gives False where there is one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock.open("ab") as file:
            yield locks.take(file.fileno())


def failure(ticket: Path) -> Path:
    """Return the file in which the server says why it could not send a ticket's log."""
    return ticket.with_suffix(".failed")


def remove(ticket: Path) -> None:
    """Remove a ticket and what was said about it."""
    ticket.unlink(missing_ok=True)
    failure(ticket).unlink(missing_ok=True)


def read(ticket: Path) -> dict[str, Any] | None:
    """Return a ticket's content: `pid` of its stage, `log` and, once the log is begun, `run`. None where it is gone."""
    try:
        content: dict[str, Any] = files.read_json(ticket)
    except UserError:
        return None
    return content


class Ticket:
    """A stage's place in the queue."""

    def __init__(self, root: Path, path: Path) -> None:
        """Queue up for the log at `path`, and start a server where there is none: it takes seconds to be ready."""
        self._queue = Queue(root)
        self.path = self._queue.folder / f"{self._queue.scope}-{uuid.uuid4().hex[:12]}.json"
        self._content = {"pid": os.getpid(), "log": str(path), "run": None}
        self._looked, self._started = time.monotonic(), -RESTART
        self._server: subprocess.Popen[bytes] | None = None
        files.write_json(self.path, self._content)
        self._serve()

    def begun(self, run: str) -> None:
        """Tell the server that the log of this run is there."""
        self._content["run"] = run
        files.write_json(self.path, self._content)

    def complaint(self) -> str | None:
        """Return why the server could not send the log, once, or None. Sees to it that there is a server."""
        now = time.monotonic()
        if now - self._looked > LOOK:
            self._looked = now
            if self._server is not None:
                self._server.poll()  # take leave of one that has ended
            self._serve()
        path = failure(self.path)
        if not path.exists():
            return None
        text = path.read_text(encoding="utf-8").strip()
        path.unlink(missing_ok=True)
        return text

    def finish(self, patience: float) -> str | None:
        """Wait at most so many seconds until the log has arrived; return the server's complaint."""
        if self._content["run"] is None:  # nothing was written
            remove(self.path)
        else:
            self._serve()
        started = time.monotonic()
        while self.path.exists() and not failure(self.path).exists():
            taken = time.monotonic() - started
            if taken > patience or (taken > GRACE and not self._in_work()):
                break
            time.sleep(0.02)
        found = self.complaint() if self.path.exists() else None
        if self._server is not None and self._server.poll() is None:
            self._server.returncode = 0  # it outlives this process on purpose: no warning about that
        return found

    def _in_work(self) -> bool:
        own = self._server is not None and self._server.poll() is None  # it may not have the lock yet
        return own or self._queue.served()

    def _serve(self) -> None:
        if self._queue.served() or time.monotonic() - self._started < RESTART:
            return
        self._started = time.monotonic()
        package = Path(__file__).resolve().parents[2]
        places = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
        nothing = subprocess.DEVNULL
        self._server = subprocess.Popen(
            [sys.executable, "-m", "sumnas.tracking", "serve"],
            stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True,
            env={**ENVIRONMENT, **os.environ, "PYTHONPATH": os.pathsep.join(places)},
        )  # fmt: skip
