"""Sends what logs hold and MLflow lacks: after a dead server, a killed stage, or work on a machine without one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sumnas.tracking import log, queue
from sumnas.tracking.store import Store

PATTERN, ASIDE = "*log*.jsonl", re.compile(r"log\.[0-9a-f]{8}\.jsonl$")
"""Names of all logs, and of those of older runs, which were moved aside."""


@dataclass
class Report:
    """How many logs there are, how many of them had lines to send, and artifacts that have another content by now."""

    logs: int = 0
    sent: int = 0
    changed: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def sync(store: Store, folders: Iterable[Path]) -> Report:
    """Send every log under `folders`. Running it again sends nothing. Any exception of MLflow's."""
    report, arrived = Report(), set[str]()
    for path in sorted({path for folder in folders for path in folder.rglob(PATTERN)}):
        running = log.running(path)  # asked first: what ends in between counts as running
        lines = log.read(path)
        if not lines or lines[0].get("event") != "start":
            report.damaged.append(str(path))
            continue
        sender = store.sender(lines)
        report.logs += 1
        report.sent += bool(sender.send(lines))
        report.changed += sender.changed
        if running:
            continue
        if not sender.ended:
            sender.killed()
        arrived.add(lines[0]["run"])
        if ASIDE.search(path.name):
            path.unlink()  # an older run's, kept only until it is sent
        else:
            log.mark_sent(path, lines, store.uri)
    for ticket in (store.root / queue.FOLDER).glob("*.json"):
        if (queue.read(ticket) or {}).get("run") in arrived:
            queue.remove(ticket)
    return report
