"""A training whose MLflow is absent, silent, slow, dying, locked or damaged: the same bytes, and all arrives later."""

from __future__ import annotations

import contextlib
import http.server
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.test_kill import outputs, start
from tests.workflow.conftest import Clone

NAME = "sumnas-k2-0"
COMMAND = (sys.executable, "-m", "workflow.train_supernet", "--run", NAME)
SYNC = (sys.executable, "-m", "sumnas.tracking", "sync", "--results", f"results/supernet/{NAME}")


def copy(clone: Clone, folder: Path) -> tuple[Clone, dict[str, bytes]]:
    """Return a project without this training's results, and what they have to be."""
    shutil.copytree(clone.folder, folder, symlinks=True, ignore=shutil.ignore_patterns("mlflow*", ".snakemake", ".git"))
    made = Clone(folder)
    made.env["SUMNAS_TRACKING"] = "on"
    expected = {path.name: path.read_bytes() for path in outputs(made, "train_supernet")}
    shutil.rmtree(folder / f"results/supernet/{NAME}")
    return made, expected


def results(clone: Clone) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in outputs(clone, "train_supernet")}


def until(condition: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "still not so"
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def trouble(kind: str, folder: Path) -> Iterator[str]:
    """Yield the address of a store that does not work."""
    database = folder / "store.db"
    with contextlib.ExitStack() as stack:
        if kind == "absent":
            yield f"http://127.0.0.1:{free_port()}"
        elif kind == "black hole":
            server = stack.enter_context(socket.socket())
            server.bind(("127.0.0.1", 0))
            server.listen(64)
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        elif kind == "corrupt":
            database.write_bytes(b"no database" * 1000)
            yield f"sqlite:///{database}"
        else:
            holder = stack.enter_context(contextlib.closing(sqlite3.connect(database, isolation_level=None)))
            holder.execute("create table x (y)")
            holder.execute("begin exclusive")
            yield f"sqlite:///{database}"


@pytest.mark.parametrize("kind", ["absent", "black hole", "corrupt", "locked"])
def test_results_do_not_depend_on_the_store(undisturbed: Clone, tmp_path: Path, kind: str) -> None:
    clone, expected = copy(undisturbed, tmp_path / "clone")
    with trouble(kind, tmp_path) as uri:
        clone.env["MLFLOW_TRACKING_URI"] = uri
        ended = clone.run(*COMMAND)
        assert "Traceback" not in ended.stderr and ended.stderr.count("tracking:") <= 1
        assert (clone.folder / "mlflow.queue").exists()  # somebody was asked to send it
    assert results(clone) == expected
    # Nothing of it was lost: a store that works gets everything, once.
    clone.env["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path / 'whole.db'}"
    assert clone.run(*SYNC).stdout.startswith("1 of 1 runs had something to send")
    assert_once(tmp_path / "whole.db", clone)


def rows(database: Path) -> list[tuple[str, int, float]]:
    """Every value that the store has of the training's own figures."""
    with contextlib.closing(sqlite3.connect(database)) as opened:
        query = "select key, step, value from metrics where key in ('loss', 'learning_rate') order by key, step"
        return opened.execute(query).fetchall()


def assert_once(database: Path, clone: Clone) -> None:
    """Assert that the store has each epoch's figures exactly once, also after another sync."""
    lines = (clone.folder / f"results/supernet/{NAME}/history.csv").read_text().splitlines()
    head, *body = [line.split(",") for line in lines]
    expected = [
        (key, int(line[head.index("epoch")]), float(line[head.index(key)]))
        for key in ("learning_rate", "loss")
        for line in body
    ]
    assert len(body) == clone.params["supernet"]["epochs"]
    assert rows(database) == expected
    assert clone.run(*SYNC).stdout.startswith("0 of 1 runs had something to send")
    assert rows(database) == expected


class Slow(http.server.BaseHTTPRequestHandler):
    """Passes a request on to MLflow, late; `target` and `delay` are the server's."""

    def do_GET(self) -> None:
        time.sleep(self.server.delay)  # type: ignore[attr-defined]
        length = int(self.headers.get("Content-Length", 0))
        request = urllib.request.Request(
            self.server.target + self.path, self.rfile.read(length) if length else None,  # type: ignore[attr-defined]
            {"Content-Type": self.headers.get("Content-Type", "application/json")}, method=self.command,
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, body, kind = answer.status, answer.read(), answer.headers.get_content_type()
        except urllib.error.HTTPError as error:
            with error:
                status, body, kind = error.code, error.read(), error.headers.get_content_type()
        except OSError:
            status, body, kind = 503, b"gone", "text/plain"
        with contextlib.suppress(OSError):  # nobody waits any more
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    do_POST = do_PATCH = do_PUT = do_DELETE = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextlib.contextmanager
def slow(target: str, delay: float) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    server.target, server.delay = target, delay  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def mlflow(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """Start a tracking server, and wait until it answers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1",
         "--backend-store-uri", f"sqlite:///{folder / 'server.db'}", "--artifacts-destination", str(folder / "files")],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip

    def answers() -> bool:
        with contextlib.suppress(OSError):
            return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).status == 200)
        return False

    until(answers)
    return process


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a server and its workers."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_slow_server_that_dies_in_the_middle(undisturbed: Clone, tmp_path: Path) -> None:
    clone, expected = copy(undisturbed, tmp_path / "clone")
    port = free_port()
    server = mlflow(tmp_path, port)
    try:
        with slow(f"http://127.0.0.1:{port}", 0.5) as address:
            clone.env["MLFLOW_TRACKING_URI"] = address
            process = start(clone, "train_supernet", ("--run", NAME))
            log = clone.folder / f"results/supernet/{NAME}/log.jsonl"
            until(lambda: log.exists() and '"loss"' in log.read_text())
            process.send_signal(signal.SIGSTOP)  # else it might be through before the first figures arrive
            until(lambda: bool(rows(tmp_path / "server.db")))
            assert len(rows(tmp_path / "server.db")) < 2 * clone.params["supernet"]["epochs"]
            kill(server)
            process.send_signal(signal.SIGCONT)
            assert process.wait(timeout=300) == 0
            assert results(clone) == expected
            server = mlflow(tmp_path, port)
            clone.env["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{port}"
            # The sender's process may be trying, too: none of both sends a line twice.
            clone.run(*SYNC)
            assert_once(tmp_path / "server.db", clone)
    finally:
        kill(server)
