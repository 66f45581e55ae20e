"""A small project whose stages take long enough to be disturbed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.workflow.conftest import Clone, make_clone


def slower(params: dict[str, Any]) -> dict[str, Any]:
    """Give every stage some seconds of work, so that a random moment falls into it."""
    params["run"] |= {"methods": ["sumnas-k2"], "shards": [0]}
    params["benchmark"]["pool"] |= {"architectures": 8, "seeds": [0, 1, 2]}
    params["supernet"] |= {"epochs": 6, "batch_size": 64}
    params["search"] |= {"population": 20, "generations": 4, "offspring": 20}
    params["retrain"]["recipe"] |= {"epochs": 6, "batch_size": 64}
    params["calibration"] |= {"images": 500, "batch_size": 50}
    return params


def other(params: dict[str, Any]) -> None:
    """Change what the ranking and the retraining depend on, so that a summary of it is another."""
    params["sampling"]["intervals"] = 3
    params["calibration"]["images"] = 300
    params["retrain"]["recipe"]["epochs"] = 8


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A clone with the results of an undisturbed run."""
    clone = make_clone(tmp_path_factory.mktemp("kill") / "clone")
    clone.params = slower(clone.params)
    clone.env["SUMNAS_CHECKPOINT_SECONDS"] = "0.02"
    clone.run("snakemake", "--cores", "2")
    yield clone


@pytest.fixture(scope="session")
def with_other_settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The result files of an undisturbed run with the `other` settings."""
    clone = make_clone(tmp_path_factory.mktemp("other") / "clone")
    params = slower(clone.params)
    other(params)
    clone.params = params
    clone.run("snakemake", "--cores", "2")
    return clone.outputs()
