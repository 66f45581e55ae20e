"""Further true accuracies, such as those on another data set: a file of their own, which only the ranking reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sumnas import files
from sumnas.errors import UserError
from sumnas.spaces.base import Architecture, Space

COLUMN = "accuracy_on_"
"""Prefix of the columns, before the name."""
Accuracies = dict[str, dict[Architecture, float]]
"""By name, accuracies in percent by architecture; a name need not have every architecture."""


def write(path: Path, space: Space, known: Mapping[str, Mapping[Architecture, float]]) -> None:
    """Write a row per architecture, a column per name, empty where an accuracy is not known. Without names no row."""
    architectures = dict.fromkeys(architecture for column in known.values() for architecture in column)
    rows = [
        {"architecture": space.encode(a), **{COLUMN + name: column.get(a, "") for name, column in known.items()}}
        for a in architectures
    ]
    files.write_csv(path, ["architecture", *(COLUMN + name for name in known)], rows)


def read(path: Path, space: Space) -> Accuracies:
    """Read what `write` wrote; UserError names file and line of anything that is no row of this space."""
    rows = files.read_csv(path, ("architecture",))
    columns = [column for column in (rows[0] if rows else ()) if column.startswith(COLUMN)]
    found: Accuracies = {column.removeprefix(COLUMN): {} for column in columns}
    for line, row in enumerate(rows, 2):
        try:
            architecture = space.decode(row["architecture"])
            given = {column: float(row[column]) for column in columns if row[column]}
        except ValueError as error:
            raise UserError(f"{path}, line {line}: {error}") from None
        for column, accuracy in given.items():
            if not 0 <= accuracy <= 100:
                raise UserError(f"{path}, line {line}: {column} = {row[column]}: is no percentage")
            found[column.removeprefix(COLUMN)][architecture] = accuracy
    return found
