"""The figures and the report of a finished run, from its result files alone: `python -m sumnas.report`.

The report is one HTML file that needs no other: no network, no script from elsewhere. The same result files give the
same bytes, so that it holds no times, hosts or versions.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import sys
from pathlib import Path
from typing import Any

import yaml

from sumnas import charts, columns, drawing, files, fronts, plots
from sumnas import summary as summaries
from sumnas.cautions import cautions, searches
from sumnas.errors import UserError
from sumnas.results import Cell, Results, distinct_cells, load, space_of
from sumnas.shown import BASELINES, interval, measured, number, percent

FIGURES = ("kendall_tau.svg", "training.svg", "submodels.svg", "cells.svg")
"""In results/summary/, in the order of the page."""
TEMPLATES = Path(__file__).parent / "templates"
"""The page with its style and its script."""


def write(results: Path) -> Path:
    """Draw the figures of results/summary/ and write its report.html; return the report's path."""
    found = load(results)
    space = space_of(found.settings["space"])
    cells = distinct_cells(found, space)
    folder = results / "summary"
    draw_figures(folder, found, cells, space.candidates)
    images = {Path(name).stem: _data_uri((folder / name).read_bytes()) for name in FIGURES}
    drawn = [(c.number, drawing.svg(c.edges, space.candidates, c.chain)) for c in cells if c.edges is not None]
    drawings = {number: _data_uri(svg) for number, svg in drawn}
    path = folder / "report.html"
    files.write_text(path, render(found, cells, images, drawings))
    return path


def draw_figures(folder: Path, results: Results, cells: list[Cell], operators: tuple[str, ...]) -> None:
    """Draw kendall_tau.svg, training.svg, submodels.svg and cells.svg."""
    count, split = results.summary["architectures"], results.summary["split"]
    rows = summaries.taus(results.summary)
    plots.intervals(folder / FIGURES[0], rows, "Kendall tau (95 % interval)", f"{count} architectures")
    panels = [
        ("training loss", _curves(results, "loss")),
        ("validation loss of probes", _curves(results, "probe_loss")),
    ]
    plots.curves(folder / FIGURES[1], [(label, curves) for label, curves in panels if curves])
    spreads, title = _spreads(results)
    plots.spreads(folder / FIGURES[2], spreads, f"accuracy with shared weights, {split} split (%)", title)
    panels_ = [
        drawing.Panel("\n".join([f"{noun(cells)} {c.number}, {c.macs:.4g}M", *shortened(c.found_by)]), c.edges, c.chain)
        for c in cells if c.edges is not None
    ]  # fmt: skip
    drawing.cells(folder / FIGURES[3], panels_, operators)


def shows_all(results: Results) -> bool:
    """Whether mean and spread can be those of all sub-models: every search was exhaustive (paper fig. 3, right)."""
    return all(run.found.get("scores", {}).get("std") is not None for run in results.runs)


def _spreads(results: Results) -> tuple[list[plots.Spread], str]:
    """Return each run's strokes, mean and spread, and the figure's title; mixed searches show the ranked ones."""
    whole, rows = shows_all(results), []
    for run in results.runs:
        ranked = {key: run.ranking[f"submodel_accuracy_{key}"] for key in ("mean", "std")}
        shown = run.found["scores"] if whole else ranked
        strokes = [float(row["predicted"]) for row in run.predictions]
        rows.append(plots.Spread(run.name, run.method, strokes, shown["mean"], shown["std"]))
    count = results.summary["architectures"]
    if not whole:
        return rows, f"{count} ranked sub-models each: mean ± standard deviation"
    scored = results.runs[0].found["scores"]["count"]
    return rows, f"all {scored} sub-models: mean ± standard deviation\n(strokes: the {count} ranked)"


