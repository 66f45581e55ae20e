"""Report of the comparison at the scale of two cores, from the files that benchmarks/cifar10_cpu.py has left.

    python benchmarks/cifar10_report.py                            # README.md, docs/reproduction.md and the figures
    python benchmarks/cifar10_report.py --full-scale nasbench201.csv --architecture arch --accuracy cifar10_test_acc

The second form also ranks every run against published full-scale accuracies of the same architectures, and keeps the
taus in full_scale.json; the first takes them from there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from sumnas import files, plots
from sumnas.ranking import Measure, RankingSettings, kendall, paired_bootstrap
from sumnas.shown import BASELINES, interval, number
from workflow.pieces import told
from workflow.readme import replaced

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path("docs/results/cifar10-cpu")
OTHER = "table1-cpu"
PAGES = ("README.md", "docs/reproduction.md")
PREDICTIONS = ("architecture", "reference", "predicted", "macs", "params")
SETTINGS = RankingSettings()
PAPER = {"spos": 0.8008, "fairnas": 0.7862, "sumnas-k2": 0.8362, "sumnas-k4": 0.8429}
"""Kendall tau in tables 1 and 4 of the paper: 200 epochs, C = 16, N = 5, 32x32, batch and references of that scale."""
PAIRS = (
    ("equal outer steps", "fairnas", "spos"),
    ("equal outer steps", "sumnas-k2", "fairnas"),
    ("equal outer steps", "sumnas-k4", "fairnas"),
    ("equal outer steps", "sumnas-k4", "sumnas-k2"),
    ("equal passes", "sumnas-k4", "fairnas-long"),
    ("equal passes", "sumnas-k4", "spos-long"),
)
"""What is compared, the second subtracted from the first, where both have been run."""


class Run:
    """The small files of one run."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self.method, _, seed = folder.name.rpartition("-")
        self.seed = int(seed)
        self.metrics: dict[str, Any] = files.read_json(folder / "metrics.json")
        self.cost: dict[str, Any] = files.read_json(folder / "run.json")
        self.history = files.read_csv(folder / "history.csv", ("epoch", "steps", "passes", "loss", "probe_loss"))
        self.rows = files.read_csv(folder / "predictions.csv", PREDICTIONS)
        self.predicted = column(self.rows, "predicted")


def column(rows: Sequence[Mapping[str, str]], name: str) -> NDArray[np.float64]:
    """Return one column as numbers."""
    return np.array([float(row[name]) for row in rows])


def runs_of(folder: Path) -> list[Run]:
    """Return every finished run: methods in the order of the preset, then seeds.

    Runs at equal passes are taken from the other preset's folder where they were made there: it trains them alike.
    """
    order = ["spos", "fairnas", "sumnas-k2", "sumnas-k4", "fairnas-long", "spos-long"]
    found = [Run(path.parent) for path in folder.glob("*/metrics.json")]
    names = {run.name for run in found}
    others = [path.parent for path in (folder.parent / OTHER).glob("*-long-[0-9]*/metrics.json")]
    found += [Run(path) for path in others if path.name not in names]
    known = [run for run in found if run.method in order]
    return sorted(known, key=lambda run: (order.index(run.method), run.seed))


def trials_of(folder: Path) -> list[tuple[Run, dict[str, Any]]]:
    """Return every finished trial with its entry of cifar10_trials.yaml, in the order of that file."""
    entries: dict[str, Any] = yaml.safe_load((ROOT / "benchmarks/cifar10_trials.yaml").read_text(encoding="utf-8"))
    paths = [path.parent for name in entries for path in sorted(folder.glob(f"{name}-[0-9]*/metrics.json"))]
    return [(run, entries[run.method]) for run in map(Run, paths)]


