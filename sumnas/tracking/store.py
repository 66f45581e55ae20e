"""The place in MLflow where runs go: which one, set up once, and safe for several processes at a time."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sumnas.errors import UserError
from sumnas.tracking import views
from sumnas.tracking.log import Line

if TYPE_CHECKING:
    from sumnas.tracking.send import Sender

EXPERIMENT = "sumnas"
"""MLflow's experiment that has all runs."""
DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"
"""File and folder in the project's root, where no tracking URI is given."""
SQLITE = "sqlite:///"
"""How the URI of an SQLite file begins."""
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Which pages MLflow shows first: those of training runs, not of language models."""
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the default waits 200 s for a server that is not there
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Variables of MLflow and what it imports, where they are not set already: short waits (seconds), no chatter."""
LOCK_SECONDS = 60.0
"""Seconds that a sender waits for the lock before it gives up."""


def uri_of(root: Path) -> str:
    """Return MLFLOW_TRACKING_URI, or SQLite in the project's root: absolute, since MLflow's default is the cwd's."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{root.resolve() / DATABASE}"


def load() -> None:
    """Import MLflow, which takes seconds, without telemetry, long retries and chatter."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


class Store:
    """The experiment of one tracking URI."""

    def __init__(self, root: Path) -> None:
        """Connect, and create database and experiment where they are missing. Any exception of MLflow's."""
        load()
        import filelock
        from mlflow import MlflowClient

        self.root, self.uri = root, uri_of(root)
        self.local = self.uri.startswith(SQLITE)
        database = Path(self.uri.removeprefix(SQLITE)) if self.local else root / DATABASE
        self._lock = filelock.FileLock(f"{database}.lock", timeout=LOCK_SECONDS)
        # Several processes that create the tables at once would make most of them fail.
        with self.alone_if_local():
            # Named, since the registry is otherwise where MLflow would put the runs of the current directory.
            self.client: Any = MlflowClient(self.uri, os.environ.get("MLFLOW_REGISTRY_URI") or self.uri)
            self.experiment = self._experiment()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep this project's other senders out: to find or create something, and for any call on SQLite.

        UserError where another process has the lock for LOCK_SECONDS.
        """
        import filelock

        try:
            with self._lock:
                yield
        except filelock.Timeout:
            raise UserError(f"{self._lock.lock_file}: held by another process for {LOCK_SECONDS:g} s") from None

    def alone_if_local(self) -> contextlib.AbstractContextManager[None]:
        """Keep others out of SQLite, which has one writer at a time; a server looks after itself."""
        return self.alone() if self.local else contextlib.nullcontext()

    def sender(self, lines: Sequence[Line]) -> Sender:
        """Return what sends the log that begins with `lines`; UserError where it has no beginning."""
        from sumnas.tracking.send import Sender

        return Sender(self, lines)

    def _experiment(self) -> str:
        found = self.client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            # A server knows better where artifacts go. For SQLite, MLflow's default is again the current directory.
            place = (self.root.resolve() / ARTIFACTS).as_uri() if self.local else None
            try:
                tags = KIND | views.tags()
                return str(self.client.create_experiment(EXPERIMENT, artifact_location=place, tags=tags))
            except Exception:  # somebody on another machine was faster
                found = self.client.get_experiment_by_name(EXPERIMENT)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise UserError(f"experiment {EXPERIMENT!r} was deleted in {self.uri}: restore it")
        for key, value in views.tags().items():
            if key not in found.tags:  # an experiment of before there was the view; a changed view is somebody's own
                self.client.set_experiment_tag(found.experiment_id, key, value)
        return str(found.experiment_id)
