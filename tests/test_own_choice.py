"""A method's own choice and further accuracies, from the real stages to the summary and the report."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import kendalltau

from sumnas import files, own_choice, params, report
from sumnas.benchmark.table import Table
from sumnas.spaces.nasbench201 import NASBench201
from tests.finished_run import METHODS, SEEDS, Page, write_results
from tests.in_process import begin, run
from workflow import summarize
from workflow.stage import Job
from workflow.stages import STAGES

BEFORE = ["prepare_data", "train_references", "build_benchmark", "sample_architectures", "describe_method",
          "train_supernet", "recalibrate_bn"]  # fmt: skip
METRICS = Path("results/ranking/darts-0/metrics.json")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def small(settings: dict[str, Any]) -> None:
    settings["run"]["methods"] = ["darts"]
    settings["methods"]["darts"] = {"strategy": "darts", "epochs": 1, "alpha_learning_rate": 0.5}
    settings["supernet"]["probes"] = 0
    settings["benchmark"]["pool"] |= {"architectures": 12, "seeds": [0]}
    settings["sampling"] |= {"strategy": "all", "floor": 0.0}


def ask_for(columns: dict[str, str]) -> None:
    """Set block `further`: names and columns of other.csv."""
    settings = yaml.safe_load(Path("params.yaml").read_text())
    settings["further"] = {
        name: {"source": "table", "table": {"path": "other.csv", "accuracy": column}}
        for name, column in columns.items()
    }  # fmt: skip
    Path("params.yaml").write_text(yaml.safe_dump(settings))


def everything_but(*parts: str) -> dict[str, bytes]:
    kept = {str(path): path.read_bytes() for path in sorted(Path("results").rglob("*")) if path.is_file()}
    return {name: content for name, content in kept.items() if not any(part in name for part in parts)}


def test_the_stages_tell_them_and_nothing_else_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_space: NASBench201
) -> None:
    begin(tmp_path, monkeypatch, small)
    run("darts-0", [*BEFORE, "build_further", "rank"])
    plain, before = read(METRICS), everything_but("ranking", "further")
    derived = files.read_metadata(Path("results/supernet/darts-0/weights.safetensors"))["derived"]
    assert plain["derived_architecture"] == derived
    space = report.space_of(params.load(Path("params.yaml")).space.model_dump())
    assert plain["derived_macs"] == space.macs(space.decode(derived))
    assert not any("_on_" in key for key in plain)

    rows = list(csv.DictReader(Path("results/ranking/darts-0/predictions.csv").read_text().splitlines()))
    rng = np.random.default_rng(0)
    known = [row["architecture"] for row in rows[1:]] + [derived]  # one of those that are ranked is not known there
    first, second = ({text: float(v) for text, v in zip(known, rng.uniform(20, 70, len(known)), strict=True)}
                     for _ in range(2))  # fmt: skip
    files.write_csv(Path("other.csv"), ["architecture", "a", "b"], [
        {"architecture": text, "a": first[text], "b": second[text]} for text in known
    ])  # fmt: skip
    ask_for({"cifar100": "a", "imagenet16": "b"})
    run("darts-0", ["build_further", "rank"])
    assert everything_but("ranking", "further") == before  # neither trained, nor sampled, nor recalibrated
    ranked = read(METRICS)
    assert {key: ranked[key] for key in plain} == plain
    for name, truth in (("cifar100", first), ("imagenet16", second)):
        of = [row for row in rows if row["architecture"] in truth]
        for prefix, column in (("", "predicted"), ("macs_", "macs"), ("params_", "params")):
            expected = kendalltau([truth[row["architecture"]] for row in of], [float(row[column]) for row in of])
            assert ranked[f"{prefix}kendall_tau_on_{name}"] == pytest.approx(expected.statistic)
        assert ranked[f"architectures_on_{name}"] == len(of)
        low, high = (ranked[f"kendall_tau_on_{name}_{end}"] for end in ("low", "high"))
        assert low <= ranked[f"kendall_tau_on_{name}"] <= high
        assert ranked[f"derived_accuracy_on_{name}"] == truth[derived]


def test_an_own_choice_is_looked_up_or_says_why_not(tiny_space: NASBench201) -> None:
    one, other = (1, 2, 3, 4, 3, 2), (3, 3, 3, 3, 3, 3)
    costs = np.array([1.0])
    known = Table([one], np.array([91.5]), costs, costs, np.empty((1, 0)))
    assert own_choice.measures(None, tiny_space, known, {}) == {}
    found = own_choice.measures(tiny_space.encode(one), tiny_space, known, {"far": {other: 40.0}})
    assert (found["derived_accuracy"], found["derived_accuracy_reason"]) == (91.5, None)
    assert found["derived_accuracy_on_far"] is None
    found = own_choice.measures(tiny_space.encode(other), tiny_space, known, {"far": {other: 40.0}})
    assert found["derived_accuracy"] is None and found["derived_accuracy_on_far"] == 40.0
    assert found["derived_accuracy_reason"] == "not among the 1 of the benchmark's table"
    assert found["derived_params"] == tiny_space.params(other)


def summarized() -> tuple[dict[str, Any], str, Page]:
    stage = STAGES["summarize"]
    summarize.main(Job(stage, params.load(Path("params.yaml")).select(stage.blocks), {}))
    folder = Path("results/summary")
    return read(folder / "metrics.json"), (folder / "table.md").read_text(), Page(folder / "report.html")


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_space: NASBench201) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    write_results(tmp_path, tiny_space)
    yield tmp_path


def test_a_summary_of_neither_does_not_speak_of_them(finished: Path) -> None:
    metrics, text, page = summarized()
    assert "further" not in metrics and "_on_" not in json.dumps(metrics["baselines"])
    assert not any("derived" in key or "_on_" in key for m in metrics["methods"].values() for key in m)
    assert "own choice" not in text and "tau on" not in text
    assert "own choices" not in page.text and "further true" not in page.text


def test_a_summary_has_a_column_for_each(finished: Path, tiny_space: NASBench201) -> None:
    choices = {("fairnas", 0): (3,) * 6, ("fairnas", 1): (1,) * 6}
    for method in METHODS:
        for seed in SEEDS:
            path = Path(f"results/ranking/{method}-{seed}/metrics.json")
            tau = {"kendall_tau_on_cifar100": 0.5 + 0.1 * seed, "kendall_tau_on_cifar100_low": 0.3,
                   "kendall_tau_on_cifar100_high": 0.7, "architectures_on_cifar100": 11}  # fmt: skip
            for baseline in ("macs", "params"):
                tau |= {f"{baseline}_kendall_tau_on_cifar100{end}": v
                        for end, v in (("", 0.25), ("_low", 0.1), ("_high", 0.4))}  # fmt: skip
            own: dict[str, Any] = {}
            if (chosen := choices.get((method, seed))) is not None:
                own = {
                    "derived_architecture": tiny_space.encode(chosen), "derived_macs": tiny_space.macs(chosen),
                    "derived_params": tiny_space.params(chosen), "derived_accuracy": 90.0 + seed,
                    "derived_accuracy_reason": None, "derived_accuracy_on_cifar100": 60.0,
                }  # fmt: skip
            files.write_json(path, {**read(path), **tau, **own})
    metrics, text, page = summarized()
    fair = metrics["methods"]["fairnas"]
    assert fair["kendall_tau_on_cifar100"] == pytest.approx(0.55)
    assert fair["kendall_tau_on_cifar100_std"] == pytest.approx(np.std([0.5, 0.6], ddof=1))
    assert fair["derived_architectures"] == [tiny_space.encode((3,) * 6), tiny_space.encode((1,) * 6)]
    assert fair["derived_accuracy"] == 90.5
    assert fair["derived_macs"] == pytest.approx((tiny_space.macs((3,) * 6) + tiny_space.macs((1,) * 6)) / 2)
    assert metrics["further"] == {"cifar100": 11}

    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert lines[0][-2:] == ["tau on cifar100", "own choice: true (%)"]
    by_name = {line[0]: line[-2:] for line in lines if len(line) == len(lines[0])}
    assert by_name["fairnas"] == ["0.550 ± 0.071 [0.300, 0.700]", f"90.50 ± {np.std([90, 91], ddof=1):.2f}"]
    assert by_name["sumnas-k2"] == ["0.550 ± 0.071 [0.300, 0.700]", ""]
    assert by_name["*MACs alone*"] == ["0.250 [0.100, 0.400]", ""]
    assert by_name["*best in the table*"] == ["", ""]

    further, own_table = ([t for t in page.tables if t[0][:2] == head] for head in (
        ["method", "Kendall tau on cifar100"], ["run", "architecture"]))  # fmt: skip
    assert [row[1] for row in further[0][1:]] == ["0.550 [0.300, 0.700]"] * 2 + ["0.250 [0.100, 0.400]"] * 2
    assert [row[0] for row in own_table[0][1:]] == ["fairnas-0", "fairnas-1"]
    assert own_table[0][1][1] == tiny_space.encode((3,) * 6)
    assert own_table[0][1][4:] == ["90.00", "60.00", "93.21"]
