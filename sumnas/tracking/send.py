"""Sends a log's lines to MLflow: each once, whoever sends, however often.

A run is found by the tag `sumnas.run`, the key in its log's first line, and `sumnas.sent` counts the lines that have
arrived. The count follows the lines, so a sender that is killed leaves at most some lines that are sent again; for
those MLflow itself makes no difference: a figure with the same time and step, a parameter with the same value, a tag,
a file and an end are the same afterwards.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sumnas import files
from sumnas.errors import UserError
from sumnas.tracking import registry
from sumnas.tracking.log import Line

if TYPE_CHECKING:
    from sumnas.tracking.store import Store

NOT_REGISTERED = "model_not_registered"
"""The tag that says why the store would not have a network."""
ITSELF = "{run_id}"
"""In a note: MLflow's key of the run, for links to its files. Only the sender knows it."""
RUN, SENT, GROUP, KIND = "sumnas.run", "sumnas.sent", "sumnas.group", "sumnas.kind"
"""Tags. A parent run has GROUP and KIND, a stage's run has RUN and SENT."""
NOTE = "mlflow.note.content"
"""The tag whose text MLflow shows as a run's description."""
LATER = ("artifact", "input", "model", "end")
"""What is sent after the figures, and so lets the count wait."""
METRICS, PARAMS = 800, 100
"""What goes into one batch: MLflow takes 1000 of all kinds, and 100 parameters or tags."""


class Sender:
    """Sends one log. `lines` are always all of them, from the first."""

    def __init__(self, store: Store, lines: Sequence[Line]) -> None:
        """Find the run, or create it under its parent run."""
        if not lines or lines[0].get("event") != "start":
            raise UserError("the log has no first line")
        self.store, self.client, self.start = store, store.client, lines[0]
        self.flushes = 0
        self.changed: list[str] = []
        with store.alone():
            run = self._find(f"tags.`{RUN}` = '{_plain(self.start['run'])}'") or self._create()
        self.id: str = run.info.run_id
        self.deleted = run.info.lifecycle_stage == "deleted"
        self.ended = run.info.status in ("FINISHED", "FAILED", "KILLED")
        self.sent = int(run.data.tags.get(SENT, 0))
        self._params: dict[str, str] = dict(run.data.params)

    def send(self, lines: Sequence[Line]) -> int:
        """Send what has not arrived and return how many lines that were."""
        new = [entry for entry in lines[self.sent :] if entry.get("event") != "sent"]
        if not new or self.deleted:  # a run that somebody deleted stays deleted
            return 0
        if any(entry.get("event") == "resume" for entry in new) and self.ended:
            with self.store.alone_if_local():
                self.client.update_run(self.id, status="RUNNING")
            self.ended = False
        self._values(new, len(lines))
        for entry in new:
            if entry.get("event") == "artifact":
                self._artifact(entry)
            elif entry.get("event") == "input":
                registry.log_input(self.store, self.id, entry)
            elif entry.get("event") == "model":
                self._model(entry)
        # Only a run's last end counts: after a kill it may go on.
        last = next((e for e in reversed(new) if e.get("event") in ("end", "resume")), {})
        if last.get("event") == "end":
            self._end(last["status"], last["time"])
        if self.sent < len(lines):
            with self.store.alone_if_local():
                self.client.set_tag(self.id, SENT, str(len(lines)))
            self.sent = len(lines)
        return len(new)

    def killed(self) -> None:
        """End a run whose stage is dead, though its log has no end."""
        if not self.deleted:
            self._end("KILLED", None)

    def _end(self, status: str, time: int | None) -> None:
        with self.store.alone_if_local():
            self.client.set_terminated(self.id, status, end_time=time)
        self.ended = True

    def _values(self, lines: Sequence[Line], count: int) -> None:
        """Send parameters, tags and figures in one batch (more where they are too many), the count in the last."""
        from mlflow.entities import Metric, Param, RunTag

        metrics = [
            Metric(name, value, entry["time"], entry["step"])
            for entry in lines
            if entry.get("event") == "metrics"
            for name, value in entry["values"].items()
        ]
        found = {n: v for e in lines if e.get("event") == "params" for n, v in e["values"].items()}
        # Parameters are immutable: of a run that is known, only the new ones.
        params = [Param(n, v) for n, v in found.items() if n not in self._params]
        said = [(n, v) for e in lines if e.get("event") == "tags" for n, v in e["values"].items()]
        tags = [RunTag(n, v.replace(ITSELF, self.id) if n == NOTE else v) for n, v in said]
        chunks = _chunks(metrics, METRICS), _chunks(params, PARAMS), _chunks(tags, PARAMS - 1)
        none: list[Any] = []
        batches = [[*batch] for batch in itertools.zip_longest(*chunks, fillvalue=none)]
        whole = not any(entry.get("event") in LATER for entry in lines)
        if whole and batches:
            batches[-1][2] = [*batches[-1][2], RunTag(SENT, str(count))]
        for batch in batches:
            with self.store.alone_if_local():
                self.client.log_batch(self.id, *batch, synchronous=True)
            self.flushes += 1
        self._params |= found
        if whole and batches:
            self.sent = count

    def _artifact(self, entry: Line) -> None:
        """Copy a file, where it still has the content that the log speaks of."""
        if (place := self._unchanged(entry)) is not None:
            with self.store.alone_if_local():
                self.client.log_artifact(self.id, str(place))

    def _model(self, entry: Line) -> None:
        """Register a network, where its file still has the content that the log speaks of."""
        if self._unchanged(entry) is not None:
            reason = registry.register(self.store, self.id, entry)
            if reason is not None:
                with self.store.alone_if_local():
                    self.client.set_tag(self.id, NOT_REGISTERED, reason)

    def _unchanged(self, entry: Line) -> Path | None:
        """Return where the file lies that a line speaks of, or None where that has another content by now."""
        path = Path(entry["path"])
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"{path}: an artifact's path must lie in the project")
        place = self.store.root / path
        if place.is_file() and files.sha256(place) == entry["sha256"]:
            return place
        self.changed.append(str(path))
        return None

    def _find(self, condition: str) -> Any:
        """Return the oldest run that meets the condition, deleted or not, or None."""
        from mlflow.entities import ViewType

        experiments, order = [self.store.experiment], ["attributes.start_time ASC"]
        runs = self.client.search_runs(experiments, condition, ViewType.ALL, max_results=1, order_by=order)
        return runs[0] if runs else None

    def _create(self) -> Any:
        """Create the run and, where it is the first of its group, the parent run, which ends at once."""
        group, time = self.start["group"], self.start["time"]
        parent = self._find(f"tags.`{GROUP}` = '{_plain(group)}' and tags.`{KIND}` = 'group'")
        if parent is None:
            tags = {GROUP: _plain(group), KIND: "group"}
            parent = self.client.create_run(self.store.experiment, time, tags, self.start["group_name"])
        if parent.info.status == "RUNNING":
            self.client.set_terminated(parent.info.run_id, end_time=time)
        tags = {RUN: _plain(self.start["run"]), "mlflow.parentRunId": parent.info.run_id}
        return self.client.create_run(self.store.experiment, time, tags, self.start["name"])


def _chunks(values: list[Any], size: int) -> Iterator[list[Any]]:
    return (values[first : first + size] for first in range(0, len(values), size))


def _plain(text: str) -> str:
    """Return text that needs no quoting in a condition."""
    return "".join(character if character not in "'\"`\\" else "_" for character in str(text))[:250]
