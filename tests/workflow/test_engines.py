"""Both engines run the pipeline to the same bytes, and rerun exactly what a change touches."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sumnas import diagnosis
from tests.workflow.conftest import changed
from tests.workflow.test_names import named

pytestmark = pytest.mark.engine

Params = dict[str, Any]
DOWNSTREAM = ["recalibrate_bn", "rank", "score", "search", "retrain"]
RUNS = ["spos-0", "sumnas-k2-0"]


def of(rules: list[str], runs: list[str]) -> set[str]:
    """Names of jobs as `rule@run`."""
    return {f"{rule}@{run}" for rule in rules for run in runs}


def dvc_changed(clone: Any) -> set[str]:
    """Stages of which DVC says that a dependency or setting of theirs changed; shards of a run count once.

    Not the look at the names, which makes no result.
    """
    report = json.loads(clone.run("dvc", "status", "--json").stdout)
    return {re.sub(r"^(score@.*)-\d+$", r"\1", name) for name in report} - {"names"}


def dvc_ran(said: str) -> list[str]:
    """Stages that DVC ran, but for the look at the names."""
    return [name for name in re.findall(r"Running stage '([^']+)'", said) if name != "names"]


def snakemake_planned(clone: Any) -> set[str]:
    """Jobs that Snakemake would run."""
    text = clone.run("snakemake", "-n", "--cores", "1", "--nocolor").stdout
    jobs = set()
    for chunk in re.split(r"\n(?=(?:local)?rule \w+:\n)", text):
        if match := re.match(r"(?:local)?rule (\w+):\n", chunk):
            names = re.search(r"^    wildcards: (.*)$", chunk, re.M)
            wildcards = dict(pair.split("=") for pair in names[1].split(", ")) if names else {}
            if "seed" in wildcards:
                jobs.add(f"{match[1]}@{wildcards['method']}-{wildcards['seed']}")
            elif wildcards:
                jobs.add(f"{match[1]}@{next(iter(wildcards.values()))}")
            else:
                jobs.add(match[1])
    return jobs - {"all"}


CASES: dict[str, tuple[Callable[[Params], None] | None, tuple[str, ...], set[str], set[str]]] = {
    # what changes: the settings or files; what DVC finds changed itself; what Snakemake plans, downstream included
    "search": (
        lambda p: p["search"].update(generations=2),
        (),
        of(["search"], RUNS) | {"summarize"},
        of(["search", "retrain"], RUNS) | {"summarize"},
    ),
    "one method": (
        lambda p: p["methods"]["sumnas-k2"].update(inner_learning_rate=0.1),
        (),
        {"describe_method@sumnas-k2", "train_supernet@sumnas-k2-0"},
        {"describe_method@sumnas-k2", "summarize"} | of(["train_supernet", *DOWNSTREAM], ["sumnas-k2-0"]),
    ),
    "ranking": (
        lambda p: p["ranking"].update(bootstrap=200),
        (),
        of(["rank"], RUNS) | {"summarize"},
        of(["rank"], RUNS) | {"summarize"},
    ),
    "supernet": (
        lambda p: p["supernet"].update(epochs=3),
        (),
        of(["train_supernet"], RUNS) | {"summarize"},
        of(["train_supernet", *DOWNSTREAM], RUNS) | {"summarize"},
    ),
    "a run less": (lambda p: p["run"].update(methods=["spos"]), (), {"summarize"}, {"summarize"}),
    "an unused method's block": (
        lambda p: p["methods"]["sumnas-k4"].update(inner_learning_rate=0.1),
        (),
        {"describe_method@sumnas-k4"},
        set(),
    ),
    "plots, the report's template, the command line, a new strategy": (
        None,
        ("sumnas/plots.py", "sumnas/templates/report.html.j2", "workflow/stage.py", "sumnas/methods/another.py"),
        set(),
        set(),
    ),
    "another strategy": (
        None,
        ("sumnas/methods/spos.py",),
        {"describe_method@spos"},
        {"describe_method@spos", "summarize"} | of(["train_supernet", *DOWNSTREAM], ["spos-0"]),
    ),
    "the pool": (
        lambda p: p["benchmark"]["pool"].update(seed=1),
        (),
        {"train_references@0", "train_references@1", "build_benchmark", "summarize"},
        {"train_references@0", "train_references@1", "build_benchmark", "sample_architectures", "summarize"}
        | of(["recalibrate_bn", "rank", "search", "retrain"], RUNS),
    ),
    "further accuracies": (
        lambda p: p["further"].update(
            other={"source": "table", "table": {"path": "data/raw/other.csv", "seeds": ["accuracy"]}}
        ),
        (),
        {"build_further", "summarize"},
        {"build_further", "summarize"} | of(["rank"], RUNS),
    ),
    "the search's source": (
        None,
        ("sumnas/search.py",),
        of(["search"], RUNS),
        of(["search", "retrain"], RUNS) | {"summarize"},
    ),
}


def test_both_engines_give_the_same_bytes(dvc_clone: Any, snakemake_clone: Any) -> None:
    one, other = dvc_clone.outputs(), snakemake_clone.outputs()
    assert one.keys() == other.keys()
    assert len(one) > 30
    assert [path for path in one if one[path] != other[path]] == []


def test_a_second_run_does_nothing(dvc_clone: Any, snakemake_clone: Any) -> None:
    assert "Data and pipelines are up to date" in dvc_clone.run("dvc", "repro").stdout
    assert "Nothing to be done" in snakemake_clone.run("snakemake", "--cores", "2").stderr


@pytest.mark.parametrize("case", CASES)
def test_what_dvc_finds_changed(case: str, dvc_clone: Any) -> None:
    change, files, expected, _ = CASES[case]
    with changed(dvc_clone, change, *files):
        assert dvc_changed(dvc_clone) == expected


@pytest.mark.parametrize("case", CASES)
def test_what_snakemake_plans(case: str, snakemake_clone: Any) -> None:
    change, files, _, expected = CASES[case]
    with changed(snakemake_clone, change, *files):
        assert snakemake_planned(snakemake_clone) == expected


def test_dvc_commands(dvc_clone: Any) -> None:
    shown = dvc_clone.run("dvc", "metrics", "show", "--json").stdout
    ((path, values),) = json.loads(shown)[""]["data"].items()
    assert path == "results/summary/overview.json" and list(values["data"]) == ["spos", "sumnas-k2"]
    known = ["tau", "low", "high", "retrained"]  # "true" is not known here: it has no column
    assert sorted(values["data"]["spos"]) == sorted(known)
    one = "results/ranking/spos-0/metrics.json"
    shown = dvc_clone.run("dvc", "metrics", "show", "--json", one).stdout
    assert "kendall_tau" in json.loads(shown)[""]["data"][one]["data"]
    columns = dvc_clone.run("dvc", "exp", "show", "--csv").stdout.splitlines()[0].split(",")
    columns = [name for name in columns if name.startswith(("spos.", "sumnas-k2."))]
    assert sorted(columns) == sorted(f"{method}.{name}" for method in ("spos", "sumnas-k2") for name in known)
    assert "rank@sumnas-k2-0" in dvc_clone.run("dvc", "dag").stdout
    assert "index.html" in dvc_clone.run("dvc", "plots", "show").stdout
    page = (dvc_clone.folder / "dvc_plots/index.html").read_text()
    assert not re.search("https?:", page) and page.count("<img") >= 6  # figures alone: no library from elsewhere
    # What an editor's extension asks for; a training that runs has its picture in live/.
    (dvc_clone.folder / "live/spos-0.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    found = json.loads(dvc_clone.run("dvc", "plots", "diff", "-o", ".dvc/tmp/plots", "--split", "--json").stdout)
    missed = [e["name"] for e in found.get("errors", []) if e["rev"] == "workspace" or e["name"].startswith("live")]
    assert missed == [] and {"live/spos-0.svg", "live/trainings.svg"} < found["data"].keys()
    (dvc_clone.folder / "live/spos-0.svg").unlink()
    with changed(dvc_clone, lambda p: p["ranking"].update(top_k=[2])):
        assert "spos.tau" in dvc_clone.run("dvc", "metrics", "diff", "--all").stdout


def test_snakemake_refuses_config(snakemake_clone: Any) -> None:
    result = snakemake_clone.run("snakemake", "-n", "--cores", "1", "--config", "epochs=3", check=False)
    assert result.returncode != 0
    assert "params.yaml is the one settings file" in result.stderr + result.stdout
    assert "Traceback" not in result.stderr


def test_snakemake_report(snakemake_clone: Any, tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    snakemake_clone.run("snakemake", "--report", str(target))
    text = target.read_text()
    assert all(f"{name}.svg" in text for name in ("kendall_tau", "scatter", "training", "submodels", "cells"))


def test_a_stopped_stage_is_named_in_one_line(dvc_clone: Any) -> None:
    with changed(dvc_clone, lambda p: p["supernet"].update(epohcs=3)):
        result = dvc_clone.run("python", "-m", "workflow.rank", "--run", "spos-0", check=False)
    assert result.returncode == 1
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("rank: error: params.yaml: supernet.epohcs") and "supernet.epochs" in line


def test_half_a_lock_file_is_named_and_removed_and_nothing_computed_is_lost(dvc_clone: Any) -> None:
    """As DVC leaves it, killed while it writes; what it says itself is no help."""
    lock, before = dvc_clone.folder / "dvc.lock", dvc_clone.outputs()
    whole = lock.read_bytes()
    verdicts = []
    for half in (b"", whole[: whole.rindex(b"md5") + 2], whole[: whole.rindex(b"md5")]):
        lock.write_bytes(half)
        said = dvc_clone.run("dvc", "status", "prepare_data", check=False)
        assert (said.returncode == 0) == diagnosis.lock_is_whole(lock), said.stderr
        verdicts.append(said.returncode == 0)
    assert verdicts[0] is False
    lock.write_bytes(b"")
    assert "dvc.lock: half written" in dvc_clone.run("sumnas", "doctor", check=False).stdout
    assert "removed" in dvc_clone.run("python", "-m", "workflow.lockfile").stderr
    out = dvc_clone.run("dvc", "repro", "sample_architectures").stdout
    assert dvc_ran(out) == [] and dvc_clone.outputs() == before
    assert dvc_clone.run("python", "-m", "workflow.lockfile").stderr == ""
    lock.write_bytes(whole)


@pytest.mark.parametrize(("key", "name"), [("shards", "0; touch made"), ("seeds", "0; touch made"),
                                           ("method", "../../../victim")])  # fmt: skip
def test_no_engine_takes_a_name_for_more(dvc_clone: Any, snakemake_clone: Any, key: str, name: str) -> None:
    victim = dvc_clone.folder.parent / "victim.json"  # results/methods/<method>.json leads there, of both clones
    victim.write_text("somebody else's")
    before = dvc_clone.outputs()
    with changed(dvc_clone, named(key, name)):
        ended = [dvc_clone.run("dvc", "repro", "--keep-going", check=False)]
        if key == "method":
            ended.append(dvc_clone.run("dvc", "repro", f"describe_method@{name}", check=False))
    with changed(snakemake_clone, named(key, name)):
        if key == "method":  # for Snakemake only methods that are run have a file
            with changed(snakemake_clone, named("methods", name)):
                ended.append(snakemake_clone.run("snakemake", "--cores", "1", check=False))
        else:
            ended.append(snakemake_clone.run("snakemake", "--cores", "1", check=False))
    assert all(process.returncode and "Traceback" not in process.stderr for process in ended)
    assert "params.yaml: " in ended[0].stderr and "run `make check`" in ended[0].stderr
    assert victim.read_text() == "somebody else's" and dvc_clone.outputs() == before
    assert not [
        path for clone in (dvc_clone, snakemake_clone) for path in clone.folder.rglob("made*") if path.is_file()
    ]


def test_dvc_exp_run_with_other_settings(dvc_clone: Any) -> None:
    """Last of all: an experiment leaves its settings and results in the workspace."""
    out = dvc_clone.run("dvc", "exp", "run", "-S", "run.seeds=[0,1]", "-S", "run.methods=[spos]").stdout
    ran = set(dvc_ran(out))
    new = ["train_supernet", "recalibrate_bn", "rank", "search", "retrain"]
    assert ran == of(new, ["spos-1"]) | {"score@spos-1-0", "score@spos-1-1", "summarize"}
    summary = json.loads((dvc_clone.folder / "results/summary/metrics.json").read_text())
    assert summary["methods"]["spos"]["seeds"] == [0, 1]
    assert summary["methods"]["spos"]["kendall_tau_std"] is not None
    assert "sumnas-k2" not in summary["methods"]  # a run that is not listed any more leaves no trace
    assert "sumnas" not in (dvc_clone.folder / "results/summary/table.md").read_text()


def test_a_training_notes_its_engine_beside_its_result(dvc_clone: Any) -> None:
    records = {path.parent.name: path for path in (dvc_clone.folder / "results/supernet").glob("*/run.json")}
    assert set(RUNS) <= set(records)
    assert {json.loads(path.read_text())["engine"] for path in records.values()} == {"sequential"}
    others = [*(dvc_clone.folder / "results/ranking").glob("*/run.json")]
    assert others and all("engine" not in json.loads(path.read_text()) for path in others)
