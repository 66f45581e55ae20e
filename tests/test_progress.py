"""The progress line: time left by the rate since the first update, so a resumed stage does not flatter itself."""

from __future__ import annotations

import io

import pytest

from sumnas import progress


def test_plain_lines_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 10.0, 20.0, 30.0, 31.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    stream = io.StringIO()
    bar = progress.Progress("train", 100, every=10, stream=stream)
    for done in (40, 45, 60, 80, 100):
        bar.update(done)
    assert stream.getvalue().splitlines() == [
        "train: 45/100, 0:55 left",
        "train: 60/100, 0:30 left",
        "train: 80/100, 0:12 left",
        "train: 100/100",
    ]


def test_hours() -> None:
    assert progress._duration(3 * 3600 + 62) == "3:01:02"
