"""The benchmark table: one row per architecture with its true accuracy and its costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sumnas import files
from sumnas.errors import UserError
from sumnas.spaces.base import Architecture, Space

COLUMNS = ("architecture", "accuracy", "std", "seeds", "macs", "params")
"""The first columns of benchmark.csv; accuracies and std in percent, MACs and parameters in millions."""
PER_SEED = "accuracy_seed_"
"""Prefix of further columns: the accuracy with each seed, where it is known."""
COST = "cost_"
"""Prefix of further columns: measured costs, such as a latency."""


@dataclass(frozen=True)
class Table:
    """A architectures with their true accuracies and costs, one a row.

    `costs` has further costs [A] by name, each in its own unit.
    """

    architectures: list[Architecture]
    """A of them, in the order of the rows."""
    accuracy: NDArray[np.float64]
    """[A] true accuracy in percent, the mean over seeds."""
    macs: NDArray[np.float64]
    """[A] multiply-adds of one image, in millions."""
    params: NDArray[np.float64]
    """[A] parameters, in millions."""
    per_seed: NDArray[np.float64]
    """[A, S] true accuracy in percent with each of the S seeds that no architecture lacks; of a single seed S is 0."""
    costs: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> Table:
        """Return some rows, in the order given."""
        rows = [int(i) for i in indices]
        return Table(
            [self.architectures[i] for i in rows], self.accuracy[rows], self.macs[rows], self.params[rows],
            self.per_seed[rows], {name: cost[rows] for name, cost in self.costs.items()},
        )  # fmt: skip

    def lookup(self) -> dict[Architecture, float]:
        """Return the true accuracy (percent) by architecture."""
        return dict(zip(self.architectures, self.accuracy.tolist(), strict=True))


def write(
    path: Path,
    space: Space,
    accuracies: Mapping[Architecture, Mapping[str, float]],
    costs: Mapping[Architecture, Mapping[str, float]] | None = None,
) -> None:
    """Write the table from accuracies in percent by architecture and seed; rows in the order of the mapping.

    Accuracy is the mean over seeds, std their sample standard deviation (empty with a single seed). `costs` has the
    same further costs of every architecture, or is left out.
    """
    costs = costs or {}
    names = list(next(iter(costs.values()))) if costs else []
    seeds = list(dict.fromkeys(seed for by_seed in accuracies.values() for seed in by_seed))
    rows = []
    for architecture, by_seed in accuracies.items():
        values = np.array(list(by_seed.values()))
        rows.append(
            {
                "architecture": space.encode(architecture),
                "accuracy": float(values.mean()),
                "std": float(values.std(ddof=1)) if len(values) > 1 else "",
                "seeds": len(values),
                "macs": space.macs(architecture),
                "params": space.params(architecture),
                **{COST + name: costs[architecture][name] for name in names},
                **{PER_SEED + seed: by_seed.get(seed, "") for seed in seeds if len(seeds) > 1},
            }
        )
    extra = [COST + name for name in names]
    extra += [PER_SEED + seed for seed in seeds if len(seeds) > 1]
    files.write_csv(path, [*COLUMNS, *extra], rows)


def read(path: Path, space: Space) -> Table:
    """Read the table; UserError names file and line of anything that is no row of this space."""
    rows = files.read_csv(path, COLUMNS)
    there = list(rows[0]) if rows else []
    costs = [name for name in there if name.startswith(COST)]
    columns = ["accuracy", "macs", "params", *costs, *(name for name in there if name.startswith(PER_SEED))]
    needed = 3 + len(costs)
    architectures = []
    numbers = np.empty((len(rows), len(columns)))
    for index, row in enumerate(rows):
        try:
            architectures.append(space.decode(row["architecture"]))
            numbers[index] = [float(row[name] or "nan") for name in columns]
        except ValueError as error:
            raise UserError(f"{path}, line {index + 2}: {error}") from None
        if not np.isfinite(numbers[index, :needed]).all():
            raise UserError(f"{path}, line {index + 2}: an accuracy or a cost is not a number")
        if not 0 <= numbers[index, 0] <= 100:
            raise UserError(f"{path}, line {index + 2}: accuracy = {row['accuracy']}: is no percentage")
    # A seed that some architecture lacks tells nothing about reliability.
    seeds = numbers[:, needed:]
    whole = seeds[:, np.isfinite(seeds).all(0)]
    measured = {name.removeprefix(COST): numbers[:, 3 + i] for i, name in enumerate(costs)}
    return Table(architectures, numbers[:, 0], numbers[:, 1], numbers[:, 2], whole, measured)
