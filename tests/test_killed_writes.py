"""A kill at every single step of a write: what a file or a checkpoint was stays whole, or it is what it becomes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EVENTS = ("open", "os.rename", "os.remove", "os.chmod", "tempfile.mkstemp")
"""Python's audit events of what a write does to the file system; each comes just before it is done."""
KILLED = f"""
import json, os, signal, sys
from pathlib import Path

import torch

from sumnas import files
from sumnas.checkpoint import Work

folder = Path(sys.argv[1])


def result(write, value):
    path = folder / f"result.{{write}}"
    if write == "json":
        files.write_json(path, [value] * 999)
    elif write == "csv":
        files.write_csv(path, ["a"], [{{"a": value}}] * 999)
    else:
        files.write_tensors(path, {{"a": torch.full((999,), float(value))}}, {{}})


def found(write):
    path = folder / f"result.{{write}}"
    if write == "json":
        return files.read_json(path)[-1]
    if write == "csv":
        return int(files.read_csv(path)[-1]["a"])
    return int(files.read_tensors(path)[0]["a"][-1])


def save(_, value):
    with Work("stage", "a" * 64) as work:
        work.save({{"x": torch.full((999,), value)}})


def load(_):
    with Work("stage", "a" * 64) as work:
        return int(work.load()["x"][-1])


def killed(write):
    put, get = (save, load) if write == "checkpoint" else (result, found)
    put(write, 1), put(write, 2)
    seen, value, survived = [], 2, False
    while not survived:
        child = os.fork()
        if child == 0:
            left = len(seen)

            def die(event, _):
                nonlocal left
                if event in {EVENTS} and (left := left - 1) < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(die)
            put(write, value + 1)
            os._exit(0)
        survived = os.waitpid(child, 0)[1] == 0
        seen.append(get(write) - value)
        value += seen[-1]
    return seen


print(json.dumps({{write: killed(write) for write in sys.argv[2:]}}))
"""
WRITES = ("checkpoint", "csv", "json", "safetensors")


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """One process for all kinds of writes, that of the forks: an audit hook cannot be taken off again."""
    folder = tmp_path_factory.mktemp("killed")
    env = {**os.environ, "SUMNAS_CHECKPOINTS": str(folder / "work"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, str(folder), *WRITES]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=True)


@pytest.mark.parametrize("write", WRITES)
def test_killed_before_each_step_of_a_write(write: str, ended: subprocess.CompletedProcess[str]) -> None:
    seen = json.loads(ended.stdout)[write]
    # The old until some step, the new from then on: 0 is what was there before, 1 what was being written.
    assert len(seen) > 4 and set(seen) == {0, 1} and seen[0] == 0 and seen[-1] == 1
    assert "damaged" not in ended.stderr
