"""Report of the paper's second half at the scale of two cores, from the files that benchmarks/mobilenet_cpu.py left.

    python -m benchmarks.mobilenet_report    # README.md, docs/reproduction.md and the figures

It says what is missing, too: after every piece it can be made anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cifar10_report import PAGES, ROOT, SETTINGS, Run, averaged, column, draw_taus, spread
from sumnas import drawing, files, params
from sumnas.params import Params
from sumnas.ranking import paired_bootstrap
from sumnas.shown import BASELINES, interval, number, percent, row
from sumnas.spaces import base
from workflow.pieces import TIMES, read, told
from workflow.readme import replaced

PRESET = "mobilenet-cpu"
RESULTS = Path("docs/results") / PRESET
LARGER = Path("docs/results/mobilenet-cpu-larger")
"""What the preset gave before it was cut to two hours: 8 epochs and two seeds of references, 10 epochs of supernets."""
PAPER = {"fairnas": 0.7895, "sumnas-k2": 0.8526}
"""Kendall tau in table 2 of the paper, on ImageNet at full scale."""
HEADINGS = (
    "method", "seeds", "passes of a training", "Kendall tau", "95 % interval", "sub-model accuracy (%)", "spread (%)",
    "hours", "paper's tau (ImageNet)",
)  # fmt: skip
FOUND = (
    "search", "limit (million MACs)", "scored", "MACs (million)", "parameters (million)", "predicted (%)",
    "retrained: top-1 (%)", "top-5 (%)", "hours of search", "hours of retraining",
)  # fmt: skip


def runs_of(folder: Path, preset: Params) -> list[Run]:
    """Return every finished run of the preset's methods, in its order, then by seed."""
    found = [Run(path.parent) for path in folder.glob("*/metrics.json")]
    order = list(preset.methods)
    return sorted((r for r in found if r.method in order), key=lambda run: (order.index(run.method), run.seed))


def references(folder: Path, preset: Params) -> str:
    """Say how many references there are, of how many, and what they took."""
    pool, rows = preset.benchmark.pool, read(folder / "references.csv", ("accuracy",))
    times = read(folder / "references_seconds.csv", TIMES[:7])
    wanted = pool.architectures * len(pool.seeds)
    if not rows:
        return f"None of {wanted} reference trainings has been made yet. "
    accuracies = [float(r["accuracy"]) for r in rows]
    hours = sum(float(r["processor_seconds"]) for r in times) / 3600
    processors = ", ".join(sorted({r["cpu"] for r in times}))
    return (
        f"References: {len(rows)} of {wanted} trainings ({pool.architectures} architectures, {len(pool.seeds)} "
        f"seed{'s' if len(pool.seeds) > 1 else ''}), "
        f"{hours:.2f} hours of the processor on {processors}; test accuracy {min(accuracies):.2f} to "
        f"{max(accuracies):.2f} %. "
    )


def took(folder: Path, runs: Sequence[Run]) -> float:
    """Return the hours of one core that all pieces took: of references the processor's, of the rest the clock's."""
    seconds = [float(r["processor_seconds"]) for r in read(folder / "references_seconds.csv", TIMES[:7])]
    parts = ("run.json", "search/run.json", "retrain/run.json")
    paths = [folder / run.name / part for run in runs for part in parts]
    return sum(seconds + [files.read_json(path)["seconds"] for path in paths if path.exists()]) / 3600


def ranked(runs: Sequence[Run]) -> str:
    """Return the table of methods and trivial predictors."""
    lines = [row(HEADINGS), row(["---"] * len(HEADINGS))]
    for method in dict.fromkeys(run.method for run in runs):
        own = [run for run in runs if run.method == method]
        lines.append(row([
            method, ", ".join(str(run.seed) for run in own), f"{int(own[0].history[-1]['passes']):,}",
            *taus([run.metrics for run in own]),
            spread([run.metrics["submodel_accuracy_mean"] for run in own], 2),
            spread([run.metrics["submodel_accuracy_std"] for run in own], 2),
            spread([run.cost["train_seconds"] / 3600 for run in own], 2), f"{PAPER[method]:.4f}",
        ]))  # fmt: skip
    first = runs[0].metrics
    for name, label in BASELINES.items():
        limits = {f"_{end}": first[f"{name}_kendall_tau_{end}"] for end in ("low", "high")}
        cells = [f"*{label}*", "", "", number(first[f"{name}_kendall_tau"]), interval(limits, "")]
        lines.append(row([*cells, *[""] * (len(HEADINGS) - len(cells))]))
    return "\n".join(lines) + "\n"


