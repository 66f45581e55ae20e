"""What the official files of NATS-Bench and NAS-Bench-201 hold of one architecture, and which of it is wanted.

Both hold, per number of epochs, the state of an `ArchResults`: `arch_str`, `dataset_seed` (data set -> seeds) and
`all_results` ((data set, seed) -> the state of a `ResultsCount`), the latter with `train_acc1es` (epoch from 0 ->
accuracy in percent) and `eval_acc1es` ("<set>@<epoch>" -> accuracy in percent).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from sumnas.benchmark.settings import SETS, OfficialSettings
from sumnas.errors import UserError
from sumnas.spaces.base import Architecture, Space

NAMED = 5
"""How many absent architectures a message names."""


@dataclass
class Imported:
    """What an importer found, in the order of the table's rows.

    `accuracies` are in percent by architecture and seed, `costs` further ones by architecture and name, each in its
    own unit. `indices` has the architecture of every official index, where the source has them, and `absent` the
    indices of architectures that the source should have and lacks, ascending.
    """

    accuracies: dict[Architecture, dict[str, float]] = field(default_factory=dict)
    costs: dict[Architecture, dict[str, float]] = field(default_factory=dict)
    indices: dict[int, Architecture] = field(default_factory=dict)
    absent: list[int] = field(default_factory=list)

    def absence(self) -> str:
        """Return how many architectures are absent, and the first few."""
        more = ", ..." if len(self.absent) > NAMED else ""
        first = ", ".join(f"{index:06d}" for index in self.absent[:NAMED])
        return f"{len(self.absent)} of {len(self.absent) + len(self.indices)} architectures are absent ({first}{more})"


def index_architectures(strings: Any, space: Space, source: str) -> list[Architecture]:
    """Return the architectures in the official order; UserError where the list is not one of this whole space."""
    if not isinstance(strings, list) or len(strings) != space.size or not all(isinstance(s, str) for s in strings):
        raise UserError(f"{source}: meta_archs is not a list of {space.size} architecture strings")
    try:
        architectures = [space.decode(text) for text in strings]
    except ValueError as error:
        raise UserError(f"{source}: meta_archs: {str(error)[:200]}") from None
    if len(set(architectures)) < len(architectures):
        raise UserError(f"{source}: meta_archs has an architecture twice")
    return architectures


def start(architectures: list[Architecture], present: set[int], settings: OfficialSettings, source: str) -> Imported:
    """Return an empty import with the indices that are present and absent; UserError where absence is not accepted."""
    imported = Imported(
        indices={i: a for i, a in enumerate(architectures) if i in present},
        absent=[i for i in range(len(architectures)) if i not in present],
    )
    if imported.absent and settings.incomplete == "error":
        raise UserError(f"{source}: {imported.absence()}; get them, or accept that with incomplete: accept")
    if not imported.indices:
        raise UserError(f"{source}: holds no architecture at all")
    return imported


def accuracies(state: Any, text: str, settings: OfficialSettings, source: str) -> dict[str, float]:
    """Return one architecture's accuracies in percent by seed, after the last epoch.

    `state` is the record's part with the wanted number of epochs, `text` the architecture that it should be of.
    UserError names `source` and what is missing or wrong.
    """
    try:
        if state["arch_str"] != text:
            raise UserError(f"{source}: of another architecture than the index says; it should be {text}")
        seeds = state["dataset_seed"].get(settings.dataset, [])
        found = {str(int(seed)): _accuracy(state["all_results"][settings.dataset, seed], settings) for seed in seeds}
    except KeyError as error:
        raise UserError(f"{source}: lacks {str(error)[:100]}; get it again from the official source") from None
    except (TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{source}: no record of this benchmark ({type(error).__name__}: {str(error)[:100]})") from None
    if not found:
        there = ", ".join(n for n in dict.fromkeys(n for n, _ in SETS) if state["dataset_seed"].get(n)) or "none at all"
        raise UserError(f"{source}: no result of {settings.dataset} after {settings.epochs} epochs; it has {there}")
    for seed, accuracy in found.items():
        if not math.isfinite(accuracy) or not 0 <= accuracy <= 100:
            raise UserError(f"{source}: accuracy {accuracy} of seed {seed} is not in percent (0 to 100)")
    return found


def _accuracy(result: dict[str, Any], settings: OfficialSettings) -> float:
    if result["epochs"] != settings.epochs:
        raise ValueError(f"trained for another number of epochs than {settings.epochs}")
    last, name = settings.epochs - 1, settings.set_name
    return float(result["train_acc1es"][last] if name == "train" else result["eval_acc1es"][f"{name}@{last}"])
