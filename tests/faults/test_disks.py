"""Real file systems that are full or cannot be written: stages in a mount namespace with a small tmpfs of their own."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.test_storage import complaint
from tests.workflow.conftest import Clone

RUN = ("--run", "sumnas-k2-0")
NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
MOUNT = 'mount -t tmpfs -o "$1" none "$2" && shift 2 && "$@"; code=$?; '
"""Arguments: the mount's options, where, and the command that then runs."""
LIST = 'find "$PLACE" -type f ! -name "*log.jsonl" -exec wc -c {} +; exit $code'


@functools.cache
def mounts() -> bool:
    """Whether this machine lets its users mount something for themselves."""
    if shutil.which("unshare") is None:
        return False
    tried = subprocess.run([*NAMESPACE, "mount -t tmpfs none /mnt"], capture_output=True)
    return tried.returncode == 0


def on_tmpfs(clone: Clone, options: str, place: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a stage for which `place` is an empty tmpfs; standard output has the files that it leaves there."""
    if not mounts():
        pytest.skip("this machine lets no user mount a tmpfs (unshare --user --mount)")
    place.mkdir(parents=True, exist_ok=True)
    stage = (sys.executable, "-m", f"workflow.{name}", *arguments)
    return subprocess.run(
        [*NAMESPACE, MOUNT + LIST, "sh", options, str(place), *stage], cwd=clone.folder,
        env={**clone.env, "SUMNAS_TRACKING": "off", "PLACE": str(place)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


STAGES = [
    ("prepare_data", (), "data", 64),
    ("train_references", ("--shard", "0"), "results/benchmark/shards", 4),
    ("train_supernet", RUN, "results/supernet/sumnas-k2-0", 8),
    ("recalibrate_bn", RUN, "results/calibrated/sumnas-k2-0", 8),
    ("rank", RUN, "results/ranking/sumnas-k2-0", 8),
    ("search", RUN, "results/search/sumnas-k2-0", 4),
    ("retrain", RUN, "results/retrain/sumnas-k2-0", 8),
    ("summarize", (), "results/summary", 8),
]
"""Stage, arguments, its folder, and kilobytes (whole pages of 4) that hold its log but not its results."""


@pytest.mark.parametrize(("name", "arguments", "folder", "size"), STAGES, ids=[name for name, *_ in STAGES])
def test_a_small_disk_gets_full(
    undisturbed: Clone, name: str, arguments: tuple[str, ...], folder: str, size: int
) -> None:
    clone = undisturbed
    before = clone.outputs()
    ended = on_tmpfs(clone, f"size={size}k", clone.folder / folder, name, *arguments)
    said = complaint(ended)
    assert (
        f"{name}: error: {folder}" in said and "No space left on device; free or change it and run this again" in said
    )
    # Whole files are there or none: the ones that were written before the disk was full are the undisturbed run's.
    left = [line.split(maxsplit=1)[1] for line in ended.stdout.splitlines() if not line.endswith(" total")]
    assert not [path for path in left if ".part" in path or path.removeprefix(f"{clone.folder}/") not in before]
    assert clone.outputs() == before


def test_checkpoints_on_a_small_disk_that_gets_full(undisturbed: Clone) -> None:
    clone = undisturbed
    place = Path(clone.env["SUMNAS_CHECKPOINTS"])
    before = clone.outputs()
    said = complaint(on_tmpfs(clone, "size=24k", place, "train_supernet", *RUN))
    assert f"train_supernet: error: {place}/train_supernet/" in said and "No space left on device; free" in said
    assert clone.outputs() == before


READ_ONLY = [("train_supernet", "results/supernet/sumnas-k2-0"), ("rank", "results/ranking/sumnas-k2-0"),
             ("retrain", "results/retrain/sumnas-k2-0")]  # fmt: skip


@pytest.mark.parametrize(("name", "folder"), READ_ONLY, ids=[name for name, _ in READ_ONLY])
def test_results_that_cannot_be_written(undisturbed: Clone, name: str, folder: str) -> None:
    ended = on_tmpfs(undisturbed, "ro,size=1m", undisturbed.folder / folder, name, *RUN)
    said = complaint(ended)
    assert f"{name}: error: {folder}" in said and "Read-only file system; free or change it and run this again" in said
    assert ended.stdout == ""


def test_checkpoints_that_cannot_be_written(undisturbed: Clone) -> None:
    place = Path(undisturbed.env["SUMNAS_CHECKPOINTS"])
    said = complaint(on_tmpfs(undisturbed, "ro,size=1m", place, "train_supernet", *RUN))
    assert f"{place}/train_supernet/" in said and "set SUMNAS_CHECKPOINTS to a folder that can be written" in said
