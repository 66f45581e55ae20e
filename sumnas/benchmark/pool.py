"""A pool of architectures trained from scratch: the true accuracies where no published table fits (sec. 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sumnas import files, seeding
from sumnas.benchmark.settings import PoolSettings
from sumnas.data import Prepared
from sumnas.errors import UserError
from sumnas.retraining import train_network
from sumnas.sampling import draw_uniform
from sumnas.spaced import draw_spaced
from sumnas.spaces.base import Architecture, Space

COLUMNS = ("architecture", "seed", "accuracy", "loss", "validation_accuracy")
"""Of a shard: accuracy in percent and loss on the test split, and the accuracy on the validation split."""

Row = dict[str, str | int | float]
"""One row of a shard, by the names of COLUMNS."""


def draw(space: Space, settings: PoolSettings) -> list[Architecture]:
    """Return the pool that is listed, or draw it from the connected architectures, without repetition.

    Uniformly, unless the settings say evenly in MACs, as in sec. 4.3: where a space has few distinct MACs, as
    NAS-Bench-201 has, MACs would become the ranking. UserError where a listed one is not of the space or comes twice,
    or fewer can be drawn than are asked for.
    """
    if isinstance(settings.architectures, list):
        return listed(space, settings.architectures)
    rng = seeding.numpy_stream(settings.seed, "pool")
    try:
        if settings.strategy == "macs":
            costs = space.mac_costs
            return draw_spaced(costs.table, costs.base, settings.architectures, rng, space.connected)
        return draw_uniform(space.layers, len(space.candidates), settings.architectures, rng, space.connected)
    except ValueError as error:
        raise UserError(f"benchmark.pool.architectures = {settings.architectures}: {error}") from None


def listed(space: Space, texts: Sequence[str]) -> list[Architecture]:
    """Decode a pool given by its strings; UserError where one is not of the space, or comes twice."""
    try:
        architectures = [space.decode(text) for text in texts]
    except ValueError as error:
        raise UserError(f"benchmark.pool.architectures: {error}") from None
    if len(set(architectures)) < len(architectures):
        twice = next(a for a in architectures if architectures.count(a) > 1)
        raise UserError(f"benchmark.pool.architectures: {space.encode(twice)} comes twice")
    return architectures


def share(architectures: list[Architecture], shard: int, shards: int) -> list[Architecture]:
    """Return every `shards`-th architecture from number `shard` on."""
    return architectures[shard::shards]


def train_share(
    space: Space,
    architectures: Iterable[Architecture],
    data: Prepared,
    settings: PoolSettings,
    remember: Callable[[str, Callable[[], Row]], Row] = lambda _key, make: make(),
    on_done: Callable[[int], None] = lambda _done: None,
    resume: Callable[[str], dict[str, Any]] = lambda _key: {},
) -> list[Row]:
    """Train each architecture with every seed; return the rows of a shard.

    `remember(key, make)` may give a row that was made earlier; `on_done` gets the number of rows so far.
    `resume(key)` gives `state` and `on_step` of `train_network`.
    """
    rows: list[Row] = []
    for architecture in architectures:
        for seed in settings.seeds:
            key = f"{space.encode(architecture)} {seed}"
            make = partial(_train_one, space, architecture, data, settings, seed, partial(resume, key))
            rows.append(remember(key, make))
            on_done(len(rows))
    return rows


def _train_one(
    space: Space, architecture: Architecture, data: Prepared, settings: PoolSettings, seed: int,
    resume: Callable[[], dict[str, Any]],
) -> Row:  # fmt: skip
    scores = train_network(space, architecture, data, settings.recipe, seed, **resume()).scores
    return {
        "architecture": space.encode(architecture),
        "seed": seed,
        "accuracy": scores["test"].accuracy,
        "loss": scores["test"].loss,
        "validation_accuracy": scores["validation"].accuracy if "validation" in scores else "",
    }


def merge(shards: Iterable[Path], space: Space, settings: PoolSettings) -> dict[Architecture, dict[str, float]]:
    """Read the shards back, in the order of the draw; UserError where one is not of this pool."""
    found: dict[Architecture, dict[str, float]] = {}
    for path in shards:
        for number, row in enumerate(files.read_csv(path, COLUMNS), 2):
            try:
                found.setdefault(space.decode(row["architecture"]), {})[row["seed"]] = float(row["accuracy"])
            except ValueError as error:
                raise UserError(f"{path}, line {number}: {error}") from None
    pool = draw(space, settings)
    for architecture in pool:
        missing = [s for s in settings.seeds if str(s) not in found.get(architecture, {})]
        if missing:
            raise UserError(
                f"{space.encode(architecture)} has no result with seed {missing[0]} in any shard; run train_references"
            )
    return {a: {str(s): found[a][str(s)] for s in settings.seeds} for a in pool}
