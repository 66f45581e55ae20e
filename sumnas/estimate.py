"""What a run of the settings costs: images through networks by stage, and hours at speeds measured here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from sumnas import seeding, training
from sumnas.benchmark.pool import draw
from sumnas.evaluation import SubModel, evaluate
from sumnas.exhaustive import cases, in_orbits
from sumnas.lockstep.scoring import LEAST
from sumnas.methods.base import module_of
from sumnas.params import Params
from sumnas.paths import strictly_fair_paths
from sumnas.precision import Arithmetic
from sumnas.preparation import DataSettings
from sumnas.search import SearchSettings
from sumnas.spaces import base
from sumnas.spaces.base import Space
from sumnas.stopwatch import wait

Way = Literal["train", "forward"]
"""Forward and backward, or forward alone."""
KNOWN = {"digits": (1797, 0), "CIFAR10": (50_000, 10_000), "CIFAR100": (50_000, 10_000),
         "FashionMNIST": (60_000, 10_000), "KMNIST": (60_000, 10_000), "MNIST": (60_000, 10_000),
         "SVHN": (73_257, 26_032)}  # fmt: skip
"""Training and test images of published sets, before anything is held out."""


class Item(NamedTuple):
    """Images that all jobs of a stage send through networks of a sub-model's size.

    `of` says which of the stage's work it is, such as a method's. `way` is `train`, forward and backward, or `forward`
    alone. `images` counts an image once for each network and epoch that it is sent through, over all `jobs` together.
    """

    stage: str
    of: str
    jobs: int
    way: Way
    images: int


def splits(settings: DataSettings, train: int, test: int) -> dict[str, int]:
    """Return the number of images of every split, of `train` and `test` images before anything is held out."""
    held_test = round(train * settings.test)
    validation = round(train * settings.validation)
    kept = train - held_test - validation
    kept = kept if settings.limit is None else min(kept, settings.limit)
    return {"train": kept, "validation": validation, "test": test + held_test}


def images(params: Params, counts: dict[str, int]) -> list[Item]:
    """Count what every stage sends through networks; of search and sampling the most that it can be."""
    space = base.build(params.space)
    runs = len(params.run.methods) * len(params.run.seeds)
    held_out = counts["validation"] + counts["test"]
    a_score = params.calibration.images + counts[params.evaluation.split]
    items: list[Item] = []
    if params.benchmark.source == "pool":
        pool = params.benchmark.pool
        trained = len(draw(space, pool)) * len(pool.seeds)
        items.append(Item("train_references", "accuracies", len(params.run.shards), "train",
                          trained * pool.recipe.epochs * counts["train"]))  # fmt: skip
        items.append(Item("train_references", "scores", len(params.run.shards), "forward", trained * held_out))
    for name in params.run.methods:
        seen, probed = training_images(params, name, counts)
        seeds = len(params.run.seeds)
        items.append(Item("train_supernet", name, seeds, "train", seeds * seen))
        if probed:
            items.append(Item("train_supernet", f"{name}, probes", seeds, "forward", seeds * probed))
    scores = {("recalibrate_bn, rank", 2 * runs): runs * sampled(params, space)}
    search = params.search
    if search.strategy == "exhaustive":
        scores["score", runs * len(params.run.shards)] = runs * scored(search, space)
    else:
        candidates = len(search.limits) * (search.population + search.generations * search.offspring)
        scores["search", runs] = runs * candidates
    fit = params.evaluation.adaptation_steps * params.evaluation.adaptation_batch_size
    for (stage, jobs), count in scores.items():
        items.append(Item(stage, "all runs", jobs, "forward", count * a_score))
        if fit:
            items.append(Item(stage, "all runs, fitted", jobs, "train", count * fit))
    if params.retrain.enabled:
        networks = runs * len(search.limits)
        items.append(Item("retrain", "what was found", runs, "train",
                          networks * params.retrain.recipe.epochs * counts["train"]))  # fmt: skip
        items.append(Item("retrain", "scores", runs, "forward", networks * held_out))
    return items


def training_images(params: Params, name: str, counts: dict[str, int]) -> tuple[int, int]:
    """Return the images that one training of a method sends through sub-models, and those that its probes see."""
    block, settings = params.methods[name], params.supernet
    space = base.build(params.space)
    with torch.device("meta"):
        method = module_of(block.strategy).METHOD(space.supernet(), block, 1, 0)
    batches = round(counts["train"] * method.train_share) // settings.batch_size
    epochs = training.epochs_of(block, settings)
    passes = epochs * (batches // method.rounds) * method.passes_per_step + epochs * method.heldout_between
    held_out = counts["validation"] or counts["test"]
    looks = epochs // settings.probe_every if settings.probes else 0
    return passes * settings.batch_size, looks * settings.probes * (min(512, counts["train"]) + held_out)


def sampled(params: Params, space: Space) -> int:
    """Return how many architectures are ranked, at most."""
    sampling = params.sampling
    pool = params.benchmark.source == "pool"
    known = len(draw(space, params.benchmark.pool)) if pool else space.size
    wanted: int = {"intervals": sampling.intervals, "all": known}.get(sampling.strategy, sampling.count)
    return min(wanted, known)


def scored(search: SearchSettings, space: Space) -> int:
    """Return how many sub-models an exhaustive search computes: each case once, or whole orbits."""
    groups, candidates = cases(space, flatten=search.memoise == "function"), len(space.candidates)
    if search.engine != "lockstep":
        return len(groups)
    orbits = in_orbits((group[0] for group in groups), candidates)
    return sum(candidates if len(members) >= LEAST else len(members) for members in orbits)


def speeds(params: Params, device: str, batch: int | None = None, seconds: float = 20.0) -> dict[Way, float]:
    """Measure images per second, forward and backward and forward alone, on random images; needs no data.

    Strictly fair rounds of paths run every operator equally often, so that their mean is a sub-model's. `batch`
    instead of `supernet.batch_size`, where that is too large for this machine.
    """
    space, size = base.build(params.space), batch or params.supernet.batch_size
    arithmetic: Arithmetic = params.supernet.arithmetic
    with seeding.scoped(0, "supernet"):
        supernet = space.supernet()
    arithmetic.place(supernet, device)
    settings: Any = space.settings
    shape = (size, settings.image_channels, settings.image_size, settings.image_size)
    x = arithmetic.images(torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device))
    y = torch.zeros(size, dtype=torch.long, device=device)
    rng = np.random.default_rng(0)
    layers, candidates = len(supernet.choices), len(supernet.choices[0])

    def train() -> None:
        for path in strictly_fair_paths(layers, candidates, rng):
            with arithmetic.autocast(torch.device(device)):
                loss = F.cross_entropy(supernet(x, path), y)
            torch.autograd.grad(loss, supernet.path_choices(path) + supernet.shared, allow_unused=True)

    tracked = SubModel(space.tracked(supernet), ())

    def forward() -> None:
        for path in strictly_fair_paths(layers, candidates, rng):
            tracked.architecture = path
            evaluate(tracked, (x, y), size)

    count = candidates * size
    return {"train": rate(train, count, device, seconds), "forward": rate(forward, count, device, seconds)}


def rate(work: Callable[[], object], count: int, device: str, seconds: float) -> float:
    """Return images per second of a round of `count` images: the median over as many rounds as the time allows."""
    took: list[float] = []
    work()  # makes ready what the first call alone pays for
    until = time.monotonic() + seconds
    while not took or time.monotonic() < until:
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        took.append(time.perf_counter() - began)
    return count / float(np.median(took))


def hours(items: Iterable[Item], measured: dict[Way, float]) -> list[dict[str, Any]]:
    """Return a row per item with the hours of one device that it takes at these speeds."""
    return [
        {
            "stage": item.stage, "of": item.of, "jobs": item.jobs, "way": item.way,
            "images_million": item.images / 1e6, "hours": _rounded(item.images / measured[item.way] / 3600),
        }
        for item in items
    ]  # fmt: skip


def _rounded(value: float) -> float:
    """Keep two digits: an estimate has no more."""
    return 0.0 if value == 0 else round(value, 1 - math.floor(math.log10(value)))
