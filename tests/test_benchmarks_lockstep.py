"""The benchmark of the lockstep step runs, checks before it times, and counts what it says."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("lockstep_benchmark", FOLDER / "lockstep.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tiny_size_runs_and_counts_every_multiplication(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    benchmark.main(
        ["--tiny", "--device", "cpu", "--rounds", "2", "--threads", str(threads), "--out", f"{tmp_path}/r.json"]
    )
    assert capsys.readouterr().out.startswith("the engines agree to ")
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["engines_differ_by"] < 1e-10
    space = benchmark.nasbench201.build(
        benchmark.nasbench201.Settings(name="nasbench201", image_channels=3, classes=10, **result["network"])
    )
    # Every operator once and the rest on every path, per image; the table counts the classifier's additions as well.
    m, size = 5, result["network"]
    macs = 1e6 * (m * space.mac_costs.base + space.mac_costs.table.sum()) - 10 * m
    stem = m * 3 * 9 * size["channels"] * size["image_size"] ** 2  # no gradient of the images
    assert [row["k"] for row in result["rows"]] == [1, 2]
    for row in result["rows"]:
        assert row["rounds"] == 2 and row["passes"] == m * row["k"]
        assert row["lockstep_operations"] == pytest.approx(2 * row["k"] * row["batch_size"] * (3 * macs - stem))
        assert 0 < row["floor_bytes"] < row["lockstep_moved_bytes"]
        assert set(row["ms"]) == set(row["images_per_s"]) == {"sequential", "lockstep", "naive", "bare"}


def test_bare_passes_of_a_network_that_no_image_gets_through(benchmark: ModuleType) -> None:
    size = benchmark.SIZES["tiny"]
    given = benchmark.batches_of(size, 1, 6, torch.device("cpu"), torch.float32)
    cut = benchmark.PlainNetwork({**size, "image_channels": 3}, (0,) * 6, 10)  # `none` on every edge
    (gradients,) = benchmark.bare([cut], given)()
    found = dict(zip((name for name, _ in cut.named_parameters()), gradients, strict=True))
    assert found["body.0.weight"] is None and found["head.weight"] is not None


def test_traffic_counts_what_is_read_and_written(benchmark: ModuleType) -> None:
    counted = importlib.import_module("counted")
    x, index = torch.randn(10, 100), torch.tensor([3, 1])

    def moved(work: object) -> int:
        return int(counted.count(work)["moved_bytes"])

    assert moved(lambda: x + 1) == 2 * 4000
    assert moved(lambda: x.t()) == moved(lambda: torch.empty(50)) == 0
    assert moved(lambda: x.index_select(0, index)) == 2 * 800
    assert moved(lambda: x.mul_(1.0)) == 2 * 4000
    assert moved(lambda: torch._foreach_mul_([x, x.clone()], 1.0)) == 2 * 4000 + 4 * 4000
    assert counted.count(lambda: x @ x.t())["operations"] == 2 * 10 * 10 * 100
    image, weight = torch.randn(2, 6, 8, 8), torch.randn(4, 3, 5, 5)
    grouped = counted.count(lambda: torch.nn.functional.conv2d(image, weight, padding=2, groups=2))
    assert grouped["operations"] == 2 * (2 * 4 * 8 * 8) * (3 * 5 * 5)


def test_the_page_on_the_method_says_what_was_measured() -> None:
    rows = json.loads((FOLDER / "results/lockstep-cpu.json").read_text())["rows"]
    times = [row["than_sequential"]["lockstep"]["times_as_fast"] for row in rows]
    page = " ".join((FOLDER.parent / "docs/method.md").read_text(encoding="utf-8").split())
    assert f"(lockstep is {min(times):.2f} to {max(times):.2f} times as fast on one core: " in page
