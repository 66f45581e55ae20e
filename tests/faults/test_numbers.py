"""A training that diverges ends its stage in one line, and leaves no result and no checkpoint of what went wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.workflow.conftest import Clone, changed

COMMAND = (sys.executable, "-m")


@pytest.mark.parametrize("rate", [1e4, 1e20])
def test_a_diverging_supernet_leaves_nothing(undisturbed: Clone, rate: float) -> None:
    clone = undisturbed
    files = [clone.folder / f"results/supernet/sumnas-k2-0/{name}" for name in ("weights.safetensors", "history.csv")]
    expected = {path: path.read_bytes() for path in files}
    with changed(clone, lambda p: p["methods"]["sumnas-k2"].update(inner_learning_rate=rate)):
        for path in files:
            path.unlink()
        clone.run(*COMMAND, "workflow.describe_method", "--method", "sumnas-k2")
        ended = clone.run(*COMMAND, "workflow.train_supernet", "--run", "sumnas-k2-0", check=False)
        assert ended.returncode == 1 and "Traceback" not in ended.stderr
        last = ended.stderr.strip().splitlines()[-1]
        assert " became nan in step " in last and " on path |" in last and "lower the method's learning rate" in last
        assert not any(path.exists() for path in files)
    clone.run(*COMMAND, "workflow.describe_method", "--method", "sumnas-k2")
    clone.run(*COMMAND, "workflow.train_supernet", "--run", "sumnas-k2-0")
    assert {path: path.read_bytes() for path in files} == expected
    for checkpoint in Path(clone.env["SUMNAS_CHECKPOINTS"]).glob("train_supernet/*/checkpoint.pt"):
        weights = torch.load(checkpoint, weights_only=True)["weights"]
        assert all(bool(w.isfinite().all()) for w in weights.values()), checkpoint


def test_a_diverging_retraining_leaves_nothing(undisturbed: Clone) -> None:
    clone, result = undisturbed, undisturbed.folder / "results/retrain/sumnas-k2-0/metrics.json"
    expected = result.read_bytes()
    with changed(clone, lambda p: p["retrain"]["recipe"].update(learning_rate=1e20)):
        result.unlink()
        ended = clone.run(*COMMAND, "workflow.retrain", "--run", "sumnas-k2-0", check=False)
        assert ended.returncode == 1 and "Traceback" not in ended.stderr
        assert "the loss became nan in epoch 1; lower the recipe's learning rate" in ended.stderr
        assert not result.exists()
    clone.run(*COMMAND, "workflow.retrain", "--run", "sumnas-k2-0")
    assert result.read_bytes() == expected
