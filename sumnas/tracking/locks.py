"""Locks on open files, which the system takes from a process that dies."""

from __future__ import annotations

import fcntl
import time
from pathlib import Path


def held(path: Path) -> bool:
    """Whether a living process holds the file's lock."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def take(handle: int) -> bool:
    """Take the lock of an open file; False where another process has it. True on a file system without locks."""
    for _ in range(10):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)  # whoever asks whether it is held has it for a moment
        except OSError:
            return True
        else:
            return True
    return False
