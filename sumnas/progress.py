"""What a person sees of a stage's progress: a bar on a terminal, plain lines with the time left in a log."""

from __future__ import annotations

import sys
import time
from typing import TextIO


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line at once, to standard error: standard output stays free for results."""
    print(text, file=stream or sys.stderr, flush=True)


class Progress:
    """Counts to `total`. On a terminal one line is rewritten; in a log a line appears every `every` seconds."""

    def __init__(self, label: str, total: int, every: float = 10.0, stream: TextIO | None = None) -> None:
        self.label, self.total, self.every = label, total, every
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self.start = self.shown = time.monotonic()
        self.first: int | None = None

    def update(self, done: int, note: str = "") -> None:
        """Show that `done` of the total are done."""
        now = time.monotonic()
        if self.first is None:  # what a resumed stage finds done took no time: the rate counts from here
            self.first, self.start = done, now
        if done < self.total and now - self.shown < (0.1 if self.terminal else self.every):
            return
        self.shown = now
        left = "done" if done == self.total else "?"
        if self.first < done < self.total:
            left = _duration((self.total - done) * (now - self.start) / (done - self.first))
        if self.terminal:
            filled = 24 * done // max(self.total, 1)
            end = "\n" if done == self.total else ""
            bar = "#" * filled + "." * (24 - filled)
            self.stream.write(f"\r{self.label} [{bar}] {done}/{self.total} {left} {note}\x1b[K{end}")
        else:
            remaining = "" if done == self.total else f", {left} left"
            self.stream.write(f"{self.label}: {done}/{self.total}{remaining} {note}".rstrip() + "\n")
        self.stream.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
