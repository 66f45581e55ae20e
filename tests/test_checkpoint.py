"""Work in progress: whole checkpoints only, one writer, nothing made twice, signals end a stage with its code."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from sumnas.checkpoint import Interrupted, Work, exit_code
from sumnas.errors import UserError
from sumnas.files import replacing


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUMNAS_CHECKPOINTS", str(tmp_path))


def test_a_damaged_checkpoint_falls_back_to_the_one_before(capsys: pytest.CaptureFixture[str]) -> None:
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
        state = work.load()
        assert state is not None and state["x"] == 1
        assert f"{path}: damaged checkpoint" in capsys.readouterr().err


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


def test_tensors_are_remembered_and_damage_is_noticed() -> None:
    made: list[int] = []

    def make() -> dict[str, torch.Tensor]:
        made.append(1)
        return {"a": torch.arange(3.0)}

    with Work("stage", "a" * 64) as work:
        for _ in range(2):
            assert torch.equal(work.remember_tensors("k", make)["a"], torch.arange(3.0))
        assert len(made) == 1
        (kept,) = (work.folder / "done").glob("*.safetensors")
        damaged = bytearray(kept.read_bytes())
        damaged[-1] ^= 1
        kept.write_bytes(damaged)
        assert torch.equal(work.remember_tensors("k", make)["a"], torch.arange(3.0)) and len(made) == 2


def test_a_training_goes_on_only_from_its_own_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUMNAS_CHECKPOINT_SECONDS", "0")
    with Work("stage", "a" * 64) as work:
        first = work.resumable("one")
        assert first["state"] is None
        first["on_step"](lambda: {"step": 3})
        assert work.resumable("one")["state"] == {"step": 3}
        assert work.resumable("two")["state"] is None


def test_work_of_other_sources_is_taken_up_only_where_asked(capsys: pytest.CaptureFixture[str]) -> None:
    with Work("stage", "a" * 64, settings="s") as old:
        old.save({"x": 1})
        old.remember("k", lambda: 2)
    with Work("stage", "b" * 64, settings="s") as new:
        assert new.load() is None
    with Work("stage", "c" * 64, settings="other", accept_code_change=True) as other:
        assert other.load() is None
    assert not capsys.readouterr().err
    with Work("stage", "b" * 64, settings="s", accept_code_change=True) as new:
        assert new.load() == {"x": 1} and new.remember("k", lambda: 3) == 2
    assert str(old.folder) in capsys.readouterr().err
    with Work("stage", "a" * 64, settings="s") as old:
        assert old.load() is None  # taken over: two that go on from it would both claim it


def test_what_stopped_calls_have_spent_is_told_until_the_work_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("sumnas.checkpoint.time.monotonic", lambda: now[0])

    def call(digest: str, seconds: float, **more: bool) -> Work:
        with Work("stage", digest * 64, settings="s", **more) as work:
            now[0] += seconds
        return work

    assert call("a", 5).before == 0 and call("a", 2.5).before == 5
    with pytest.raises(RuntimeError), Work("stage", "a" * 64) as work:
        assert work.before == 7.5
        now[0] += 1
        work.save({"x": 1})
        noted = (work.folder / "seconds").read_text()  # all that a kill leaves
        now[0] += 3
        raise RuntimeError
    assert float(noted) == 8.5 and call("a", 0.5).before == 11.5
    # Other sources that go on from there go on counting, too; nothing stays behind.
    assert call("b", 1).before == 0  # without being asked to: nothing of the other's, and its own second
    assert call("b", 1, accept_code_change=True).before == 12
    assert call("a", 0).before == 0
    with Work("stage", "b" * 64) as work:
        assert work.before == 13
        work.clear()
    assert call("b", 0).before == 0
    (work.folder / "seconds").write_text("half a numb")
    assert call("b", 1).before == 0


def test_a_signal_outside_of_work_stops_at_once_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop, exit_code(lambda _: None), replacing(tmp_path / "result.json") as part:
        part.write_text("half")
        os.kill(os.getpid(), signal.SIGTERM)
        part.write_text("never reached")
    assert stop.value.code == 128 + signal.SIGTERM and not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_stops_between_two_units_with_its_code(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    said: list[str] = []
    with pytest.raises(SystemExit) as stop, exit_code(said.append), Work("stage", "a" * 64) as work:
        work.stop_if_asked()
        os.kill(os.getpid(), number)
        assert work.due()
        with pytest.raises(Interrupted):
            work.stop_if_asked()
        work.remember("k", lambda: 1)
    assert stop.value.code == 128 + number
    assert number.name in said[0] and "again" in said[0]
    assert signal.getsignal(number) is before
