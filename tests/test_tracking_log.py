"""The log: begun anew or taken up again, never by two at once, never the reason why a stage stops."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from sumnas.tracking import Tracker, log

PATH = Path("results/log.jsonl")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder as checkpoint.Work has it, with something done."""
    folder = tmp_path / "work" / "digest"
    folder.mkdir(parents=True)
    (folder / "lock").touch()
    (folder / "checkpoint.pt").touch()
    return folder


def killed(work: Path, epochs: int = 3) -> list[log.Line]:
    """Track some epochs and die without an end."""
    tracker = Tracker(PATH, "train a-0", ("g", "g"), {"epochs": 5})
    tracker.resume(work)
    for epoch in range(1, epochs + 1):
        tracker.metrics({"loss": 1 / epoch}, epoch)
    assert tracker._writer is not None
    tracker._writer.close()
    return log.read(PATH)


def test_a_resumed_stage_goes_on_with_its_run(work: Path) -> None:
    before = killed(work)
    with PATH.open("a") as file:
        file.write('{"event": "metr')  # cut off by the kill
    tracker = Tracker(PATH, "train a-0", ("g", "g"), {"epochs": 5})
    tracker.resume(work)
    for epoch in range(2, 6):  # the checkpoint was of epoch 1: 2 and 3 are repeated
        tracker.metrics({"loss": 1 / epoch}, epoch)
    tracker.end("FINISHED")
    after = log.read(PATH)
    assert after[: len(before)] == before
    assert [line["event"] for line in after[len(before) :]] == ["resume", "metrics", "metrics", "end"]
    assert [line["step"] for line in after if line["event"] == "metrics"] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("case", ["nothing done", "other work", "finished", "log gone"])
def test_a_stage_that_starts_afresh_begins_anew(case: str, work: Path) -> None:
    before = killed(work)
    if case == "nothing done":
        (work / "checkpoint.pt").unlink()
    if case == "other work":
        work = work.rename(work.with_name("other"))
    if case == "finished":
        writer = log.Writer.again(PATH)
        writer.write(log.line("end", status="FINISHED"))
        writer.close()
    if case == "log gone":
        PATH.unlink()
    tracker = Tracker(PATH, "train a-0", ("g", "g"))
    tracker.resume(work)
    tracker.metrics({"loss": 1.0}, 1)
    after = log.read(PATH)
    assert after[0]["run"] != before[0]["run"]
    assert after[0]["work"] == work.name
    assert [line["event"] for line in after] == ["start", "params", "tags", "metrics"]


def test_a_second_process_neither_writes_nor_complains(capsys: pytest.CaptureFixture[str], work: Path) -> None:
    first = Tracker(PATH, "train a-0", ("g", "g"))
    first.metrics({"loss": 1.0}, 1)
    for use in (lambda t: t.metrics({"loss": 2.0}, 2), lambda t: t.resume(work), lambda t: t.end("FAILED")):
        use(Tracker(PATH, "train a-0", ("g", "g")))
    first.metrics({"loss": 3.0}, 3)
    assert [line["step"] for line in log.read(PATH) if line["event"] == "metrics"] == [1, 3]
    assert capsys.readouterr().err == ""


def test_only_finite_numbers_under_names_that_mlflow_takes() -> None:
    tracker = Tracker(PATH, "train a-0", ("g", "g"))
    tracker.metrics({"a": 1, "b": math.nan, "c": math.inf, "d": None, "e": "", "f": True, "loss/|x~0|+|y~1|": 0.5}, 1)
    tracker.metrics({"g": math.nan}, 2)
    (line,) = [line for line in log.read(PATH) if line["event"] == "metrics"]
    assert line["values"] == {"a": 1.0, "loss/-x-0-y-1": 0.5}


def test_a_log_that_cannot_be_written_is_one_warning(capsys: pytest.CaptureFixture[str]) -> None:
    Path("results").touch()  # a file where the folder should be
    tracker = Tracker(PATH, "train a-0", ("g", "g"))
    for epoch in range(5):
        tracker.metrics({"loss": 1.0}, epoch)
    tracker.artifact(Path("nothing"))
    tracker.end("FINISHED")
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("tracking: ") and "results" in warning and "goes on untracked" in warning


def test_a_full_disk_is_one_warning(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker(PATH, "train a-0", ("g", "g"))
    tracker.metrics({"loss": 1.0}, 1)

    def full(_handle: int, _data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.write", full)
        tracker.metrics({"loss": 1.0}, 2)
        tracker.end("FINISHED")
    assert capsys.readouterr().err.count("\n") == 1
    assert [line["event"] for line in log.read(PATH)] == ["start", "params", "tags", "metrics"]


def test_without_a_path_nothing_happens(tmp_path: Path) -> None:
    tracker = Tracker()
    tracker.metrics({"loss": 1.0}, 1)
    tracker.tags({"a": "b"})
    tracker.resume(tmp_path)
    tracker.end("FINISHED")
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_goes_in_by_half_is_one_warning_and_is_taken_away(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, work: Path
) -> None:
    """As the system does it where a disk gets full within the line: no error, a smaller number."""
    tracker, write = Tracker(PATH, "train a-0", ("g", "g")), os.write
    tracker.resume(work)
    tracker.metrics({"loss": 1.0}, 1)
    with monkeypatch.context() as patch:
        patch.setattr("os.write", lambda handle, data: write(handle, data[: len(data) // 2]))
        tracker.metrics({"loss": 0.5}, 2)
    tracker.metrics({"loss": 0.25}, 3)
    assert capsys.readouterr().err.count("No space left on device") == 1
    assert tracker._writer is not None
    tracker._writer.close()
    again = Tracker(PATH, "train a-0", ("g", "g"))
    again.resume(work)
    again.metrics({"loss": 0.5}, 2)
    assert [line["step"] for line in log.read(PATH) if line.get("event") == "metrics"] == [1, 2]
