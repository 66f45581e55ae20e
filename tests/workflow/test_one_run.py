"""One tiny run of the real stages: what rank and retrain tell MLflow, and `sumnas score` beside the ranking."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from click.testing import CliRunner

from sumnas import evaluation, files, machine
from sumnas.cli import main
from sumnas.tracking import log
from sumnas.tracking.log import Line
from tests import in_process
from workflow.stage import execute

RUN = "spos-0"
BEFORE = ["prepare_data", "train_references", "build_benchmark", "build_further", "sample_architectures",
          "describe_method", "train_supernet", "recalibrate_bn", "score", "search"]  # fmt: skip
RANKING, RETRAINED = Path(f"results/ranking/{RUN}"), Path(f"results/retrain/{RUN}")
MANIFEST, TABLE = Path("data/prepared/manifest.json"), Path("results/benchmark/table.csv")
LIMITS = {0.02: "0.02M", None: "unlimited"}
"""With their names in what is tracked."""


class Told(NamedTuple):
    """What a stage says at its end, all that it says, and its log."""

    closing: str
    said: str
    lines: list[Line]

    def of(self, event: str) -> list[Line]:
        return [line for line in self.lines if line["event"] == event]


def small(settings: dict[str, Any]) -> None:
    settings["sampling"] |= {"strategy": "all", "floor": 0.0}
    settings["search"] |= {"limits": list(LIMITS)}


def told(patch: pytest.MonkeyPatch, stage: str, folder: Path) -> Told:
    """Call a stage as its command line does."""
    patch.setattr(sys, "argv", [stage, "--run", RUN])
    with contextlib.redirect_stderr(io.StringIO()) as stream:
        execute(stage, importlib.import_module(f"workflow.{stage}").main)
    said = stream.getvalue()
    closing = said.splitlines()[-1].removeprefix(f"{stage} {RUN}: ").rpartition(" (")[0]
    return Told(closing, said, log.read(folder / "log.jsonl"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Told]]:
    """The folder of the run, and what rank and retrain tell."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        in_process.begin(folder, patch, small)
        in_process.run(RUN, BEFORE)
        return folder, {stage: told(patch, stage, path) for stage, path in (("rank", RANKING), ("retrain", RETRAINED))}


