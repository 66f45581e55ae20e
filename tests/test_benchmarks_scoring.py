"""The benchmarks of scoring and of growth run at a tiny size, and count what they say."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from sumnas.distributed import ALONE
from tests.cells import PAPER

FOLDER = Path(__file__).parents[1] / "benchmarks"


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", FOLDER / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_scoring(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    threads = str(torch.get_num_threads())
    script("scoring", monkeypatch).main(
        ["--tiny", "--device", "cpu", "--architectures", "6", "--threads", threads, "--out", f"{tmp_path}/r.json"]
    )
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["sub_models"] == 6 and result["other_answers_at_most"] <= 0.1
    assert result["interval_95"][0] <= result["times_as_fast"] <= result["interval_95"][1]
    assert result["orbit_losses_differ_by"] < 1e-4
    low, high = result["orbits_interval_95"]
    assert low <= result["orbits_times_as_fast_as_ours"] <= high
    connected = [a for a in PAPER.architectures() if PAPER.connected(a)]
    assert result["scores"] == {
        "connected": len(connected),
        "operations": len({PAPER.equivalence(a, flatten=False) for a in connected}),
        "function": len({PAPER.equivalence(a, flatten=True) for a in connected}),
        "in_orbits": 15_625,
    }
    for side, count in (("plain", "connected"), ("ours", "operations"), ("orbits", "in_orbits")):
        hours = result["scores"][count] / result["per_second"][side] / 3600
        assert result["hours_for_the_space"][side] == pytest.approx(hours, abs=0.01)


def test_growth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What it starts for processes is done in this one, which is alone: test_benchmarks_ranks.py starts several."""
    module, threads = script("growth", monkeypatch), str(torch.get_num_threads())
    ranks, asked = script("ranks", monkeypatch), []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[:2] == [sys.executable, str(FOLDER / "ranks.py")]
        asked.append(ranks.options_of(command[2:]))
        ranks.main(asked[-1], ALONE)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(module, "subprocess", SimpleNamespace(run=run))
    assert module.slope([1, 2, 4], [3.0, 12.0, 48.0]) == 2.0
    words = ["--tiny", "--device", "cpu", "--rounds", "2", "--threads", threads, "--out", f"{tmp_path}/r.json"]
    module.main([*words, "--engine", "lockstep", "--worlds", "2"])
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["engine"] == "lockstep" and 0 < result["engines_differ_by"] < 1e-10
    found = result["grows_with"]
    assert set(found) == {"k", "m", "batch", "channels", "architectures scored", "architectures ranked", "processes"}
    assert found["processes"]["values"] == [1, 2]
    (options,) = asked
    assert (options.world, options.device, options.threads, options.rounds) == (2, "cpu", int(threads), 2)
    for row in found.values():
        assert len(row["values"]) == len(row["ms"]) and min(row["ms"]) > 0
        assert row["slope"] == pytest.approx(module.slope(row["values"], row["ms"]), abs=0.02)
