"""Stages killed at random moments, checkpoint writes among them, and started again: the same bytes as undisturbed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.workflow.conftest import Clone, changed
from workflow.score import BLOCK
from workflow.stages import STAGES

KILLS = int(os.environ.get("SUMNAS_TEST_KILLS", "10"))
"""Of each stage, at random moments."""
STAGES_AND_ARGUMENTS = [
    ("prepare_data", ()),
    ("train_references", ("--shard", "0")),
    ("train_supernet", ("--run", "sumnas-k2-0")),
    ("recalibrate_bn", ("--run", "sumnas-k2-0")),
    ("rank", ("--run", "sumnas-k2-0")),
    ("score", ("--run", "sumnas-k2-0", "--shard", "0")),
    ("search", ("--run", "sumnas-k2-0")),
    ("retrain", ("--run", "sumnas-k2-0")),
    ("summarize", ()),
]
"""Every stage that takes longer than a few seconds with some preset."""


EVERY_METHOD: dict[str, dict[str, object]] = {
    "spos": {},
    "fairnas": {},
    "wpl": {"alpha_epochs": 1},
    "nsas": {},
    "cream": {"board": 3, "matching_every": 4},
    "darts": {"order": 2},
    "gdas": {},
    "enas": {"controller_steps": 2, "controller_samples": 3},
}
"""Settings with which every kind of state comes up in a short training; SUMNAS is killed among the stages above."""


def outputs(clone: Clone, stage: str, method: str = "sumnas-k2") -> list[Path]:
    """Return where the stage's results lie; of a folder the files that are there."""
    names = {"method": method, "seed": "0", "run": f"{method}-0", "shard": "0"}
    found = [clone.folder / template.format(**names) for template in STAGES[stage].outputs]
    if found[0].is_dir():
        return [path for path in sorted(found[0].iterdir()) if path.suffix in (".npy", ".json") and path.stem != "run"]
    return found


