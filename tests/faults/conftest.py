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


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A clone with the results of an undisturbed run."""
    clone = make_clone(tmp_path_factory.mktemp("kill") / "clone")
    clone.params = slower(clone.params)
    clone.env["SUMNAS_CHECKPOINT_SECONDS"] = "0.02"
    clone.run("snakemake", "--cores", "2")
    yield clone
