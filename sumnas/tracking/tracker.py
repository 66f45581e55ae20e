"""What a stage calls: it writes lines to the log, queues up for MLflow, and never stops the stage."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

from sumnas import files
from sumnas.progress import say
from sumnas.tracking import log
from sumnas.tracking.queue import Ticket
from sumnas.tracking.usage import Usage

P = ParamSpec("P")
"""The parameters of a guarded method of Tracker."""
SHARE, SECONDS, PATIENCE = 0.05, 10.0, 120.0
"""A stage waits for MLflow for at most this share of its own time, and at most so long; PATIENCE with `wait`."""


def _guarded(method: Callable[Concatenate[Tracker, P], None]) -> Callable[Concatenate[Tracker, P], None]:
    """Let a call fail with one line of warning at most; after the first failure, do nothing."""

    @functools.wraps(method)
    def call(self: Tracker, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if self.path is None or self._failed:
            return
        try:
            method(self, *args, **kwargs)
        except log.Busy:  # a second process with the same output: the first one is tracked
            self._failed = True
        except Exception as error:
            self._failed = True
            self._warn(f"{error}; the stage goes on untracked")

    return call


class Tracker:
    """One run of one stage. Without a path it does nothing.

    The log is begun anew at the first figure, or taken up again by `resume`: only then is it known which.
    """

    def __init__(
        self,
        path: Path | None = None,
        name: str = "",
        group: tuple[str, str] = ("", ""),
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, object] | None = None,
    ) -> None:
        """Track the run `name` in `path`, relative to the project's root. `group`: the parent run's key and name."""
        self.path, self.name, self.group = path, name, group
        self.mode = os.environ.get("SUMNAS_TRACKING", "on") if path else "off"
        self._params, self._tags = dict(params or {}), dict(tags or {})
        self._started, self._start_time = time.monotonic(), log.now()
        self._writer: log.Writer | None = None
        self._known: set[tuple[str, int]] = set()
        self._failed = self._warned = False
        self._ticket: Ticket | None = None
        self._usage = Usage()
        if path and self.mode != "off":
            self._queue_up(path)

    @contextlib.contextmanager
    def careful(self) -> Iterator[None]:
        """Let what prepares a call fail as a call may: with one line of warning."""
        try:
            yield
        except Exception as error:
            self._warn(f"{type(error).__name__}: {error}; the stage goes on untracked")

    @_guarded
    def _queue_up(self, path: Path) -> None:
        self._ticket = Ticket(Path(), path)

    @property
    def begun(self) -> bool:
        """Whether the log has been begun."""
        return self._writer is not None

    @_guarded
    def resume(self, folder: Path) -> None:
        """Go on with the log of the same work, where `folder` (of checkpoint.Work) holds some and it did not finish.

        A figure that the log has already is not written again: after a kill, work since the checkpoint is repeated.
        """
        assert self.path is not None
        begun = any(entry.name not in ("lock", "settings") for entry in folder.iterdir())
        old = log.read(self.path) if begun and self.path.exists() else []
        finished = any(entry.get("status") == "FINISHED" for entry in old)
        if old and not finished and old[0].get("work") == folder.name and self._writer is None:
            self._writer = log.Writer.again(self.path)
            for entry in old:
                if entry.get("event") == "metrics":
                    self._known |= {(name, entry["step"]) for name in entry["values"]}
            self._begun(old[0]["run"])
            self._write("resume")
        else:
            self._open(folder.name)

    @_guarded
    def metrics(self, values: Mapping[str, Any], step: int = 0) -> None:
        """Track figures of one step (an epoch, a generation); what is no finite number is left out."""
        plain = {_name(name): float(v) for name, v in values.items() if _is_number(v)}
        new = {name: value for name, value in plain.items() if (name, step) not in self._known}
        if new:
            self._write("metrics", values=new, step=step)
            if step and (usage := self._usage.look()):
                self._write("metrics", values=usage, step=step)

    @_guarded
    def dataset(self, name: str, context: str, path: Path, sha256: str) -> None:
        """Track that a data set was read, and what for; `path` is relative to the project's root."""
        self._write("input", name=name, context=context, path=path.as_posix(), sha256=sha256)

    @_guarded
    def model(self, name: str, network: str, path: Path, architecture: str, about: Mapping[str, object]) -> None:
        """Track a trained network of the file at `path`, to be registered as a version of the model `name`."""
        self._write(
            "model", name=_name(name), network=_name(network), path=path.as_posix(), sha256=files.sha256(path),
            architecture=architecture, about=dict(about),
        )  # fmt: skip

    @_guarded
    def tags(self, values: Mapping[str, object]) -> None:
        """Track texts about the run."""
        self._write("tags", values=_texts(values))

    @_guarded
    def artifact(self, path: Path) -> None:
        """Track a file of the result, by its path relative to the project's root."""
        self._write("artifact", path=path.as_posix(), sha256=files.sha256(path))

    def end(self, status: str) -> None:
        """Track how the run ended (FINISHED, FAILED or KILLED), and wait a little until that has arrived."""
        self._end(status)
        if self._ticket is not None:
            taken = time.monotonic() - self._started
            patience = PATIENCE if self.mode == "wait" else min(SECONDS, SHARE * taken)
            with contextlib.suppress(OSError):
                self._warn(self._ticket.finish(patience))

    @_guarded
    def _end(self, status: str) -> None:
        self._write("end", status=status)
        assert self._writer is not None
        self._writer.close()

    def _open(self, work: str | None = None) -> None:
        """Begin the log anew."""
        assert self.path is not None
        key, (group, group_name) = uuid.uuid4().hex, self.group
        start = log.line("start", run=key, name=self.name, group=group, group_name=group_name, work=work)
        lines = [
            start | {"time": self._start_time},
            log.line("params", values=_texts(self._params)),
            log.line("tags", values=_texts(self._tags)),
        ]
        self._writer = log.Writer.anew(self.path, lines, keep=self.mode != "off")
        self._begun(key)

    def _begun(self, run: str) -> None:
        if self._ticket is not None:
            self._ticket.begun(run)

    def _write(self, event: str, **fields: object) -> None:
        if self._writer is None:
            self._open()
        assert self._writer is not None
        self._writer.write(log.line(event, **fields))
        if self._ticket is not None:
            self._warn(self._ticket.complaint())

    def _warn(self, text: str | None) -> None:
        if text and not self._warned:
            self._warned = True
            say(f"tracking: {text}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _name(text: str) -> str:
    """Return a name that MLflow takes: of letters, digits and `_ - . / :`, other runs of characters become one `-`."""
    return re.sub(r"[^\w./:-]+", "-", text, flags=re.ASCII).strip("-")[:250]


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    """Return values as MLflow keeps them; None is left out."""
    return {_name(name): str(value) for name, value in values.items() if value is not None}
