"""Every preset is valid, and says what the paper's tables ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

from sumnas import params

ROOT = Path(__file__).resolve().parents[1]
PRESETS = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))


def load(name: str) -> params.Params:
    return params.load(ROOT / f"presets/{name}.yaml")


@pytest.mark.parametrize("name", PRESETS)
def test_is_valid_and_every_method_is_run(name: str) -> None:
    loaded = load(name)
    assert list(loaded.methods) == loaded.run.methods


def test_tables_1_4_and_9_have_the_papers_settings() -> None:
    loaded = load("cifar10-paper")
    for k in range(2, 7):
        method = loaded.methods[f"sumnas-k{k}"]
        # 0.05 at k = 4, times 4/k otherwise (App. D).
        assert method.inner_learning_rate / k == pytest.approx(0.05 * 4 / k) and method.scale_inner
        assert (method.outer_learning_rate, method.inner_momentum, method.weight_decay) == (1, 0.9, 4e-5)
    assert loaded.methods["fairnas"].learning_rate == loaded.methods["spos"].learning_rate == pytest.approx(0.05 * 4)
    assert loaded.search.limits == (20, 50, 100, None) and loaded.supernet.epochs == 200


def test_table_5_is_the_whole_grid() -> None:
    methods = load("lr-sensitivity").methods.values()
    grid = {
        (
            round(m.inner_learning_rate * m.outer_learning_rate, 8), m.outer_learning_rate, m.outer_schedule,
            m.inner_schedule,
        )
        for m in methods
    }  # fmt: skip
    schedules = ("constant", "cosine")
    expected = {
        (product, outer, one, other)
        for product in (0.01, 0.05, 0.25)
        for outer in (0.2, 1, 5, 15)
        for one in schedules
        for other in schedules
    }
    assert grid == expected and len(methods) == len(expected) == 48
    assert all(m.adaptation_steps == 4 and not m.scale_inner for m in methods)


def test_table_8_has_its_epochs() -> None:
    assert [m.epochs for m in load("fairnas-epochs").methods.values()] == [200, 400, 600, 800]


def test_the_long_runs_of_cifar10_cpu_have_as_many_passes_as_sumnas_k4() -> None:
    loaded = load("cifar10-cpu")
    epochs, operators = loaded.supernet.epochs, 5
    passes = epochs * operators * loaded.methods["sumnas-k4"].adaptation_steps
    assert loaded.methods["fairnas-long"].epochs * operators == loaded.methods["spos-long"].epochs == passes
