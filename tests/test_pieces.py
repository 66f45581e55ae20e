"""A long run in pieces, on a shrunken preset: what is there is not made again, and a lost work folder costs nothing."""

from __future__ import annotations

import dataclasses
import importlib
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import kendalltau

from benchmarks import image_folder as laid_out
from benchmarks import mobilenet_cpu, mobilenet_report
from benchmarks.cifar10_report import Run
from sumnas import files, machine, preparation
from sumnas.benchmark import pool
from sumnas.benchmark.settings import PoolSettings
from sumnas.data import load
from sumnas.errors import UserError
from sumnas.retraining import train_network
from sumnas.shown import interval, number
from sumnas.spaces import base
from workflow import pieces, stage
from workflow.pieces import Plan
from workflow.readme import replaced
from workflow.stages import STAGES

ROOT = Path(__file__).resolve().parents[1]
CIFAR = ROOT / "docs/results/cifar10-cpu"
SMALL: dict[str, dict[str, Any]] = {
    "data": {"resize": 8, "limit": None, "validation": 0.2, "path": "pictures"},
    "space": {
        "image_size": 8, "classes": 3, "stem_channels": 4, "head_channels": 8,
        "stages": [{"channels": 4, "blocks": 1, "stride": 1}, {"channels": 4, "blocks": 2, "stride": 2}],
    },
    "sampling": {"floor": 0.0},
    "supernet": {"epochs": 1, "batch_size": 4, "probes": 1, "probe_every": 1},
    "calibration": {"images": 12, "batch_size": 6},
    "ranking": {"top_k": [1], "bootstrap": 100},
    "search": {"limits": [None], "population": 3, "generations": 1, "offspring": 2},
}  # fmt: skip
"""Of presets/mobilenet-cpu.yaml, what is changed for digits as pictures."""


@pytest.fixture
def plan(tmp_path: Path, image_folder: Path) -> Plan:
    preset = yaml.safe_load((ROOT / "presets/mobilenet-cpu.yaml").read_text(encoding="utf-8"))
    for name, changes in SMALL.items():
        preset[name] |= changes
    preset["run"]["workers"] = 0
    preset["benchmark"]["pool"] |= {"architectures": 3, "seeds": [0, 1]}
    preset["benchmark"]["pool"]["recipe"] |= {"epochs": 6, "batch_size": 6}
    preset["retrain"]["recipe"] |= {"epochs": 2, "warmup_epochs": 1, "batch_size": 12}
    files.write_text(tmp_path / "clone/presets/mobilenet-cpu.yaml", yaml.safe_dump(preset, sort_keys=False))
    return Plan("mobilenet-cpu", mobilenet_cpu.COMMAND, tmp_path / "clone", image_folder)


def with_seeds(plan: Plan, *seeds: int) -> None:
    """Train the references of the preset with these seeds alone."""
    preset = plan.root / "presets/mobilenet-cpu.yaml"
    text = yaml.safe_load(preset.read_text(encoding="utf-8"))
    text["benchmark"]["pool"]["seeds"] = list(seeds)
    files.write_text(preset, yaml.safe_dump(text, sort_keys=False))


def call_here(folder: Path, text: Mapping[str, Any], name: str, *stages: str) -> None:
    """Do what `pieces.call` does in this process, where torch is imported already."""
    files.write_text(folder / "params.yaml", yaml.safe_dump(dict(text), sort_keys=False))
    threads = torch.get_num_threads()
    for called in stages:
        arguments = ["--run", name] if "seed" in STAGES[called].per else []
        if called == "describe_method":
            arguments = ["--method", name.rpartition("-")[0]]
        module = importlib.import_module(f"workflow.{called}")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            patch.setattr(sys, "argv", [called, *arguments])
            stage.execute(called, module.main, getattr(module, "processes", None))
    torch.set_num_threads(threads)


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("made again")


