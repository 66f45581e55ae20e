"""The server: a process that sends the logs of this machine's stages to MLflow as they grow, and ends when idle."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from types import FrameType

from sumnas import files
from sumnas.tracking import log, queue
from sumnas.tracking.send import Sender
from sumnas.tracking.store import Store, load, uri_of

PAUSE = 0.5
"""Seconds between two looks at the logs."""
TOGETHER = 1.0
"""Seconds between two sendings of one log: what comes faster is sent together."""
IDLE = 10.0
"""Seconds that the server waits for another stage before it ends."""
STUCK = 90
"""Seconds after which one sending is given up."""
RETRY = 60.0
"""Seconds after which a failed sending is tried again, while its stage or another one is running."""
NICENESS, LONGEST = 10, 160
"""What the server adds to its niceness; the most characters of an error that a stage shows."""
REMEDY = "log.jsonl has everything, `python -m sumnas.tracking sync` sends it later"
"""What a stage says after an error of the server's."""


class Following:
    """One ticket: the log that it names, as far as it was read and sent."""

    def __init__(self, ticket: Path) -> None:
        self.ticket = ticket
        self.alive = self.done = False
        self.retry = 0.0
        self._sent = -TOGETHER
        self._reader: log.Reader | None = None
        self._sender: Sender | None = None
        self._lines: list[log.Line] = []

    def step(self, store: Store) -> None:
        """Send what is new; remove the ticket when the stage is over and all has arrived. Any exception of MLflow's."""
        content = queue.read(self.ticket)
        if content is None:
            self.done = True
            return
        path = Path(content["log"])
        if content["run"] is None:
            self.alive = _lives(content["pid"])
            if not self.alive:
                self._finish()
            return
        self.alive = log.running(path)  # asked before the log is read: else its end could be missed
        self._reader = self._reader or log.Reader(path)
        self._lines += self._reader.read()
        if not self._lines or self._lines[0].get("run") != content["run"]:
            self._finish()  # an older log, which was moved aside or replaced
            return
        if self.alive and time.monotonic() - self._sent < TOGETHER:
            return
        self._sender = self._sender or store.sender(self._lines)
        self._sender.send(self._lines)
        self._sent = time.monotonic()
        if not self.alive:
            if not self._sender.ended:
                self._sender.killed()
            log.mark_sent(path, self._lines, store.uri)
            self._finish()

    def failed(self, error: Exception) -> None:
        """Note why the log could not be sent, for its stage to read, and begin anew with it later."""
        files.write_text(queue.failure(self.ticket), complaint(error))
        self.retry = time.monotonic() + RETRY
        self._sender, self._reader, self._lines = None, None, []

    def _finish(self) -> None:
        self.done = True
        queue.remove(self.ticket)


def serve(root: Path) -> int:
    """Serve this machine's tickets until there are none for a while; the main function of the process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # stages end, and are ended, at other times
    signal.signal(signal.SIGALRM, _stuck)
    os.nice(NICENESS)
    line = queue.Queue(root)
    store: Store | None = None
    with contextlib.suppress(FileNotFoundError):  # somebody deleted the project
        while True:
            with line.serving() as first:
                if not first:
                    return 0
                try:
                    store = store or connect(root)
                    follow(line, store)
                except Exception as error:
                    for ticket in line.tickets():
                        files.write_text(queue.failure(ticket), complaint(error))
                    return 0
            # A stage that came just before the lock was given back relied on this server.
            if not [ticket for ticket in line.tickets() if not queue.failure(ticket).exists()]:
                return 0
    return 0


def connect(root: Path) -> Store:
    """Return the store; TimeoutError where it does not answer."""
    load()
    signal.alarm(STUCK)
    try:
        return Store(root)
    finally:
        signal.alarm(0)


def follow(line: queue.Queue, store: Store) -> None:
    """Send the logs of all tickets until nothing has happened for a while."""
    following: dict[Path, Following] = {}
    busy = time.monotonic()
    while time.monotonic() - busy < IDLE:
        following = {ticket: following.get(ticket) or Following(ticket) for ticket in line.tickets()}
        for one in following.values():
            if one.retry > time.monotonic():
                continue
            try:
                signal.alarm(STUCK)
                one.step(store)
                one.retry = 0.0
            except Exception as error:
                signal.alarm(0)
                one.failed(error)
            finally:
                signal.alarm(0)
        if any(one.alive or not one.retry for one in following.values() if not one.done):
            busy = time.monotonic()
        time.sleep(PAUSE)


def complaint(error: Exception) -> str:
    """Return the line that a stage shows."""
    return f"{uri_of(Path())}: {one_line(error)}; {REMEDY}\n"


def one_line(error: Exception) -> str:
    """Return the beginning of an error of MLflow's, which may be a page."""
    first, *_ = str(error).partition(" with exception")[0].strip().splitlines() or [type(error).__name__]
    return first if len(first) <= LONGEST else f"{first[:LONGEST]}..."


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _stuck(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError("MLflow does not answer")
