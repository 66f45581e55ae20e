"""Both engines killed, ended and interrupted at random moments: no stage lives on, and the same bytes at the end."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import other, slower
from tests.workflow.conftest import Clone, changed, make_clone
from workflow.stages import STAGES

ENGINES = {"dvc": ("dvc", "repro"), "snakemake": ("snakemake", "--cores", "2", "--rerun-incomplete")}
DISTURBANCES = [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGKILL]
"""In turn."""
WANTED = int(os.environ.get("SUMNAS_TEST_KILLS", "10"))
"""Times of each engine, at random moments; a pipeline that is through before is compared, and another one is begun."""
LONG = [name for name, stage in STAGES.items() if stage.resumes and name != "summarize"][:WANTED]
"""Each is met at work: all seven, where there are as many times."""

LIMIT = 900
"""Seconds that one call of an engine may take."""


def stages_of(clone: Clone) -> dict[int, str]:
    """Return the processes that run a stage in the clone, and which."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().decode(errors="replace").split("\0")
            inside = (place / "cwd").resolve() == clone.folder
        except OSError:
            continue
        names = [word.removeprefix("workflow.") for word in words if word.startswith("workflow.")]
        if inside and names:
            found[int(place.name)] = names[0]
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
    assert stages_of(clone) == {}, f"a stage lives on after {number.name}"


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


def disturb(
    clone: Clone, engine: str, numbers: Iterator[signal.Signals], rng: random.Random, wanted: list[str]
) -> list[set[str]]:
    """Start the engine and disturb it while a wanted stage is at work, each in turn, until it is through.

    Returns the stages that were at work each time; what was met is taken off the list of what is wanted.
    """
    met: list[set[str]] = []
    while wanted:
        process = start(clone, engine)
        try:
            said = until_it_ends(clone, process, wanted[0], rng.uniform(0.5, 8))
            if said is None:
                number = next(numbers)
                met.append(set(stages_of(clone).values()))
                wanted[:] = [stage for stage in wanted if stage not in met[-1]]
                if number == signal.SIGINT:  # as Ctrl-C on a terminal: everyone in the foreground gets it
                    os.killpg(process.pid, number)
                else:
                    process.send_signal(number)
                process.communicate(timeout=120)
                assert process.returncode != 0
                none_lives_on(clone, number)
                continue
        finally:
            if process.poll() is None:  # it hangs
                os.killpg(process.pid, signal.SIGKILL)
        if process.returncode == 0:
            break
        mend(clone, engine, said)
    return met


def until_it_ends(clone: Clone, process: subprocess.Popen[str], stage: str, seconds: float) -> str | None:
    """Return what an engine said; None so many seconds after a stage was begun: from its imports into its work."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=0.1)[0]
        if stage in stages_of(clone).values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.communicate(timeout=seconds)[0]
            return None
    raise AssertionError(f"neither through nor at {stage} after {LIMIT} s")


@pytest.mark.parametrize("engine", ENGINES)
def test_disturbed_again_and_again(
    undisturbed: Clone, with_other_settings: dict[str, bytes], engine: str, tmp_path: Path
) -> None:
    rng, numbers, met = random.Random(f"{engine} kills"), itertools.cycle(DISTURBANCES), list[set[str]]()
    for attempt in itertools.count():
        clone = make_clone(tmp_path / f"clone{attempt}")
        clone.params = slower(clone.params)
        missed = [stage for stage in LONG if not any(stage in stages for stages in met)]
        found = disturb(clone, engine, numbers, rng, missed or list(LONG[: WANTED - len(met)]))
        assert found, "the pipeline was through before it could be disturbed"
        to_the_end(clone, engine)
        assert clone.outputs() == undisturbed.outputs()
        met += found
        if len(met) >= WANTED and all(any(stage in stages for stages in met) for stage in LONG):
            break
    print(f"{engine}: {len(met)} times, at {met}")
    # Killed with other settings, it goes on with the old ones, and those others begin anew: nothing stale in either.
    killed_with_other_settings(clone, engine, rng)
    to_the_end(clone, engine)
    assert clone.outputs() == undisturbed.outputs()
    with changed(clone, other):
        to_the_end(clone, engine)
        assert clone.outputs() == with_other_settings


def killed_with_other_settings(clone: Clone, engine: str, rng: random.Random) -> None:
    """Kill the engine while it is at work on other settings."""
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
