"""Real stages with a real server: a store that is dead, silent, damaged or locked, eight stages at once, and kills."""

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
from collections.abc import Callable, Iterator
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
EIGHT = """
import os, traceback
from pathlib import Path
from sumnas.tracking import store

store.load()
import filelock, mlflow.store.tracking.sqlalchemy_store, mlflow.tracking.client

children = []
for _ in range(8):
    if not (child := os.fork()):
        try:
            store.Store(Path())
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    children.append(child)
print(*(os.waitpid(child, 0)[1] for child in children))
"""
"""The import, which takes seconds, is done once, so that all eight are at the store at the same moment."""
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
    """Return how long the stage waited at its end, and its lines on standard error; it must have succeeded."""
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    return float(out), err.splitlines()


def servers(folder: Path) -> list[int]:
    """Processes that send this project's logs."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and Path(os.readlink(entry / "cwd")) == folder:
                found += [int(entry.name)] if b"serve" in (entry / "cmdline").read_bytes().split(b"\0") else []
    return found


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until the condition holds."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "still not so"
        time.sleep(0.1)


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


@pytest.fixture(scope="module", autouse=True)
def silent(tmp_path_factory: pytest.TempPathFactory, black_hole: str) -> dict[Path, Process]:
    """Stages with a silent server, started before all tests: what it costs is time, not work."""
    folders = {mode: tmp_path_factory.mktemp(f"silent-{mode}") for mode in ("short", "longer", "wait")}
    return {
        folders["short"]: stage(folders["short"], uri=black_hole),
        folders["longer"]: stage(folders["longer"], seconds=3, uri=black_hole),
        folders["wait"]: stage(folders["wait"], mode="wait", uri=black_hole),
    }


def test_broken_stores_cost_one_line_and_nothing_else(tmp_path: Path, closed_port: str) -> None:
    """With `wait`, so that the stage hears of it; all at once, since each takes seconds."""
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
    processes = {
        "dead": stage(tmp_path / "dead", mode="wait", uri=closed_port),
        "corrupt": stage(corrupt, mode="wait"),
        "locked": stage(locked, mode="wait"),
        "broken": stage(tmp_path / "broken", mode="wait", path=f"{fake}{os.pathsep}{ROOT}"),
        "broken-early": stage(tmp_path / "broken-early", seconds=3, mode="wait", path=f"{fake}{os.pathsep}{ROOT}"),
    }
    for name, process in processes.items():
        _, lines = ended(process)
        assert len(lines) == 1, (name, lines)
        assert lines[0].startswith("tracking: ") and "python -m sumnas.tracking sync" in lines[0], (name, lines)
        assert "http://127.0.0.1:" in lines[0] or "mlflow.db: " in lines[0], (name, lines)
        assert "chatter" not in lines[0]
        assert events(tmp_path / name) == EVENTS, name
        until(lambda folder=tmp_path / name: not servers(folder))  # type: ignore[misc]
    assert time.monotonic() - started < 90
    holder.close()
    assert (corrupt / "mlflow.db").read_bytes() == b"no database" * 1000


def test_eight_processes_may_be_the_first_at_once(tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"} | {"PYTHONPATH": str(ROOT)}
    env["OPENBLAS_NUM_THREADS"] = "1"  # Python warns of a fork beside threads
    result = subprocess.run(
        [sys.executable, "-c", EIGHT], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert (result.returncode, result.stderr, result.stdout.split()) == (0, "", ["0"] * 8)
    database = sqlite3.connect(tmp_path / "mlflow.db")
    with contextlib.closing(database):
        assert database.execute("select count(*) from experiments where name = 'sumnas'").fetchone() == (1,)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, fresh_store: Path) -> Iterator[Path]:
    """A project with a store, whose server the tests share, one after the other."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(fresh_store, folder / "mlflow.db")
    yield folder
    until(lambda: not servers(folder))  # it ends by itself
    assert list((folder / "mlflow.queue").glob("*.json")) == []


def test_eight_stages_at_once_share_one_server(project: Path) -> None:
    stages = [stage(project, f"stage-{n}", mode="wait") for n in range(8)]
    until(lambda: any(servers(project)))
    assert [ended(process)[1] for process in stages] == [[]] * 8
    until(lambda: len(servers(project)) == 1)  # those that found one there end at once
    assert runs(project) == [("group", "FINISHED"), *((f"stage-{n}", "FINISHED") for n in range(8))]
    assert all(events(project, f"stage-{n}") == [*EVENTS, "sent"] for n in range(8))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_run_of_a_killed_stage_is_killed(project: Path, number: signal.Signals) -> None:
    name = f"killed-{number}"
    process = stage(project, name, seconds=90)
    until(lambda: (name, "RUNNING") in runs(project))
    os.killpg(process.pid, number)  # as a scheduler does: the whole group
    process.communicate(timeout=30)
    assert process.returncode == -number
    until(lambda: (name, "KILLED") in runs(project))
    until(lambda: events(project, name) == ["start", "params", "tags", "metrics", "sent"])


def test_what_a_killed_server_left_is_sent_by_the_next(project: Path) -> None:
    _kill_servers(project)
    first = stage(project, "left-over")
    until(lambda: any(servers(project)))
    _kill_servers(project)
    ended(first)
    assert "left-over" not in str(runs(project))
    ended(stage(project, "next", mode="wait"))
    until(lambda: {("left-over", "FINISHED"), ("next", "FINISHED")} <= set(runs(project)))


def _kill_servers(folder: Path) -> None:
    for server in servers(folder):
        os.kill(server, signal.SIGKILL)
    until(lambda: not servers(folder))


def test_off_writes_the_log_alone_and_sync_sends_it(tmp_path: Path, fresh_store: Path) -> None:
    waited, lines = ended(stage(tmp_path, mode="off"))
    assert waited < 2 and lines == []
    assert servers(tmp_path) == []
    assert [path.name for path in tmp_path.rglob("*")] == ["results", "a.log.jsonl"]
    shutil.copy(fresh_store, tmp_path / "mlflow.db")
    command = [sys.executable, "-m", "sumnas.tracking", "sync", "--results", "results"]
    env = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"} | {"PYTHONPATH": str(ROOT)}
    said = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout
    assert said == f"1 of 1 runs had something to send to sqlite:///{tmp_path}/mlflow.db\n"
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


def test_a_silent_server_delays_no_stage(silent: dict[Path, Process]) -> None:
    (short, _), (longer, _), (waited, lines) = map(ended, silent.values())
    assert short < 5 and longer < 5, "a stage waits for 5 % of its time"  # and for a busy machine
    assert waited < 90
    assert len(lines) == 1 and "get-by-name failed; log.jsonl has everything" in lines[0]
    for folder in silent:
        assert events(folder) == EVENTS
        until(lambda folder=folder: not servers(folder))  # type: ignore[misc]
