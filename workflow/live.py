"""A picture of a training while it runs, drawn now and then: what an editor's DVC extension shows growing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path("live")
"""Named under `plots` in dvc.yaml. No result: a picture goes when its training ends, and stays if that is killed."""
FIRST = 30.0
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
            self._draw(history)
        self._next = began + max(FIRST, (time.monotonic() - began) / SHARE)

    def end(self) -> None:
        """Take the picture away."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _draw(self, history: Sequence[Mapping[str, Any]]) -> None:
        from sumnas import plots

        panels = []
        for column, label in COLUMNS.items():
            rows = [row for row in history if column in row]
            if rows:
                curve = plots.Curve(self.name, [row["epoch"] for row in rows], [float(row[column]) for row in rows])
                panels.append((label, [curve]))
        plots.curves(self.path, panels)
