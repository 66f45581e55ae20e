"""A table of measured milliseconds per layer and operator: a sub-model's latency is their sum and that of the rest.

As in ProxylessNAS and Once-for-all. What was measured varies from run to run, so a search does not measure: the table
is a file that `sumnas latency` writes once, and the settings name it together with its digest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sumnas import files
from sumnas.errors import UserError
from sumnas.search import LatencyFile
from sumnas.spaces.base import Costs, Space

COLUMNS = ("layer", "operator", "milliseconds")
"""Layers count from 1. The first row, layer `rest` without an operator, is what every sub-model has."""
REST = "rest"
"""What the first row has for a layer: what every sub-model runs, such as stem and classifier."""
FACTS = ("space", "device", "threads", "batch_size", "repeats", "torch")
"""What it was measured with, the same in every row; `space` is a digest of block `space`. A table from elsewhere may do
without these columns."""


def space_digest(space: Space) -> str:
    """Return a digest of the space's settings: widths and sizes, of which a table is no less than of its operators."""
    return files.digest(space.settings.model_dump(mode="json"))[:16]


def write(path: Path, space: Space, costs: Costs, facts: Mapping[str, str | int]) -> None:
    """Write a table with the facts of `FACTS` but for the space."""
    told = {**facts, "space": space_digest(space)}
    rows = [{"layer": REST, "operator": "", "milliseconds": costs.base, **told}]
    rows += [
        {"layer": layer, "operator": name, "milliseconds": float(value), **told}
        for layer, row in enumerate(costs.table, 1)
        for name, value in zip(space.candidates, row, strict=True)
    ]
    files.write_csv(path, (*COLUMNS, *FACTS), rows, checked=False)  # the settings have the whole file's digest


def load(settings: LatencyFile, space: Space) -> Costs:
    """Read the table that the settings name; UserError where it is another file than they say, or does not fit."""
    path = Path(settings.path).expanduser()
    if not path.is_file():
        raise UserError(f"search.latency.path: {path}: no such file; write one by `sumnas latency --out {path}`")
    costs = read(path, space)
    if not (found := files.sha256(path)).startswith(settings.sha256):
        raise UserError(
            f"search.latency.sha256 = {settings.sha256!r}: {path} is another table than that; "
            f"set it to {found[:16]} where this one is meant"
        )
    return costs


def read(path: Path, space: Space) -> Costs:
    """Read a table of every layer and operator of this space, in milliseconds; UserError names file, line and fault."""
    table, base = np.full((space.layers, len(space.candidates)), np.nan), math.nan
    digest = space_digest(space)
    for line, row in enumerate(files.read_csv(path, COLUMNS, ours=False), 2):
        where = f"{path}, line {line}"
        if row.get("space", digest) != digest:
            raise UserError(f"{where}: was measured in another space than block space; run `sumnas latency` again")
        try:
            value = float(row["milliseconds"])
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"{where}: milliseconds = {row['milliseconds']!r}: must be a number from 0 on")
        layer, operator = row["layer"], row["operator"]
        if layer == REST:
            before, base = base, value
        elif layer.isdecimal() and 1 <= int(layer) <= space.layers and operator in space.candidates:
            place = int(layer) - 1, space.candidates.index(operator)
            before, table[place] = float(table[place]), value
        else:
            raise UserError(f"{where}: this space has no layer {layer!r} with an operator {operator!r}")
        if not math.isnan(before):
            raise UserError(f"{where}: layer {layer} {operator} comes twice".replace("  ", " "))
    missing = [f"{layer + 1} {space.candidates[index]}" for layer, index in np.argwhere(np.isnan(table)).tolist()]
    if math.isnan(base):
        missing.insert(0, REST)
    if missing:
        raise UserError(f"{path}: lacks layer {missing[0]}{f' and {len(missing) - 1} more' if missing[1:] else ''}")
    return Costs(base, table)
