"""Mean and spread of all sub-models' accuracies, from found.json to the summary, the report and the figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sumnas import files, params
from sumnas.spaces.nasbench201 import NASBench201
from tests.finished_run import COUNT, METHODS, SEEDS, Page, write_results
from tests.test_plots import texts
from workflow import summarize
from workflow.stage import Job
from workflow.stages import STAGES

HEADING = "all sub-models' accuracy (%)"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture(autouse=True)
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_space: NASBench201) -> None:
    monkeypatch.chdir(tmp_path)
    write_results(tmp_path, tiny_space)


def give_scores(methods: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Add to these methods' found.json what an exhaustive search would have written."""
    given: dict[str, list[dict[str, Any]]] = {}
    for number, method in enumerate(methods):
        for seed in SEEDS:
            path = Path(f"results/search/{method}-{seed}/found.json")
            scores = {"count": 15284, "mean": 61.25 + number + seed, "std": 3.5 + seed}
            files.write_json(path, {**read(path), "scores": scores})
            given.setdefault(method, []).append(scores)
    return given


def summarized() -> tuple[dict[str, Any], list[list[str]], str, Page, list[str]]:
    """The metrics, the table of methods, all text of table.md, the report, and the figure's texts."""
    stage = STAGES["summarize"]
    summarize.main(Job(stage, params.load(Path("params.yaml")).select(stage.blocks), {}))
    folder = Path("results/summary")
    text = (folder / "table.md").read_text()
    lines = [line for line in text.partition("\n\n")[0].splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert len({len(row) for row in table}) == 1
    return read(folder / "metrics.json"), table, text, Page(folder / "report.html"), texts(
        (folder / "submodels.svg").read_bytes()
    )  # fmt: skip


def of_ranked(run: str) -> str:
    ranking = read(Path(f"results/ranking/{run}/metrics.json"))
    return f"{ranking['submodel_accuracy_mean']:.2f} ± {ranking['submodel_accuracy_std']:.2f}"


def test_without_them_nothing_speaks_of_them_and_the_figure_is_of_the_ranked() -> None:
    metrics, table, text, page, shown = summarized()
    assert not any("scores" in key for m in metrics["methods"].values() for key in m)
    assert HEADING not in table[0] and "all sub-models" not in text
    assert HEADING not in page.tables[0][0] and "Accuracies of the ranked sub-models" in page.text
    assert f"{COUNT} ranked sub-models each: mean ± standard deviation" in shown
    assert all(of_ranked(f"{method}-{seed}") in shown for method in METHODS for seed in SEEDS)


def test_with_them_there_is_a_column_and_the_figure_is_of_all() -> None:
    given = give_scores(METHODS)
    metrics, table, text, page, shown = summarized()
    assert table[0][-1] == HEADING == page.tables[0][0][6]
    by_name = {row[0]: row[-1] for row in table}
    for method, row in zip(METHODS, page.tables[0][1:], strict=False):
        mean, std = (np.mean([scores[key] for scores in given[method]]) for key in ("mean", "std"))
        found = metrics["methods"][method]
        assert (found["scores_count"], found["scores_mean"], found["scores_std"]) == (15284, mean, std)
        assert by_name[method] == f"{mean:.2f} (spread {std:.2f})" and row[6] == f"{mean:.2f} ± {std:.2f}"
        assert row[7] == "6,000" and len(row) == len(page.tables[0][0])  # the passes
    assert by_name["*MACs alone*"] == by_name["*best in the table*"] == ""
    assert 'are the 15284 that an exhaustive search scored; "sub-model accuracy" is of the ranked ones' in text
    assert "of all sub-models, which the exhaustive search scored" in page.text
    assert any("all 15284 sub-models: mean ± standard deviation" in line for line in shown)
    assert any(f"(strokes: the {COUNT} ranked)" in line for line in shown)
    for method in METHODS:
        for seed, scores in zip(SEEDS, given[method], strict=True):
            assert f"{scores['mean']:.2f} ± {scores['std']:.2f}" in shown
            assert of_ranked(f"{method}-{seed}") not in shown


def test_where_some_have_them_the_figure_shows_the_same_set_of_every_run() -> None:
    give_scores(METHODS[:1])
    metrics, table, _, page, shown = summarized()
    assert "scores_mean" in metrics["methods"][METHODS[0]] and "scores_mean" not in metrics["methods"][METHODS[1]]
    by_name = {row[0]: row[-1] for row in table}
    assert by_name[METHODS[0]] == "61.75 (spread 4.00)" and by_name[METHODS[1]] == ""
    assert [row[6] for row in page.tables[0][1:3]] == ["61.75 ± 4.00", ""]
    assert all(of_ranked(f"{method}-{seed}") in shown for method in METHODS for seed in SEEDS)
    assert "Accuracies of the ranked sub-models" in page.text
