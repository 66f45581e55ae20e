"""A stage knows the engine that started it, and ends with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from workflow import engine

ROOT = Path(__file__).resolve().parents[2]
STAGE = "import sys; from workflow import engine; print(engine.watch(0.1), flush=True); import time; time.sleep(60)"


def test_started_by_hand_there_is_no_engine() -> None:
    assert engine.find() is None and engine.watch() == "hand"


def test_a_stage_ends_once_its_engine_is_gone(tmp_path: Path) -> None:
    # An engine in name only: a script called `dvc` that runs a shell that runs the stage, as the real one does.
    fake, stage = tmp_path / "dvc", tmp_path / "stage.py"
    stage.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{STAGE}")
    fake.write_text(
        "import os, subprocess, sys\n"
        f"child = subprocess.Popen(['bash', '-c', '{sys.executable} {stage}; exit $?'])\n"
        "print(child.pid, flush=True)\nchild.wait()\n"
    )
    started = subprocess.Popen([sys.executable, str(fake)], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert started.stdout is not None
    shell = int(started.stdout.readline())
    assert started.stdout.readline().strip() == "dvc"
    children = Path(f"/proc/{shell}/task/{shell}/children").read_text().split()
    assert len(children) == 1
    assert_ends_with(started, int(children[0]))


def test_a_process_ends_once_its_launcher_is_gone(tmp_path: Path) -> None:
    fake, stage = tmp_path / "launcher", tmp_path / "stage.py"
    stage.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{STAGE.replace('0.1', '0.1, launched=True')}")
    fake.write_text(
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, {str(stage)!r}])\n"
        "print(child.pid, flush=True)\nchild.wait()\n"
    )
    started = subprocess.Popen([sys.executable, str(fake)], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert started.stdout is not None
    ours = int(started.stdout.readline())
    assert started.stdout.readline().strip() == "hand"  # a launcher is no engine
    assert_ends_with(started, ours)


def assert_ends_with(started: subprocess.Popen[str], ours: int) -> None:
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    deadline = time.monotonic() + 20
    while engine._start(ours):  # empty of one that is gone, or only not waited for
        assert time.monotonic() < deadline, "the stage outlives what started it"
        time.sleep(0.05)
    assert started.stdout is not None
    started.stdout.close()
