"""The quickstart notebook runs as it stands, and what it finds is what the library says by another way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sumnas import data, trained
from sumnas.batchnorm import CalibrationSettings, recalibrate
from sumnas.evaluation import calibration_batches, evaluate

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs/notebooks/quickstart.ipynb"
CELLS: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]

FACTS = """
import json
trials = [
    [[trial.params[f"layer {layer}"] for layer in range(space.layers)], *trial.values]
    for trial in study.get_trials(deepcopy=False)
]
best = [[trial.number, *trial.values] for trial in found]
facts = dict(chosen=chosen, predicted=predicted, macs=macs, trials=trials, best=best, history=history)
Path("facts.json").write_text(json.dumps(facts))
figure.savefig("figure.png")
print(folder)
"""


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the notebook's variables hold when all of its cells have run, as a program; warnings are errors."""
    pytest.importorskip("optuna", reason="the notebook searches with optuna: pip install '.[dev]'")
    place = tmp_path_factory.mktemp("notebook")
    code = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]
    (place / "notebook.py").write_text("\n".join([*code, FACTS]), encoding="utf-8")
    env = {
        **os.environ,
        "MPLBACKEND": "Agg",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "TMPDIR": str(place),
    }
    command = [sys.executable, "-W", "error", "notebook.py"]
    result = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads((place / "facts.json").read_text(encoding="utf-8"))
    return found | {"folder": Path(result.stdout.splitlines()[-1]), "figure": place / "figure.png"}


def test_it_is_stored_without_outputs() -> None:
    nbformat = pytest.importorskip("nbformat", reason="comes with snakemake")
    nbformat.validate(nbformat.read(NOTEBOOK, as_version=4))
    for cell in CELLS:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


def test_the_supernet_learns(facts: dict[str, Any]) -> None:
    losses = [row["loss"] for row in facts["history"]]
    assert losses[-1] < losses[0] / 2
    assert all(row["passes"] == 2 * 5 * row["steps"] for row in facts["history"])  # k = 2, five strictly fair paths


def test_the_predictions_are_those_of_extracted_networks(facts: dict[str, Any]) -> None:
    """The notebook's scores, as those of stand-alone networks that were recalibrated one by one."""
    space, supernet, _ = trained.load(facts["folder"] / "weights.safetensors")
    digits = data.load(facts["folder"] / "digits")
    batches = calibration_batches(digits, CalibrationSettings(images=500, batch_size=250, seed=0))
    scored = list(zip(facts["chosen"], facts["predicted"], facts["macs"], strict=True))
    assert len(scored) == 30 == len({tuple(architecture) for architecture, _, _ in scored})
    for architecture, predicted, macs in scored[:5] + [facts["trials"][number] for number, _, _ in facts["best"]]:
        network = space.extract(supernet, tuple(architecture))
        recalibrate(network, batches)
        assert evaluate(network, digits.split("validation"), 500).accuracy == predicted
        assert space.macs(tuple(architecture)) == macs


def test_the_search_gives_the_pareto_front_of_what_it_tried(facts: dict[str, Any]) -> None:
    trials = [(accuracy, macs) for _, accuracy, macs in facts["trials"]]
    assert len(trials) == 150
    front = {
        (accuracy, macs)
        for accuracy, macs in trials
        if not any(a >= accuracy and m <= macs and (a, m) != (accuracy, macs) for a, m in trials)
    }
    assert {(accuracy, macs) for _, accuracy, macs in facts["best"]} == front
    assert facts["figure"].read_bytes().startswith(b"\x89PNG")
