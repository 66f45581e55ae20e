"""What stages track: names, settings and figures that compare across methods; results do not change by it."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sumnas import files, params, shown
from sumnas.tracking import Tracker, log
from workflow import describe_method, tracked, train_supernet
from workflow.stage import Job, execute
from workflow.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]
RUN = Path("results/supernet/sumnas-k2-0")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits_folder: Path) -> Path:
    """A project's root as current directory, with tiny settings, prepared data and a described method."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUMNAS_CHECKPOINTS", str(tmp_path / "work"))
    for name in ("SUMNAS_RUN_GROUP", "SUMNAS_ENGINE", "DVC_STAGE", "SLURM_JOB_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    settings = yaml.safe_load((ROOT / "params.yaml").read_text())
    settings["run"] |= {"methods": ["spos", "fairnas", "sumnas-k2"], "device": "cpu"}
    settings["space"] |= {"channels": 2}
    settings["supernet"] |= {"epochs": 3, "batch_size": 256, "probes": 1, "probe_every": 2}
    Path("params.yaml").write_text(yaml.safe_dump(settings))
    shutil.copytree(digits_folder, "data/prepared")
    describe_method.main(job("describe_method", method="sumnas-k2"))
    return tmp_path


def job(stage: str, **names: str) -> Job:
    """One call of a stage, as `execute` makes it."""
    if "run" in names:
        names["method"], _, names["seed"] = names["run"].rpartition("-")
    everything = params.load(Path("params.yaml"))
    blocks = [block.format(**names) for block in STAGES[stage].blocks]
    return Job(STAGES[stage], everything.select(blocks), names, everything.digest())


def train(monkeypatch: pytest.MonkeyPatch, mode: str = "off") -> None:
    """Run the training of sumnas-k2-0 as its command line does."""
    monkeypatch.setenv("SUMNAS_TRACKING", mode)
    monkeypatch.setattr(sys, "argv", ["train_supernet", "--run", "sumnas-k2-0"])
    execute("train_supernet", train_supernet.main)


def results() -> dict[str, bytes]:
    return {name: (RUN / name).read_bytes() for name in ("weights.safetensors", "history.csv")}


def test_results_are_the_same_bytes_with_tracking_and_without(
    project: Path, monkeypatch: pytest.MonkeyPatch, fresh_store: Path
) -> None:
    train(monkeypatch)
    alone = results()
    state = torch.get_rng_state()
    shutil.copy(fresh_store, "mlflow.db")
    train(monkeypatch, "wait")
    assert results() == alone
    assert torch.equal(torch.get_rng_state(), state)
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    run, parent = client.search_runs(["1"], order_by=["attributes.start_time DESC", "attributes.run_name DESC"])
    assert (run.info.run_name, run.info.status) == ("train_supernet sumnas-k2-0", "FINISHED")
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    history = files.read_csv(RUN / "history.csv")
    for name in ("loss", "probe_loss"):
        tracked_rows = [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
        assert tracked_rows == [(int(row["epoch"]), float(row[name])) for row in history if row[name]]
    assert [a.path for a in client.list_artifacts(run.info.run_id)] == ["history.csv"]
    assert run.data.tags["mlflow.note.content"].startswith(f"{history[-1]['passes']} sub-model passes, loss ")


def test_a_stopped_training_goes_on_in_the_same_run(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(monkeypatch)
    undisturbed, whole = results(), log.read(RUN / "log.jsonl")
    original = Tracker.metrics

    def stopping(self: Tracker, values: Any, step: int = 0) -> None:
        original(self, values, step)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(Tracker, "metrics", stopping)
        train(monkeypatch)
    assert stop.value.code == 128 + signal.SIGTERM
    before = log.read(RUN / "log.jsonl")
    assert before[-1]["status"] == "KILLED" and before[0]["run"] != whole[0]["run"]
    train(monkeypatch)
    after = log.read(RUN / "log.jsonl")
    assert results() == undisturbed
    assert after[: len(before)] == before and after[len(before)]["event"] == "resume"
    assert after[-1]["status"] == "FINISHED"
    epochs = [line["step"] for line in after if "loss" in line.get("values", {})]
    assert epochs == [1, 2, 3]
    train(monkeypatch)  # nothing to resume any more
    assert log.read(RUN / "log.jsonl")[0]["run"] != before[0]["run"]


def test_a_stage_that_fails_says_why(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("data/prepared/manifest.json").unlink()
    with pytest.raises(SystemExit):
        train(monkeypatch)
    lines = log.read(RUN / "log.jsonl")
    assert lines[-1]["status"] == "FAILED"
    assert "manifest.json" in lines[-2]["values"]["last_error"]


@pytest.mark.parametrize(("method", "steps"), [("spos", "1"), ("fairnas", "1"), ("sumnas-k2", "2"), ("sumnas-k4", "4")])
def test_rank_has_what_its_supernet_was_trained_with(project: Path, method: str, steps: str) -> None:
    ranking = job("rank", run=f"{method}-3")
    shutil.rmtree("results/methods")
    assert "adaptation_steps" not in tracked.settings(ranking)  # nothing tells it yet
    describe_method.main(job("describe_method", method=method))
    assert tracked.settings(ranking)["adaptation_steps"] == steps
    shutil.rmtree("results/methods")
    block: Any = params.load(Path("params.yaml")).methods[method]
    files.write_tensors(
        Path(f"results/supernet/{method}-3/weights.safetensors"), {"x": torch.zeros(1)},
        {"method": block.model_dump(mode="json")},
    )  # fmt: skip
    found = tracked.settings(ranking)
    assert found["adaptation_steps"] == steps
    assert (found["method"], found["seed"], found["strategy"]) == (method, "3", block.strategy)
    assert found["space.channels"] == "2" and found["ranking.top_k"] == "[1, 5, 10]"


def test_names_of_settings_are_the_same_for_every_method(project: Path) -> None:
    def names(stage: str, run: str) -> set[str]:
        return {name for name in tracked.settings(job(stage, run=run)) if not name.startswith("method.")}

    for stage in ("train_supernet", "search", "retrain"):
        assert names(stage, "spos-0") | {"strategy", "adaptation_steps"} == names(stage, "sumnas-k2-0")
    assert tracked.settings(job("train_supernet", run="spos-0"))["adaptation_steps"] == "1"
    score = tracked.settings(job("score", run="sumnas-k2-0", shard="0"))
    assert (score["search.strategy"], score["strategy"], score["shard"]) == ("evolution", "sumnas", "0")
    assert tracked.settings(job("summarize"))["run.seeds"] == "[0]"


def test_tags_say_where_a_run_comes_from(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = job("score", run="sumnas-k2-0", shard="1")
    assert tracked.name(one) == "score sumnas-k2-0 1"
    assert tracked.tags(one)["engine"] == "hand" and tracked.tags(one)["git_commit"] is None
    monkeypatch.setenv("SUMNAS_ENGINE", "snakemake")
    assert tracked.tags(one)["engine"] == "snakemake"
    monkeypatch.setenv("DVC_STAGE", "rank@a-0")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    found = tracked.tags(one)
    expected = {"stage": "score", "method": "sumnas-k2", "seed": "0", "run": "sumnas-k2-0", "shard": "1"}
    assert expected.items() <= found.items()
    assert (found["engine"], found["slurm_job"]) == ("dvc", "77")
    assert found["settings_digest"] == one.params.digest() != found["params_digest"] == one.params_digest
    assert tracked.group(one) == (one.params_digest, f"params {one.params_digest[:8]}")
    monkeypatch.setenv("SUMNAS_RUN_GROUP", "night shift")
    assert tracked.group(one) == ("night shift", "night shift")
    monkeypatch.chdir(ROOT)
    assert len(str(tracked.commit()).removesuffix("-dirty")) == 40


@pytest.mark.parametrize(
    ("stage", "file", "content", "expected"),
    [
        (
            "rank", "results/ranking/spos-0/metrics.json",
            {"kendall_tau": 0.5, "spearman_rho": None, "split": "test", "seed": 3, "run": "spos-0"},
            {"kendall_tau": 0.5},
        ),
        (
            "search", "results/search/spos-0/found.json",
            {"scored": 9, "cost": "macs",
             "found": [{"limit": 0.3, "predicted": 97.0}, {"limit": None, "predicted": 98.0}]},
            {"scored": 9, "predicted/0.3M": 97.0, "predicted/unlimited": 98.0},
        ),
        (
            "retrain", "results/retrain/spos-0/metrics.json",
            {"cost": "params",
             "networks": [{"limits": [0.3, None], "seed": 0, "test_accuracy": 98.5, "architecture": "x"}]},
            {"test_accuracy/0.3M": 98.5, "test_accuracy/unlimited": 98.5},
        ),
        (
            "search", "results/search/spos-0/found.json",
            {"scored": 9, "cost": "latency_ms", "found": [{"limit": 12.5, "cost": 11.0}]},
            {"scored": 9, "cost/12.5": 11.0},
        ),
        (
            "summarize", "results/summary/metrics.json",
            {"architectures": 29, "methods": {"spos": {"kendall_tau": 0.25, "seeds": [0]}}},
            {"architectures": 29, "kendall_tau/spos": 0.25},
        ),
    ],
)  # fmt: skip
def test_figures_keep_the_names_of_the_result(
    project: Path, stage: str, file: str, content: Any, expected: dict[str, float]
) -> None:
    one = job(stage, **({} if stage == "summarize" else {"run": "spos-0"}))
    for path in map(one.path, one.stage.outputs):
        if path.suffix == ".json":
            files.write_json(path, {})
    files.write_json(Path(file), content)
    files.write_json(one.beside("run.json"), {"seconds": 1.5, "peak_memory_mb": 300, "cpus": 2})
    assert tracked.figures(one) == expected | {"seconds": 1.5, "peak_memory_mb": 300}


@pytest.mark.parametrize(
    ("limit", "cost", "name"),
    [
        (0.3, "macs", "0.3M"), (600.0, "macs", "600M"), (0.3, "params", "0.3M"), (12.5, "latency_ms", "12.5"),
        (3.0, "latency", "3"), (None, "macs", "unlimited"), (None, "latency_ms", "unlimited"),
    ],
)  # fmt: skip
def test_a_limit_has_the_unit_of_what_is_counted(limit: float | None, cost: str, name: str) -> None:
    assert shown.limit_name(limit, cost) == name


def test_a_network_found_under_several_limits_is_one(project: Path) -> None:
    one = job("retrain", run="sumnas-k2-0")
    known = {"test_accuracy": 98.5, "validation_accuracy": None, "macs": 0.25, "params": 0.01, "seed": 7}
    networks = [
        {"architecture": "a", "limits": [0.3, None], "test_top5": 99.5, **known},
        {"architecture": "b", "limits": [0.2], "test_top5": 99.0, **known, "test_accuracy": 97.0},
    ]
    files.write_json(Path("results/retrain/sumnas-k2-0/metrics.json"), {"cost": "macs", "networks": networks})
    weights, about = Path("results/retrain/sumnas-k2-0/weights.safetensors"), {**known, "run": "sumnas-k2-0"}
    assert tracked.networks(one) == [
        ("0.3M-unlimited", weights, "a", about),
        ("0.2M", weights, "b", {**about, "test_accuracy": 97.0}),
    ]
    assert tracked.networks(job("rank", run="sumnas-k2-0")) == []


def test_the_log_lies_beside_the_result_and_is_nobody_s_output(project: Path) -> None:
    names = {"method": "spos", "seed": "0", "run": "spos-0", "shard": "1"}
    outputs = {path.format(**names) for stage in STAGES.values() for path in stage.outputs}
    found = set()
    for stage in STAGES.values():
        one = Job(stage, params.load(Path("params.yaml")), names)
        found.add(str(one.beside("log.jsonl")))
        assert one.beside("log.jsonl").parent == one.beside("run.json").parent
    assert len(found) == len(STAGES) and not found & outputs
    assert {"data/prepared/log.jsonl", "results/samples.log.jsonl", "results/scores/spos-0/1.log.jsonl"} <= found
    ignored = (ROOT / ".dvcignore").read_text().split()
    assert {"*log.jsonl", "*log.????????.jsonl"} <= set(ignored)
