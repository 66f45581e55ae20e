"""Report of every method of table 1 at the scale of two cores, from the files that benchmarks/cifar10_cpu.py has left.

    python -m benchmarks.table1_report                               # README.md, docs/reproduction.md and the figure
    python -m benchmarks.table1_report --full-scale nasbench201.csv  # and ranks against published accuracies

A run that presets/cifar10-cpu.yaml has with the very same settings is taken from there. The second form ranks every run
against published full-scale accuracies of the same architectures, one column per data set, and looks the methods' own
choices up there; it keeps what it finds in full_scale.json, from which the first takes it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cifar10_report import (
    PAGES,
    ROOT,
    SETTINGS,
    Run,
    against_full_scale,
    averaged,
    column,
    draw_taus,
    mean,
    spread,
)
from sumnas import files, params
from sumnas.params import Params
from sumnas.ranking import paired_bootstrap
from sumnas.shown import BASELINES, interval, number, percent, row
from sumnas.training import epochs_of
from workflow.pieces import told
from workflow.readme import replaced

PRESET, SHARED = "table1-cpu", "cifar10-cpu"
FOLDER = Path("docs/results")
RESULTS = FOLDER / PRESET
CHOICE, COST = "own_choice.csv", "cost.json"
PAPER = {
    "darts-v1": 0.2987, "gdas": 0.2231, "spos-long": 0.8008, "spos-wpl": 0.6709, "spos-nsas": 0.4769,
    "fairnas-long": 0.7862, "cream": 0.8100, "sumnas-k4": 0.8451,
}  # fmt: skip
"""Kendall tau in table 1 of the paper, at full scale. It does not say which order its DARTS is of, and has no ENAS."""
COLUMNS = {"cifar10_test_acc": "CIFAR-10", "cifar100_test_acc": "CIFAR-100", "imagenet16_test_acc": "ImageNet16-120"}
"""Columns of the published table that the runs are ranked against, and the data sets' names."""
HEADINGS = (
    "method", "seeds", "Kendall tau", "95 % interval", "the paper's tau", "best predicted: true (%)",
    "own choice: true (%)", "images (million)", "passes", "hours", "memory (MB)",
)  # fmt: skip


def runs_of(root: Path, preset: Params) -> list[Run]:
    """Return every finished run of the preset's methods, in its order, then by seed; shared ones from `SHARED`."""
    other = params.load(root / f"presets/{SHARED}.yaml")
    found = []
    for method in preset.methods:
        same = other.methods.get(method) == preset.methods[method] and trained_alike(other, preset)
        for folder in [FOLDER / PRESET] + [FOLDER / SHARED] * same:
            runs = [Run(path.parent) for path in (root / folder).glob(f"{method}-*/metrics.json")]
            runs = [run for run in runs if run.method == method]
            if runs:
                found += sorted(runs, key=lambda run: run.seed)
                break
    return found


def trained_alike(one: Params, other: Params) -> bool:
    """Whether supernets of both are trained in the same way; probes only look at them."""
    alike = {"probes": 0, "probe_every": 1}
    return bool(one.supernet.model_copy(update=alike) == other.supernet.model_copy(update=alike))


def full_scale(runs: Sequence[Run], path: Path, architecture: str) -> dict[str, Any]:
    """Return every run's tau against every column of a published table, and the own choices' accuracies there."""
    found = {name: against_full_scale(runs, path, architecture, name) for name in COLUMNS}
    published = {r[architecture]: r for r in files.read_csv(path, (architecture, *COLUMNS), ours=False)}
    own = {run.name: run.metrics["derived_architecture"] for run in runs if "derived_architecture" in run.metrics}
    choices = {name: {c: float(published[text][c]) for c in COLUMNS} for name, text in own.items()}
    return {"table": path.name, "taus": {name: entry["taus"] for name, entry in found.items()}, "choices": choices}


def images(run: Run, preset: Params) -> tuple[float, float]:
    """Return how many images sub-models saw with gradient, and a controller's without, both in millions."""
    block, size = preset.methods[run.method], preset.supernet.batch_size
    turn = getattr(block, "controller_steps", 0) * getattr(block, "controller_samples", 0)
    passes = int(run.history[-1]["passes"])
    return passes * size / 1e6, epochs_of(block, preset.supernet) * turn * size / 1e6


