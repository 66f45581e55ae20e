"""The child process that sends a growing log to MLflow, and the handle that the stage has on it.

The stage keeps the child's standard input open and writes a byte to it when the log has grown; end of file means that
the stage is over, however it ended. The child's standard output is for one line: why it gave up.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from sumnas.tracking import log
from sumnas.tracking.store import Store, load, uri_of

if TYPE_CHECKING:
    from sumnas.tracking.send import Sender

PAUSE = 1.0
"""Seconds between two looks at the log: what comes faster is sent together."""
STUCK = 90
"""Seconds after which one sending is given up."""
ALONE = 180
"""Seconds that a child may live longer than its stage: on a busy machine it gets little time."""
NICENESS, LONGEST = 10, 160


class Follower:
    """The stage's handle on its child."""

    def __init__(self, path: Path) -> None:
        """Start the child; OSError where that is not possible."""
        package = Path(__file__).resolve().parents[2]
        places = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._child = subprocess.Popen(
            [sys.executable, "-m", "sumnas.tracking", "follow", str(path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        )  # fmt: skip
        assert self._child.stdin and self._child.stdout
        self._input, self._output = self._child.stdin, self._child.stdout
        os.set_blocking(self._input.fileno(), False)
        os.set_blocking(self._output.fileno(), False)

    def wake(self) -> None:
        """Tell the child that the log has grown."""
        with contextlib.suppress(OSError):  # it is gone, or so far behind that the pipe is full
            self._input.write(b".")

    def complaint(self) -> str | None:
        """Return why the child gave up, or None; does not wait."""
        text = b""
        with contextlib.suppress(OSError):
            text = self._output.read() or b""
        if text.strip():
            return text.decode(errors="replace").strip()
        code = self._child.poll()
        return None if not code else f"the sender ended with code {code}; {REMEDY}"

    def finish(self, patience: float) -> str | None:
        """Tell the child that the stage is over, wait at most so many seconds, and return its complaint."""
        self._input.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(patience)
        found = self.complaint()
        self._output.close()
        # What still runs is left alone on purpose: no warning about it when this handle goes.
        self._child.returncode = self._child.returncode or 0
        return found


REMEDY = "log.jsonl has everything, `python -m sumnas.tracking sync` sends it later"


def follow(path: Path) -> int:
    """Send the log at `path` as it grows, until the stage is over; the child's main function."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, _stuck)
    complaints = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whatever else prints does not reach the stage
    parent = os.getppid()
    os.nice(NICENESS)
    reader: log.Reader | None = None
    sender: Sender | None = None
    lines: list[log.Line] = []
    over, sent_at = False, -PAUSE
    try:
        load()
        signal.alarm(STUCK)
        store = Store(Path())
        while not over:
            signal.alarm(0)
            woken, over = _wait(parent, sent_at + PAUSE)
            signal.alarm(ALONE if over else STUCK)
            if woken or (over and reader):
                reader = reader or log.Reader(path)
                lines += reader.read()
                sender = sender or store.sender(lines)
                sender.send(lines)
                sent_at = time.monotonic()
        if sender is not None:
            if not sender.ended and not log.running(path):
                sender.killed()
            log.mark_sent(path, lines, store.uri)
    except Exception as error:
        signal.alarm(0)
        with contextlib.suppress(OSError):
            os.write(complaints, f"{uri_of(Path())}: {one_line(error)}; {REMEDY}\n".encode())
    return 0


def one_line(error: Exception) -> str:
    """Return the beginning of an error of MLflow's, which may be a page."""
    first, *_ = str(error).partition(" with exception")[0].strip().splitlines() or [type(error).__name__]
    return first if len(first) <= LONGEST else f"{first[:LONGEST]}..."


def _wait(parent: int, until: float) -> tuple[bool, bool]:
    """Wait for the stage to write, then until the time `until`; return whether it wrote, and whether it is over."""
    woken = False
    while True:
        patience = max(0.0, until - time.monotonic()) if woken else PAUSE
        ready, _, _ = select.select([0], [], [], patience)
        data = os.read(0, 65536) if ready else b""
        woken |= bool(data)
        if (ready and not data) or os.getppid() != parent:
            return woken, True
        if woken and time.monotonic() >= until:
            return True, False


def _stuck(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError("MLflow does not answer")
