"""A picture of a supernet's training while it runs, drawn now and then: an editor's DVC extension shows it growing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sumnas import files

FOLDER = Path("live")
"""Named under `plots` in dvc.yaml. No result: a picture goes when its training ends, and stays if that is killed."""
WATCHED = FOLDER / "trainings.svg"
"""In git. An editor looks anew when a picture that it knows is written; of a new one it knows nothing."""
FIRST = 10.0
"""Seconds before a first picture, and the least between two."""
SHARE = 0.01
"""Of the time that drawing may take."""
COLUMNS = {"loss": "training loss", "probe_loss": "validation loss of probes"}


class Live:
    """Draws the curves of one training into live/<name>.svg, if the clone has that folder."""

    def __init__(self, name: str) -> None:
        self.name, self.path = name, FOLDER / f"{name}.svg"
        self._next = time.monotonic() + FIRST

    def __call__(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Draw the epochs so far, if it is time to; a picture that cannot be written is left out."""
        began = time.monotonic()
        if began < self._next or not FOLDER.is_dir():
            return
        with contextlib.suppress(OSError):
            new = not self.path.exists()
            self._draw(history)
            if new:
                _look_anew()
        self._next = began + max(FIRST, (time.monotonic() - began) / SHARE)

    def end(self) -> None:
        """Take the picture away."""
        with contextlib.suppress(OSError):
            if self.path.exists():
                self.path.unlink()
                _look_anew()

    def _draw(self, history: Sequence[Mapping[str, Any]]) -> None:
        from sumnas import plots

        panels = []
        for column, label in COLUMNS.items():
            rows = [row for row in history if column in row]
            if rows:
                curve = plots.Curve(self.name, [row["epoch"] for row in rows], [float(row[column]) for row in rows])
                panels.append((label, [curve]))
        plots.curves(self.path, panels)


def _look_anew() -> None:
    """Write what is in git once more, the same bytes."""
    if WATCHED.exists():
        files.write_text(WATCHED, WATCHED.read_text(encoding="utf-8"))
