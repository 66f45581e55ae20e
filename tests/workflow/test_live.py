"""The picture of a training while it runs: it grows, goes with the training's end, and disturbs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sumnas import plots
from tests import in_process
from workflow import live

ROWS = [{"epoch": 1, "loss": 2.25, "probe_loss": 2.125}, {"epoch": 2, "loss": 1.5}]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "live"


def test_draws_the_epochs_so_far(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "FIRST", 0.0)
    monkeypatch.setattr(live, "SHARE", 1e9)
    curves, drawn = plots.curves, []
    monkeypatch.setattr(plots, "curves", lambda path, panels: drawn.append(panels) or curves(path, panels))
    drawing = live.Live("spos-0")
    drawing(ROWS)
    assert not folder.exists(), "a folder that is not there is not wanted"
    folder.mkdir()
    for count in (1, 2):
        drawing(ROWS[:count])
        text = (folder / "spos-0.svg").read_text()
        assert "spos-0" in text and "training loss" in text and "validation loss of probes" in text
    assert [[(label, curve.epochs, curve.values) for label, (curve,) in panels] for panels in drawn] == [
        [("training loss", [1], [2.25]), ("validation loss of probes", [1], [2.125])],
        [("training loss", [1, 2], [2.25, 1.5]), ("validation loss of probes", [1], [2.125])],
    ]
    drawing.end()
    drawing.end()
    assert list(folder.iterdir()) == []


def test_what_an_editor_watches_is_written_when_a_picture_comes_or_goes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "FIRST", 0.0)
    monkeypatch.setattr(live, "SHARE", 1e9)
    folder.mkdir()
    watched, text = folder / "trainings.svg", (Path(live.__file__).parents[1] / live.WATCHED).read_text()
    watched.write_text(text)
    written = []

    def look() -> None:
        written.append(watched.stat().st_ino)
        assert watched.read_text() == text

    drawing = live.Live("spos-0")
    for step in (
        look,
        lambda: drawing(ROWS[:1]),
        look,
        lambda: drawing(ROWS),
        look,
        drawing.end,
        look,
        drawing.end,
        look,
    ):
        step()
    came, went = written[0] != written[1], written[2] != written[3]
    assert came and went and written[1] == written[2] and written[3] == written[4]


def test_waits_before_each_picture(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    clock = [100.0]
    drawn: list[float] = []

    def draw(self: live.Live, history: Sequence[Any]) -> None:
        drawn.append(clock[0])
        clock[0] += 0.7  # what it takes

    monkeypatch.setattr(live.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(live.Live, "_draw", draw)
    drawing = live.Live("spos-0")
    while clock[0] < 300:
        drawing(ROWS)
        clock[0] += 1
    assert drawn[0] == pytest.approx(110, abs=1) and drawn[1] == pytest.approx(180, abs=2) and len(drawn) == 3


def test_a_picture_that_cannot_be_written_is_left_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "FIRST", 0.0)
    (folder / "spos-0.svg").mkdir(parents=True)
    drawing = live.Live("spos-0")
    drawing(ROWS)
    drawing.end()
    assert [path.name for path in folder.iterdir()] == ["spos-0.svg"]


def test_a_training_draws_itself_until_it_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    seen: list[list[int]] = []

    def draw(self: live.Live, history: Sequence[Any]) -> None:
        seen.append([row["epoch"] for row in history])
        self.path.write_text("picture")

    monkeypatch.setattr(live, "FIRST", 0.0)
    monkeypatch.setattr(live, "SHARE", 1e9)
    monkeypatch.setattr(live.Live, "_draw", draw)
    in_process.begin(folder.parent, monkeypatch, lambda settings: settings["supernet"].update(epochs=3, batch_size=500))
    in_process.run("spos-0", ["prepare_data", "describe_method", "train_supernet"])
    assert seen == [[1], [1, 2], [1, 2, 3]]
    assert list(folder.iterdir()) == [] and (folder.parent / "results/supernet/spos-0/history.csv").exists()
