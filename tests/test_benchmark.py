"""The benchmark table: from a trained pool and from CSV files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sumnas import files
from sumnas.augmentation import Augmentation
from sumnas.benchmark import importers, pool, table
from sumnas.benchmark.settings import PoolSettings, TableSettings
from sumnas.errors import UserError
from sumnas.retraining import Recipe
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


def test_the_published_table_is_read(shared_data: Path, tmp_path: Path) -> None:
    settings = TableSettings(
        path=str(shared_data / "nasbench201.csv"), architecture="arch", accuracy="cifar10_test_acc"
    )
    table.write(tmp_path / "table.csv", SPACE, importers.from_csv(settings, SPACE))
    read = table.read(tmp_path / "table.csv", SPACE)
    assert len(read.architectures) == 15625
    best = int(read.accuracy.argmax())
    assert best == 6111 and round(float(read.accuracy[best]), 4) == 94.3733
    assert read.per_seed.shape == (15625, 0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("|x~0|,90", "line 2: .* has 1 edges"),
        ("{a},abc", "line 2: could not convert"),
        ("{a},0.9e3", "not in percent"),
        ("{a},nan", "not in percent"),
        ("{a},90\n{a},91", "line 3: .* comes twice"),
        ("{a}", "line 2: not as many fields"),
        ("", "no rows"),
    ],
)
def test_a_bad_table_is_refused_by_line(row: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "given.csv"
    path.write_text("architecture,accuracy\n" + row.replace("{a}", SPACE.encode((1, 2, 3, 4, 0, 1))) + "\n")
    with pytest.raises(UserError, match=message):
        importers.from_csv(TableSettings(path=str(path)), SPACE)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "given.csv"
    path.write_text("arch,acc\n")
    with pytest.raises(UserError, match="no column 'architecture'; the file has arch, acc"):
        importers.from_csv(TableSettings(path=str(path)), SPACE)
