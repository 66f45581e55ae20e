"""Real stages with real senders: a store that is dead, silent, damaged or locked, eight stages at once, and kills."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sumnas.tracking import log

Process = subprocess.Popen[str]
ROOT = Path(__file__).resolve().parents[1]
STAGE = """
import sys, time
from pathlib import Path
from sumnas.tracking import Tracker

name, seconds = sys.argv[1], float(sys.argv[2])
tracker = Tracker(Path(f"results/{name}.log.jsonl"), name, ("g", "group"), {"method": name}, {"stage": "test"})
for epoch in range(1, 4):
    tracker.metrics({"loss": 1 / epoch}, epoch)
    time.sleep(seconds / 3)
started = time.monotonic()
tracker.end("FINISHED")
print(time.monotonic() - started)
"""
EVENTS = ["start", "params", "tags", "metrics", "metrics", "metrics", "end"]


def stage(
    folder: Path, name: str = "a", *, seconds: float = 0.3, mode: str = "on", uri: str = "", path: str = str(ROOT)
) -> Process:
    """Start a stage in a process of its own; `uri` is MLFLOW_TRACKING_URI, `path` is PYTHONPATH."""
    folder.mkdir(exist_ok=True)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "SUMNAS"))}
    env |= {"PYTHONPATH": path, "SUMNAS_TRACKING": mode} | ({"MLFLOW_TRACKING_URI": uri} if uri else {})
    return subprocess.Popen(
        [sys.executable, "-c", STAGE, name, str(seconds)],
        cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0,
    )  # fmt: skip


def ended(process: Process) -> tuple[float, list[str]]:
    """Return how long the stage waited for its sender, and its lines on standard error; it must have succeeded."""
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    return float(out), err.splitlines()


def senders(folder: Path) -> list[int]:
    """Processes whose current directory is `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and Path(os.readlink(entry / "cwd")) == folder:
                found.append(int(entry.name))
    return found


def until_no_sender(folder: Path, seconds: float = 60) -> float:
    """Wait until no sender is left, and return how long that took."""
    started = time.monotonic()
    while senders(folder):
        assert time.monotonic() - started < seconds, "a sender is still there"
        time.sleep(0.1)
    return time.monotonic() - started


def runs(folder: Path) -> list[tuple[str, str]]:
    """Names and states of all runs."""
    database = sqlite3.connect(folder / "mlflow.db")
    with contextlib.closing(database):
        return database.execute("select name, status from runs order by name").fetchall()


def events(folder: Path, name: str = "a") -> list[str]:
    return [line["event"] for line in log.read(folder / f"results/{name}.log.jsonl")]


@pytest.fixture(scope="module")
def closed_port() -> str:
    """The address of a server that is not there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(scope="module")
def black_hole() -> Iterator[str]:
    """The address of a server that accepts and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_broken_stores_cost_one_line_and_nothing_else(tmp_path: Path, closed_port: str, black_hole: str) -> None:
    """With `wait`, so that the stage hears of it, and without; all at once, since each takes seconds."""
    corrupt, locked = tmp_path / "corrupt", tmp_path / "locked"
    for folder in (corrupt, locked):
        folder.mkdir()
    (corrupt / "mlflow.db").write_bytes(b"no database" * 1000)
    fake = tmp_path / "fake"
    (fake / "mlflow").mkdir(parents=True)
    (fake / "mlflow/__init__.py").write_text("print('chatter', flush=True)\nraise ImportError('half installed')\n")
    holder = sqlite3.connect(locked / "mlflow.db", isolation_level=None)
    holder.execute("create table x (y)")
    holder.execute("begin exclusive")
    started = time.monotonic()
    silent = stage(tmp_path / "on", "a", uri=black_hole), stage(tmp_path / "on", "b", seconds=3, uri=black_hole)
    processes = {
        "dead": stage(tmp_path / "dead", mode="wait", uri=closed_port),
        "silent": stage(tmp_path / "silent", mode="wait", uri=black_hole),
        "corrupt": stage(corrupt, mode="wait"),
        "locked": stage(locked, mode="wait"),
        "broken": stage(tmp_path / "broken", mode="wait", path=f"{fake}{os.pathsep}{ROOT}"),
    }
    for name, process in processes.items():
        _, lines = ended(process)
        assert len(lines) == 1, (name, lines)
        assert lines[0].startswith("tracking: ") and "python -m sumnas.tracking sync" in lines[0], (name, lines)
        assert "http://127.0.0.1:" in lines[0] or "mlflow.db: " in lines[0], (name, lines)
        assert "chatter" not in lines[0]
        assert events(tmp_path / name) == EVENTS, name
        assert senders(tmp_path / name) == [], name
    assert time.monotonic() - started < 90
    (short, _), (longer, _) = map(ended, silent)
    assert short < 1 and longer < 1.5, "a stage waits for 5 % of its time"  # and for a busy machine
    assert until_no_sender(tmp_path / "on") < 40
    holder.close()
    assert (corrupt / "mlflow.db").read_bytes() == b"no database" * 1000


def test_eight_first_uses_at_once(tmp_path: Path) -> None:
    processes = [stage(tmp_path, f"stage-{n}", mode="wait") for n in range(8)]
    assert [ended(process)[1] for process in processes] == [[]] * 8
    assert runs(tmp_path) == [("group", "FINISHED"), *((f"stage-{n}", "FINISHED") for n in range(8))]
    database = sqlite3.connect(tmp_path / "mlflow.db")
    with contextlib.closing(database):
        assert database.execute("select count(*) from experiments where name = 'sumnas'").fetchone() == (1,)
        assert database.execute("select count(*) from metrics").fetchone() == (24,)
    assert all(events(tmp_path, f"stage-{n}") == [*EVENTS, "sent"] for n in range(8))


def test_a_killed_stage_leaves_no_sender_and_its_run_is_killed(tmp_path: Path, fresh_store: Path) -> None:
    shutil.copy(fresh_store, tmp_path / "mlflow.db")
    process = stage(tmp_path, seconds=60)
    while ("a", "RUNNING") not in runs(tmp_path):
        assert process.poll() is None
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does: the whole group; the sender goes on
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM
    until_no_sender(tmp_path)
    assert runs(tmp_path) == [("a", "KILLED"), ("group", "FINISHED")]
    assert events(tmp_path) == ["start", "params", "tags", "metrics", "sent"]


def test_off_writes_the_log_alone_and_sync_sends_it(tmp_path: Path, fresh_store: Path) -> None:
    waited, lines = ended(stage(tmp_path, mode="off"))
    assert waited < 0.2 and lines == []
    assert senders(tmp_path) == []
    assert [path.name for path in tmp_path.rglob("*")] == ["results", "a.log.jsonl"]
    shutil.copy(fresh_store, tmp_path / "mlflow.db")
    command = [sys.executable, "-m", "sumnas.tracking", "sync", "--results", "results"]
    env = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"} | {"PYTHONPATH": str(ROOT)}
    said = [subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True) for _ in "12"]
    assert [result.stdout.partition(" had")[0] for result in said] == ["1 of 1 runs", "0 of 1 runs"]
    assert runs(tmp_path) == [("a", "FINISHED"), ("group", "FINISHED")]


def test_the_command_line_names_the_remedy(tmp_path: Path, closed_port: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for arguments, uri, text in [
            (["ui", "--port", str(port)], "", f"make ui PORT={port + 1}"),
            (["ui"], closed_port, "open it in a browser"),
            (["sync"], "", "run from the project's root"),
        ]:
            env = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"} | {"PYTHONPATH": str(ROOT)}
            env |= {"MLFLOW_TRACKING_URI": uri} if uri else {}
            command = [sys.executable, "-m", "sumnas.tracking", *arguments]
            result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
            assert result.returncode == 1
            (line,) = result.stderr.splitlines()
            assert line.startswith("tracking: ") and text in line
    assert list(tmp_path.iterdir()) == []
