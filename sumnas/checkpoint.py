"""Work that survives an interruption: a locked folder per digest, whole files only (docs/pipeline.md).

The folder is `$SUMNAS_CHECKPOINTS/<stage>/<digest>/`, by default under the user's cache directory. The digest covers
the stage's settings, inputs and source files, so nothing of another setting is ever taken up.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from sumnas import files
from sumnas.distributed import ALONE, Ranks
from sumnas.errors import UserError
from sumnas.progress import say

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
"""An item of a stage's list."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Signals at which a stage saves its work and ends."""
TOGETHER = 60.0
"""Seconds that the first of several ranks waits for a lock before it lets the others know that it still waits."""


class Interrupted(Exception):
    """A signal asked the stage to stop; what was done is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; run the same command again to go on from here")
        self.number = number


def in_blocks(items: Sequence[T], size: int) -> Iterator[tuple[str, Sequence[T]]]:
    """Yield the items block by block, each with the key under which `remember` keeps what was made of it.

    Between two blocks a stage looks at the signals; what is finished is kept block by block.
    """
    for first in range(0, len(items), size):
        yield f"block {first}", items[first : first + size]


def interval() -> float:
    """Return the seconds between two checkpoints of a training: $SUMNAS_CHECKPOINT_SECONDS, or 60.

    UserError where that is no number.
    """
    text = os.environ.get("SUMNAS_CHECKPOINT_SECONDS") or "60"
    try:
        return float(text)
    except ValueError:
        raise UserError(f"SUMNAS_CHECKPOINT_SECONDS = {text!r}: must be a number of seconds, such as 60") from None


def root() -> Path:
    """Return the folder of all work: $SUMNAS_CHECKPOINTS, or `sumnas` in the user's cache directory."""
    import platformdirs

    return Path(os.environ.get("SUMNAS_CHECKPOINTS") or platformdirs.user_cache_dir("sumnas"))