def render(results: Results, cells: list[Cell], images: dict[str, str], drawings: dict[int, str]) -> str:
    """Return the report. Everything that comes from result files is escaped by the template engine."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"tau": number, "percent": percent, "interval": interval}
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    summary = results.summary
    numbers = {cell.architecture: cell.number for cell in cells}
    runs: list[dict[str, Any]] = [
        {
            "run": run,
            "found": [
                {
                    **entry,
                    "label": summaries.limit_label(entry["limit"], run.found["cost"]),
                    "cell": numbers[entry["architecture"]],
                    "retrained": summaries.retrained(run, entry["architecture"]),
                    "top5": summaries.retrained(run, entry["architecture"], "test_top5"),
                }
                for entry in run.found["found"]
            ],
        }
        for run in results.runs
    ]
    ranked = [(run, charts.ranked(run.predictions)) for run in results.runs]
    indices = {name: i for i, name in enumerate(ranked[0][1].architectures)}
    labels = [_labels(item["found"]) for item in runs]
    macs, most = ranked[0][1].macs, charts.MOST // len(ranked)
    limited = measured(results.runs[0].found["cost"])
    over = limited if all("cost" in run.scored[0] for run in results.runs) else None  # older results have MACs alone
    return environment.get_template("report.html.j2").render(
        summary=summary,
        settings=results.settings,
        best=_best(summary),
        cautions=cautions(summary) + searches({item["run"].name: item["found"] for item in runs}),
        baselines=BASELINES,
        runs=runs,
        further=summary.get("further", {}),
        scores=columns.any_scores(summary),
        shows_all=shows_all(results),
        choices=[item for item in runs if "derived_architecture" in item["run"].ranking],
        passes={name: _mean_passes(results, name) for name in summary["methods"]},
        limits=[entry["label"] for entry in next(iter(summary["methods"].values()))["found"]],
        top_k=[k for k in results.settings["ranking"]["top_k"] if f"precision_at_{k}" in results.runs[0].ranking],
        cells=cells,
        scatters=[charts.scatter(r, f"{run.name}: tau {number(run.ranking['kendall_tau'])}", summary["split"], most)
                  for run, r in ranked],
        differences=[charts.rank_differences(r, run.name, most) for run, r in ranked],
        limited=limited,
        over=over,
        fronts=[fronts.front(run.scored, by, indices, f"{run.name}: {len(run.scored)} scored", summary["split"], most,
                             over)
                for run, by in zip(results.runs, labels, strict=True)],
        front_colours={"scored": plots.QUIET, "Pareto front": plots.ACCENT, "found by the search": fronts.FOUND},
        noun=noun(cells),
        scale=charts.colour_scale(),
        macs=(float(macs.min()), float(macs.max())),
        images=images,
        drawings=drawings,
        blocks=_yaml_blocks(results.settings),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip


def noun(cells: list[Cell]) -> str:
    """Return what one of the found architectures is called: a chain of blocks is a whole network, no cell."""
    return "network" if any(cell.chain for cell in cells) else "cell"


def shortened(names: list[str], most: int = 4) -> list[str]:
    """Return the names, the last of many replaced by their number."""
    return names if len(names) <= most else [*names[: most - 1], f"and {len(names) - most + 1} more"]


def _labels(found: list[dict[str, Any]]) -> dict[str, str]:
    """Return under which limits each architecture was found, in words."""
    return {e["architecture"]: ", ".join(o["label"] for o in found if o["architecture"] == e["architecture"])
            for e in found}  # fmt: skip


def _best(summary: dict[str, Any]) -> str | None:
    """Return the method with the highest tau, the first listed of equal ones, or None where none has a tau."""
    taus = {name: m["kendall_tau"] for name, m in summary["methods"].items() if m["kendall_tau"] is not None}
    return max(taus, key=lambda name: taus[name]) if taus else None


def _mean_passes(results: Results, method: str) -> int:
    """Return the sub-model passes of one training: the same for all seeds, unless an epoch's batches differ."""
    passes = [float(run.history[-1]["passes"]) for run in results.runs if run.method == method]
    return round(sum(passes) / len(passes))


def _yaml_blocks(settings: dict[str, Any]) -> list[str]:
    """Return the settings as YAML, one text per block, and one per method."""
    pieces = [{name: block} for name, block in settings.items() if name != "methods"]
    pieces += [{"methods": {name: block}} for name, block in settings["methods"].items()]
    return [yaml.safe_dump(piece, sort_keys=False) for piece in pieces]


def _curves(results: Results, column: str) -> list[plots.Curve]:
    curves = []
    for run in results.runs:
        rows = [row for row in run.history if row.get(column)]
        if rows:
            epochs, values = ([float(row[key]) for row in rows] for key in ("epoch", column))
            curves.append(plots.Curve(run.method, epochs, values))
    return curves


def _data_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def main(arguments: list[str] | None = None) -> int:
    """Draw figures and report anew, after a change of their sources."""
    parser = argparse.ArgumentParser(prog="python -m sumnas.report", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of result files (results)")
    try:
        path = write(parser.parse_args(arguments).results)
    except UserError as error:
        print(f"report: error: {error}", file=sys.stderr)
        return 1
    print(f"{path} (with DVC: `dvc commit -f summarize` keeps it)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
