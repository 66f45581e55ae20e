"""Real processes that share a piece of work, started as torchrun starts them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]


def free_port() -> int:
    """Return one that nobody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def said_by(module: str, world: int, folder: Path) -> list[dict[str, Any]]:
    """Run `python -m module folder` as so many ranks; return what each wrote to folder/<rank>.pt.

    The last one ends by SIGKILL, its own; warnings are errors.
    """
    port, processes = free_port(), []
    for rank in range(world):
        env = {
            **os.environ, "PYTHONPATH": str(ROOT), "SUMNAS_CHECKPOINTS": str(folder / "checkpoints"),
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        }  # fmt: skip
        command = [sys.executable, "-W", "error", "-m", module, str(folder)]
        processes.append(subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True))
    try:
        said = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    assert codes == [0] * (world - 1) + [-signal.SIGKILL], "\n".join(said)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]
