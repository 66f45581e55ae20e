"""What a stage takes of its machine, now and then: MLflow shows `system/...` on a page of its own.

Read from the system in a tenth of a millisecond when figures are tracked anyway: no thread, nothing between two steps.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any

EVERY = 10.0
"""Seconds between two looks at least: stages shorter than that have only the figures of their run.json."""


class Usage:
    """Counts from when it is made."""

    def __init__(self) -> None:
        self._wall, self._busy = time.monotonic(), time.process_time()

    def look(self) -> dict[str, float]:
        """Return figures by MLflow's names; none within EVERY seconds of the last look that gave some.

        Percent of one core since then, and memory in MiB: now, and at most so far.
        """
        wall, busy = time.monotonic(), time.process_time()
        taken = wall - self._wall
        if taken < EVERY:
            return {}
        found = {
            "system/cpu_percent": 100 * (busy - self._busy) / taken,
            "system/peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        self._wall, self._busy = wall, busy
        return found | _memory() | _device()


def _memory() -> dict[str, float]:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return {}
    return {"system/memory_mb": pages * resource.getpagesize() / 2**20}


def _device() -> dict[str, float]:
    """Return the memory of a GPU that this process computes on; asks torch only where it is in use there."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    return {
        "system/gpu_memory_mb": torch.cuda.memory_allocated() / 2**20,
        "system/gpu_peak_memory_mb": torch.cuda.max_memory_allocated() / 2**20,
    }