@pytest.fixture(autouse=True)
def in_its_folder(finished: tuple[Path, dict[str, Told]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished[0])


@pytest.fixture
def rank(finished: tuple[Path, dict[str, Told]]) -> Told:
    return finished[1]["rank"]


@pytest.fixture
def retrain(finished: tuple[Path, dict[str, Told]]) -> Told:
    return finished[1]["retrain"]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def note(told: Told) -> str:
    found = [
        line["values"]["mlflow.note.content"] for line in told.of("tags") if "mlflow.note.content" in line["values"]
    ]
    assert len(found) == 1
    return str(found[0])


def figures(told: Told) -> dict[str, float]:
    return {key: value for line in told.of("metrics") for key, value in line["values"].items()}


def inputs(told: Told) -> list[tuple[str, ...]]:
    return [tuple(line[key] for key in ("name", "context", "path", "sha256")) for line in told.of("input")]


def test_the_note_of_a_ranking_is_its_closing_line_its_table_and_its_picture(rank: Told) -> None:
    metrics = read(RANKING / "metrics.json")
    closing, table, picture = note(rank).split("\n\n")
    assert closing == rank.closing and f"Kendall tau {metrics['kendall_tau']:.4f} over " in closing
    names = {"kendall_tau": RUN, "macs_kendall_tau": "MACs alone", "params_kendall_tau": "parameters alone"}
    assert table.splitlines() == ["| predictor | Kendall tau | 95 % interval |", "| --- | --- | --- |"] + [
        "| {} | {:.3f} | [{:.3f}, {:.3f}] |".format(name, *(metrics[f"{key}{end}"] for end in ("", "_low", "_high")))
        for key, name in names.items()
    ]
    assert picture == "![scatter](get-artifact?path=scatter.svg&run_uuid={run_id})"  # the sender knows the run's key
    outputs = [RANKING / name for name in ("predictions.csv", "metrics.json", "scatter.svg")]
    assert {line["path"]: line["sha256"] for line in rank.of("artifact")} == {str(o): sha256(o) for o in outputs}


def test_the_note_of_a_retraining_is_its_closing_line(retrain: Told) -> None:
    assert note(retrain) == retrain.closing and str(RETRAINED / "metrics.json") in retrain.closing


def test_data_sets_have_the_hashes_of_their_files(rank: Told, retrain: Told) -> None:
    images = ("data/prepared", sha256(MANIFEST))
    benchmark = ("benchmark", "true accuracies", str(TABLE), sha256(TABLE))
    assert inputs(rank) == [("digits", "evaluation", *images), benchmark]
    assert inputs(retrain) == [("digits", "training", *images)]


def test_every_retrained_network_is_to_be_registered(rank: Told, retrain: Told) -> None:
    under = dict[str, list[str]]()
    for entry in read(Path(f"results/search/{RUN}/found.json"))["found"]:
        under.setdefault(entry["architecture"], []).append(LIMITS[entry["limit"]])
    weights = RETRAINED / "weights.safetensors"
    for line, network in zip(retrain.of("model"), read(RETRAINED / "metrics.json")["networks"], strict=True):
        assert line["architecture"] == network["architecture"]
        assert (line["name"], line["network"]) == ("spos", "-".join(under.pop(network["architecture"])))
        assert (line["path"], line["sha256"]) == (str(weights), sha256(weights))
        known = ("test_accuracy", "validation_accuracy", "macs", "params", "seed")
        assert line["about"] == {**{key: network[key] for key in known}, "run": RUN}
    assert not under and retrain.of("model") and not rank.of("model")


def test_figures_arrive_and_nothing_goes_on_untracked(rank: Told, retrain: Told) -> None:
    assert figures(rank)["kendall_tau"] == read(RANKING / "metrics.json")["kendall_tau"]
    networks = read(RETRAINED / "metrics.json")["networks"]
    for network in networks:
        for limit in network["limits"]:
            assert figures(retrain)[f"test_accuracy/{LIMITS[limit]}"] == network["test_accuracy"]
    assert sum(name.startswith("loss/") for name in figures(retrain)) == len(networks)
    for stage in (rank, retrain):
        assert figures(stage)["seconds"] > 0 and stage.lines[-1]["status"] == "FINISHED"
        assert "tracking:" not in stage.said and "untracked" not in stage.said


@pytest.mark.usefixtures("two_threads")
def test_the_command_predicts_what_the_ranking_has(monkeypatch: pytest.MonkeyPatch) -> None:
    original, threads = evaluation.evaluate, set[int]()

    def watched(*args: Any, **kwargs: Any) -> evaluation.Score:
        threads.add(torch.get_num_threads())
        return original(*args, **kwargs)

    monkeypatch.setattr(evaluation, "evaluate", watched)
    rows = files.read_csv(RANKING / "predictions.csv")
    weights = f"results/supernet/{RUN}/weights.safetensors"
    result = CliRunner().invoke(main, ["score", *(r["architecture"] for r in rows), "--weights", weights, "--json"])
    assert result.exit_code == 0, result.output
    assert threads == {1} and torch.get_num_threads() == 2  # run.threads, and afterwards what it was before
    assert [(row["architecture"], row["predicted"], row["loss"]) for row in json.loads(result.stdout)] == [
        (row["architecture"], float(row["predicted"]), float(row["loss"])) for row in rows
    ]


def test_freed_memory_is_kept_by_a_stage_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(machine, "keep_freed_memory", lambda: asked.append(1))
    monkeypatch.setenv("SUMNAS_CHECKPOINTS", str(Path("checkpoints").resolve()))
    told(monkeypatch, "recalibrate_bn", RANKING)
    assert asked == [1]
    monkeypatch.setattr(sys, "argv", ["describe_method", "--method", RUN.rpartition("-")[0]])
    with contextlib.redirect_stderr(io.StringIO()):
        execute("describe_method", importlib.import_module("workflow.describe_method").main)
    assert asked == [1]


def test_a_network_that_another_run_trained_is_taken_and_its_seconds_are_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SUMNAS_CHECKPOINTS", str(Path("checkpoints").resolve()))  # as in_process.begin has it
    results = [RETRAINED / name for name in ("metrics.json", "weights.safetensors")]
    before = [sha256(path) for path in results]
    for _ in range(2):  # the third run sees what the second one left
        again = told(monkeypatch, "retrain", RETRAINED)
        assert again.said.count("trained before, for another run") == len(read(RETRAINED / "metrics.json")["networks"])
        assert not any(name.startswith("loss/") for name in figures(again))
        assert read(RETRAINED / "run.json")["seconds_before"] == 0
    assert [sha256(path) for path in results] == before