def start(clone: Clone, stage: str, arguments: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """Start a stage as a process of its own."""
    command = [sys.executable, "-m", f"workflow.{stage}", *arguments]
    return subprocess.Popen(
        command, cwd=clone.folder, env=clone.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def until(process: subprocess.Popen[Any], seen: Callable[[], bool], seconds: float = 300) -> None:
    """Wait for what a process does, which must not end before it is seen."""
    deadline = time.monotonic() + seconds
    while not seen():
        assert process.poll() is None, f"{process.args} has ended: {process.returncode}"
        assert time.monotonic() < deadline, f"{process.args}: nothing came in {seconds:.0f} seconds"
        time.sleep(0.02)


def read_until_its_end(process: subprocess.Popen[bytes], files: dict[Path, bytes], seconds: float = 600) -> None:
    """Read a stage's results all the time that it runs, at most so long: each is whole, or not there yet.

    TimeoutExpired where it runs for longer.
    """
    deadline = time.monotonic() + seconds
    while process.poll() is None:
        for path, whole in files.items():
            with contextlib.suppress(FileNotFoundError):
                assert path.read_bytes() == whole, f"half of {path} was seen"
        if time.monotonic() > deadline:
            raise subprocess.TimeoutExpired(process.args, seconds)
        time.sleep(0.002)


def exhaustive(params: dict[str, Any]) -> None:
    """Settings with which shard 0 has two blocks of sub-models to score and more: one in eighty of all."""
    params["search"] |= {"strategy": "exhaustive"}
    params["run"] |= {"shards": list(range(80))}


@pytest.fixture
def scoring(undisturbed: Clone) -> Iterator[Clone]:
    """The clone with an exhaustive search's first scores: an evolution, as the others have it, needs none."""
    (path,) = outputs(undisturbed, "score")
    before = path.read_bytes()
    with changed(undisturbed, exhaustive):
        undisturbed.run(sys.executable, "-m", "workflow.score", "--run", "sumnas-k2-0", "--shard", "0")
        assert path.read_bytes().count(b"\n") > 2 * BLOCK
        yield undisturbed
    path.write_bytes(before)


@pytest.mark.parametrize(("stage", "arguments"), STAGES_AND_ARGUMENTS, ids=[s for s, _ in STAGES_AND_ARGUMENTS])
def test_killed_again_and_again(
    undisturbed: Clone, request: pytest.FixtureRequest, stage: str, arguments: tuple[str, ...]
) -> None:
    if stage == "score":
        request.getfixturevalue("scoring")
    clone, files = undisturbed, outputs(undisturbed, stage)
    expected = {path: path.read_bytes() for path in files}
    rng = random.Random(f"{stage} kills")
    if stage == "retrain":  # what a run has trained is kept for the others: here it has to be trained again
        clone.env["SUMNAS_CHECKPOINTS"] += "-again"
    for path in files:
        path.unlink()
    began = time.monotonic()
    process = start(clone, stage, arguments)
    read_until_its_end(process, expected)
    assert process.returncode == 0
    whole = time.monotonic() - began
    assert {path: path.read_bytes() for path in files} == expected, "two undisturbed runs differ"
    if stage == "retrain":
        clone.env["SUMNAS_CHECKPOINTS"] += "-and-again"
    for path in files:
        path.unlink()
    killed, through = 0, 0
    while killed < KILLS:
        process = start(clone, stage, arguments)
        try:
            # From the end of the imports on, where the work is, until the results are written.
            read_until_its_end(process, expected, rng.uniform(0.25, 0.95) * whole)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
            for path in files:  # a reader meets a whole file or none
                assert not path.exists() or path.read_bytes() == expected[path]
            continue
        # Through, by what earlier calls had saved: once more from the start.
        assert process.returncode == 0
        assert {path: path.read_bytes() for path in files} == expected
        through += 1
        if stage == "retrain":
            clone.env["SUMNAS_CHECKPOINTS"] += f"-{through}"
        for path in files:
            path.unlink()
    process = start(clone, stage, arguments)
    assert process.wait(timeout=600) == 0
    assert {path: path.read_bytes() for path in files} == expected
    print(f"{stage}: {whole:.1f} s undisturbed, {killed} kills, {through} times through between them")


@pytest.mark.parametrize("strategy", EVERY_METHOD)
def test_every_methods_training_survives_kills(undisturbed: Clone, strategy: str) -> None:
    clone, files = undisturbed, outputs(undisturbed, "train_supernet", strategy)
    before, params = clone.params, clone.params
    params["methods"][strategy] = {"strategy": strategy, **EVERY_METHOD[strategy]}
    clone.params = params
    try:
        clone.run("python", "-m", "workflow.describe_method", "--method", strategy)
        arguments = ("--run", f"{strategy}-0")
        began = time.monotonic()
        clone.run("python", "-m", "workflow.train_supernet", *arguments)
        whole = time.monotonic() - began
        expected = {path: path.read_bytes() for path in files}
        for path in files:
            path.unlink()
        for share in (0.5, 0.7, 0.8):
            process = start(clone, "train_supernet", arguments)
            try:
                process.wait(timeout=share * whole)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        clone.run("python", "-m", "workflow.train_supernet", *arguments)
        assert {path: path.read_bytes() for path in files} == expected
    finally:
        clone.params = before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_the_same_command_goes_on(undisturbed: Clone, number: signal.Signals) -> None:
    clone, files = undisturbed, outputs(undisturbed, "train_supernet")
    expected = {path: path.read_bytes() for path in files}
    for path in files:
        path.unlink()
    env = {**clone.env, "SUMNAS_CHECKPOINT_SECONDS": "1e9"}  # so that only the signal can have saved
    process = subprocess.Popen(
        [sys.executable, "-m", "workflow.train_supernet", "--run", "sumnas-k2-0"],
        cwd=clone.folder, env=env, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    folder = Path(env["SUMNAS_CHECKPOINTS"]) / "train_supernet"
    until(process, lambda: any(folder.glob("*/settings")))
    time.sleep(0.2)  # the handlers are in place: from now on the next step's end sees the signal
    os.kill(process.pid, number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number and number.name in said and "Traceback" not in said
    assert not any(path.exists() for path in files) and len(list(folder.glob("*/checkpoint.pt"))) == 1
    again = clone.run(sys.executable, "-m", "workflow.train_supernet", "--run", "sumnas-k2-0")
    assert "going on from step" in again.stderr
    assert {path: path.read_bytes() for path in files} == expected


TRAININGS = ("train_references", "train_supernet", "retrain")


@pytest.mark.parametrize(("stage", "arguments"), STAGES_AND_ARGUMENTS, ids=[s for s, _ in STAGES_AND_ARGUMENTS])
def test_every_stage_ends_on_a_signal_and_goes_on(
    undisturbed: Clone, request: pytest.FixtureRequest, stage: str, arguments: tuple[str, ...]
) -> None:
    """SIGTERM, in the middle of the work where it is a training, which then has saved; Ctrl-C ends in the same way."""
    if stage == "score":
        request.getfixturevalue("scoring")
    clone = undisturbed
    expected = {path: path.read_bytes() for path in outputs(clone, stage)}
    for path in expected:
        path.unlink()
    env = {**clone.env, "SUMNAS_CHECKPOINTS": clone.env["SUMNAS_CHECKPOINTS"] + "-signalled"}
    env["SUMNAS_CHECKPOINT_SECONDS"] = "1e9"
    command = [sys.executable, "-m", f"workflow.{stage}", *arguments]
    process = subprocess.Popen(
        command, cwd=clone.folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    folder = Path(env["SUMNAS_CHECKPOINTS"]) / stage
    while not any(folder.glob("*/settings")) and process.poll() is None and STAGES[stage].resumes:
        time.sleep(0.02)
    time.sleep(0.2 if STAGES[stage].resumes else 1)
    process.terminate()
    said = process.communicate(timeout=120)[1].decode()
    assert "Traceback" not in said
    assert (
        process.returncode in (128 + signal.SIGTERM, -signal.SIGTERM)
        or stage not in TRAININGS
        and not process.returncode
    )
    assert members(process.pid) == [], "a child lives on"
    for path, whole in expected.items():
        assert not path.exists() or path.read_bytes() == whole
    if stage in TRAININGS:
        assert process.returncode == 128 + signal.SIGTERM and "stopped by SIGTERM" in said
        assert any(folder.glob("*/checkpoint.pt")) or any(folder.glob("*/done/*"))
    ended = subprocess.run(command, cwd=clone.folder, env=env, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr  # by hand nothing has to be cleared away
    assert {path: path.read_bytes() for path in expected} == expected


def members(session: int) -> list[int]:
    """Return the processes of a session that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(path.parent.name))
    return found


def test_a_changed_setting_never_resumes_an_old_checkpoint(undisturbed: Clone) -> None:
    clone = undisturbed
    command = (sys.executable, "-m", "workflow.train_supernet", "--run", "sumnas-k2-0")
    process = start(clone, "train_supernet", command[3:])
    folder = Path(clone.env["SUMNAS_CHECKPOINTS"]) / "train_supernet"
    until(process, lambda: any(folder.glob("*/checkpoint.pt")))
    process.kill()
    process.wait()
    before = clone.params
    params = clone.params
    params["methods"]["sumnas-k2"]["inner_learning_rate"] = 0.1
    clone.params = params
    clone.run("python", "-m", "workflow.describe_method", "--method", "sumnas-k2")
    assert "going on" not in clone.run(*command).stderr
    clone.params = before
    clone.run("python", "-m", "workflow.describe_method", "--method", "sumnas-k2")
    assert "going on" in clone.run(*command).stderr


def test_two_writers_never_work_at_once(undisturbed: Clone) -> None:
    clone = undisturbed
    process = start(clone, "train_supernet", ("--run", "sumnas-k2-0"))
    folder = Path(clone.env["SUMNAS_CHECKPOINTS"]) / "train_supernet"
    until(process, lambda: any(folder.glob("*/checkpoint.pt")))
    os.kill(process.pid, signal.SIGSTOP)  # it holds its lock, however long the second takes to start
    second = clone.run(sys.executable, "-m", "workflow.train_supernet", "--run", "sumnas-k2-0", check=False)
    os.kill(process.pid, signal.SIGCONT)
    assert second.returncode == 1 and "another process is doing this very work" in second.stderr
    assert process.wait(timeout=300) == 0
