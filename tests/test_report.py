"""The report of a small finished run: its numbers are those of the result files, and it needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sumnas import files, params, report
from sumnas.errors import UserError
from sumnas.params import Params
from sumnas.spaces.nasbench201 import NASBench201
from sumnas.summary import markdown
from tests.finished_run import COUNT, METHODS, ROOT, SEEDS, Page, write_results
from workflow import summarize
from workflow.stage import Job
from workflow.stages import STAGES


def run_stage() -> str:
    """Run the stage in the current folder."""
    stage = STAGES["summarize"]
    return summarize.main(Job(stage, params.load(Path("params.yaml")).select(stage.blocks), {}))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_space: NASBench201) -> Iterator[Path]:
    """A folder with a finished run, which no test may change."""
    folder = tmp_path_factory.mktemp("finished")
    write_results(folder, tiny_space)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_stage().endswith("results/summary/report.html")
    yield folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run that a test may damage; the current folder."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def page(finished: Path) -> Page:
    return Page(finished / "results/summary/report.html")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_the_table_of_methods_has_the_numbers_of_the_result_files(finished: Path, page: Page) -> None:
    summary = read(finished / "results/summary/metrics.json")
    rows = page.tables[0][1:]
    assert [row[0] for row in rows] == [
        *METHODS, "MACs alone", "parameters alone", "best in the table", "perfect predictor"
    ]  # fmt: skip
    for name, row in zip(METHODS, rows, strict=False):
        metrics = [read(finished / f"results/ranking/{name}-{seed}/metrics.json") for seed in SEEDS]
        taus = [m["kendall_tau"] for m in metrics]
        assert row[1] == f"{np.mean(taus):.3f}" == f"{summary['methods'][name]['kendall_tau']:.3f}"
        low, high = (np.mean([m[f"kendall_tau_{end}"] for m in metrics]) for end in ("low", "high"))
        assert row[2] == f"[{low:.3f}, {high:.3f}]"
        assert row[3] == f"{np.std(taus, ddof=1):.3f}"
        assert row[4] == f"{np.mean([m['spearman_rho'] for m in metrics]):.3f}"
        mean, std = (np.mean([m[f"submodel_accuracy_{key}"] for m in metrics]) for key in ("mean", "std"))
        assert row[5] == f"{mean:.2f} ± {std:.2f}"
        assert row[6] == "6,000"  # the mean of 4,000 and 8,000
        retrained = [f"{e['retrained_accuracy']:.2f}" for e in summary["methods"][name]["found"]]
        assert row[7:] == [f"- / {retrained[0]}", f"93.21 / {retrained[1]}"]
    assert rows[2][1] == f"{summary['baselines']['macs']['']:.3f}"
    assert rows[4][2:] == ["94.50", "94.50"]
    assert rows[5][1] == f"{summary['references']['perfect_tau']:.3f}"


def test_the_other_tables_have_the_numbers_of_the_result_files(finished: Path, page: Page) -> None:
    _, differences, tops, found, digests = page.tables
    (expected,) = read(finished / "results/summary/metrics.json")["differences"]
    assert differences[1] == [
        "fairnas - sumnas-k2", f"{expected['value']:.3f}", f"[{expected['_low']:.3f}, {expected['_high']:.3f}]"
    ]  # fmt: skip
    lines = iter(found[1:])
    for method in METHODS:
        for seed in SEEDS:
            run = f"{method}-{seed}"
            ranking = read(finished / f"results/ranking/{run}/metrics.json")
            (top,) = [row for row in tops if row[0] == run]
            assert top[2] == (
                f"{100 * ranking['precision_at_5']:.0f} % right; true ranks {ranking['best_rank_at_5']} to "
                f"{ranking['worst_rank_at_5']}; regret {ranking['regret_at_5']:.2f}"
            )
            networks = {
                n["architecture"]: n for n in read(finished / f"results/retrain/{run}/metrics.json")["networks"]
            }
            for entry in read(finished / f"results/search/{run}/found.json")["found"]:
                row = next(lines)
                assert row[0] == run and row[1] == ("< 0.3M MACs" if entry["limit"] else "without limit")
                assert row[3] == entry["architecture"] and row[4] == f"{entry['macs']:.4g}"
                assert row[7] == ("-" if entry["limit"] else "93.21")
                network = networks[entry["architecture"]]
                top5 = " (top-5 98.77)" if "test_top5" in network else ""
                assert row[8] == f"{network['test_accuracy']:.2f}{top5}"
            (digest,) = [row for row in digests if row[0] == run]
            assert ranking["settings_digest"].startswith(digest[1]) and len(digest[1]) == 16
    assert next(lines, None) is None


def test_the_overview_has_the_main_figures_of_every_method(finished: Path) -> None:
    methods = read(finished / "results/summary/metrics.json")["methods"]
    shown = read(finished / "results/summary/overview.json")
    assert set(shown) == set(METHODS)
    for name, figures in shown.items():
        method, last = methods[name], methods[name]["found"][-1]
        assert last["limit"] is None and figures == {
            "tau": method["kendall_tau"], "low": method["kendall_tau_low"], "high": method["kendall_tau_high"],
            "true": last["benchmark_accuracy"], "retrained": last["retrained_accuracy"],
        }  # fmt: skip


def test_the_settings_are_those_in_force(finished: Path, page: Page) -> None:
    loaded = params.load(finished / "params.yaml").plain()
    written = yaml.safe_load((finished / "results/summary/settings.yaml").read_text())
    loaded["methods"] = {name: loaded["methods"][name] for name in METHODS}
    for key in ("workers", "keep_gb"):  # change no result, so no stage declares them
        del loaded["run"][key]
    assert written == json.loads(json.dumps(loaded))
    assert all(line in page.text for line in yaml.safe_dump(written, sort_keys=False).splitlines())


def test_every_declared_output_is_there_and_every_figure_is_well_formed(finished: Path, page: Page) -> None:
    for path in STAGES["summarize"].outputs:
        assert (finished / path).is_file(), path
    drawn = [base64.b64decode(str(image["src"]).partition("base64,")[2]) for image in page.of("img")]
    for name in report.FIGURES[:3]:
        assert (finished / "results/summary" / name).read_bytes() in drawn
    assert len(drawn) == 3 + 3  # the cells: one found by every seed of a method for each of two seeds, one by all
    for svg in [*drawn, (finished / "results/summary/cells.svg").read_bytes()]:
        assert ET.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    inline = re.findall(r"<svg.*?</svg>", (finished / "results/summary/report.html").read_text(), re.S)
    charts = [svg for svg in inline if "<circle" in svg]
    assert [len(ET.fromstring(svg).findall("circle")) for svg in charts] == [COUNT] * 12
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a["href"] for a in page.of("a")} <= {f"#{name}" for name in ids}


def test_nothing_is_fetched(finished: Path, page: Page) -> None:
    html = (finished / "results/summary/report.html").read_text()
    assert not re.search(r"https?:|url\(|@import|//cdn", html)
    for tag, attributes in page.elements:
        for name in {"src", "href", "xlink:href", "srcset", "data", "action", "poster"} & attributes.keys():
            assert str(attributes[name]).startswith(("data:", "#")), (tag, attributes)
    (policy,) = [m["content"] for m in page.of("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    assert "default-src 'none'" in str(policy) and f"script-src 'sha256-{digest}'" in str(policy)
    assert len(page.scripts) == 1


def test_the_same_results_give_the_same_bytes(finished: Path, copy: Path) -> None:
    for folder in ("supernet/fairnas-0", "ranking/fairnas-0", "summary"):
        (copy / "results" / folder / "run.json").write_text('{"seconds": 1, "host": "h"}')
    command = [sys.executable, "-m", "sumnas.report", "--results", str(copy / "results")]
    for path in (copy / "results/summary").glob("*.*l"):
        if path.name != "settings.yaml":
            path.unlink()
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7", "PATH": ""}
    )
    assert "report.html" in done.stdout and not done.stderr
    for path in STAGES["summarize"].outputs:
        assert (copy / path).read_bytes() == (finished / path).read_bytes(), path


def test_hostile_text_is_only_text(finished: Path, copy: Path) -> None:
    hostile = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}$\\frac"
    path = copy / "results/search/fairnas-0/found.json"
    found = read(path)
    found["found"][0]["architecture"] = hostile
    path.write_text(json.dumps(found))
    predictions = copy / "results/ranking/fairnas-0/predictions.csv"
    rows = files.read_csv(predictions)
    files.write_csv(predictions, list(rows[0]), [{**row, "architecture": hostile} for row in rows])
    settings = copy / "results/summary/settings.yaml"
    loaded = yaml.safe_load(settings.read_text())
    loaded["methods"]["fairnas"]["description"] = hostile
    settings.write_text(yaml.safe_dump(loaded))
    page = Page(report.write(copy / "results"))
    ours = Page(finished / "results/summary/report.html")
    assert len(page.scripts) == 1 and page.scripts == ours.scripts
    assert {name for _, a in page.elements for name in a if name.startswith("on")} == set()
    assert all(str(image["src"]).startswith("data:") for image in page.of("img"))
    assert [row[3] for row in page.tables[3] if row[0] == "fairnas-0"][0] == hostile
    assert page.text.count("alert(1)") >= 3 + COUNT  # found table, settings, cell, and the points' titles
    assert "49" not in page.tables[3][5][3]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "summary/settings.yaml").unlink(), "settings.yaml: no such file"),
        (lambda folder: (folder / "summary/settings.yaml").write_text("a: [1"), "settings.yaml: damaged"),
        (lambda folder: (folder / "search/fairnas-1/found.json").unlink(), "fairnas-1/found.json: no such file"),
        (lambda folder: (folder / "summary/metrics.json").write_text('{"methods": {}}'), "sumnas-k2, metrics.json has"),
    ],
)
def test_a_missing_file_is_told_in_one_line(
    damage: Any, message: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(copy / "results")
    assert report.main(["--results", str(copy / "results")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("report: error: ") and message in line


@pytest.mark.parametrize(
    ("block", "key", "value", "stage"),
    [
        ("evaluation", "batch_size", 7, "rank"),
        ("retrain", "seed", 5, "retrain"),
        ("supernet", "epochs", 99, "train_supernet"),
        ("search", "generations", 1, "search"),
        ("sampling", "count", 7, None),  # no result says of which settings the samples are
    ],
)
def test_settings_that_made_no_result_are_not_shown(
    block: str, key: str, value: object, stage: str | None, copy: Path
) -> None:
    raw = yaml.safe_load((copy / "params.yaml").read_text())
    raw[block][key] = value
    (copy / "params.yaml").write_text(yaml.safe_dump(raw))
    if stage is None:
        run_stage()
    else:
        with pytest.raises(UserError, match=f"made with other settings .* run {stage} again"):
            run_stage()


def test_a_method_of_no_run_changes_nothing(copy: Path) -> None:
    blocks = STAGES["summarize"].blocks
    before = params.load(copy / "params.yaml").select(blocks)
    raw = yaml.safe_load((copy / "params.yaml").read_text())
    raw["methods"]["spos"]["learning_rate"] = 0.123
    (copy / "params.yaml").write_text(yaml.safe_dump(raw))
    after: Params = params.load(copy / "params.yaml").select(blocks)
    assert after.digest() == before.digest()


def test_the_table_says_of_the_references_noise_what_is_known(finished: Path) -> None:
    known = read(finished / "results/summary/metrics.json")
    references = known["references"]
    told = markdown(known)
    assert f"References: 3 seeds each; split-half tau {references['reliability_tau']:.3f}; a perfect predictor" in told
    alone = {key: 1 if key == "reference_seeds" else None for key in references}
    assert "References: 1 seed each; how noisy they are is not known. Best" in markdown(known | {"references": alone})


def test_what_has_no_number_is_told_without_one(copy: Path) -> None:
    for path in (copy / "results/ranking").glob("*/metrics.json"):
        metrics = read(path)
        gone = [k for k in metrics if "tau" in k or k == "spearman_rho"]
        metrics |= dict.fromkeys(gone) | {"kendall_tau_reason": "all predictions are equal", "reference_seeds": 1}
        path.write_text(json.dumps(metrics))
    for path in (copy / "results/retrain").glob("*/metrics.json"):
        path.write_text(json.dumps(read(path) | {"networks": []}))
    predictions = {"predicted": 50.0, "reference": 91.0}
    for path in (copy / "results/ranking").glob("*/predictions.csv"):
        rows = files.read_csv(path)
        files.write_csv(path, list(rows[0]), [{**row, **predictions} for row in rows])
    run_stage()
    page = Page(copy / "results/summary/report.html")
    assert "No method has a Kendall tau" in page.text and "sumnas-k2 has no Kendall tau: all predictions" in page.text
    assert "noisy themselves" not in page.text and "MACs alone would reach" not in page.text
    assert page.tables[0][1][1:5] == ["-", "-", "-", "-"]
    assert {row[8] for row in page.tables[3][1:]} == {"-"} and "None" not in page.text


def test_a_search_that_ended_too_early_is_told(finished: Path, copy: Path) -> None:
    assert "ended too early" not in (finished / "results/summary/report.html").read_text()
    path = copy / "results/search/fairnas-1/found.json"
    found = read(path)
    found["found"][0]["predicted"] += 1
    files.write_json(path, found)
    page = Page(report.write(copy / "results"))
    assert "fairnas-1: what the search found without limit is predicted at 91.23 %, less than" in page.text
    assert "what it found < 0.3M MACs (92.23 %)" in page.text


def test_accuracy_is_drawn_over_the_latency_that_was_limited(copy: Path) -> None:
    for name in (f"{method}-{seed}" for method in METHODS for seed in SEEDS):
        folder = copy / "results/search" / name
        found = read(folder / "found.json") | {"cost": "latency_ms"}
        for entry in found["found"]:
            entry["cost"] = 0.125
        files.write_json(folder / "found.json", found)
    report.write(copy / "results")  # of a search before there was the column: over the multiply-adds, but for the table
    page = Page(copy / "results/summary/report.html")
    assert "Accuracy against multiply-adds" in page.text
    for name in (f"{method}-{seed}" for method in METHODS for seed in SEEDS):
        path = copy / "results/search" / name / "scored.csv"
        rows = files.read_csv(path)
        rows = [{**row, "cost": "" if number == 0 else 0.25 + number} for number, row in enumerate(rows)]
        files.write_csv(path, list(rows[0]), rows)
    report.write(copy / "results")
    page = Page(copy / "results/summary/report.html")
    assert "Accuracy against latency (ms)" in page.text and "accurate for as low a latency. Point" in page.text
    (table,) = [table for table in page.tables if table[0][1:2] == ["limit"]]
    assert table[0][4:6] == ["latency (ms)", "MACs (M)"] and {row[4] for row in table[1:]} == {"0.125"}
    assert table[1][1] == "< 0.3 latency_ms"
    tips = re.findall(r"multiply-adds; latency \(ms\) [\d.]+", page.text)
    assert len(tips) == (COUNT - 1) * len(METHODS) * len(SEEDS)
