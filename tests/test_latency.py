"""Search under a limit on measured latency: the table, its refusals, a real measurement, and the stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner

from sumnas import files, latency, seeding, stopwatch
from sumnas.benchmark import table
from sumnas.cli import main
from sumnas.errors import UserError
from sumnas.search import InfeasibleLimit, LatencyFile, Scores, SearchSettings, evolve_under_limits
from sumnas.spaces import base
from sumnas.spaces.base import Architecture, Costs
from tests.chains import STAGES, sample, space
from tests.in_process import begin, run

FACTS = {"device": "a slow one, with a comma", "threads": 2, "batch_size": 1, "repeats": 3, "torch": "2.9"}
TABLE = np.random.default_rng(0).uniform(0.1, 0.9, (4, 6)).round(3)


def written(path: Path, costs: Costs | None = None) -> Path:
    latency.write(path, space(), costs or Costs(0.5, TABLE), FACTS)
    return path


def settings_of(path: Path, **more: Any) -> dict[str, Any]:
    return {"cost": "latency_ms", "latency": {"path": str(path), "sha256": files.sha256(path)[:16]}, **more}


# The table.


def test_a_latency_is_the_sum_of_its_rows(tmp_path: Path) -> None:
    path = written(tmp_path / "latency.csv")
    costs = latency.load(LatencyFile(path=str(path), sha256=files.sha256(path)), space())
    rows = files.read_csv(path)
    assert len(rows) == 1 + 4 * 6 and {(r["device"], r["threads"], r["torch"]) for r in rows} == {
        ("a slow one, with a comma", "2", "2.9")
    }
    for architecture in sample(space(), 20):
        parts = space().encode(architecture).split("-")
        wanted = [("rest", ""), *((str(number), part) for number, part in enumerate(parts, 1))]
        by_hand = sum(float(r["milliseconds"]) for r in rows if (r["layer"], r["operator"]) in wanted)
        assert costs.of(architecture) == pytest.approx(by_hand, abs=1e-12)


def test_a_table_from_elsewhere_needs_three_columns_in_any_order(tmp_path: Path) -> None:
    rows = files.read_csv(written(tmp_path / "latency.csv"))
    own = tmp_path / "phone.csv"
    own.write_text("".join(f"{r['milliseconds']},{r['operator']},{r['layer']}\n" for r in reversed(rows)))
    own.write_text("milliseconds,operator,layer\n" + own.read_text())
    costs = latency.read(own, space())
    assert costs.base == 0.5 and np.array_equal(costs.table, TABLE)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\n2,e3k7,", "\n2,e3k9,", "line 11: this space has no layer '2' with an operator 'e3k9'"),
        ("\n4,e6k7,", "\n5,e6k7,", "line 26: this space has no layer '5' with"),
        ("\n2,e3k7,", "\n2,e3k5,", "line 11: layer 2 e3k5 comes twice"),
        ("\n1,e3k3,", "\nrest,,", "line 3: layer rest comes twice"),
        ("\nrest,,0.5,", "\nrest,,-1,", "line 2: milliseconds = '-1': must be a number from 0 on"),
        ("\nrest,,0.5,", "\nrest,,fast,", "line 2: milliseconds = 'fast': must be a number"),
        ("\nrest,,0.5,", "\nrest,,inf,", "line 2: milliseconds = 'inf': must be a number"),
        ("milliseconds", "seconds", "no column 'milliseconds'"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = written(tmp_path / "latency.csv")
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError) as error:
        latency.read(path, space())
    assert str(error.value).startswith(str(path)) and message in str(error.value)


def test_rows_that_are_absent_another_space_and_another_file(tmp_path: Path) -> None:
    path = written(tmp_path / "latency.csv")
    lines = path.read_text().splitlines(keepends=True)
    for kept, message in (
        ([*lines[:5], *lines[6:]], "lacks layer 1 e6k3$"),
        ([lines[0], *lines[2:-1]], "lacks layer rest and 1 more"),
    ):
        path.write_text("".join(kept))
        with pytest.raises(UserError, match=message):
            latency.read(path, space())
    path.write_text("".join(lines))
    with pytest.raises(UserError, match="was measured in another space than block space; run `sumnas latency` again"):
        latency.read(path, space(head_channels=7))
    with pytest.raises(UserError, match=f"is another table than that; set it to {files.sha256(path)[:16]} where"):
        latency.load(LatencyFile(path=str(path), sha256="0" * 16), space())
    with pytest.raises(
        UserError, match=r"search\.latency\.path: \S+none\.csv: no such file; write one by `sumnas late"
    ):
        latency.load(LatencyFile(path=str(tmp_path / "none.csv"), sha256="0" * 16), space())
    with pytest.raises(ValueError, match="latency names a table, but cost is 'macs'; set cost: latency_ms"):
        SearchSettings(strategy="evolution", limits=(1.0,), latency={"path": "x", "sha256": "0" * 16})


# The search.


def test_an_evolution_stays_under_the_limit_and_finds_the_best() -> None:
    costs, value = Costs(0.5, TABLE), np.random.default_rng(1).normal(size=(4, 6))

    def worth(architecture: Architecture) -> float:
        return float(value[range(4), architecture].sum())

    scores = Scores(worth)
    settings = SearchSettings(strategy="evolution", limits=(2.0, None), cost="latency_ms", generations=12)
    tight, free = evolve_under_limits(settings, scores, costs.table, costs.base)
    every = list(space().architectures())
    best = max((a for a in every if costs.of(a) <= 2.0), key=worth)
    assert costs.of(tight.found.architecture) <= 2.0 and all(costs.of(a) <= 2.0 for a in tight.population)
    assert tight.found.architecture == best and free.found.predicted > tight.found.predicted
    with pytest.raises(InfeasibleLimit, match=r"nothing is within 0\.6 \(latency_ms\); the smallest reachable is"):
        evolve_under_limits(settings.model_copy(update={"limits": (0.6,)}), scores, costs.table, costs.base)


# A measurement.


def test_a_real_measurement_of_a_small_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = space()
    plain = {"name": "mobilenet", **of.settings.model_dump(mode="json")}

    def change(settings: dict[str, Any]) -> None:
        settings["space"] = plain
        settings["benchmark"]["pool"]["architectures"] = 6

    begin(tmp_path, monkeypatch, change)
    short = ["latency", "--repeats", "3", "--warmup", "1"]
    said = json.loads(CliRunner().invoke(main, [*short, "-o", "there.csv", "--json"]).stdout)
    measured = latency.read(Path("there.csv"), of)
    assert said["sha256"] == files.sha256(Path("there.csv")) and said["repeats"] == 3
    assert said["smallest_ms"] == pytest.approx(measured.base + measured.table.min(1).sum(), rel=1e-6)
    result = CliRunner().invoke(main, [*short, "-o", "here.csv"])
    assert result.exit_code == 0, result.output
    costs = latency.read(Path("here.csv"), of)
    assert costs.base > 0 and costs.table.shape == (4, 6) and (costs.table > 0).all() and costs.table.max() < 1000
    (row, *_) = files.read_csv(Path("here.csv"))
    assert row["device"] and (row["threads"], row["batch_size"], row["repeats"]) == ("1", "1", "3")
    told = yaml.safe_load(result.stdout[result.stdout.index("search:") :])  # what is printed can be pasted
    loaded = SearchSettings(strategy="evolution", limits=(1.0,), **told["search"])
    assert loaded.latency is not None
    assert np.array_equal(latency.load(loaded.latency, of).table, costs.table)


def test_a_time_is_the_median_of_the_rounds_that_count(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    now, order = 0.0, list[str]()
    durations = {"a": [9.0, 1.0, 5.0, 2.0], "b": [9.0, 3.0, 4.0, 7.0]}  # seconds, the first while warming up

    def job(name: str) -> Any:
        def work(_into: torch.Tensor) -> None:
            nonlocal now
            assert torch.is_inference_mode_enabled()
            now += durations[name][order.count(name)]
            order.append(name)

        return work

    monkeypatch.setattr("sumnas.stopwatch.time.perf_counter", lambda: now)
    jobs = [(job(name), torch.zeros(1)) for name in "ab"]
    assert stopwatch._medians(jobs, "cpu", 1, 3) == pytest.approx([2000.0, 4000.0])
    assert order == list("abababab")


def test_larger_parts_take_longer_and_the_parts_are_the_network() -> None:
    import torch

    wide = space(image_size=24, stages=[{"channels": 48, "blocks": 1, "stride": 1}] * 2, first_channels=48)
    found = stopwatch.measure(wide, "cpu", 2, 1, 7)
    assert found.costs.table[:, 5].sum() > found.costs.table[:, 0].sum()  # e6k7 and e3k3: more than twice the work
    assert len(found.whole) == stopwatch.WHOLE and min(found.whole) > 0
    of = space()
    with seeding.scoped(0, "network"):
        network = of.supernet(track=True).eval()
    parts, images = of.parts(network), torch.randn(3, 2, 4, 4)
    assert parts.rest[0].shape == (2, 4, 4)
    for architecture in sample(of, 5):
        x = parts.rest[0].run(images)
        for layer, operator in zip(parts.choices, architecture, strict=True):
            assert tuple(x.shape[1:]) == layer[operator].shape
            x = layer[operator].run(x)
        assert tuple(x.shape[1:]) == parts.rest[1].shape
        assert torch.equal(parts.rest[1].run(x), network(images, architecture))


def test_a_space_that_is_no_chain_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path, monkeypatch, lambda _settings: None)
    result = CliRunner().invoke(main, ["latency"])
    assert result.exit_code == 1 and not Path("data/latency.csv").exists()
    assert "space.name = nasbench201: its networks are no chain of layers" in result.stderr
    assert len(result.stderr.splitlines()) == 1


# The stages.


@pytest.mark.parametrize("strategy", ["evolution", "exhaustive"])
def test_search_and_retraining_under_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits_folder: Path, strategy: str
) -> None:
    small = {
        "name": "mobilenet", "image_size": 8, "image_channels": 1, "classes": 10, "stem_channels": 4, "stem_stride": 2,
        "first_channels": 3, "stages": [{**STAGES[1], "blocks": 2}], "head_channels": 6,
    }  # fmt: skip
    of = base.from_plain(small)
    costs = Costs(0.5, TABLE[:2])
    latency.write(tmp_path / "latency.csv", of, costs, FACTS)

    def change(settings: dict[str, Any]) -> None:
        settings["space"] = small
        settings["search"] |= settings_of(tmp_path / "latency.csv", limits=[1.2, None], strategy=strategy)
        recipe = settings["retrain"]["recipe"]
        recipe |= {"epochs": 2, "warmup_epochs": 1, "ema_decay": 0.9, "dropout": 0.1, "norm_weight_decay": 0.0}
        recipe["augmentation"] |= {"random_erasing": 0.2}

    begin(tmp_path, monkeypatch, change)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/prepared").symlink_to(digits_folder)
    every = list(of.architectures())
    table.write(Path("results/benchmark/table.csv"), of, {a: {"0": 50.0 + sum(a)} for a in every})
    with seeding.scoped(0, "supernet"):
        weights = of.supernet().state_dict()
    files.write_tensors(
        Path("results/supernet/spos-0/weights.safetensors"), weights, {"space": of.settings.model_dump(mode="json")}
    )
    run("spos-0", ["score", "search", "retrain"])
    found = json.loads(Path("results/search/spos-0/found.json").read_text())
    assert found["cost"] == "latency_ms"
    for entry in found["found"]:
        assert entry["cost"] == pytest.approx(costs.of(of.decode(entry["architecture"])))
        limit = entry["limit"] or 1e9
        assert entry["cost"] <= limit
        assert entry["benchmark_best"] == max(50.0 + sum(a) for a in every if costs.of(a) <= limit)
    rows = files.read_csv(Path("results/search/spos-0/scored.csv"))
    scored = {of.decode(row["architecture"]): float(row["predicted"]) for row in rows}
    for row in rows:  # the front is that of latency
        architecture, cost = of.decode(row["architecture"]), float(row["cost"])
        assert cost == pytest.approx(costs.of(architecture)) and float(row["macs"]) == of.macs(architecture)
        beaten = any(
            v >= scored[architecture] and costs.of(a) <= cost and (v > scored[architecture] or costs.of(a) < cost)
            for a, v in scored.items()
        )
        equal = sum(v == scored[architecture] and costs.of(a) == cost for a, v in scored.items())
        assert row["pareto"] == ("0" if beaten else "1") or equal > 1
    assert "<!-- latency (ms) -->" in Path("results/search/spos-0/pareto.svg").read_text()
    best = max(value for a, value in scored.items() if costs.of(a) <= 1.2)
    assert found["found"][0]["predicted"] == best
    retrained = json.loads(Path("results/retrain/spos-0/metrics.json").read_text())["networks"]
    for entry in retrained:
        for split in ("test", "validation"):
            assert 100 >= entry[f"{split}_top5"] > entry[f"{split}_accuracy"] > 0

    path = tmp_path / "latency.csv"  # measured anew, and not yet acknowledged
    path.write_text(path.read_text().replace("\nrest,,0.5,", "\nrest,,0.6,"))
    with pytest.raises(UserError, match=r"search\.latency\.sha256 = .* is another table than that; set it to"):
        run("spos-0", ["search"])
