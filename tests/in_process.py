"""Stages called in this process, in the current folder: no interpreter has to start for each."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.workflow.conftest import ROOT, tiny
from workflow.stage import make_job
from workflow.stages import STAGES


def begin(folder: Path, patch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], object]) -> None:
    """Go to a folder with the tiny settings after a change; checkpoints are kept there, too."""
    patch.chdir(folder)
    patch.setenv("SUMNAS_CHECKPOINTS", str(folder / "checkpoints"))
    settings = tiny(yaml.safe_load((ROOT / "params.yaml").read_text()))
    settings["run"]["shards"] = [0]
    change(settings)
    Path("params.yaml").write_text(yaml.safe_dump(settings))


def run(run: str, stages: Iterable[str], shard: int = 0) -> None:
    """Call the stages one after another, for one run and one shard."""
    for name in stages:
        stage = STAGES[name]
        given = {"run": run} if "seed" in stage.per else {"method": run.rpartition("-")[0]}
        arguments = argparse.Namespace(**given, **({"shard": shard} if "shard" in stage.per else {}))
        importlib.import_module(f"workflow.{name}").main(make_job(stage, arguments))