def best_predicted(run: Run) -> float:
    """Return the true accuracy of the architecture with the highest prediction, of equal ones the worst."""
    best = max(run.predicted)
    return min(float(r["reference"]) for r in run.rows if float(r["predicted"]) == best)


def own_choice(run: Run, folder: Path) -> float | None:
    """Return the mean accuracy of a method's own choice when trained alone as the references were; None without one."""
    path, known = folder / CHOICE, run.metrics.get("derived_accuracy")
    if known is not None:  # it is one of the references
        return float(known)
    return mean([float(r["accuracy"]) for r in files.read_csv(path, ("accuracy",))]) if path.exists() else None


def by_method(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the runs of each method."""
    return {name: [run for run in runs if run.method == name] for name in dict.fromkeys(run.method for run in runs)}


def table(runs: Sequence[Run], preset: Params, root: Path) -> str:
    """Return our table 1 beside the paper's."""
    path = root / RESULTS / COST
    costs = files.read_json(path)["methods"] if path.exists() else {}
    lines = [row(HEADINGS), row(["---"] * len(HEADINGS))]
    for method, own in by_method(runs).items():
        choices = [c for run in own if (c := own_choice(run, root / RESULTS / run.name)) is not None]
        with_gradient, without = images(own[0], preset)
        cost = costs.get(method)
        lines.append(row([
            method, ", ".join(str(run.seed) for run in own),
            spread([run.metrics["kendall_tau"] for run in own]),
            interval(averaged([run.metrics for run in own]), "kendall_tau"),
            f"{PAPER[method]:.4f}" if method in PAPER else "",
            spread([best_predicted(run) for run in own], 2), spread(choices, 2) if choices else "",
            f"{with_gradient:.2f}" + (f" and {without:.2f} without gradient" if without else ""),
            f"{int(own[0].history[-1]['passes']):,}",
            *((f"{cost['hours']:.2f}", str(cost["peak_memory_mb"])) if cost else ("not measured", "not measured")),
        ]))  # fmt: skip
    first = runs[0].metrics
    for name, label in BASELINES.items():
        limits = {f"_{end}": first[f"{name}_kendall_tau_{end}"] for end in ("low", "high")}
        cells = [f"*{label}*", "", number(first[f"{name}_kendall_tau"]), interval(limits, "")]
        lines.append(row([*cells, *[""] * (len(HEADINGS) - len(cells))]))
    return "\n".join(lines) + "\n"


def against(runs: Sequence[Run], found: Mapping[str, Any]) -> str:
    """Return the taus against the published accuracies on each data set, and the own choices' accuracies there."""
    names = [name for name in COLUMNS if name in found["taus"]]
    lines = [row(["against full-scale accuracies", *(COLUMNS[n] for n in names), "own choice there (%)"])]
    lines.append(row(["---"] * (len(names) + 2)))
    for method, own in by_method(runs).items():
        cells = [method]
        for name in names:
            entries = [found["taus"][name][run.name] for run in own if run.name in found["taus"][name]]
            known = len(entries) == len(own)
            cells.append(f"{number(averaged(entries)['kendall_tau'])} {interval(averaged(entries), 'kendall_tau')}"
                         if known else "-")  # fmt: skip
        there = [found["choices"][run.name] for run in own if run.name in found["choices"]]
        lines.append(row([*cells, " / ".join(percent(mean([c[n] for c in there])) for n in names) if there else ""]))
    for name, label in {**BASELINES, "reference": "our references"}.items():
        entries = [found["taus"][n][name] for n in names]
        lines.append(row([f"*{label}*", *(f"{number(e['kendall_tau'])} {interval(e, 'kendall_tau')}" for e in entries),
                          ""]))  # fmt: skip
    return "\n".join(lines) + "\n"


def mean_predictions(runs: Sequence[Run]) -> dict[str, np.ndarray]:
    """Return each method's predictions, the mean over its seeds."""
    return {name: np.mean([run.predicted for run in own], axis=0) for name, own in by_method(runs).items()}


def order(runs: Sequence[Run]) -> str:
    """Say between which methods our order is not the paper's: what is clear by the paired interval, and what is not."""
    reference = column(runs[0].rows, "reference")
    predicted = {name: values for name, values in mean_predictions(runs).items() if name in PAPER}
    clear, unclear, agreed = [], [], 0
    for one, other in combinations(predicted, 2):
        better, worse = (one, other) if PAPER[one] > PAPER[other] else (other, one)
        difference = paired_bootstrap(reference, predicted[worse], predicted[better], SETTINGS)
        if difference.value is None or difference.low is None or difference.high is None:
            unclear.append(f"{worse} and {better}")
        elif difference.low > 0:
            clear.append(f"{worse} ranks better than {better} ({difference.value:+.3f} "
                         f"[{difference.low:.3f}, {difference.high:.3f}])")  # fmt: skip
        elif difference.high < 0:
            agreed += 1
        else:
            unclear.append(f"{worse} and {better}")
    pairs = len(predicted) * (len(predicted) - 1) // 2
    if not pairs:
        return ""
    text = (
        f"Of {pairs} pairs of methods {agreed} are in the paper's order, with an interval of the difference without 0. "
    )
    if clear:
        text += f"In the opposite order, just as clearly: {'; '.join(clear)}. "
    if unclear:
        text += f"Not told apart: {'; '.join(unclear)}. "
    return text


def highest(runs: Sequence[Run]) -> str:
    """Say which method ranks best here, in the paper's table or not, and from which that can be told."""
    reference = column(runs[0].rows, "reference")
    predicted = mean_predictions(runs)
    taus = {name: mean([r.metrics["kendall_tau"] for r in own]) for name, own in by_method(runs).items()}
    best = max(taus, key=lambda name: taus[name])
    sure, unsure = [], []
    for name in predicted:
        if name != best:
            found = paired_bootstrap(reference, predicted[best], predicted[name], SETTINGS)
            (sure if found.low is not None and found.low > 0 else unsure).append(name)
    if not sure + unsure:
        return ""
    text = f"The highest tau here is {best}'s" + (
        ", which the paper's table does not have" if best not in PAPER else ""
    )
    told = [f"above {', '.join(sure)}" if sure else "", f"not told apart from {', '.join(unsure)}" if unsure else ""]
    return f"{text}: {'; '.join(filter(None, told))} (paired intervals over the architectures; seeds as in the table). "


def block(root: Path) -> str:
    """Return the report as text, from committed files alone."""
    preset = params.load(root / f"presets/{PRESET}.yaml")
    runs = runs_of(root, preset)
    if not runs:
        return f"No run of presets/{PRESET}.yaml has been made yet.\n"
    text = table(runs, preset, root) + "\n"
    path = root / RESULTS / "full_scale.json"
    if path.exists():
        text += against(runs, files.read_json(path)) + "\n"
    first, processors = runs[0].metrics, " and ".join(sorted({run.cost["cpu"] for run in runs}))
    costs = root / RESULTS / COST
    measured = f", on {files.read_json(costs)['cpu']}" if costs.exists() else ""
    text += highest(runs) + order(runs)
    if missing := [method for method in preset.methods if method not in by_method(runs)]:
        text += f"Not run yet: {', '.join(missing)}. "
    return text + (
        f"{first['architectures']} architectures; predicted on the {first['split']} split; best true accuracy among "
        f"them {percent(max(float(r['reference']) for r in runs[0].rows))} %. Every method sends about 12 million "
        'images through sub-models, a mixture of five operators counting five times; "best predicted" and '
        '"own choice" are trained alone as the references were, test accuracy, mean over their seeds. One thread '
        f"per run, on {processors}; hours of the processor and memory of the process are measured on a part of each "
        f"training, one after the other{measured} (benchmarks/table1_cost.py). Files: {RESULTS} and "
        f"{FOLDER / SHARED}; made by benchmarks/cifar10_cpu.py and benchmarks/table1_report.py.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full-scale", type=Path, help=f"a CSV file with columns {', '.join(COLUMNS)}")
    parser.add_argument("--architecture", default="arch", help="its column of architecture strings")
    arguments = parser.parse_args()
    runs = runs_of(ROOT, params.load(ROOT / f"presets/{PRESET}.yaml"))
    if arguments.full_scale and runs:
        found = full_scale(runs, arguments.full_scale, arguments.architecture)
        files.write_json(ROOT / RESULTS / "full_scale.json", found)
    if runs:
        (ROOT / RESULTS).mkdir(parents=True, exist_ok=True)
        draw_taus(ROOT / RESULTS, runs, "CIFAR-10 at 16x16, about 12 million images each")
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        files.write_text(ROOT / page, replaced(text, PRESET, block(ROOT)))


if __name__ == "__main__":
    with told("table1_report"):
        main()
