"""Further true accuracies: their file, their settings, and NAS-Bench-201's other data sets."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import kendalltau

from sumnas import params
from sumnas.benchmark import further
from sumnas.errors import UserError
from sumnas.ranking import RankingSettings, further_measures
from sumnas.spaces.nasbench201 import NASBench201
from tests.in_process import begin, run

ROOT = Path(__file__).resolve().parents[1]


def test_the_file_keeps_what_each_name_knows(tmp_path: Path, tiny_space: NASBench201) -> None:
    rng = np.random.default_rng(0)
    architectures = list(itertools.islice(tiny_space.architectures(), 3000, 3006))
    values = rng.uniform(50, 90, (2, 6))
    known = {"far": dict(zip(architectures[:4], values[0], strict=False)),
             "architecture": dict(zip(architectures[1:], values[1], strict=False))}  # fmt: skip
    path = tmp_path / "further.csv"
    further.write(path, tiny_space, known)
    assert further.read(path, tiny_space) == known
    text = "".join(line.rpartition(",")[0] + "\n" for line in path.read_text().splitlines())  # without checksums
    for bad, message in ((text.replace(str(values[0, 2]), "101"), r"line 4: accuracy_on_far = 101: is no percentage"),
                         (text.replace("none~", "nothing~", 1), r"line 2: .*no operator")):  # fmt: skip
        path.write_text(bad)
        with pytest.raises(UserError, match=message):
            further.read(path, tiny_space)
    further.write(path, tiny_space, {})
    assert path.read_text() == "architecture,crc32\n" and further.read(path, tiny_space) == {}


def test_measures_are_over_what_is_known() -> None:
    rng = np.random.default_rng(1)
    truth, predicted, macs = rng.uniform(50, 90, (3, 9))
    truth[[2, 5]] = np.nan
    known = [0, 1, 3, 4, 6, 7, 8]
    settings = RankingSettings(bootstrap=100)
    found = further_measures({"far": truth, "none": np.full(9, np.nan)}, {"": predicted, "macs_": macs}, settings)
    assert found["architectures_on_far"] == 7 and found["architectures_on_none"] == 0
    assert found["kendall_tau_on_far"] == pytest.approx(kendalltau(truth[known], predicted[known]).statistic)
    assert found["macs_kendall_tau_on_far"] == pytest.approx(kendalltau(truth[known], macs[known]).statistic)
    assert found["kendall_tau_on_none"] is None and found["kendall_tau_on_none_low"] is None


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"Far": {"source": "table"}}, r"further\.Far: such a name is lower case"),
        ({"far": 3}, r"further\.far = 3: must be a block"),
        ({"far": {"source": "table"}}, r"further\.far = .*source is 'table', but it has no block table"),
        ({"far": {"source": "pool"}}, r"further\.far\.source = 'pool': must be 'nats', 'nasbench201' or 'table'"),
        ({"far": {"source": "nats", "nats": {"pth": "x"}}}, r"further\.far\.nats\.pth: unknown key; did you mean"),
        (None, r"further = None: must be a block of settings"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, block: Any, message: str) -> None:
    settings = yaml.safe_load((ROOT / "params.yaml").read_text())
    settings["further"] = block
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(UserError, match=message):
        params.load(tmp_path / "params.yaml")


def test_the_other_data_sets_of_nasbench201(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_data: Path, tiny_space: NASBench201
) -> None:
    columns = {"cifar100": "cifar100_test_acc", "imagenet16": "imagenet16_test_acc"}
    path = shared_data / "nasbench201.csv"

    def change(settings: dict[str, Any]) -> None:
        settings["further"] = {
            name: {"source": "table", "table": {"path": str(path), "architecture": "arch", "accuracy": column}}
            for name, column in columns.items()
        }  # fmt: skip

    begin(tmp_path, monkeypatch, change)
    run("spos-0", ["build_further"])
    found = further.read(Path("results/benchmark/further.csv"), tiny_space)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert {name: len(column) for name, column in found.items()} == dict.fromkeys(columns, 15625)
    for row in rows[::977]:
        for name, column in columns.items():
            assert found[name][tiny_space.decode(row["arch"])] == float(row[column])
    assert max(found["cifar100"].values()) == pytest.approx(73.51, abs=0.01)  # as published: docs/benchmarks.md
    assert max(found["imagenet16"].values()) == pytest.approx(47.31, abs=0.01)
