"""Published benchmarks and CSV files, brought into the one table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from sumnas import files
from sumnas.benchmark import nasbench201_pth, nats
from sumnas.benchmark.official import Imported
from sumnas.benchmark.settings import BenchmarkSettings, CostFileSettings, FurtherSettings, TableSettings
from sumnas.errors import UserError
from sumnas.progress import Progress, say
from sumnas.spaces.base import Space


def read(
    settings: BenchmarkSettings | FurtherSettings,
    space: Space,
    on_done: Callable[[int, int], None] = lambda _done, _total: None,
) -> Imported:
    """Read true accuracies from the source that the settings name, a pool apart.

    `on_done` gets the number of architectures read so far and their total, where it takes minutes. UserError names
    the file, and the line or the record in it.
    """
    if settings.source == "nats" and settings.nats:
        return nats.read(settings.nats, space, on_done)
    if settings.source == "nasbench201" and settings.nasbench201:
        return nasbench201_pth.read(settings.nasbench201, space, on_done)
    if settings.source == "table" and settings.table:
        return from_csv(settings.table, space)
    raise ValueError(f"nothing to read from source {settings.source!r}")


def read_telling(name: str, settings: BenchmarkSettings | FurtherSettings, space: Space) -> Imported:
    """Do the same with a bar that shows how far it is, under a name."""
    if settings.source == "nasbench201" and settings.nasbench201:  # one long call of torch, which tells nothing
        say(f"{name}: reading {settings.nasbench201.path} whole takes about three minutes per GB")
    bar = Progress(name, space.size)

    def show(done: int, total: int) -> None:
        bar.total = total  # known only when the source has been looked at
        bar.update(done)

    return read(settings, space, show)


def from_csv(settings: TableSettings, space: Space) -> Imported:
    """Read accuracies in percent from any CSV file with a column of architectures and one or more of accuracies.

    Of several columns, one per seed, a field may be empty: not trained with that seed. UserError names file and line
    where a string is not of the space, an accuracy is no percentage, or an architecture comes twice.
    """
    path, imported = Path(settings.path), Imported()
    accuracies = {column: column for column in settings.seeds} or {"0": settings.accuracy}
    wanted = [settings.architecture, *accuracies.values(), *settings.costs.values()]
    rows = files.read_csv(path, [*wanted, settings.index] if settings.index else wanted, ours=False)
    for number, row in enumerate(rows, 2):
        where = f"{path}, line {number}"
        try:
            architecture = space.decode(row[settings.architecture])
            filled = {name: row[column] for name, column in accuracies.items() if row[column] or not settings.seeds}
            given = {name: float(text) for name, text in filled.items()}
            index = int(row[settings.index]) if settings.index else None
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
        if not given:
            raise UserError(f"{where}: no accuracy with any seed")
        for accuracy in given.values():
            if not math.isfinite(accuracy) or not 0 <= accuracy <= 100:
                raise UserError(f"{where}: accuracy {accuracy} is not in percent (0 to 100)")
        if architecture in imported.accuracies:
            raise UserError(f"{where}: {row[settings.architecture]} comes twice")
        if index is not None and imported.indices.setdefault(index, architecture) != architecture:
            raise UserError(f"{where}: index {index} comes twice")
        imported.accuracies[architecture] = given
        if settings.costs:
            imported.costs[architecture] = _costs(row, settings.costs, where)
    if not rows:
        raise UserError(f"{path}: no rows")
    return imported


def add_costs(imported: Imported, settings: CostFileSettings, space: Space) -> None:
    """Add the costs of a further CSV file; UserError where it lacks an architecture, or names one or a cost twice.

    Rows of architectures that the table does not have are passed over.
    """
    path = Path(settings.path)
    key = settings.architecture or settings.index or ""
    seen = set()
    for number, row in enumerate(files.read_csv(path, [key, *settings.columns.values()], ours=False), 2):
        where = f"{path}, line {number}"
        try:
            architecture = space.decode(row[key]) if settings.architecture else imported.indices.get(int(row[key]))
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
        if architecture is None or architecture not in imported.accuracies:
            continue
        if architecture in seen:
            raise UserError(f"{where}: {row[key]} comes twice")
        seen.add(architecture)
        known = imported.costs.setdefault(architecture, {})
        for name in settings.columns:
            if name in known:
                raise UserError(f"benchmark.costs.columns.{name}: benchmark.table.costs has that name already")
        known |= _costs(row, settings.columns, where)
    absent = [a for a in imported.accuracies if a not in seen]
    if absent:
        raise UserError(
            f"{path}: lacks {len(absent)} of the table's {len(imported.accuracies)} architectures, the first is "
            f"{space.encode(absent[0])}; a cost is needed of every one"
        )


def _costs(row: Mapping[str, str], columns: Mapping[str, str], where: str) -> dict[str, float]:
    found = {}
    for name, column in columns.items():
        try:
            found[name] = float(row[column])
        except ValueError as error:
            raise UserError(f"{where}, column {column}: {error}") from None
        if not math.isfinite(found[name]) or found[name] < 0:
            raise UserError(f"{where}, column {column}: {row[column]} is no cost: a number from 0 on")
    return found
