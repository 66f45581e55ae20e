"""Published benchmarks, brought into the one table."""

from __future__ import annotations

import math
from pathlib import Path

from sumnas import files
from sumnas.benchmark.settings import TableSettings
from sumnas.errors import UserError
from sumnas.spaces.base import Architecture, Space


def from_csv(settings: TableSettings, space: Space) -> dict[Architecture, dict[str, float]]:
    """Read accuracies in percent from any CSV file with an architecture and an accuracy column.

    UserError names file and line where a string is not of the space, an accuracy is no percentage, or an architecture
    comes twice.
    """
    path = Path(settings.path)
    found: dict[Architecture, dict[str, float]] = {}
    for number, row in enumerate(files.read_csv(path, (settings.architecture, settings.accuracy)), 2):
        where = f"{path}, line {number}"
        try:
            architecture = space.decode(row[settings.architecture])
            accuracy = float(row[settings.accuracy])
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
        if not math.isfinite(accuracy) or not 0 <= accuracy <= 100:
            raise UserError(f"{where}: accuracy {accuracy} is not in percent (0 to 100)")
        if architecture in found:
            raise UserError(f"{where}: {row[settings.architecture]} comes twice")
        found[architecture] = {"0": accuracy}
    if not found:
        raise UserError(f"{path}: no rows")
    return found
