"""docs/extending.md: its method and its space, written into a copy of the project as they stand there, and run."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sumnas.files import read_metadata
from tests.workflow.conftest import tiny

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`(sumnas/\S+\.py)`\n\n```python\n(.*?)^```$", PAGE, re.M | re.S))
BLOCKS: dict[str, Any] = {}
for text in re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.M | re.S):
    BLOCKS |= yaml.safe_load(text)

DRIVER = """
import sys
import sumnas
from tests.in_process import run
assert sumnas.__file__.startswith(sys.argv[1]), sumnas.__file__
import torch
torch.set_num_threads(1)
names = sys.argv[2].split(",")
# Of all runs, but for the last line.
run(names[0], ["prepare_data", "train_references", "build_benchmark", "build_further", "sample_architectures"])
for name in names:
    run(name, ["describe_method", "train_supernet", "recalibrate_bn", "rank", "score", "search", "retrain"])
run(names[0], ["summarize"])
"""


def pipeline(folder: Path, *names: str) -> None:
    """Run every stage in the copy, all in one process."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
           "SUMNAS_CHECKPOINTS": str(folder / "checkpoints"), "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", DRIVER, str(folder), ",".join(names)],
        cwd=folder, env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_the_page_has_one_file_of_each() -> None:
    assert set(FILES) == {"sumnas/methods/greedy.py", "sumnas/spaces/chain.py"} and set(BLOCKS) == {"methods", "space"}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of package and stages with both files, run for the new method and FairNAS on the new space."""
    folder = tmp_path_factory.mktemp("extended")
    for part in ("sumnas", "workflow"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name, content in FILES.items():
        assert not (folder / name).exists()
        (folder / name).write_text(content)
    settings = tiny(yaml.safe_load((ROOT / "params.yaml").read_text()))
    settings["methods"] |= BLOCKS["methods"]
    settings["space"] = BLOCKS["space"]
    settings["run"] |= {"methods": ["fairnas", "greedy"], "shards": [0]}
    settings["benchmark"]["pool"] |= {"architectures": 8, "seeds": [0, 1]}
    settings["sampling"] |= {"strategy": "all", "floor": 0.0}
    settings["search"] |= {"strategy": "exhaustive", "limits": [0.02, None]}
    settings["supernet"] |= {"epochs": 4, "batch_size": 64}
    (folder / "params.yaml").write_text(yaml.safe_dump(settings))
    pipeline(folder, "fairnas-0", "greedy-0")
    return folder


def test_the_method_runs_through_every_stage(project: Path) -> None:
    history = rows(project / "results/supernet/greedy-0/history.csv")
    steps = round(899 * 0.9) // 64  # of the 1,797 digits half are trained on
    assert [int(row["steps"]) for row in history] == [steps * epoch for epoch in (1, 2, 3, 4)]
    assert [int(row["passes"]) for row in history] == [3 * steps * epoch for epoch in (1, 2, 3, 4)]
    assert float(history[-1]["loss"]) < float(history[0]["loss"])
    assert all(0 < float(row["heldout_loss"]) < 5 for row in history)
    derived = read_metadata(project / "results/supernet/greedy-0/weights.safetensors")["derived"]
    assert read(project / "results/ranking/greedy-0/metrics.json")["derived_architecture"] == derived
    methods = read(project / "results/summary/metrics.json")["methods"]
    assert methods["greedy"]["derived_architectures"] == [derived] and "derived_architectures" not in methods["fairnas"]
    assert derived in (project / "results/summary/report.html").read_text()


def test_the_space_runs_through_every_stage(project: Path) -> None:
    for run in ("fairnas-0", "greedy-0"):
        ranking = read(project / f"results/ranking/{run}/metrics.json")
        assert ranking["architectures"] == 8 and -1 <= ranking["kendall_tau"] <= 1
    predictions = rows(project / "results/ranking/fairnas-0/predictions.csv")
    assert max(float(row["predicted"]) for row in predictions) > 15  # of ten classes: it has learned something
    # MACs by hand: the stem's, the classifier's with its bias, and 64 pixels x 16 weights x the kernel's area.
    per_operator = {"skip": 0, "conv3": 64 * 16 * 9, "conv5": 64 * 16 * 25}
    for row in predictions:
        by_hand = 64 * 4 * 9 + 4 * 10 + 10 + sum(per_operator[name] for name in row["architecture"].split("-"))
        assert float(row["macs"]) == pytest.approx(by_hand / 1e6)
    scores = rows(project / "results/scores/fairnas-0/0.csv")
    assert len({row["architecture"] for row in scores}) == len(scores) == 27
    found = read(project / "results/search/fairnas-0/found.json")["found"]
    best = max(scores, key=lambda row: float(row["predicted"]))
    assert found[1]["predicted"] == float(best["predicted"]) and found[0]["macs"] <= 0.02


def test_the_spaces_strings_and_networks_are_those_of_the_supernet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, from a folder of its own beside the package's."""
    import torch

    import sumnas.spaces as package
    from sumnas.spaces import base

    (tmp_path / "chain.py").write_text(FILES["sumnas/spaces/chain.py"])
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    module = base.module_of("chain")
    try:
        space = base.build(module.Settings.model_validate(BLOCKS["space"]))
        everything = list(space.architectures())
        texts = [space.encode(a) for a in everything]
        assert len(set(texts)) == space.size == 27 and [space.decode(t) for t in texts] == everything
        for wrong in ("conv3-skip", "conv3-skip-conv7"):
            with pytest.raises(ValueError, match="layers|no operator 'conv7'"):
                space.decode(wrong)
        supernet, images = space.supernet(), torch.randn(5, 1, 8, 8)
        for architecture in everything[::5]:
            own = space.extract(supernet, architecture).train()
            assert torch.allclose(own(images), supernet(images, architecture), atol=1e-6)
            count = sum(p.numel() for p in space.network(architecture).parameters())
            assert space.params(architecture) == pytest.approx(count / 1e6)
    finally:
        sys.modules.pop("sumnas.spaces.chain", None)
        vars(package).pop("chain", None)
