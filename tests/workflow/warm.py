"""Stages without their start: a server imports torch once and forks for every `python -m workflow.<stage>`.

The engines' first runs start some sixty stages, each of which would take two seconds for its imports. Real starts are
in test_startup.py, test_mistakes.py, faults/ and slurm/. Each engine has a server of its own, with another seed of
hashes: what depends on the order of a set differs between them, as between processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
words = sys.argv[1:]
if words[:1] != ["-m"] or not words[1].startswith("workflow."):
    os.execv({python!r}, [{python!r}, *words])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [b"."], [0, 1, 2])
    server.sendall(json.dumps([words[1:], os.getcwd(), dict(os.environ)]).encode() + b"\\n")
    code = int(server.recv(16))
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""
"""The `python` of whoever has the folder first on its path."""


@contextlib.contextmanager
def python() -> Iterator[Path]:
    """Start a server; yield the folder of its `python`, to be put first on a path."""
    with tempfile.TemporaryDirectory() as folder:  # a socket's name may have a hundred letters, no more
        client = Path(folder, "python")
        client.write_text(CLIENT.format(python=sys.executable, address=f"{folder}/server"))
        client.chmod(0o755)
        # -P: the package under test is that of the folder a stage is called in, and is not imported here.
        command = [sys.executable, "-P", __file__, f"{folder}/server"]
        with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None and server.stdout.readline() == "ready\n"
                yield client.parent
            finally:
                server.terminate()


def serve(address: str) -> None:
    """Fork for every connection; in the fork of the fork return the words behind `python -m`."""
    import matplotlib.figure  # noqa: F401
    import pydantic  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(address)
        door.listen(64)
        print("ready", flush=True)
        while True:
            connection, _ = door.accept()
            if not os.fork():
                break
            connection.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    words, cwd, environment = json.loads(connection.makefile("rb").readline())
    if child := os.fork():
        for stream in streams:
            os.close(stream)
        connection.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())
        os._exit(0)
    connection.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:] = words
    sys.path.insert(0, cwd)


if __name__ == "__main__":
    serve(sys.argv[1])
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
