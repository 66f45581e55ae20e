"""Every measurement has its picture, made from the result file, and a missed bar says by how much and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.test_benchmarks_scoring import script

RESULTS = Path(__file__).parents[1] / "benchmarks/results"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.svg")), ids=lambda path: path.stem)
def test_a_committed_picture_is_of_its_result_file(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = script("pictures", monkeypatch)
    assert module.draw(path.with_suffix(".json"), tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == path.read_bytes(), "python benchmarks/pictures.py draws it anew"


def test_every_measurement_of_speed_has_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = script("pictures", monkeypatch).DRAWN
    for path in RESULTS.glob("*.json"):
        assert path.with_suffix(".svg").exists() == (json.loads(path.read_text()).get("benchmark") in drawn), path.name


def lockstep_row(batch: int, times: float, floor: float) -> dict[str, Any]:
    return {
        "batch_size": batch, "k": 2, "passes": 10,
        "than_sequential": {side: {"times_as_fast": times} for side in ("lockstep", "naive", "bare")},
        "images_per_s": dict.fromkeys(("sequential", "lockstep", "naive", "bare"), 10),
        "floor_bytes": 100, "lockstep_moved_bytes": 300, "sequential_moved_bytes": 200,
        "share_of_copy_floor": floor, "share_of_copy_moved": 0.9, "share_of_matrix_product": 0.1,
    }  # fmt: skip


def test_bars_of_lockstep(monkeypatch: pytest.MonkeyPatch) -> None:
    module = script("bars", monkeypatch)
    speed, floor = module.of_lockstep(
        [lockstep_row(64, 2.0, 0.1), lockstep_row(64, 6.0, 0.1), lockstep_row(256, 1.0, 0.6)]
    )
    assert (speed["at_least"], speed["found"], speed["met"], speed["short_by"]) == (5.0, 2.0, False, 3.0)
    assert "1.50 times as many bytes" in speed["why"]
    assert floor == {**floor, "at_least": 0.5, "found": 0.6, "met": True} and "why" not in floor
    (missed,) = module.of_lockstep([lockstep_row(256, 1.0, 0.3)])
    assert missed["short_by"] == pytest.approx(0.2) and "3.0 times the floor's bytes, at 0.90" in missed["why"]


def test_bars_of_two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {
        "k": 1,
        "seconds_per_step": {"all": 0.05},
        "sum_ms": 5.0,
        "bound": 1.6667,
        "bound_by_macs": 1.5,
        "machine_allows": 1.75,
    }
    rows = [{**row, "space": {"name": name}, "share_of_bound": share}
            for name, share in (("cells", 0.95), ("cells", 0.8), ("chain", 0.93))]  # fmt: skip
    cells, chain = script("bars", monkeypatch).of_ranks(rows)
    assert (cells["found"], cells["met"], cells["short_by"]) == (0.8, False, 0.1)
    assert "could be 1.50 times as fast, by their number alone 1.67" in cells["why"] and "10% of a step" in cells["why"]
    assert chain["met"] and "why" not in chain


@pytest.mark.parametrize("kind", ["lockstep", "overhead"])
def test_pictures_of_what_a_machine_has_not_measured_yet(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    per_job = {"overhead_s": 4.0, "start_s": 1.5, "engine_s": 2.5}
    engine = {
        "per_job": per_job,
        "nothing_to_do_s": 0.6,
        "stages": {"rank": {"start_s": 1.0}, "score": {"start_s": 2.0}},
    }
    found = {
        "lockstep": {"device": "a device", "rows": [lockstep_row(64, 2.0, 0.1), lockstep_row(256, 1.0, 0.6)]},
        "overhead": {"cpu": "a processor", "engines": {"dvc": engine, "snakemake": engine}},
    }[kind]
    (tmp_path / "one.json").write_text(json.dumps({"benchmark": kind, **found}))
    script("pictures", monkeypatch).main(["--folder", str(tmp_path)])
    text = (tmp_path / "one.svg").read_text()
    assert text.startswith("<?xml") and len(text) > 10_000
