"""The benchmark table: one row per architecture with its true accuracy and its costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sumnas import files
from sumnas.errors import UserError
from sumnas.spaces.base import Architecture, Space

COLUMNS = ("architecture", "accuracy", "std", "seeds", "macs", "params")
PER_SEED = "accuracy_seed_"
"""Prefix of further columns: the accuracy with each seed, where it is known."""


@dataclass(frozen=True)
class Table:
    """True accuracies in percent [A], MACs and parameters in millions [A], and accuracies per seed [A, S]."""

    architectures: list[Architecture]
    accuracy: NDArray[np.float64]
    macs: NDArray[np.float64]
    params: NDArray[np.float64]
    per_seed: NDArray[np.float64]

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> Table:
        """Return some rows, in the order given."""
        rows = [int(i) for i in indices]
        return Table(
            [self.architectures[i] for i in rows], self.accuracy[rows], self.macs[rows], self.params[rows],
            self.per_seed[rows],
        )  # fmt: skip

    def lookup(self) -> dict[Architecture, float]:
        """Return the accuracy by architecture."""
        return dict(zip(self.architectures, self.accuracy.tolist(), strict=True))


def write(path: Path, space: Space, accuracies: Mapping[Architecture, Mapping[str, float]]) -> None:
    """Write the table from accuracies in percent by architecture and seed; rows in the order of the mapping.

    Accuracy is the mean over seeds, std their sample standard deviation (empty with a single seed).
    """
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
                **{PER_SEED + seed: by_seed.get(seed, "") for seed in seeds if len(seeds) > 1},
            }
        )
    extra = [PER_SEED + seed for seed in seeds if len(seeds) > 1]
    files.write_csv(path, [*COLUMNS, *extra], rows)


def read(path: Path, space: Space) -> Table:
    """Read the table; UserError names file and line of anything that is no row of this space."""
    rows = files.read_csv(path, COLUMNS)
    extra = [name for name in (rows[0] if rows else {}) if name.startswith(PER_SEED)]
    architectures = []
    numbers = np.empty((len(rows), 3 + len(extra)))
    for index, row in enumerate(rows):
        try:
            architectures.append(space.decode(row["architecture"]))
            numbers[index] = [float(row[name] or "nan") for name in ("accuracy", "macs", "params", *extra)]
        except ValueError as error:
            raise UserError(f"{path}, line {index + 2}: {error}") from None
        if not np.isfinite(numbers[index, :3]).all():
            raise UserError(f"{path}, line {index + 2}: an accuracy or a cost is not a number")
    # A seed that some architecture lacks tells nothing about reliability.
    whole = numbers[:, 3:][:, np.isfinite(numbers[:, 3:]).all(0)]
    return Table(architectures, numbers[:, 0], numbers[:, 1], numbers[:, 2], whole)
