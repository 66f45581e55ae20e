"""The trained pool and the benchmark table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sumnas import files
from sumnas.augmentation import Augmentation
from sumnas.benchmark import pool, table
from sumnas.benchmark.settings import PoolSettings
from sumnas.errors import UserError
from sumnas.recipe import Recipe
from sumnas.spaces.nasbench201 import NASBench201, Settings

SPACE = NASBench201(
    Settings(name="nasbench201", channels=16, cells=5, image_size=32, image_channels=3, classes=10, affine=True)
)
RECIPE = Recipe(epochs=1, batch_size=8, learning_rate=0.1, augmentation=Augmentation())
POOL = PoolSettings(architectures=5, seeds=[0, 3], recipe=RECIPE)


def test_the_pool_is_a_distinct_connected_draw_of_its_seed() -> None:
    drawn = pool.draw(SPACE, POOL)
    assert len(set(drawn)) == 5 and all(map(SPACE.connected, drawn))
    assert drawn == pool.draw(SPACE, POOL)
    assert drawn != pool.draw(SPACE, POOL.model_copy(update={"seed": 1}))
    shares = [pool.share(drawn, shard, 2) for shard in range(2)]
    assert sorted(shares[0] + shares[1]) == sorted(drawn)


def test_shards_merge_into_the_table_in_the_order_of_the_draw(tmp_path: Path) -> None:
    drawn = pool.draw(SPACE, POOL)
    rng = np.random.default_rng(0)
    truth = {a: {str(s): float(rng.uniform(80, 95)) for s in POOL.seeds} for a in drawn}
    paths = []
    for shard in (1, 0):
        rows = [
            dict(zip(pool.COLUMNS, (SPACE.encode(a), s, truth[a][str(s)], 0, 0), strict=True))
            for a in pool.share(drawn, shard, 2)
            for s in POOL.seeds
        ]  # fmt: skip
        paths.append(tmp_path / f"{shard}.csv")
        files.write_csv(paths[-1], pool.COLUMNS, rows)
    merged = pool.merge(paths, SPACE, POOL)
    assert list(merged) == drawn and merged == truth
    table.write(tmp_path / "table.csv", SPACE, merged)
    read = table.read(tmp_path / "table.csv", SPACE)
    values = np.array([list(truth[a].values()) for a in drawn])
    assert read.architectures == drawn
    assert np.array_equal(read.per_seed, values)
    assert np.allclose(read.accuracy, values.mean(1), rtol=1e-15)
    assert np.array_equal(read.macs, [SPACE.macs(a) for a in drawn])
    std = [float(row["std"]) for row in files.read_csv(tmp_path / "table.csv")]
    assert np.allclose(std, values.std(1, ddof=1))
    with pytest.raises(UserError, match="no result with seed 0"):
        pool.merge(paths[:1], SPACE, POOL)


def test_further_costs_are_carried(tmp_path: Path) -> None:
    drawn = pool.draw(SPACE, POOL)
    rng = np.random.default_rng(1)
    truth = {a: {"0": float(rng.uniform(80, 95))} for a in drawn}
    costs = {a: {"latency_ms": float(rng.uniform(1, 9)), "energy": float(rng.uniform(1, 9))} for a in drawn}
    path = tmp_path / "table.csv"
    table.write(path, SPACE, truth, costs)
    read = table.read(path, SPACE)
    assert list(read.costs) == ["latency_ms", "energy"] and read.per_seed.shape == (5, 0)
    assert read.costs["energy"].tolist() == [costs[a]["energy"] for a in drawn]
    few = read.take([3, 1])
    assert few.architectures == [drawn[3], drawn[1]]
    assert few.costs["latency_ms"].tolist() == [costs[drawn[i]]["latency_ms"] for i in (3, 1)]
    unchecked = [line.rpartition(",")[0] + "\n" for line in path.read_text().splitlines()]
    path.write_text("".join(unchecked).replace(str(costs[drawn[2]]["energy"]), ""))
    with pytest.raises(UserError, match=r"table\.csv, line 4: an accuracy or a cost is not a number"):
        table.read(path, SPACE)
