"""Removes a dvc.lock that a killed DVC left half written: DVC itself says no more than that its validation failed.

Nothing computed is lost with it: `dvc repro` finds every finished stage in its run cache and writes the file anew.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sumnas.diagnosis import lock_is_whole

LOCK = Path("dvc.lock")


def main() -> None:
    """Entry point, before `dvc repro` in the Makefile."""
    if not lock_is_whole(LOCK):
        LOCK.unlink()
        print(f"{LOCK}: half written by a DVC that was killed; removed, DVC's run cache has what was computed",
              file=sys.stderr)  # fmt: skip


if __name__ == "__main__":
    main()
