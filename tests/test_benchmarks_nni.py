"""The comparison with NNI: how blocks become a ratio, and our side's end of the talk. NNI itself is not needed."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def against() -> ModuleType:
    spec = importlib.util.spec_from_file_location("against_nni", FOLDER / "against_nni.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_interval_is_the_exact_bootstrap_of_the_median(against: ModuleType) -> None:
    """A resampled median of n (odd) is at most the k-th value iff at least (n + 1) / 2 draws are: a binomial."""
    rng, n = np.random.default_rng(1), 19  # where no value lies near a quantile
    theirs, ours = rng.uniform(2, 4, n), rng.uniform(0.5, 1.5, n)
    values = np.sort(theirs / ours)
    at_most = np.array([binom.sf((n + 1) // 2 - 1, n, k / n) for k in range(1, n + 1)])
    expected = [values[np.searchsorted(at_most, quantile)] for quantile in (0.025, 0.975)]
    found = against.median_ratio(theirs, ours)
    assert found["ratio"] == pytest.approx(values[n // 2], abs=1e-3)
    assert found["interval_95"] == pytest.approx(expected, abs=1e-3)


def test_a_slow_moment_that_hits_both_sides_leaves_the_ratio(against: ModuleType) -> None:
    noise = np.random.default_rng(0).uniform(1, 10, 21)
    found = against.summary({"lightning": 3 * noise, "bare": 2 * noise, "sumnas": noise}, images=100)
    assert found["over_lightning"] == {"ratio": 3.0, "interval_95": [3.0, 3.0]}
    assert found["over_bare"]["ratio"] == 2.0
    assert found["images_per_second"]["sumnas"] == round(100 / float(np.sort(noise)[10]), 1)


@pytest.mark.parametrize(("key", "other"), [("parameters", 11), ("logits", [[1.0, 2.1]])])
def test_another_network_is_refused(against: ModuleType, key: str, other: Any) -> None:
    same = {"parameters": 10, "logits": [[1.0, 2.0]]}
    against.check_same({"lightning": dict(same), "sumnas": same})
    with pytest.raises(SystemExit, match="not the same network"):
        against.check_same({"lightning": {**same, key: other}, "sumnas": same})


def test_a_side_that_dies_says_why(against: ModuleType) -> None:
    with pytest.raises(SystemExit, match="(?s)lightning stopped with status 1:.*no such thing"):
        against.Side("lightning", [sys.executable, "-c", "raise SystemExit('no such thing')"])


def test_our_side_trains_the_paths_it_is_given(against: ModuleType) -> None:
    setting = {"channels": 4, "cells": 1, "image_size": 8, "batch_size": 4, "learning_rate": 0.2, "weight_decay": 0.0}
    side = against.Side("sumnas", [sys.executable, str(FOLDER / "sumnas_side.py"), json.dumps(setting)])
    paths = [[3, 0, 1, 2, 4, 0], [2, 2, 2, 2, 2, 2]]
    first, second = side.block(2, paths), side.block(1, paths[1:])
    side.stop()
    assert np.isfinite(side.facts["logits"]).all()
    assert np.shape(side.facts["logits"]) == (4, 2, 10)
    assert (first["paths"], second["paths"]) == (paths, paths[1:])
    assert first["wall"] > 0 and first["processor"] > 0
    assert side.process.returncode == 0
