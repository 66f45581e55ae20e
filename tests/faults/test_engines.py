"""Both engines killed, ended and interrupted at random moments: no stage lives on, and the same bytes at the end."""

from __future__ import annotations

import functools
import itertools
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import slower
from tests.workflow.conftest import Clone, changed, make_clone

ENGINES = {"dvc": ("dvc", "repro"), "snakemake": ("snakemake", "--cores", "2", "--rerun-incomplete")}
DISTURBANCES = [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGKILL]
"""In turn."""
WANTED = max(len(DISTURBANCES), int(os.environ.get("SUMNAS_TEST_KILLS", "10")))
"""Of each engine, at random moments; a pipeline that is through before is compared, and another one is begun."""


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


def start(clone: Clone, engine: str) -> subprocess.Popen[str]:
    """Start an engine in a session of its own, so that a signal to it reaches nobody else.

    Ctrl-C reaches it even where the tests run in the background of a script, whose children ignore SIGINT.
    """
    return subprocess.Popen(
        ENGINES[engine], cwd=clone.folder, env=clone.env, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def none_lives_on(clone: Clone, number: signal.Signals) -> None:
    """Wait for the stages that the engine had started: they end by themselves."""
    deadline = time.monotonic() + 60
    while stages_of(clone) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert stages_of(clone) == [], f"a stage lives on after {number.name}"


def mend(clone: Clone, engine: str, said: str) -> None:
    """Do what a killed engine left to do: Snakemake's message says it, for DVC's lock file docs/pipeline.md."""
    if engine == "snakemake":
        assert "--unlock" in said, said
        clone.run("snakemake", "--unlock")
        return
    assert "dvc.lock' validation failed" in said or "YAML file structure is corrupted" in said, said
    doctor = clone.run("sumnas", "doctor", check=False)
    assert doctor.returncode and "rm dvc.lock" in doctor.stdout
    (clone.folder / "dvc.lock").unlink()


def to_the_end(clone: Clone, engine: str) -> None:
    """Run the engine until it is through."""
    ended = clone.run(*ENGINES[engine], check=False)
    if ended.returncode:
        mend(clone, engine, ended.stdout + ended.stderr)
        clone.run(*ENGINES[engine])


def disturb(clone: Clone, engine: str, numbers: Iterator[signal.Signals], rng: random.Random, most: int) -> int:
    """Start the engine and disturb it at random moments, until it is through or was disturbed `most` times."""
    disturbed = 0
    while disturbed < most:
        process = start(clone, engine)
        try:
            said, _ = process.communicate(timeout=rng.uniform(5, 14))
        except subprocess.TimeoutExpired:
            number, disturbed = next(numbers), disturbed + 1
            if number == signal.SIGINT:  # as Ctrl-C on a terminal: everyone in the foreground gets it
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
            said, _ = process.communicate(timeout=120)
            assert process.returncode != 0
            none_lives_on(clone, number)
            continue
        if process.returncode == 0:
            break
        mend(clone, engine, said)
    return disturbed


@pytest.mark.parametrize("engine", ENGINES)
def test_disturbed_again_and_again(undisturbed: Clone, engine: str, tmp_path: Path) -> None:
    rng, numbers, disturbed = random.Random(f"{engine} kills"), itertools.cycle(DISTURBANCES), 0
    for attempt in itertools.count():
        clone = make_clone(tmp_path / f"clone{attempt}")
        clone.params = slower(clone.params)
        found = disturb(clone, engine, numbers, rng, WANTED - disturbed)
        assert found, "the pipeline was through before it could be disturbed"
        to_the_end(clone, engine)
        assert clone.outputs() == undisturbed.outputs()
        disturbed += found
        if disturbed == WANTED:
            break
    killed_with_other_settings(clone, engine, rng)
    to_the_end(clone, engine)
    assert clone.outputs() == undisturbed.outputs()


def killed_with_other_settings(clone: Clone, engine: str, rng: random.Random) -> None:
    """Kill the engine while it is at work on other settings; they leave no trace once the old ones are back."""
    with changed(clone, other):
        process = start(clone, engine)
        samples = clone.folder / "results/samples.csv"
        before = samples.stat().st_mtime_ns
        deadline = time.monotonic() + 120
        while not (samples.exists() and samples.stat().st_mtime_ns != before) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(rng.uniform(2, 6))
        process.kill()
        process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL, "through before it could be killed"
        none_lives_on(clone, signal.SIGKILL)


def other(params: dict[str, Any]) -> None:
    """Change what the ranking and the retraining depend on, so that a summary of it would be another."""
    params["sampling"]["intervals"] = 3
    params["calibration"]["images"] = 300
    params["retrain"]["recipe"]["epochs"] = 8
