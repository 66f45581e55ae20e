"""Full disks, places that cannot be written, files cut off or with a flipped bit: a line that names file and remedy."""

from __future__ import annotations

import functools
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.workflow.conftest import Clone
from workflow.stages import STAGES

RUN = ("--run", "sumnas-k2-0")


def stage(
    clone: Clone, name: str, *arguments: str, largest_file: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a stage; no file that it writes can grow beyond `largest_file` bytes, as on a disk that is full there."""
    limit = (largest_file or resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    return subprocess.run(
        [sys.executable, "-m", f"workflow.{name}", *arguments], cwd=clone.folder,
        env={**clone.env, "SUMNAS_TRACKING": "off"}, capture_output=True, text=True, timeout=300,
        preexec_fn=functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, limit),
    )  # fmt: skip


def complaint(ended: subprocess.CompletedProcess[str]) -> str:
    """Return the last line of a stage that ended with exit code 1 and without a traceback."""
    assert ended.returncode == 1 and "Traceback" not in ended.stderr, ended.stderr
    return ended.stderr.strip().splitlines()[-1]


@contextmanager
def changed(path: Path, content: bytes | None) -> Iterator[None]:
    """Give a file other content, or take it away, and put it back."""
    before = path.read_bytes()
    try:
        path.unlink() if content is None else path.write_bytes(content)
        yield
    finally:
        path.write_bytes(before)


def flipped(content: bytes, place: float) -> bytes:
    """Flip one bit at a share of the length."""
    changed = bytearray(content)
    changed[int(place * (len(content) - 1))] ^= 16
    return bytes(changed)


FULL = [
    ("prepare_data", (), 20_000, "data/prepared"),
    ("train_supernet", RUN, 3_000, "next.pt"),  # of a checkpoint, the first that does not fit
    ("recalibrate_bn", RUN, 3_000, "safetensors: File too large"),
    ("rank", RUN, 1_000, ": File too large"),
    ("retrain", RUN, 3_000, ": File too large"),
]


@pytest.mark.parametrize(("name", "arguments", "size", "where"), FULL, ids=[name for name, *_ in FULL])
def test_a_full_disk(undisturbed: Clone, name: str, arguments: tuple[str, ...], size: int, where: str) -> None:
    clone = undisturbed
    before = {path: path.read_bytes() for place in ("results", "data/prepared")
              for path in (clone.folder / place).rglob("*") if path.is_file() and path.suffix != ".jsonl"}  # fmt: skip
    clone.env["SUMNAS_CHECKPOINTS"] += "-full"
    said = complaint(stage(clone, name, *arguments, largest_file=size))
    assert f"{name}: error: " in said and "; free or change it and run this again" in said
    assert where in said
    after = {path: path.read_bytes() for place in ("results", "data/prepared")
             for path in (clone.folder / place).rglob("*") if path.is_file() and path.suffix != ".jsonl"}  # fmt: skip
    assert after == before, "something half-written is left, or an old result is lost"
    # With room again the same command goes on to the same bytes.
    assert stage(clone, name, *arguments).returncode == 0
    again = {path: path.read_bytes() for path in before if path.name != "run.json"}
    assert again == {path: content for path, content in before.items() if path.name != "run.json"}


def test_a_place_that_cannot_be_written(undisturbed: Clone) -> None:
    clone = undisturbed
    folder = clone.folder / "results/ranking/sumnas-k2-0"
    aside = folder.rename(folder.with_name("aside"))
    try:
        folder.write_text("a file where a folder belongs")
        assert str(folder.relative_to(clone.folder)) in complaint(stage(clone, "rank", *RUN))
    finally:
        folder.unlink()
        aside.rename(folder)
    clone.env["SUMNAS_CHECKPOINTS"] += "/lock"  # below, a path through a file
    kept = clone.env["SUMNAS_CHECKPOINTS"]
    try:
        Path(kept).parent.mkdir(exist_ok=True)
        Path(kept).write_text("")
        said = complaint(stage(clone, "rank", *RUN))
        assert "cannot keep checkpoints there" in said and "set SUMNAS_CHECKPOINTS to a folder" in said
    finally:
        clone.env["SUMNAS_CHECKPOINTS"] = kept.removesuffix("/lock")
        Path(kept).unlink()


DAMAGED = [
    ("results/supernet/sumnas-k2-0/weights.safetensors", "recalibrate_bn"),
    ("results/calibrated/sumnas-k2-0/statistics.safetensors", "rank"),
    ("data/prepared/x_train.npy", "train_supernet"),
    ("data/prepared/manifest.json", "train_supernet"),
    ("results/benchmark/table.csv", "rank"),
    ("results/samples.csv", "rank"),
    ("data/prepared/y_validation.npy", "rank"),
    ("results/benchmark/shards/0.csv", "build_benchmark"),
    ("results/supernet/sumnas-k2-0/history.csv", "summarize"),
    ("results/ranking/sumnas-k2-0/predictions.csv", "summarize"),
    ("results/search/sumnas-k2-0/found.json", "retrain"),
]


@pytest.mark.parametrize(("file", "name"), DAMAGED, ids=[file for file, _ in DAMAGED])
def test_a_file_that_was_cut_off_or_is_not_there(undisturbed: Clone, file: str, name: str) -> None:
    path = undisturbed.folder / file
    content = path.read_bytes()
    for damaged in (None, b"", content[: len(content) // 2], content[:-2]):
        with changed(path, damaged):
            said = complaint(stage(undisturbed, name, *(RUN if "seed" in STAGES[name].per else ())))
            assert file in said and "run " in said, said


SEALED = [(file, name) for file, name in DAMAGED if not file.endswith(".json")]


@pytest.mark.parametrize(("file", "name"), SEALED, ids=[file for file, _ in SEALED])
def test_one_flipped_bit(undisturbed: Clone, file: str, name: str) -> None:
    path = undisturbed.folder / file
    content = path.read_bytes()
    for place in (0.0, 0.5, 1.0):
        with changed(path, flipped(content, place)):
            said = complaint(stage(undisturbed, name, *(RUN if "seed" in STAGES[name].per else ())))
            assert file in said and "run " in said, said


def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(undisturbed: Clone) -> None:
    clone = undisturbed
    clone.env["SUMNAS_CHECKPOINTS"] += "-damaged"  # where no other test has left any
    folder = clone.folder / "results/supernet/sumnas-k2-0"
    expected = {path: path.read_bytes() for path in (folder / "weights.safetensors", folder / "history.csv")}
    for damaged in (["checkpoint"], ["checkpoint", "previous"]):
        for path in expected:
            path.unlink()
        command = [sys.executable, "-m", "workflow.train_supernet", *RUN]
        process = subprocess.Popen(command, cwd=clone.folder, env=clone.env, stderr=subprocess.DEVNULL)
        work = Path(clone.env["SUMNAS_CHECKPOINTS"]) / "train_supernet"
        while not list(work.glob("*/previous.pt")):
            assert process.poll() is None
            time.sleep(0.01)
        process.terminate()  # which saves: both are there, where a kill may come between two renames
        process.wait()
        (kept,) = (path.parent for path in work.glob("*/previous.pt"))
        for name in damaged:
            path = kept / f"{name}.pt"
            path.write_bytes(flipped(path.read_bytes(), 0.5))
        ended = clone.run(*command)
        for name in damaged:
            assert f"{kept / name}.pt: damaged checkpoint, passed over" in ended.stderr
        assert ("going on from step" in ended.stderr) == (len(damaged) == 1)
        assert {path: path.read_bytes() for path in expected} == expected
