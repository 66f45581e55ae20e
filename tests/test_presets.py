"""Every preset is valid, and says what the paper's tables ask for."""

from __future__ import annotations

import fnmatch
import re
from functools import cache
from pathlib import Path

import pytest
import torch

from sumnas import params, training
from sumnas.datasets import npz
from sumnas.errors import UserError
from sumnas.exhaustive import cases
from sumnas.methods import base as methods
from sumnas.spaces import base as spaces
from sumnas.spaces.base import Supernet

ROOT = Path(__file__).resolve().parents[1]
PRESETS = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))


@cache
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


def test_the_long_runs_are_the_same_in_both_presets_but_for_the_looks_at_probes() -> None:
    """So that benchmarks/cifar10_report.py may take them from either."""
    one, other = load("cifar10-cpu"), load("table1-cpu")
    for name in ("fairnas-long", "spos-long"):
        assert one.methods[name] == other.methods[name]
    alike = {"probe_every": one.supernet.probe_every}
    assert one.supernet == other.supernet.model_copy(update=alike)


@cache
def supernet_of(preset: str) -> Supernet:
    with torch.device("meta"):
        return spaces.build(load(preset).space).supernet()


def passes(preset: str, name: str) -> tuple[int, int]:
    """Return the sub-model passes of a method's training, and the images that they see, from the method itself."""
    loaded = load(preset)
    block = loaded.methods[name]
    method = methods.module_of(block.strategy).METHOD(supernet_of(preset), block, 1, 0)
    kept = round(50_000 * (1 - loaded.data.validation))
    batches = round(kept * method.train_share) // loaded.supernet.batch_size
    epochs = training.epochs_of(block, loaded.supernet)
    count = epochs * (batches // method.rounds) * method.passes_per_step
    return count, (count + epochs * method.heldout_between) * loaded.supernet.batch_size


def told(preset: str, name: str) -> str:
    """Return the comment beside a method's name."""
    text = (ROOT / f"presets/{preset}.yaml").read_text()
    found = re.search(rf"^  {name}: # (.*)$", text, re.M)
    assert found, name
    return found[1]


def test_table_1_has_every_method_on_what_the_paper_trains_them_on() -> None:
    loaded, paper = load("table1").plain(), load("cifar10-paper").plain()
    assert {k: v for k, v in loaded.items() if k not in ("run", "methods")} == {
        k: v for k, v in paper.items() if k not in ("run", "methods")
    }
    assert {block["strategy"] for block in loaded["methods"].values()} == set(methods.names())
    for name in ("spos", "fairnas", "sumnas-k4"):
        assert loaded["methods"][name] == paper["methods"][name]
    assert loaded["run"] == {**paper["run"], "methods": list(loaded["methods"])}
    assert loaded["space"] | {"affine": True} == loaded["space"] and loaded["space"]["channels"] == 16


def test_table_1_says_what_each_training_costs() -> None:
    loaded = load("table1")
    for name in loaded.methods:
        count, _ = passes("table1", name)
        assert re.search(rf"= {count:,}\b", told("table1", name)), (name, count)
        pages = (ROOT / "docs/reproduction.md").read_text()
        assert re.search(rf"^\| `{name}` .*\b{count:,}\b", pages, re.M), (name, count)


FULL_SCALE = ("cifar10-paper", "table1", "lr-sensitivity", "fairnas-epochs")


def test_the_page_says_what_full_scale_costs() -> None:
    page = (ROOT / "docs/reproduction.md").read_text()
    table = page[page.index("| paper | command |") :].partition("\n\n")[0]
    for preset in ("lr-sensitivity", "fairnas-epochs"):
        loaded = load(preset)
        total = sum(passes(preset, name)[0] for name in loaded.methods) * len(loaded.run.seeds)
        assert re.search(rf"{preset}.*\| {total:,} \|", table), (preset, total)
    loaded, seeds = load("cifar10-paper"), 3
    assert len(loaded.run.seeds) == seeds
    count = {name: passes("cifar10-paper", name)[0] for name in loaded.methods}
    for name in ("spos", "fairnas"):
        assert re.search(rf"\| `{name}`, 3 seeds \| {count[name]:,} \| {seeds * count[name]:,} \|", table)
    assert f"| {seeds * sum(count[f'sumnas-k{k}'] for k in range(2, 7)):,} |" in table

    groups = cases(spaces.build(loaded.space), flatten=loaded.search.memoise == "function")
    assert f"{len(groups):,} sub-models a run, for the best of the {sum(map(len, groups)):,}" in page
    images = len(groups) * (loaded.calibration.images + 10_000)  # of CIFAR-10's test images, as evaluation.split says
    runs = len(loaded.run.methods) * seeds
    assert loaded.evaluation.split == "test" and f"{images / 1e6:.1f} million images forward a run" in table
    assert f"| {runs * images / 1e6:,.0f} million images |" in table and f"{images / 64e6:.2f} million batches" in page
    share = -(-len(groups) // len(loaded.run.shards))
    assert f"{share:,} sub-models a shard" in (ROOT / "docs/cluster.md").read_text()
    networks = runs * len(loaded.search.limits)
    own = loaded.retrain.recipe.epochs * 50_000
    assert f"{len(loaded.search.limits)} × {runs} = {networks} networks of {own // 10**6} million images" in page
    assert f"{own // 64:,} passes of 64 each" in page


def test_full_scale_presets_retrain_nothing_that_the_benchmark_knows() -> None:
    for preset in FULL_SCALE:
        assert not load(preset).retrain.enabled and load(preset).retrain.recipe.epochs == 200


def test_table_7_has_four_outer_rates_of_one_pair_of_schedules_or_all() -> None:
    methods, page = load("lr-sensitivity").methods, (ROOT / "docs/reproduction.md").read_text()
    for hundredths in ("01", "05", "25"):
        paper = fnmatch.filter(methods, f"lr{hundredths}-*-cosine-constant")
        assert sorted(methods[name].outer_learning_rate for name in paper) == [0.2, 1, 5, 15]
        assert {(methods[name].outer_schedule, methods[name].inner_schedule) for name in paper} == {
            ("cosine", "constant")
        }
        assert f"'lr{hundredths}-*-cosine-constant'" in page and f"'lr{hundredths}-*'" in page
        assert len(fnmatch.filter(methods, f"lr{hundredths}-*")) == 16


def test_the_methods_of_table1_cpu_see_equally_many_images() -> None:
    loaded = load("table1-cpu")
    assert {block.strategy for block in loaded.methods.values()} == set(methods.names())
    for name in loaded.methods:
        _, images = passes("table1-cpu", name)
        assert 11.8e6 < images < 12.01e6, (name, images)
        millions = [float(value) for value in re.findall(r"= (\d+\.\d+) million", told("table1-cpu", name))]
        assert sum(millions) == pytest.approx(images / 1e6, abs=0.01), name
    own = load("cifar10-cpu").plain()
    own["supernet"]["probe_every"] = 15  # changes no weight
    same = {k: v for k, v in loaded.plain().items() if k not in ("run", "methods")}
    assert same == {k: v for k, v in own.items() if k not in ("run", "methods")}


@pytest.mark.parametrize("name", ["cifar10-cpu", "table1-cpu"])
def test_a_preset_without_its_file_says_the_line_that_fetches_cifar10(name: str, tmp_path: Path) -> None:
    text = (ROOT / f"presets/{name}.yaml").read_text()
    found = re.search(r"^# (data: \{.*\})$", text, re.M)
    assert found
    for page in ("README.md", "docs/reproduction.md"):
        assert found[1] in (ROOT / page).read_text(), page
    pasted = re.sub(r"^data:\n(  .*\n)+", found[1] + "\n", text, flags=re.M)
    (tmp_path / "params.yaml").write_text(pasted)
    loaded, own = params.load(tmp_path / "params.yaml"), load(name)
    assert (loaded.data.source, loaded.data.resize, loaded.data.path) == ("CIFAR10", own.space.image_size, None)
    assert (loaded.data.validation, loaded.data.seed) == (own.data.validation, own.data.seed)
    with pytest.raises(UserError, match=r"cifar10_16x16\.npz: no such file .* such as CIFAR10, without data\.path"):
        npz.read(tmp_path / own.data.path)


def test_the_second_half_has_the_papers_settings() -> None:
    loaded = load("imagenet-mobilenet")
    method = loaded.methods["sumnas-k2"]
    assert (method.adaptation_steps, method.inner_learning_rate, method.scale_inner, method.rounds) == (
        2,
        0.3,
        False,
        3,
    )
    assert (method.inner_momentum, method.inner_schedule) == (0.9, "constant")
    assert (method.outer_learning_rate, method.outer_schedule, method.weight_decay) == (1, "cosine", 4e-5)
    assert loaded.methods["fairnas"].learning_rate == pytest.approx(2 * 0.3)
    search = loaded.search
    assert 400 in search.limits and len(search.limits) == 3 and search.strategy == "evolution"
    assert (search.population, search.generations, search.offspring, search.mutation_probability) == (20, 30, 64, 0.1)
    assert (loaded.benchmark.pool.architectures, loaded.benchmark.pool.strategy) == (20, "macs")
    assert loaded.benchmark.pool.recipe.epochs == 100
    assert round(loaded.data.validation * 1_281_167) == pytest.approx(50_000, rel=1e-3)
    # The whole held-out part fits into what is kept, so that a search decodes it once.
    assert loaded.run.keep_gb * 1e9 >= 50_000 * 224**2 * 3
    fairnas_a = "e3k7-e3k3-e3k7-e6k3-e6k7-e3k3-e3k3-e6k7-e6k7-e3k5-e6k3-e3k5-e3k5-e6k3-e6k3-e6k7-e6k3-e6k7-e6k5"
    space = spaces.build(loaded.space)
    assert space.macs(space.decode(fairnas_a)) == pytest.approx(389.344, abs=5e-4)


def test_mobilenet_cpu_is_the_same_space_made_narrow() -> None:
    loaded, full = load("mobilenet-cpu"), load("imagenet-mobilenet")
    narrow, wide = spaces.build(loaded.space), spaces.build(full.space)
    assert (narrow.layers, narrow.candidates) == (wide.layers, wide.candidates)
    blocks = narrow.chain((0,) * 19)
    assert blocks is not None
    assert blocks[0].size == 32 and blocks[-1].size == 4 and [b.stride for b in blocks[:2]] == [1, 1]
    for key in ("adaptation_steps", "inner_learning_rate", "scale_inner", "rounds", "round_reduction"):
        assert getattr(loaded.methods["sumnas-k2"], key) == getattr(full.methods["sumnas-k2"], key), key
    assert loaded.methods["fairnas"].learning_rate == full.methods["fairnas"].learning_rate
    assert loaded.benchmark.pool.architectures == 20
    smallest, largest = narrow.macs((0,) * 19), narrow.macs((5,) * 19)
    assert smallest < loaded.search.limits[0] < largest


def test_retraining_on_imagenet_is_torchvisions_recipe_for_one_gpu() -> None:
    recipe = load("imagenet-mobilenet").retrain.recipe
    reference = {"rate": 0.5, "images": 1024, "decay": 0.99998, "every": 32}  # of pytorch/vision, pull request 5560
    assert recipe.learning_rate == pytest.approx(reference["rate"] * recipe.batch_size / reference["images"])
    # Its own rule: the average reaches over the same share of a training, however long that is.
    share = (1 - reference["decay"]) * recipe.batch_size * recipe.ema_every / recipe.epochs
    assert recipe.ema_decay == pytest.approx(1 - share, abs=1e-5) and recipe.ema_every == reference["every"]
    assert (recipe.warmup_epochs, recipe.label_smoothing, recipe.weight_decay, recipe.norm_weight_decay) == (
        5, 0.1, 2e-5, 0.0,
    )  # fmt: skip
    assert (recipe.augmentation.random_erasing, recipe.schedule, recipe.nesterov) == (0.1, "cosine", False)
    small = load("mobilenet-cpu")
    steps = small.data.limit // small.retrain.recipe.batch_size * small.retrain.recipe.epochs
    full = 1_231_201 // recipe.batch_size * recipe.epochs
    own = 1 / (1 - small.retrain.recipe.ema_decay) / steps
    assert own == pytest.approx(recipe.ema_every / (1 - recipe.ema_decay) / full, rel=0.1)
