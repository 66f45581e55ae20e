"""Work in progress: whole checkpoints only, one writer, nothing made twice, signals end a stage with its code."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from sumnas.checkpoint import Interrupted, Work, exit_code
from sumnas.errors import UserError


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUMNAS_CHECKPOINTS", str(tmp_path))


def test_a_damaged_checkpoint_falls_back_to_the_one_before() -> None:
    said: list[str] = []
    with Work("stage", "a" * 64) as work:
        assert work.load() is None
        for value in (1.0, 2.0):
            work.save({"x": torch.tensor(value)})
        state = work.load()
        assert state is not None and state["x"] == 2
        path = work.folder / "checkpoint.pt"
        damaged = bytearray(path.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        path.write_bytes(damaged)
        state = work.load(said.append)
        assert state is not None and state["x"] == 1
        assert "damaged checkpoint" in said[0] and str(path) in said[0]


def test_another_digest_sees_nothing_of_it() -> None:
    with Work("stage", "a" * 64) as work:
        work.save({"x": 1})
    with Work("stage", "b" * 64) as other:
        assert other.load() is None


def test_a_second_writer_is_refused() -> None:
    with Work("stage", "a" * 64), pytest.raises(UserError, match="another process"), Work("stage", "a" * 64):
        pass


def test_what_was_made_is_not_made_again_and_damage_is_noticed() -> None:
    made: list[int] = []

    def make() -> dict[str, float]:
        made.append(1)
        return {"accuracy": 0.1 + 0.2}

    with Work("stage", "a" * 64) as work:
        assert work.remember("k", make) == work.remember("k", make) == {"accuracy": 0.1 + 0.2}
        assert len(made) == 1
        (kept,) = (work.folder / "done").glob("*.json")
        kept.write_text(kept.read_text().replace("0.3", "0.9", 1))
        assert work.remember("k", make) == {"accuracy": 0.1 + 0.2}
        assert len(made) == 2
        work.clear()
        assert work.remember("k", make) and len(made) == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_stops_between_two_units_with_its_code(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    said: list[str] = []
    with pytest.raises(SystemExit) as stop, exit_code(said.append), Work("stage", "a" * 64) as work:
        work.stop_if_asked()
        os.kill(os.getpid(), number)
        assert work.due(1e9)
        with pytest.raises(Interrupted):
            work.stop_if_asked()
        work.remember("k", lambda: 1)
    assert stop.value.code == 128 + number
    assert number.name in said[0] and "again" in said[0]
    assert signal.getsignal(number) is before