def trials(folder: Path, runs: Sequence[Run]) -> str:
    """Return the table of trials, each beside the run with the same seed whose setting it changed."""
    by_name = {run.name: run for run in runs}
    lines = [
        "| trial | change | Kendall tau | 95 % interval | minus the run without it | 95 % interval | "
        "sub-model accuracy (%) |",
        "|" + " --- |" * 7,
    ]
    for run, entry in trials_of(folder):
        base = by_name[f"{entry['method']}-{run.seed}"]
        difference = paired_bootstrap(column(run.rows, "reference"), run.predicted, base.predicted, SETTINGS)
        cells = [
            run.name, f"{base.name}, {changes(entry)}",
            number(run.metrics["kendall_tau"]), interval(run.metrics, "kendall_tau"),
            f"{difference.value:+.3f}", interval({"_low": difference.low, "_high": difference.high}, ""),
            f"{run.metrics['submodel_accuracy_mean']:.2f} ({base.metrics['submodel_accuracy_mean']:.2f})",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def paired_trials(folder: Path) -> str:
    """Return tau of SUMNAS minus that of FairNAS where both were tried with the same change and seed."""
    lines = ["| SUMNAS - FairNAS, both with | seed | difference of tau | 95 % interval |", "|" + " --- |" * 4]
    found = trials_of(folder)
    for run, entry in found:
        for other, changed in found:
            same = entry["changes"] == changed["changes"] and run.seed == other.seed
            if not (same and entry["method"].startswith("sumnas") and changed["method"] == "fairnas"):
                continue
            difference = paired_bootstrap(column(run.rows, "reference"), run.predicted, other.predicted, SETTINGS)
            cells = [
                f"{changes(entry)} ({entry['method']})", str(run.seed), f"{difference.value:+.3f}",
                interval({"_low": difference.low, "_high": difference.high}, ""),
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def changes(entry: Mapping[str, Any]) -> str:
    """Return what a trial changes, in words."""
    return ", ".join(f"{key.rpartition('.')[2]}: {json.dumps(value)}" for key, value in entry["changes"].items())


def against_full_scale(runs: Sequence[Run], path: Path, architecture: str, accuracy: str) -> dict[str, Any]:
    """Return tau, with its interval, of every run, of MACs and of our own references against a published table."""
    published = {
        row[architecture]: float(row[accuracy]) for row in files.read_csv(path, (architecture, accuracy), ours=False)
    }
    rows = runs[0].rows
    truth = np.array([published[row["architecture"]] for row in rows])
    predictors = {run.name: run.predicted for run in runs}
    predictors |= {name: column(rows, name) for name in ("reference", *BASELINES)}
    taus = {}
    for name, values in predictors.items():
        tau = kendall(truth, values, SETTINGS)
        taus[name] = {"kendall_tau": tau.value, "kendall_tau_low": tau.low, "kendall_tau_high": tau.high}
    return {"table": path.name, "accuracy": accuracy, "architectures": len(rows), "taus": taus}


def mean(values: Sequence[float]) -> float:
    """Return the mean."""
    return float(np.mean(values))


def averaged(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean tau of several runs, with the mean limits of their intervals."""
    return {key: mean([e[key] for e in entries]) for key in ("kendall_tau", "kendall_tau_low", "kendall_tau_high")}


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Return a mean, and the standard deviation over several seeds."""
    std = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{std}"


def table(runs: Sequence[Run], full_scale: Mapping[str, Any]) -> str:
    """Return the table of methods and trivial predictors."""
    lines = [
        "| method | seeds | passes of a training | Kendall tau | 95 % interval | against full-scale accuracies | "
        "sub-model accuracy (%) | spread (%) | loss of probes | hours | paper's tau |",
        "|" + " --- |" * 11,
    ]
    taus = full_scale.get("taus", {})
    for method in dict.fromkeys(run.method for run in runs):
        own = [run for run in runs if run.method == method]
        published = [taus[run.name] for run in own if run.name in taus]
        other = averaged(published) if len(published) == len(own) else None
        cells = [
            method, ", ".join(str(run.seed) for run in own), f"{int(own[0].history[-1]['passes']):,}",
            spread([run.metrics["kendall_tau"] for run in own]),
            interval(averaged([run.metrics for run in own]), "kendall_tau"),
            f"{number(other['kendall_tau'])} {interval(other, 'kendall_tau')}" if other else "-",
            spread([run.metrics["submodel_accuracy_mean"] for run in own], 2),
            spread([run.metrics["submodel_accuracy_std"] for run in own], 2),
            spread([float(run.history[-1]["probe_loss"]) for run in own]),
            f"{mean([run.cost['train_seconds'] for run in own]) / 3600:.2f}",
            f"{PAPER[method]:.4f}" if method in PAPER else "",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    first = runs[0].metrics
    for name, label in BASELINES.items():
        tau = {f"_{key}": first[f"{name}_kendall_tau_{key}"] for key in ("low", "high")}
        cells = [f"*{label}*", "", "", number(first[f"{name}_kendall_tau"]), interval(tau, "")]
        published = taus.get(name)
        cells.append(f"{number(published['kendall_tau'])} {interval(published, 'kendall_tau')}" if published else "")
        lines.append(f"| {' | '.join(cells)} |" + " |" * 5)
    return "\n".join(lines) + "\n"


def differences(runs: Sequence[Run]) -> str:
    """Return the paired differences of tau over the seeds that both methods have, and what they say of the claim."""
    lines = [
        "| difference of tau | at | seeds | value by seed | of mean predictions | 95 % interval |",
        "|" + " --- |" * 6,
    ]
    by_name, verdict = {run.name: run for run in runs}, ""
    reference = column(runs[0].rows, "reference")
    for at, of, minus in PAIRS:
        seeds = sorted({r.seed for r in runs if r.method == of} & {r.seed for r in runs if r.method == minus})
        if not seeds:
            continue
        one, other = ([by_name[f"{method}-{seed}"] for seed in seeds] for method in (of, minus))
        each = [a.metrics["kendall_tau"] - b.metrics["kendall_tau"] for a, b in zip(one, other, strict=True)]
        a, b = (np.mean([run.predicted for run in side], axis=0) for side in (one, other))
        difference = paired_bootstrap(reference, a, b, SETTINGS)
        limits = {"_low": difference.low, "_high": difference.high}
        if (of, minus) == ("sumnas-k4", "fairnas"):
            verdict = claim(difference, len(seeds))
        cells = [f"{of} - {minus}", at, ", ".join(map(str, seeds)), ", ".join(f"{value:+.3f}" for value in each),
                 f"{difference.value:+.3f}", interval(limits, "")]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n" + verdict


def claim(difference: Measure, seeds: int) -> str:
    """Say what SUMNAS (k = 4) minus FairNAS at equal outer steps means for the paper's claim."""
    assert difference.low is not None and difference.high is not None
    if difference.low > 0:
        found = "ranks better than FairNAS: the paper's claim holds at this scale"
    elif difference.high < 0:
        found = "ranks worse than FairNAS: at this scale the opposite of the paper's claim"
    else:
        found = (
            "cannot be told from FairNAS by its ranking: at this scale no support for the paper's claim, nor against it"
        )
    return f"\nSUMNAS with k = 4 {found} ({seeds} {'seed' if seeds == 1 else 'seeds'}, equal outer steps).\n"


def block(folder: Path) -> str:
    """Return the report as text, from committed files alone."""
    runs = runs_of(folder)
    path = folder / "full_scale.json"
    full_scale = files.read_json(path) if path.exists() else {}
    first, cost = runs[0].metrics, files.read_json(folder / "references_run.json")
    cpus = sorted({cost["cpu"], *(run.cost["cpu"] for run in (*runs, *(run for run, _ in trials_of(folder))))})
    known = {"_low": first["perfect_tau_low"], "_high": first["perfect_tau_high"]}
    text = table(runs, full_scale) + "\n" + differences(runs) + "\n"
    if tried := trials(folder, runs):
        text += f"Trials: one setting changed, one seed each, none left out.\n\n{tried}\n"
    if pairs := paired_trials(folder):
        text += pairs + "\n"
    text += (
        f"{first['architectures']} architectures; predicted on the {first['split']} split. References: "
        f"{first['reference_seeds']} seeds each, {cost['seconds'] / 3600:.2f} core-hours; split-half tau "
        f"{number(first['reliability_tau'])}; a perfect predictor would reach tau {number(first['perfect_tau'])} "
        f"{interval(known, '')}. "
    )
    if full_scale:
        own = full_scale["taus"]["reference"]
        text += (
            f"These references themselves rank the architectures with tau {number(own['kendall_tau'])} "
            f"{interval(own, 'kendall_tau')} against the full-scale accuracies ({full_scale['accuracy']}). "
        )
    text += (
        f"One thread per run, on {' and '.join(cpus)}; hours are wall time beside other work, with pauses. "
        f"Python {cost['python']}, torch "
        f"{cost['torch']}. Files: docs/results/cifar10-cpu; made by benchmarks/cifar10_cpu.py and "
        "benchmarks/cifar10_report.py.\n"
    )
    return text


def draw_taus(folder: Path, runs: Sequence[Run], title: str) -> None:
    """Draw tau with its interval by run, and that of the trivial predictors."""
    keys = ("kendall_tau", "kendall_tau_low", "kendall_tau_high")
    rows = [(run.name, *(run.metrics[key] for key in keys)) for run in runs]
    rows += [(label, *(runs[0].metrics[f"{name}_{key}"] for key in keys)) for name, label in BASELINES.items()]
    plots.intervals(folder / "kendall_tau.svg", rows, "Kendall tau", title)


def figures(runs: Sequence[Run], folder: Path) -> None:
    """Draw tau by run, the probes' loss over the epochs, and the spread of the sub-models (paper, figure 3)."""
    draw_taus(folder, runs, "CIFAR-10 at 16x16, references of the same scale")
    short = [run for run in runs if not run.method.endswith("-long")]
    panel = [
        plots.Curve(run.method, [int(row["epoch"]) for row in run.history], column(run.history, "probe_loss").tolist())
        for run in short
    ]
    plots.curves(folder / "training.svg", [("mean loss of 20 fixed sub-models", panel)])
    spreads = [
        plots.Spread(run.name, run.method, run.predicted.tolist(),
                     run.metrics["submodel_accuracy_mean"], run.metrics["submodel_accuracy_std"])
        for run in short
    ]  # fmt: skip
    plots.spreads(folder / "submodels.svg", spreads, "predicted accuracy (%)", "Sub-models of every supernet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full-scale", type=Path, help="a CSV file of published accuracies")
    parser.add_argument("--architecture", default="arch", help="its column of architecture strings")
    parser.add_argument("--accuracy", default="cifar10_test_acc", help="its column of accuracies")
    arguments = parser.parse_args()
    runs = runs_of(ROOT / RESULTS)
    if arguments.full_scale:
        found = against_full_scale(runs, arguments.full_scale, arguments.architecture, arguments.accuracy)
        files.write_json(ROOT / RESULTS / "full_scale.json", found)
    figures(runs, ROOT / RESULTS)
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        files.write_text(ROOT / page, replaced(text, "cifar10-cpu", block(ROOT / RESULTS)))


if __name__ == "__main__":
    with told("cifar10_report"):
        main()
