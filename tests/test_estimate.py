"""What a run costs: counts against hand reckoning and a real pipeline's own record; speeds by the clock."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from sumnas import estimate, params
from sumnas.cli import main
from sumnas.estimate import Item
from tests import cells

ROOT = Path(__file__).resolve().parents[1]


def loaded(preset: str) -> params.Params:
    return params.load(ROOT / f"presets/{preset}.yaml")


def test_splits() -> None:
    quick = loaded("quick").data
    real = {"train": 897, "validation": 360, "test": 540}  # what prepare_data makes of them, with classes kept even
    found = estimate.splits(quick, *estimate.KNOWN["digits"])
    assert sum(found.values()) == 1797 and all(abs(found[name] - count) <= 2 for name, count in real.items())
    imagenet = loaded("imagenet-mobilenet").data
    assert estimate.splits(imagenet, 1_281_167, 50_000) == {"train": 1_231_201, "validation": 49_966, "test": 50_000}
    limited = imagenet.model_copy(update={"limit": 1000})
    assert estimate.splits(limited, 1_281_167, 50_000)["train"] == 1000


def test_a_small_run_by_hand() -> None:
    settings = loaded("quick")
    counts = {"train": 897, "validation": 360, "test": 540}
    items = {(item.stage, item.of): item for item in estimate.images(settings, counts)}
    pool, run = settings.benchmark.pool, settings.run
    drawn = pool.architectures if isinstance(pool.architectures, int) else len(pool.architectures)
    expected = drawn * len(pool.seeds) * pool.recipe.epochs * 897
    assert items["train_references", "accuracies"] == Item(
        "train_references", "accuracies", len(run.shards), "train", expected
    )
    batch, epochs = settings.supernet.batch_size, settings.supernet.epochs
    k4 = 897 // batch * epochs * 5 * 4 * batch
    assert items["train_supernet", "sumnas-k4"] == Item("train_supernet", "sumnas-k4", len(run.seeds), "train", k4)
    looks = epochs // settings.supernet.probe_every
    probes = looks * settings.supernet.probes * (512 + 360)
    assert items["train_supernet", "spos, probes"].images == len(run.seeds) * probes
    search = settings.search
    candidates = len(search.limits) * (search.population + search.generations * search.offspring)
    runs = len(run.methods) * len(run.seeds)
    assert items["search", "all runs"].images == runs * candidates * (settings.calibration.images + 360)
    assert items["retrain", "what was found"].images == (
        runs * len(search.limits) * settings.retrain.recipe.epochs * 897
    )
    assert items["train_references", "scores"].images == drawn * len(pool.seeds) * 900
    assert ("search", "all runs, fitted") not in items


def test_what_fits_sub_models_before_their_scores_is_counted(tmp_path: Path) -> None:
    counts, preset = {"train": 897, "validation": 360, "test": 540}, ROOT / "presets/quick.yaml"
    text = yaml.safe_load(preset.read_text(encoding="utf-8"))
    text["evaluation"]["adaptation_steps"] = 3
    (tmp_path / "fitted.yaml").write_text(yaml.safe_dump(text), encoding="utf-8")
    before, after = (estimate.images(params.load(path), counts) for path in (preset, tmp_path / "fitted.yaml"))
    assert [item for item in after if "fitted" not in item.of] == before
    more = [item for item in after if "fitted" in item.of]
    assert {item.stage for item in more} == {"recalibrate_bn, rank", "search"}
    for item in more:
        (scores,) = [one.images for one in before if one.stage == item.stage]
        assert item.way == "train" and item.images / (3 * 64) == scores / (500 + 360)


def test_full_scale_is_what_the_page_says() -> None:
    page = (ROOT / "docs/reproduction.md").read_text(encoding="utf-8")
    counts = estimate.splits(loaded("cifar10-paper").data, *estimate.KNOWN["CIFAR10"])
    items = {(i.stage, i.of): i.images for i in estimate.images(loaded("cifar10-paper"), counts)}
    assert round(items["score", "all runs"] / 1e6) == 3267 and "3,267 million images" in page
    assert items["train_supernet", "fairnas"] == 3 * 781_000 * 64 and "| 781,000 |" in page
    settings = loaded("imagenet-mobilenet")
    counts = estimate.splits(settings.data, 1_281_167, 50_000)
    items = {(i.stage, i.of): i.images for i in estimate.images(settings, counts)}
    for name, millions in (("fairnas", "739"), ("sumnas-k2", "1,477")):
        assert f"{round(items['train_supernet', name] / 1e6):,}" == millions and f"| {millions} million |" in page
    assert f"20 × {round(items['train_references', 'accuracies'] / 20e6)} million" in page


def test_orbits_are_computed_whole() -> None:
    """By hand from tests/cells.py: 3,125 orbits of five, of each of which two cases at least are wanted."""
    settings = loaded("table1")
    search, space = settings.search, cells.PAPER
    assert estimate.scored(search, space) == len({space.equivalence(a) for a in cells.ALL if space.connected(a)})
    assert estimate.scored(search.model_copy(update={"engine": "lockstep"}), space) == 15_625
    # By function 149 orbits have one alone, which is scored one by one.
    function = search.model_copy(update={"engine": "lockstep", "memoise": "function"})
    assert estimate.scored(function, space) == 5 * (3125 - 149) + 149
    # How many more that is than one by one, as the page says.
    ratios = [
        estimate.scored(of.model_copy(update={"engine": "lockstep"}), space) / estimate.scored(of, space)
        for of in (search, search.model_copy(update={"memoise": "function"}))
    ]
    page = " ".join((ROOT / "docs/method.md").read_text(encoding="utf-8").split())
    assert f"{estimate.scored(function, space):,} by function)" in page
    assert f"has to score {ratios[0]:.1f} times as many a second ({ratios[1]:.1f}) to be faster" in page


def test_a_rate_is_that_of_the_clock() -> None:
    found = estimate.rate(lambda: time.sleep(0.02), 10, "cpu", 0.3)
    assert 100 < found <= 500
    rows = estimate.hours([Item("a", "b", 2, "train", 7_200_000), Item("c", "d", 1, "forward", 0)],
                          {"train": 1000.0, "forward": 1.0})  # fmt: skip
    assert [row["hours"] for row in rows] == [2.0, 0.0] and rows[0]["images_million"] == 7.2


def test_the_command(tmp_path: Path) -> None:
    said = CliRunner().invoke(main, ["estimate", "--seconds", "0", "--params", str(ROOT / "presets/quick.yaml")])
    assert said.exit_code == 0, said.output
    assert "train_references" in said.output and "an estimate:" in said.output
    path = str(ROOT / "presets/imagenet-mobilenet.yaml")
    said = CliRunner().invoke(main, ["estimate", "--params", path])
    assert said.exit_code == 1 and "--train N --test N" in said.output and len(said.output.splitlines()) == 1


@pytest.mark.parametrize("name", ["table1-cpu", "mobilenet-cpu"])
def test_other_spaces_and_every_method_have_counts(name: str) -> None:
    settings = loaded(name)
    items = estimate.images(settings, {"train": 8000, "validation": 1000, "test": 1000})
    trained = [item for item in items if item.stage == "train_supernet" and "probes" not in item.of]
    assert [item.of for item in trained] == settings.run.methods and all(item.images > 0 for item in trained)