def taus(metrics: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return the mean tau and interval of several seeds; dashes where one is not defined, as of equal references."""
    if any(entry[f"kendall_tau{end}"] is None for entry in metrics for end in ("", "_low", "_high")):
        return "-", "-"
    return spread([entry["kendall_tau"] for entry in metrics]), interval(averaged(metrics), "kendall_tau")


def by_chance(runs: Sequence[Run]) -> str:
    """Say so where no run's ranking can be told from one by chance; nothing where one can, or has no interval."""
    limits = [[run.metrics[f"kendall_tau_{end}"] for end in ("low", "high")] for run in runs]
    if not all(low is not None and high is not None and low <= 0 <= high for low, high in limits):
        return ""
    return "No ranking here can be told from chance: every interval has 0 in it. "


def noise(metrics: Mapping[str, Any]) -> str:
    """Say how well the references rank by themselves, or why that is not known."""
    if metrics["reliability_reason"]:
        return f"How well a perfect predictor would rank is not known: {metrics['reliability_reason']}. "
    return (
        f"Split-half tau {number(metrics['reliability_tau'])}; a perfect predictor would reach tau "
        f"{number(metrics['perfect_tau'])} {interval(metrics, 'perfect_tau')}. "
    )


def difference(runs: Sequence[Run]) -> str:
    """Say by how much SUMNAS ranks better than FairNAS, with the paired interval, and what that means."""
    fair, meta = ([run for run in runs if run.method == method] for method in PAPER)
    if not fair or not meta:
        return ""
    one, other = (np.mean([run.predicted for run in side], axis=0) for side in (meta, fair))
    found = paired_bootstrap(column(runs[0].rows, "reference"), one, other, SETTINGS)
    if found.value is None or found.low is None or found.high is None:
        return "\nThe difference of their taus is not defined.\n"
    verdict = (
        "as in the paper" if found.low > 0 else "the opposite of the paper's order" if found.high < 0
        else "they cannot be told apart by their ranking: no support for the paper's claim, nor against it"
    )  # fmt: skip
    return (
        f"\nsumnas-k2 - fairnas: {found.value:+.3f} [{found.low:.3f}, {found.high:.3f}], paired over the "
        f"architectures, at equal outer steps: {verdict}.\n"
    )


def larger(root: Path, preset: Params) -> str:
    """Say what the same comparison gave with more training; nothing where that run is not kept."""
    folder, runs = root / LARGER, runs_of(root / LARGER, preset)
    if not runs:
        return ""
    rows = len(read(folder / "references.csv", ("accuracy",)))
    found = ", ".join(
        f"{run.name} {number(run.metrics['kendall_tau'])} {interval(run.metrics, 'kendall_tau')} after "
        f"{int(run.history[-1]['passes']):,} passes" for run in runs
    )  # fmt: skip
    return (
        f"\nThe same with {rows} references and more training, {took(folder, runs):.1f} hours of one core: {found}. "
        f"{noise(runs[0].metrics)}{difference(runs).strip()} Files, the settings among them: {LARGER}.\n"
    )


def searched(folder: Path, runs: Sequence[Run]) -> str:
    """Return what every run's search found under each limit, and its true accuracy where it was retrained."""
    lines = [row(FOUND), row(["---"] * len(FOUND))]
    for run in runs:
        own = folder / run.name
        if not (own / "search/run.json").exists():
            continue
        found, searching = files.read_json(own / "search/found.json"), files.read_json(own / "search/run.json")
        path = own / "retrain/metrics.json"
        trained = {n["architecture"]: n for n in files.read_json(path)["networks"]} if path.exists() else {}
        again = f"{files.read_json(own / 'retrain/run.json')['seconds'] / 3600:.2f}" if path.exists() else ""
        for entry in found["found"]:
            network = trained.get(entry["architecture"], {})
            limit = "none" if entry["limit"] is None else f"{entry['limit']:g}"
            lines.append(row([
                run.name, limit, str(found["scored"]), f"{entry['macs']:.2f}", f"{entry['params']:.3f}",
                percent(entry["predicted"]), percent(network.get("test_accuracy")), percent(network.get("test_top5")),
                f"{searching['seconds'] / 3600:.2f}", again or "-",
            ]))  # fmt: skip
    return "\n" + "\n".join(lines) + "\n" if len(lines) > 2 else ""


def block(root: Path) -> str:
    """Return the report as text, from committed files alone."""
    folder, preset = root / RESULTS, params.load(root / f"presets/{PRESET}.yaml")
    runs, text = runs_of(folder, preset), ""
    if runs:
        text = ranked(runs) + difference(runs) + searched(folder, runs) + "\n"
    text += references(folder, preset)
    if runs:
        first, cost = runs[0].metrics, runs[0].cost
        text += (
            f"{noise(first)}{by_chance(runs)}"
            f"Predicted on the {first['split']} split. Hours "
            f"are wall time of one thread, beside other work, on {cost['cpu']}. Python {cost['python']}, torch "
            f"{cost['torch']}. "
        )
    missing = [f"{m}-{seed}" for m in preset.methods for seed in preset.run.seeds]
    missing = [name for name in missing if name not in {run.name for run in runs}]
    again = [run.name for run in runs if not (folder / run.name / "retrain/run.json").exists()]
    if not missing and not again:
        hours = took(folder, runs)
        text += (
            f"References, supernets, rankings, searches and retraining took {hours:.1f} hours of one core, "
            f"{hours / 2:.1f} of two that share it evenly: those of the references counted by the processor, the rest "
            "by the clock. "
        )
    text += f"Not run yet: {', '.join(missing)}. " if missing else ""
    text += f"Not retrained yet: {', '.join(again)}. " if again else ""
    text += f"Files: {RESULTS}; made by benchmarks/mobilenet_cpu.py and benchmarks/mobilenet_report.py.\n"
    return text + larger(root, preset)


def figures(root: Path) -> None:
    """Draw tau by run, and the networks that were found, as the paper's figure 5 has them."""
    folder, preset = root / RESULTS, params.load(root / f"presets/{PRESET}.yaml")
    space, panels = base.build(preset.space), []
    runs = runs_of(folder, preset)
    if known := [run for run in runs if taus([run.metrics]) != ("-", "-")]:
        draw_taus(folder, known, "MobileNet space, CIFAR-10 at 32x32")
    for run in runs:
        for entry in files.read_json(folder / run.name / "search/found.json")["found"]:
            blocks = space.chain(space.decode(entry["architecture"]))
            panels.append(drawing.Panel(f"{run.name}\n{entry['macs']:.2f}M MACs", [], blocks))
    if panels:
        drawing.cells(folder / "cells.svg", panels, space.candidates)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    figures(ROOT)
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        files.write_text(ROOT / page, replaced(text, PRESET, block(ROOT)))


if __name__ == "__main__":
    with told("mobilenet_report"):
        main()
