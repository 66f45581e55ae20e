"""The README's numbers are those of the committed result files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml
from scipy.stats import kendalltau

from benchmarks import cifar10_report
from workflow.readme import block, replaced, speed

ROOT = Path(__file__).resolve().parents[1]


def test_the_results_are_those_of_the_committed_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "README.md").read_text()
    assert replaced(text, "quick", block(Path("docs/results/quick"))) == text
    assert replaced(text, "speed", speed(Path("benchmarks/results"))) == text
    summary = json.loads((ROOT / "docs/results/quick/metrics.json").read_text())
    for name, method in summary["methods"].items():
        assert f"| {name} | {method['kendall_tau']:.3f} |" in text


def test_a_missed_target_of_shared_steps_is_called_so() -> None:
    lines = [
        line for line in speed(ROOT / "benchmarks/results").splitlines() if line.startswith("| step in 2 processes")
    ]
    rows = json.loads((ROOT / "benchmarks/results/ranks-cpu.json").read_text())["rows"]
    assert len(lines) == len(rows) == 6
    for line, row in zip(lines, rows, strict=True):
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        assert cells[2] == f"{row['times_as_fast']:.2f}" and f"k={row['k']}," in cells[0]
        assert ("missed" in cells[4]) == (row["share_of_bound"] < 0.9)
        assert ("not by the whole interval" in cells[4]) == (
            row["share_of_bound"] >= 0.9 > row["interval_95"][0] / row["bound"]
        )


@pytest.mark.parametrize("page", cifar10_report.PAGES)
def test_the_report_on_cifar10_is_that_of_the_committed_files(page: str) -> None:
    text = (ROOT / page).read_text()
    assert replaced(text, "cifar10-cpu", cifar10_report.block(ROOT / cifar10_report.RESULTS)) == text


def test_the_report_on_cifar10_says_what_the_predictions_say() -> None:
    folder, taus, found = ROOT / cifar10_report.RESULTS, dict[str, list[float]](), dict[str, set[int]]()
    for path in sorted(folder.glob("*/predictions.csv")):
        rows = list(csv.DictReader(path.read_text().splitlines()))
        assert len(rows) == 63
        method, _, seed = path.parent.name.rpartition("-")
        reference, predicted = ([float(row[name]) for row in rows] for name in ("reference", "predicted"))
        taus.setdefault(method, []).append(kendalltau(reference, predicted).statistic)
        found.setdefault(method, set()).add(int(seed))
    text = cifar10_report.block(folder)
    trials = yaml.safe_load((ROOT / "benchmarks/cifar10_trials.yaml").read_text(encoding="utf-8"))
    for method in taus.keys() & trials.keys():
        for seed, tau in zip(sorted(found.pop(method)), taus.pop(method), strict=True):
            (line,) = [line for line in text.splitlines() if line.startswith(f"| {method}-{seed} |")]
            cells = [cell.strip() for cell in line.split("|")[1:-1]]
            assert cells[1].startswith(f"{trials[method]['method']}-{seed}, ") and cells[2] == f"{tau:.3f}"
            base_path = folder / f"{trials[method]['method']}-{seed}/predictions.csv"
            base = list(csv.DictReader(base_path.read_text().splitlines()))
            other = kendalltau(*([float(row[name]) for row in base] for name in ("reference", "predicted"))).statistic
            assert cells[4] == f"{tau - other:+.3f}"
    for method, values in taus.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {method} |")]
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        assert {int(seed) for seed in cells[1].split(",")} == found[method]
        assert cells[3].split(" ")[0] == f"{sum(values) / len(values):.3f}"


def test_trials_of_the_same_change_are_compared_with_each_other() -> None:
    folder = ROOT / cifar10_report.RESULTS
    trials = yaml.safe_load((ROOT / "benchmarks/cifar10_trials.yaml").read_text(encoding="utf-8"))

    def tau(name: str) -> float:
        rows = list(csv.DictReader((folder / name / "predictions.csv").read_text().splitlines()))
        return float(kendalltau(*([float(row[key]) for row in rows] for key in ("reference", "predicted"))).statistic)

    wanted = [
        tau(f"{one}-0") - tau(f"{other}-0")
        for one, entry in trials.items()
        for other, changed in trials.items()
        if entry["changes"] == changed["changes"] and (entry["method"][:6], changed["method"]) == ("sumnas", "fairnas")
        if (folder / f"{one}-0").exists() and (folder / f"{other}-0").exists()
    ]
    lines = cifar10_report.paired_trials(folder).splitlines()[2:]
    assert len(wanted) >= 3 and [line.split("|")[3].strip() for line in lines] == [f"{value:+.3f}" for value in wanted]
