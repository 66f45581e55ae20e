"""Work that survives an interruption: a locked folder per digest, whole files only (docs/pipeline.md).

The folder is `$SUMNAS_CHECKPOINTS/<stage>/<digest>/`, by default under the user's cache directory. The digest covers
the stage's settings, inputs and source files, so nothing of another setting is ever taken up.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from sumnas import files
from sumnas.errors import UserError

T = TypeVar("T")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Interrupted(Exception):
    """A signal asked the stage to stop; what was done is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; run the same command again to go on from here")
        self.number = number


def root() -> Path:
    """Return the folder of all work: $SUMNAS_CHECKPOINTS, or `sumnas` in the user's cache directory."""
    import platformdirs

    return Path(os.environ.get("SUMNAS_CHECKPOINTS") or platformdirs.user_cache_dir("sumnas"))


class Work:
    """One stage's folder under one digest. Use as a context manager: it holds the lock."""

    def __init__(self, stage: str, digest: str, *, wait: bool = False) -> None:
        self.folder = root() / stage / digest[:32]
        self.wait = wait
        self.signalled: int | None = None
        self._saved_at = time.monotonic()

    def __enter__(self) -> Work:
        import filelock

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot keep checkpoints there ({error.strerror}); set SUMNAS_CHECKPOINTS to a folder "
                "that can be written"
            ) from None
        self._lock = filelock.FileLock(self.folder / "lock")
        try:
            self._lock.acquire(timeout=-1 if self.wait else 0)
        except filelock.Timeout:
            raise UserError(
                f"{self.folder}: another process is doing this very work; wait for it, or end it and start again"
            ) from None
        self._handlers = {number: signal.signal(number, self._signal) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._lock.release()

    def _signal(self, number: int, _frame: FrameType | None) -> None:
        if self.signalled is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: do not wait for the step's end
        self.signalled = number

    def stop_if_asked(self) -> None:
        """Raise Interrupted where a signal has arrived."""
        if self.signalled is not None:
            raise Interrupted(self.signalled)

    def due(self, seconds: float) -> bool:
        """Whether a signal has arrived, or the last checkpoint is older than `seconds`."""
        return self.signalled is not None or time.monotonic() - self._saved_at > seconds

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint; the one before it stays until this one is whole."""
        import torch

        current, previous = self.folder / "checkpoint.pt", self.folder / "previous.pt"
        with files.replacing(self.folder / "next.pt") as part:
            torch.save(state, part)
        files.write_text(self.folder / "next.sha256", files.sha256(self.folder / "next.pt"))
        for suffix in (".sha256", ".pt"):
            if current.with_suffix(suffix).exists():
                os.replace(current.with_suffix(suffix), previous.with_suffix(suffix))
            os.replace((self.folder / "next").with_suffix(suffix), current.with_suffix(suffix))
        self._saved_at = time.monotonic()

    def load(self, say: Callable[[str], None] = lambda _text: None) -> dict[str, Any] | None:
        """Return the newest whole checkpoint, or None; says so where a damaged one is passed over."""
        import torch

        for name in ("checkpoint", "previous"):
            path = self.folder / f"{name}.pt"
            if not path.exists():
                continue
            # After a kill between two renames a file may stand beside the other's digest: either may vouch for it.
            digests = [p.read_text() for n in ("checkpoint", "previous", "next")
                       if (p := self.folder / f"{n}.sha256").exists()]  # fmt: skip
            if files.sha256(path) in digests:
                state: dict[str, Any] = torch.load(path, weights_only=True)
                return state
            say(f"{path}: damaged checkpoint, passed over")
        return None

    def remember(self, key: str, make: Callable[[], T]) -> T:
        """Return the JSON-ready value kept under `key`, or make and keep it. Stops between two, where asked to."""
        path = self.folder / "done" / f"{files.digest(key)[:32]}.json"
        with contextlib.suppress(UserError):
            if path.exists():
                kept = files.read_json(path)
                if kept["sha256"] == files.digest(kept["value"]):
                    value: T = kept["value"]
                    return value
        self.stop_if_asked()
        value = make()
        # Through JSON in either case, so that a resumed stage sees exactly what an undisturbed one sees.
        plain: T = json.loads(json.dumps(value))
        files.write_json(path, {"key": key, "value": plain, "sha256": files.digest(plain)})
        return plain

    def clear(self) -> None:
        """Delete the work: its result is whole elsewhere."""
        for path in self.folder.iterdir():
            if path.name == "lock":
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextlib.contextmanager
def exit_code(say: Callable[[str], None]) -> Iterator[None]:
    """Turn an interruption into the exit code that shells use for its signal: 128 + number."""
    try:
        yield
    except Interrupted as stop:
        say(str(stop))
        raise SystemExit(128 + stop.number) from None
    except KeyboardInterrupt:
        say("stopped; nothing half-written is left")
        raise SystemExit(130) from None