def test_references_come_a_few_at_a_time_and_go_on_from_the_rows(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    assert pieces.references(plan, work, -1) == 6 and not plan.rows.exists()
    assert pieces.references(plan, work, 1e6, only=1) == 0
    assert [row["seed"] for row in pieces.read(plan.rows, pool.COLUMNS)] == ["1"] * 3
    shutil.rmtree(work)  # another machine
    assert pieces.references(plan, work, 1e6) == 0
    rows, times = pieces.read(plan.rows, pool.COLUMNS), pieces.read(plan.times, pieces.TIMES)
    settings = plan.settings()
    space, wanted = base.build(settings.space), settings.benchmark.pool
    drawn = [space.encode(a) for a in pool.draw(space, wanted)]
    assert sorted((r["architecture"], r["seed"]) for r in rows) == sorted((a, s) for a in drawn for s in "01")
    assert [(r["architecture"], r["seed"]) for r in times] == [(r["architecture"], r["seed"]) for r in rows]
    assert all(float(r["processor_seconds"]) > 0 and r["torch"] and r["cpu"] for r in times)
    # Each is what training it alone, without any of this, gives.
    folder = tmp_path / "again"
    preparation.prepare(preparation.DataSettings.model_validate(plan.text()["data"]), folder)
    alone = train_network(space, space.decode(drawn[1]), load(folder), wanted.recipe, 0).scores["test"]
    (row,) = [r for r in rows if (r["architecture"], r["seed"]) == (drawn[1], "0")]
    assert float(row["accuracy"]) == alone.accuracy and float(row["loss"]) == alone.loss
    monkeypatch.setattr(pool, "train_share", forbidden)
    assert pieces.references(plan, work, 1e6) == 0


def test_processes_share_the_references_without_making_one_twice(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_seeds(plan, 0)
    made: list[tuple[Any, Any]] = []
    left: list[int] = []
    train_share = pool.train_share

    def watched(space: base.Space, share: Sequence[Any], images: Any, settings: PoolSettings) -> Any:
        made.append((*share, *settings.seeds))
        if len(made) == 1:  # while this one is in hand, another process comes
            left.append(pieces.references(plan, tmp_path, 1e6))
        return train_share(space, share, images, settings)

    monkeypatch.setattr(pool, "train_share", watched)
    assert pieces.references(plan, tmp_path, 1e6) == 0
    assert left == [1] and len(made) == len(set(made)) == 3
    assert [tuple(row[c] for c in ("architecture", "seed")) for row in pieces.read(plan.rows, pool.COLUMNS)] == [
        (base.build(plan.settings().space).encode(a), str(s)) for a, s in made[1:] + made[:1]
    ]


def test_a_preset_edited_during_a_training_is_noticed(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset, before = plan.root / "presets/mobilenet-cpu.yaml", plan.digest()
    train_share = pool.train_share

    def edited(*given: Any) -> Any:
        text = preset.read_text(encoding="utf-8")
        files.write_text(preset, text.replace("epochs: 6", "epochs: 7"))
        return train_share(*given)

    monkeypatch.setattr(pool, "train_share", edited)
    pieces.references(plan, tmp_path, 1e6, only=0)
    rows = pieces.read(plan.times, pieces.TIMES)
    assert plan.digest() != before and [row["settings"] for row in rows] == [before] * 3
    with pytest.raises(UserError, match=r"references.csv: has accuracies of other data, another space or recipe"):
        pieces.references(plan, tmp_path, 1e6)


def test_images_are_prepared_by_the_first_of_several_processes(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, made = preparation.prepare, []

    def slow(*given: Any) -> Any:
        made.append(given)
        time.sleep(0.3)  # the other one has looked by then
        return prepare(*given)

    monkeypatch.setattr(preparation, "prepare", slow)
    with ThreadPoolExecutor(2) as two:
        first, second = two.map(lambda _: plan.prepared(tmp_path / "work"), range(2))
    assert len(made) == 1 and torch.equal(first.labels["train"], second.labels["train"])


def test_freed_memory_is_kept_where_references_are_trained(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(machine, "keep_freed_memory", lambda: asked.append(1))
    assert pieces.references(plan, tmp_path, -1) == 6 and asked == [1]


def test_references_of_one_seed_are_a_table_that_the_stages_take(plan: Plan, tmp_path: Path) -> None:
    with_seeds(plan, 1)
    assert pieces.references(plan, tmp_path, 1e6) == 0
    pieces.write_table(plan)
    folder, settings = pieces.project(plan, tmp_path)
    pieces.call_once(folder, settings, "fairnas-0", [plan.table], "prepare_data", "build_benchmark")
    made = pieces.read(folder / "results/benchmark/table.csv", ("architecture", "accuracy", "seeds"))
    rows = {row["architecture"]: float(row["accuracy"]) for row in pieces.read(plan.rows, pool.COLUMNS)}
    assert {row["architecture"]: float(row["accuracy"]) for row in made} == rows
    assert [row["seeds"] for row in made] == ["1"] * 3


def test_an_older_file_of_times_goes_on_with_more_columns(plan: Plan, tmp_path: Path) -> None:
    files.write_csv(plan.times, pieces.TIMES[:3], [{"architecture": "a", "seed": 0, "seconds": 1.5}])
    pieces.references(plan, tmp_path / "work", 1e6, only=0)
    rows = pieces.read(plan.times, pieces.TIMES)
    assert (rows[0]["seconds"], rows[0]["cpu"], len(rows)) == ("1.5", "", 4) and rows[1]["cpu"]
    # Another number of architectures, or another place of the images, changes no row; another recipe does.
    assert [row["settings"] for row in rows] == ["", *[plan.digest()] * 3]
    preset = plan.root / "presets/mobilenet-cpu.yaml"
    text = preset.read_text(encoding="utf-8")
    files.write_text(preset, text.replace("architectures: 3", "architectures: 2").replace("path: pictures", "path: x"))
    pieces.references(plan, tmp_path / "work", -1)
    files.write_text(preset, text.replace("epochs: 6", "epochs: 7"))
    with pytest.raises(UserError, match=r"references.csv: has accuracies of other data.* and references_seconds.csv"):
        pieces.references(plan, tmp_path / "work", 1e6)


def test_a_stage_that_fails_has_said_why(plan: Plan, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    nowhere = dataclasses.replace(plan, images=tmp_path / "nowhere")
    with pytest.raises(SystemExit) as ended:
        mobilenet_cpu.train(nowhere, "fairnas-0", tmp_path / "work")
    assert ended.value.code == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"prepare_data: error: {tmp_path / 'nowhere'}: ")


def test_all_pieces_to_the_end_and_the_report_of_them(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SUMNAS_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.setattr(pieces, "call", call_here)
    with pytest.raises(UserError, match="benchmark.csv: is not there yet; run `python -m benchmarks.mobilenet_cpu"):
        mobilenet_cpu.run(plan, "fairnas-0", tmp_path / "one")
    assert "None of 6 reference trainings has been made yet. Not run yet: fairnas-0, sumnas-k2-0." in (
        mobilenet_report.block(plan.root)
    )
    mobilenet_cpu.train(plan, "fairnas-0", tmp_path / "one")  # while others may still make the references
    (weights,) = (tmp_path / "one").rglob("weights.safetensors")
    trained = weights.stat().st_mtime_ns
    pieces.references(plan, tmp_path / "one", 1e6)
    pieces.write_table(plan)
    with pytest.raises(UserError, match=r"found.json: is not there yet; run `.* run fairnas-0`"):
        mobilenet_cpu.retrain(plan, "fairnas-0", tmp_path / "one")
    mobilenet_cpu.run(plan, "fairnas-0", tmp_path / "one")
    assert weights.stat().st_mtime_ns == trained  # not a second time
    kept = plan.folder / "fairnas-0"
    ranked = {"history.csv", "predictions.csv", "scatter.svg", "metrics.json", "run.json"}
    assert {p.name for p in kept.iterdir() if p.is_file()} == ranked
    assert {p.name for p in (kept / "search").iterdir()} == {
        "history.csv", "scored.csv", "pareto.svg", "found.json", "run.json",
    }  # fmt: skip
    text = mobilenet_report.block(plan.root)
    assert "Not run yet: sumnas-k2-0. Not retrained yet: fairnas-0." in text and "6 of 6 trainings" in text
    shutil.rmtree(tmp_path / "one")  # another machine: the small files are all that is left
    mobilenet_cpu.retrain(plan, "fairnas-0", tmp_path / "other")
    (entry,) = files.read_json(kept / "search/found.json")["found"]
    (network,) = files.read_json(kept / "retrain/metrics.json")["networks"]
    assert network["architecture"] == entry["architecture"]
    metrics, text = files.read_json(kept / "metrics.json"), mobilenet_report.block(plan.root)
    line = next(line for line in text.splitlines() if line.startswith("| fairnas-0 |"))
    cells = [cell.strip() for cell in line.split("|")[2:-1]]
    assert cells[0] == "none" and cells[2] == f"{entry['macs']:.2f}"
    assert cells[4:6] == [f"{entry['predicted']:.2f}", f"{network['test_accuracy']:.2f}"]
    assert f"Split-half tau {number(metrics['reliability_tau'])}; " in text
    mobilenet_report.figures(plan.root)
    assert (plan.folder / "cells.svg").read_text(encoding="utf-8").count("<!-- fairnas-0 -->") == 1
    seconds = [float(r["processor_seconds"]) for r in pieces.read(plan.times, pieces.TIMES)]
    for part in ("run.json", "search/run.json", "retrain/run.json"):
        seconds.append(files.read_json(kept / part)["seconds"])
    assert mobilenet_report.took(plan.folder, [Run(kept)]) == pytest.approx(sum(seconds) / 3600)
    assert "supernets, rankings" not in text  # sumnas-k2-0 is missing
    alone = metrics | {"reliability_tau": None, "perfect_tau": None, "reliability_reason": "a single seed"}
    files.write_json(kept / "metrics.json", alone)
    shutil.copytree(kept, plan.root / mobilenet_report.LARGER / "fairnas-0")
    for path in (plan.rows, plan.times):
        shutil.copy(path, plan.root / mobilenet_report.LARGER)
    told = mobilenet_report.block(plan.root)
    tau = f"{number(metrics['kendall_tau'])} {interval(metrics, 'kendall_tau')}"
    assert f"fairnas-0 {tau} after " in told.rpartition("The same with 6 references and more training, ")[2]
    assert "How well a perfect predictor would rank is not known: a single seed. " in told and "Split-half" not in told
    monkeypatch.setattr(pieces, "call", forbidden)
    mobilenet_cpu.run(plan, "fairnas-0", tmp_path / "other")
    mobilenet_cpu.retrain(plan, "fairnas-0", tmp_path / "other")
    assert capsys.readouterr().out.count(": is there") == 2


def test_a_stage_is_run_once_for_the_same_settings_sources_and_inputs(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    monkeypatch.setattr(pieces, "call", lambda _folder, _text, _name, stage: called.append(stage))
    files.write_text(plan.table, "a table")
    folder, text = pieces.project(plan, tmp_path)
    stages = ("prepare_data", "train_supernet", "rank")

    def again() -> list[str]:
        called.clear()
        pieces.call_once(folder, text, "fairnas-0", [plan.table], *stages)
        return list(called)

    assert again() == list(stages) and again() == []
    path = folder / "sumnas/methods/fairnas.py"
    path.write_text(path.read_text(encoding="utf-8") + "\n# another one\n", encoding="utf-8")
    assert again() == ["train_supernet", "rank"] and again() == []  # what follows, too
    (folder / "sumnas/methods/spos.py").unlink()
    assert again() == []
    files.write_text(plan.table, "another table")
    assert again() == list(stages)
    text["search"]["seed"] = 5  # no block of theirs
    text["methods"]["sumnas-k2"]["inner_learning_rate"] = 0.1
    assert again() == []
    text["supernet"]["epochs"] = 7
    assert again() == ["train_supernet", "rank"] and again() == []
    first = pieces.call_once(folder, text, "fairnas-0", [], "prepare_data")
    called.clear()
    assert pieces.call_once(folder, text, "fairnas-0", [], "rank", after=first) and called == ["rank"]
    files.write_text(folder / "sumnas/preparation.py", "# another one\n")
    other = pieces.call_once(folder, text, "fairnas-0", [], "prepare_data")
    pieces.call_once(folder, text, "fairnas-0", [], "rank", after=other)
    assert called == ["rank", "prepare_data", "rank"]


def test_a_tau_that_is_not_defined_is_a_dash() -> None:
    known = {"kendall_tau": 0.5, "kendall_tau_low": 0.1, "kendall_tau_high": 0.75}
    assert mobilenet_report.taus([known]) == ("0.500", "[0.100, 0.750]")
    assert mobilenet_report.taus([known, dict.fromkeys(known)]) == ("-", "-")


def test_the_difference_of_taus_is_told_as_it_is() -> None:
    fair, meta = Run(CIFAR / "fairnas-0"), Run(CIFAR / "sumnas-k2-0")
    reference = [float(row["reference"]) for row in fair.rows]
    expected = kendalltau(reference, meta.predicted).statistic - kendalltau(reference, fair.predicted).statistic
    assert f"sumnas-k2 - fairnas: {expected:+.3f} [" in mobilenet_report.difference([fair, meta])
    fair.predicted = -np.array(reference)
    meta.predicted = np.array(reference)
    assert "equal outer steps: as in the paper." in mobilenet_report.difference([fair, meta])
    fair.predicted, meta.predicted = meta.predicted, fair.predicted
    assert "the opposite of the paper's order" in mobilenet_report.difference([fair, meta])
    assert mobilenet_report.difference([fair]) == ""


@pytest.mark.parametrize(
    ("limits", "said"),
    [([(-0.6, 0.2), (-0.1, 0.0)], True), ([(-0.6, 0.2), (0.1, 0.3)], False), ([(None, None)], False)],
)
def test_that_no_ranking_can_be_told_from_chance_is_said(limits: list[tuple[Any, Any]], said: bool) -> None:
    runs: Any = [SimpleNamespace(metrics={"kendall_tau_low": a, "kendall_tau_high": b}) for a, b in limits]
    assert ("told from chance" in mobilenet_report.by_chance(runs)) == said


@pytest.mark.parametrize("page", mobilenet_report.PAGES)
def test_the_pages_hold_what_the_committed_files_say(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert replaced(text, mobilenet_report.PRESET, mobilenet_report.block(ROOT)) == text


def test_arrays_become_a_folder_of_the_very_pixels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"x_{s}": rng.integers(0, 256, (n, 5, 5, 3), np.uint8) for s, n in (("train", 12), ("test", 6))}
    labels = {f"y_{s}": np.arange(n) % 3 for s, n in (("train", 12), ("test", 6))}
    np.savez(tmp_path / "own.npz", **arrays, **labels, classes=["ant", "bee", "cat"])
    assert laid_out.lay_out(tmp_path / "own.npz", tmp_path / "pictures") == 18
    settings = preparation.DataSettings(
        source="imagefolder", path=str(tmp_path / "pictures"), resize=5, crop=1.0, validation=0.25, seed=0
    )
    preparation.prepare(settings, tmp_path / "prepared")
    listed = load(tmp_path / "prepared")
    for split, parts in (("train", ("train", "validation")), ("test", ("test",))):
        found = [
            (image.numpy().tobytes(), int(label))
            for part in parts
            for image, label in zip(listed.images[part][torch.arange(len(listed.labels[part]))], listed.labels[part],
                                    strict=True)
        ]  # fmt: skip
        expected = [
            (image.tobytes(), int(y)) for image, y in zip(arrays[f"x_{split}"], labels[f"y_{split}"], strict=True)
        ]
        assert sorted(found) == sorted(expected) and len(set(found)) == len(found)