class Work:
    """One stage's folder under one digest. Use as a context manager: it holds the lock.

    Of several `ranks` the first alone has the folder and saves; all load what it loads, and end at the same look.
    """

    def __init__(
        self, stage: str, digest: str, *, wait: bool = False, settings: str = "", accept_code_change: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:  # fmt: skip
        """`settings` is the digest without the source files: with `accept_code_change` it is enough to take work up."""
        self.folder = root() / stage / digest[:32]
        self.wait, self.settings, self.accept_code_change = wait, settings, accept_code_change
        self.ranks = ranks
        self.signalled: int | None = None
        self._arrived: int | None = None
        self.interval = interval()
        self._saved_at = time.monotonic()
        self.before = 0.0
        """Seconds that earlier calls have put into this work, which were stopped; of a killed one to what it saved."""
        self._began: float | None = None

    def __enter__(self) -> Work:
        while not self.ranks.from_first(not self.ranks.first or self._open()):
            pass  # the others ask again and again: one long wait would end them
        if self.ranks.from_first(self.folder.name) != self.folder.name:
            raise UserError(
                f"process {self.ranks.rank} sees other settings, inputs or source files than the first: all need the "
                "same clone with the same data"
            )
        self._handlers = {number: signal.signal(number, self._signal) for number in SIGNALS}
        return self

    def _open(self) -> bool:
        """Take the lock; False where it is to be waited for longer."""
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
            self._lock.acquire(timeout=0 if not self.wait else TOGETHER if self.ranks.several else -1)
        except filelock.Timeout:
            if self.wait:
                return False
            raise UserError(
                f"{self.folder}: another process is doing this very work; wait for it, or end it and start again"
            ) from None
        if self.settings:
            files.write_text(self.folder / "settings", self.settings)
            if self.accept_code_change:
                self._adopt()
        self.before, self._began = self._spent(), time.monotonic()
        return True

    def _spent(self) -> float:
        """Return the seconds noted so far. A file that a person or a full disk has broken is worth no failure."""
        try:
            return float((self.folder / "seconds").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0.0

    def _note_spent(self) -> None:
        if self.ranks.first and self._began is not None:
            files.write_text(self.folder / "seconds", f"{self.before + time.monotonic() - self._began:.3f}")

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self.ranks.first:
            with contextlib.suppress(OSError):  # why the stage ends is told already
                self._note_spent()
            self._lock.release()

    def _signal(self, number: int, _frame: FrameType | None) -> None:
        self._arrived = number
        if self.ranks.several:
            return  # a launcher passes on what a terminal or scheduler has sent to each already: see `look`
        if self.signalled is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: do not wait for the step's end
        self.signalled = number

    def look(self) -> None:
        """Let all ranks know of a signal that has reached one of them. Each calls this after the same step."""
        if self.ranks.several:
            self.signalled = self.ranks.largest(self._arrived or 0) or None

    def stop_if_asked(self) -> None:
        """Raise Interrupted where a signal has arrived."""
        if self.signalled is not None:
            self.ranks.wait()  # the first rank has saved: the end of another would have it killed
            raise Interrupted(self.signalled)

    def due(self) -> bool:
        """Whether a signal has arrived, or the last checkpoint is old enough for the next; on the first rank alone."""
        old = time.monotonic() - self._saved_at > self.interval
        return self.ranks.first and (self.signalled is not None or old)

    def _adopt(self) -> None:
        """Take over the newest work of the same settings and inputs that other source files have begun."""
        if any(path.name not in ("lock", "settings", "seconds") for path in self.folder.iterdir()):
            return
        found = [p.parent for p in self.folder.parent.glob("*/settings")
                 if p.parent != self.folder and p.read_text() == self.settings]  # fmt: skip
        for folder in sorted(found, key=lambda f: f.stat().st_mtime, reverse=True):
            with Work(folder.parent.name, folder.name) as other:
                other._began = None
                for path in folder.iterdir():
                    if path.name not in ("lock", "settings"):
                        os.replace(path, self.folder / path.name)
            say(f"going on with what other source files have begun: {folder}")
            return

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint; the one before it stays until this one is whole."""
        import torch

        current, previous = self.folder / "checkpoint.pt", self.folder / "previous.pt"
        content = io.BytesIO()
        torch.save(state, content)
        with files.replacing(self.folder / "next.pt") as part:
            part.write_bytes(content.getbuffer())  # an OSError where the disk is full: torch has another error for it
        files.write_text(self.folder / "next.sha256", files.sha256(self.folder / "next.pt"))
        for suffix in (".sha256", ".pt"):
            if current.with_suffix(suffix).exists():
                os.replace(current.with_suffix(suffix), previous.with_suffix(suffix))
            os.replace((self.folder / "next").with_suffix(suffix), current.with_suffix(suffix))
        self._note_spent()
        self._saved_at = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Return the newest whole checkpoint, or None; says so where a damaged one is passed over.

        Its tensors lie in the host's memory: the device that they were saved from may be another process's, or missing.
        """
        return self.ranks.from_first(self._load() if self.ranks.first else None)

    def _load(self) -> dict[str, Any] | None:
        import torch

        for name in ("checkpoint", "previous"):
            path = self.folder / f"{name}.pt"
            if not path.exists():
                continue
            # After a kill between two renames a file may stand beside the other's digest: either may vouch for it.
            digests = [p.read_text() for n in ("checkpoint", "previous", "next")
                       if (p := self.folder / f"{n}.sha256").exists()]  # fmt: skip
            if files.sha256(path) in digests:
                state: dict[str, Any] = torch.load(path, "cpu", weights_only=True)
                return state
            say(f"{path}: damaged checkpoint, passed over")
        return None

    def resumable(self, key: str) -> dict[str, Any]:
        """Return `state` and `on_step` for a training that this work's checkpoint is for: see `train_network`."""
        kept = self.load()

        def on_step(capture: Callable[[], dict[str, Any]]) -> None:
            self.look()
            if self.due():
                self.save({"key": key, "state": capture()})
            self.stop_if_asked()

        return {"state": kept["state"] if kept and kept["key"] == key else None, "on_step": on_step}

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

    def remember_tensors(self, key: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the tensors kept under `key`, or make and keep them, as `remember` does with JSON."""
        path = self.folder / "done" / f"{files.digest(key)[:32]}.safetensors"
        seal = path.with_suffix(".sha256")
        if path.exists() and seal.exists() and seal.read_text() == files.sha256(path):
            return files.read_tensors(path)[0]
        self.stop_if_asked()
        tensors = make()
        files.write_tensors(path, tensors, {"key": key})
        files.write_text(seal, files.sha256(path))
        return tensors

    def clear(self, keep: str = "") -> None:
        """Delete the work, but for the file `keep`: its result is whole there or elsewhere."""
        if not self.ranks.first:
            return
        self._began = None  # whoever does this work again begins at nothing
        for path in self.folder.iterdir():
            if path.name in ("lock", keep):
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextlib.contextmanager
def exit_code(say: Callable[[str], None]) -> Iterator[None]:
    """Turn an interruption into the exit code that shells use for its signal: 128 + number.

    Outside of a Work, which saves first, a signal stops at once; files being written are taken back.
    """

    def stop_now(number: int, _frame: FrameType | None) -> None:
        raise Interrupted(number)

    before = {number: signal.signal(number, stop_now) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    except Interrupted as stop:
        say(str(stop))
        raise SystemExit(128 + stop.number) from None
    except KeyboardInterrupt:
        say("stopped; nothing half-written is left")
        raise SystemExit(130) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
