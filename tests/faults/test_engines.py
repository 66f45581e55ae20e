"""Both engines killed, ended and interrupted at random moments: no stage lives on, and the same bytes at the end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.faults.conftest import slower
from tests.workflow.conftest import Clone, make_clone

ENGINES = {"dvc": ("dvc", "repro"), "snakemake": ("snakemake", "--cores", "2", "--rerun-incomplete")}
DISTURBANCES = [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGKILL]


def stages_of(clone: Clone) -> list[int]:
    """Return the processes that run a stage in the clone."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().decode(errors="replace").split("\0")
            inside = (place / "cwd").resolve() == clone.folder
        except OSError:
            continue
        if inside and any(word.startswith("workflow.") for word in words):
            found.append(int(place.name))
    return found


@pytest.mark.parametrize("engine", ENGINES)
def test_disturbed_again_and_again(undisturbed: Clone, engine: str, tmp_path: Path) -> None:
    clone = make_clone(tmp_path / "clone")
    clone.params = slower(clone.params)
    rng = random.Random(f"{engine} kills")
    disturbed = 0
    for number in DISTURBANCES:
        process = subprocess.Popen(
            ENGINES[engine], cwd=clone.folder, env=clone.env, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        try:
            said, _ = process.communicate(timeout=rng.uniform(6, 16))
        except subprocess.TimeoutExpired:
            disturbed += 1
            if number == signal.SIGINT:  # as Ctrl-C on a terminal: everyone in the foreground gets it
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
            said, _ = process.communicate(timeout=120)
            assert process.returncode != 0
            deadline = time.monotonic() + 60
            while stages_of(clone) and time.monotonic() < deadline:
                time.sleep(0.2)
            assert stages_of(clone) == [], f"a stage lives on after {number.name}"
            continue
        if process.returncode:  # what the engine's own lock needs, its message says
            assert engine == "snakemake" and "--unlock" in said, said
            clone.run("snakemake", "--unlock")
    assert disturbed >= 3, "the pipeline was through before it could be disturbed"
    last = clone.run(*ENGINES[engine], check=False)
    if last.returncode:
        assert engine == "snakemake" and "--unlock" in last.stdout + last.stderr, last.stderr
        clone.run("snakemake", "--unlock")
        clone.run(*ENGINES[engine])
    assert clone.outputs() == undisturbed.outputs()
