"""What a finished run left behind: the result files that the figures and the report are made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sumnas import files, summary
from sumnas.drawing import Edge
from sumnas.errors import UserError

if TYPE_CHECKING:
    from sumnas.spaces.base import Block, Space


@dataclass(frozen=True)
class Run(summary.Run):
    """What the stages wrote about one run, its training's history and all that its search scored included."""

    history: list[dict[str, str]]
    scored: list[dict[str, str]]

    @property
    def name(self) -> str:
        """The run's name, method and seed."""
        return f"{self.method}-{self.seed}"


@dataclass(frozen=True)
class Results:
    """A finished run's settings in force, its summary, and its `runs`: every listed method with every seed."""

    settings: dict[str, Any]
    summary: dict[str, Any]
    runs: list[Run]


@dataclass(frozen=True)
class Cell:
    """One distinct architecture that was found; `edges` is None where its string is not of the space.

    `chain` are its blocks, where the space is a chain of them.
    """

    number: int
    """From 1, in order of first appearance."""
    architecture: str
    """Its string."""
    macs: float
    """Multiply-adds, in millions."""
    params: float
    """Parameters, in millions."""
    benchmark_accuracy: float | None
    """True accuracy in percent; None where the table lacks the architecture."""
    retrained_accuracy: float | None
    """Test accuracy in percent, trained from scratch by the first run that found it; None where it was not."""
    found_by: list[str]
    """Every run that found it with the limit, such as `spos-0, < 0.3M MACs`."""
    edges: list[Edge] | None
    chain: list[Block] | None


def load(results: Path) -> Results:
    """Read the result files of exactly the runs that the summary is of; UserError where one is absent or damaged."""
    folder = results / "summary"
    whole = files.read_json(folder / "metrics.json")
    settings = _read_yaml(folder / "settings.yaml")
    runs = []
    for method in settings["run"]["methods"]:
        for seed in settings["run"]["seeds"]:
            name = f"{method}-{seed}"
            runs.append(
                Run(
                    method, seed,
                    files.read_json(results / "ranking" / name / "metrics.json"),
                    files.read_json(results / "search" / name / "found.json"),
                    files.read_json(results / "retrain" / name / "metrics.json"),
                    files.read_csv(
                        results / "ranking" / name / "predictions.csv",
                        ("architecture", "reference", "predicted", "macs"),
                    ),
                    files.read_csv(results / "supernet" / name / "history.csv", ("epoch", "passes", "loss")),
                    files.read_csv(
                        results / "search" / name / "scored.csv", ("architecture", "predicted", "macs", "pareto")
                    ),
                )
            )  # fmt: skip
    if missing := [method for method in settings["run"]["methods"] if method not in whole["methods"]]:
        raise UserError(f"{folder}: settings.yaml has {missing[0]}, metrics.json has not; run the stage summarize")
    # JSON files are sorted by key; the methods are to stand in the order in which they are listed.
    whole["methods"] = {method: whole["methods"][method] for method in settings["run"]["methods"]}
    return Results(settings, whole, runs)


def distinct_cells(results: Results, space: Space) -> list[Cell]:
    """Return every distinct architecture found, in order of first appearance, with who found it."""
    entries: dict[str, list[tuple[Run, dict[str, Any]]]] = {}
    for run in results.runs:
        for entry in run.found["found"]:
            entries.setdefault(entry["architecture"], []).append((run, entry))
    cells = []
    for number, (architecture, finds) in enumerate(entries.items(), 1):
        run, first = finds[0]
        by = [f"{r.name}, {summary.limit_label(e['limit'], r.found['cost'])}" for r, e in finds]
        cells.append(
            Cell(
                number, architecture, first["macs"], first["params"], first["benchmark_accuracy"],
                summary.retrained(run, architecture), by, *_drawable(space, architecture),
            )
        )  # fmt: skip
    return cells


def space_of(settings: dict[str, Any]) -> Space:
    """Build the space of a `space` block."""
    from sumnas.spaces import base

    return base.from_plain(settings)


def _drawable(space: Space, text: str) -> tuple[list[Edge] | None, list[Block] | None]:
    """Return an architecture's graph, and its chain where the space is one."""
    try:
        architecture = space.decode(text)
    except ValueError:  # a report with a string that cannot be drawn is better than none
        return None, None
    return space.graph(architecture), space.chain(architecture)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage summarize") from None
    except (UnicodeDecodeError, yaml.YAMLError):
        value = None
    if not isinstance(value, dict) or not {"run", "space"} <= set(value):
        raise UserError(f"{path}: damaged; delete it and run the stage summarize")
    return value
