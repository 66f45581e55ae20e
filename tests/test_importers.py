"""CSV files as the source of true accuracies and of further costs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from sumnas import files, params
from sumnas.benchmark import importers, table
from sumnas.benchmark.official import Imported
from sumnas.benchmark.settings import BenchmarkSettings, CostFileSettings, TableSettings
from sumnas.errors import UserError
from tests.official_files import SPACE

ROOT = Path(__file__).resolve().parents[1]
A, B, C = (1, 2, 3, 4, 0, 1), (3, 3, 3, 3, 3, 3), (0, 1, 0, 1, 0, 1)


def write(path: Path, header: str, *rows: str) -> str:
    """Write a CSV file; {a}, {b}, {c} stand for the strings of the architectures."""
    names = {"a": SPACE.encode(A), "b": SPACE.encode(B), "c": SPACE.encode(C)}
    path.write_text("\n".join([header, *(row.format(**names) for row in rows)]) + "\n")
    return str(path)


def test_the_published_table_is_read(shared_data: Path, tmp_path: Path) -> None:
    block = {
        "source": "table",
        "table": {
            "path": str(shared_data / "nasbench201.csv"),
            "architecture": "arch",
            "accuracy": "cifar10_test_acc",
            "index": "index",
            "costs": {"measured_ms": "latency_ms_1080ti_b256"},
        },
        "costs": {
            "path": str(shared_data / "nasbench201_latency_ms.csv"),
            "index": "index",
            "columns": {"latency_ms": "1080ti_256", "raspi4_ms": "raspi4"},
        },
    }
    settings = BenchmarkSettings.model_validate(block)
    imported = importers.read(settings, SPACE)
    assert settings.costs
    importers.add_costs(imported, settings.costs, SPACE)
    table.write(tmp_path / "table.csv", SPACE, imported.accuracies, imported.costs)
    read = table.read(tmp_path / "table.csv", SPACE)
    assert len(read.architectures) == 15625
    best = int(read.accuracy.argmax())
    assert best == 6111 and round(float(read.accuracy[best]), 4) == 94.3733
    # The 341 architectures at chance are those whose output is cut off from the input, and no other.
    assert [a for a, accuracy in zip(read.architectures, read.accuracy, strict=True) if accuracy == 10.0] == [
        a for a in read.architectures if not SPACE.connected(a)
    ]
    assert np.count_nonzero(read.accuracy == 10.0) == 341
    assert read.per_seed.shape == (15625, 0)
    assert list(read.costs) == ["measured_ms", "latency_ms", "raspi4_ms"]
    assert read.costs["raspi4_ms"][0] == 10.482
    # Two extractions of one measurement, rounded differently.
    assert np.allclose(read.costs["measured_ms"], read.costs["latency_ms"], atol=1e-3)


def test_columns_of_seeds(tmp_path: Path) -> None:
    path = write(tmp_path / "given.csv", "arch,s0,s1,s2", "{a},90,91.5,92", "{b},80,,81")
    settings = TableSettings(path=path, architecture="arch", seeds=["s0", "s1", "s2"])
    imported = importers.from_csv(settings, SPACE)
    assert imported.accuracies == {A: {"s0": 90, "s1": 91.5, "s2": 92}, B: {"s0": 80, "s2": 81}}
    table.write(tmp_path / "table.csv", SPACE, imported.accuracies)
    rows = files.read_csv(tmp_path / "table.csv")
    assert [float(row["accuracy"]) for row in rows] == [pytest.approx(91.1666666667), 80.5]
    assert [row["seeds"] for row in rows] == ["3", "2"]
    assert table.read(tmp_path / "table.csv", SPACE).per_seed.tolist() == [[90, 92], [80, 81]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("|x~0|,90", "line 2: .* has 1 edges"),
        ("{a},abc", "line 2: could not convert"),
        ("{a},", "line 2: could not convert"),
        ("{a},0.9e3", "not in percent"),
        ("{a},nan", "not in percent"),
        ("{a},90\n{a},91", "line 3: .* comes twice"),
        ("{a}", "line 2: not as many fields"),
        ("", "no rows"),
    ],
)
def test_a_bad_table_is_refused_by_line(row: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "given.csv", "architecture,accuracy", row)
    with pytest.raises(UserError, match=message):
        importers.from_csv(TableSettings(path=path), SPACE)


def test_more_that_a_table_can_have_wrong(tmp_path: Path) -> None:
    header = "architecture,accuracy,index,s0,s1,ms"
    for row, changes, message in (
        ("{a},90,1,90,90,3\n{b},90,1,90,90,3", {"index": "index"}, "line 3: index 1 comes twice"),
        ("{a},90,x,90,90,3", {"index": "index"}, "line 2: invalid literal"),
        ("{a},90,1,,,3", {"seeds": ["s0", "s1"]}, "line 2: no accuracy with any seed"),
        ("{a},90,1,90,-1,3", {"seeds": ["s0", "s1"]}, "line 2: accuracy -1.0 is not in percent"),
        ("{a},90,1,90,90,fast", {"costs": {"latency": "ms"}}, "line 2, column ms: could not convert"),
        ("{a},90,1,90,90,-3", {"costs": {"latency": "ms"}}, "line 2, column ms: -3 is no cost"),
        ("{a},90,1,90,90,inf", {"costs": {"latency": "ms"}}, "line 2, column ms: inf is no cost"),
        ("{a},90,1,90,90,3", {"costs": {"latency": "s"}}, "no column 's'; the file has"),
    ):
        path = write(tmp_path / "given.csv", header, row)
        with pytest.raises(UserError, match=message):
            importers.from_csv(TableSettings.model_validate({"path": path, **changes}), SPACE)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "given.csv", "arch,acc")
    with pytest.raises(UserError, match="no column 'architecture'; the file has arch, acc"):
        importers.from_csv(TableSettings(path=path), SPACE)


def known() -> Imported:
    """Two architectures, one with a cost already."""
    return Imported({A: {"0": 90.0}, B: {"0": 80.0}}, {A: {"old": 1.0}}, {7: A, 9: B})


def test_costs_of_a_further_file(tmp_path: Path) -> None:
    by_string = write(tmp_path / "a.csv", "arch,ms,mj", "{b},2.5,3", "{c},9,9", "{a},1.5,4")
    by_index = write(tmp_path / "b.csv", "i,ms,mj", "9,2.5,3", "8,9,9", "7,1.5,4")
    columns = {"latency": "ms", "energy": "mj"}
    for path, key in ((by_string, {"architecture": "arch"}), (by_index, {"index": "i"})):
        imported = known()
        settings = CostFileSettings.model_validate({"path": path, "columns": columns, **key})
        importers.add_costs(imported, settings, SPACE)
        assert imported.costs == {A: {"old": 1, "latency": 1.5, "energy": 4}, B: {"latency": 2.5, "energy": 3}}
    for rows, message in (
        (["{a},1,1"], r"a\.csv: lacks 1 of the table's 2 architectures, the first is \|nor_conv_3x3~0\|"),
        (["{a},1,1", "{a},1,1"], r"a\.csv, line 3: .* comes twice"),
        (["{a},1,1", "|x~0|,1,1"], r"a\.csv, line 3: .* has 1 edges"),
        (["{a},,1"], r"a\.csv, line 2, column ms: could not convert"),
    ):
        settings = CostFileSettings(path=by_string, architecture="arch", columns=columns)
        write(tmp_path / "a.csv", "arch,ms,mj", *rows)
        with pytest.raises(UserError, match=message):
            importers.add_costs(known(), settings, SPACE)
    write(tmp_path / "a.csv", "arch,ms,mj", "{a},1,1")
    with pytest.raises(UserError, match="columns.old: benchmark.table.costs has that name already"):
        importers.add_costs(known(), settings.model_copy(update={"columns": {"old": "ms"}}), SPACE)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"source": "nats"}, "there is no block benchmark.nats"),
        ({"source": "nats", "nats": {"path": "x", "epochs": 90}}, "Input should be 12 or 200"),
        ({"source": "nasbench201", "nats": {"path": "x"}}, "there is no block benchmark.nasbench201"),
        ({"source": "table", "table": {"path": "x", "accuracy": "y", "seeds": ["z"]}}, "both accuracy and seeds"),
        ({"source": "table", "table": {"path": "x", "seeds": ["z", "z"]}}, "a column of seeds twice"),
        ({"source": "table", "table": {"path": "x", "costs": {"Latency (ms)": "y"}}}, "such a name is lower case"),
        (
            {"source": "table", "table": {"path": "x"}, "costs": {"path": "x", "index": "i", "columns": {"ms": "y"}}},
            "costs.index needs table.index",
        ),
        (
            {"source": "nats", "nats": {"path": "x"}, "costs": {"path": "x", "columns": {"ms": "y"}}},
            "one of the two",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(block: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        BenchmarkSettings.model_validate(block)


def test_only_the_block_in_use_is_needed() -> None:
    settings = BenchmarkSettings.model_validate({"source": "nats", "nats": {"path": "x"}})
    assert settings.nats and (settings.nats.dataset, settings.nats.epochs, settings.nats.set_name) == (
        "cifar10", 200, "ori-test"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": 12}, "benchmark.nats.epoch: unknown key; did you mean 'benchmark.nats.epochs'"),
        ({"split": "valid"}, "benchmark.nats.split = 'valid': must be 'train', 'validation', 'test' or"),
        ({"split": "validation"}, "cifar10 has no split 'validation'; there are train, test"),
    ],
)
def test_a_mistake_in_params_yaml_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    blocks = yaml.safe_load((ROOT / "params.yaml").read_text())
    blocks["benchmark"] = {"source": "nats", "nats": {"path": "data/raw/NATS-tss-v1_0-3ffb9-simple.tar", **change}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(blocks))
    with pytest.raises(UserError) as error:
        params.load(tmp_path / "params.yaml")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_official_file_needs_its_space(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = params.load(ROOT / "params.yaml")
    space = params.spaces.build(loaded.space)
    monkeypatch.setattr(params.spaces, "build", lambda _settings: space)
    names = [*params.BLOCKS, *params.DYNAMIC]
    blocks = {name: getattr(loaded, name) for name in names}
    blocks["benchmark"] = BenchmarkSettings.model_validate({"source": "nats", "nats": {"path": "x"}})
    assert params._combinations(params.Params(blocks)) == []
    blocks["space"] = SimpleNamespace(name="other")
    assert params._combinations(params.Params(blocks)) == ["benchmark.source = 'nats': needs space.name: nasbench201"]
