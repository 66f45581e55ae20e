"""python -m sumnas.tracking sync | ui: send what MLflow lacks, or look at it."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path

from sumnas.tracking import views
from sumnas.tracking.serve import one_line, serve
from sumnas.tracking.store import SQLITE, Store, uri_of
from sumnas.tracking.sync import sync

FOLDERS = [Path("results"), Path("data/prepared")]
"""Where stages write."""


def main() -> int:
    """Read the command line; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m sumnas.tracking", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("sync", help="send every log.jsonl that has not reached MLflow")
    command.add_argument("--results", type=Path, action="append", metavar="FOLDER",
                         help="where to look for logs (default: results and data/prepared)")  # fmt: skip
    command = commands.add_parser("ui", help="start MLflow's pages for this project's runs")
    command.add_argument("--port", type=int, default=5000)
    commands.add_parser("serve", help="what stages start for themselves: send their logs as they grow")
    arguments = parser.parse_args()
    if arguments.command == "serve":
        return serve(Path())
    if arguments.command == "ui":
        return ui(arguments.port)
    return send(arguments.results or FOLDERS)


def send(folders: list[Path]) -> int:
    """Run `sync` and say what it did."""
    for folder in folders:
        if not folder.is_dir():
            return _error(f"{folder}: no such folder; run from the project's root")
    try:
        report = sync(Store(Path()), folders)
    except Exception as error:
        return _error(f"{uri_of(Path())}: {one_line(error)}; mend that, then run this again")
    print(f"{report.sent} of {report.logs} runs had something to send to {uri_of(Path())}")
    for path in report.changed:
        print(f"{path}: has changed since; not sent")
    for path in report.damaged:
        print(f"{path}: has no first line; not sent")
    return 0


def ui(port: int) -> int:
    """Send what is missing, and replace this process by MLflow's server."""
    uri = uri_of(Path())
    if not uri.startswith(SQLITE):
        return _error(f"MLFLOW_TRACKING_URI is {uri}: a server shows its runs itself; open it in a browser")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return _error(f"port {port}: {error.strerror}; choose another one: make ui PORT={port + 1}")
    try:
        store = Store(Path())
        sync(store, filter(Path.is_dir, FOLDERS))
    except Exception as error:
        return _error(f"{uri}: {one_line(error)}")
    server = f"http://127.0.0.1:{port}"
    print(
        f"{server} (Ctrl-C ends it)\nall rankings by Kendall tau: {views.address(server, store.experiment)}", flush=True
    )
    command = ["mlflow", "ui", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")  # eight more processes, of no use here
    os.execv(sys.executable, [sys.executable, "-m", *command])


def _error(text: str) -> int:
    print(f"tracking: {text}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
