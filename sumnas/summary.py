"""The runs side by side: means and spreads over seeds, paired differences, what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sumnas import columns
from sumnas.columns import mean, std
from sumnas.ranking import RankingSettings, paired_bootstrap
from sumnas.shown import BASELINES, interval, number, percent, row, with_spread

SETTINGS = RankingSettings()
"""Of the paired bootstrap: 1000 resamples."""


@dataclass(frozen=True)
class Run:
    """What the stages wrote about one run: rank's metrics and predictions, search's and retrain's results."""

    method: str
    """Its name under `methods` in the settings."""
    seed: int
    """That of the supernet, one of `run.seeds`."""
    ranking: dict[str, Any]
    """rank's metrics.json: measures by name, accuracies in percent."""
    found: dict[str, Any]
    """search's found.json, whose own `found` has an entry per limit."""
    retrain: dict[str, Any]
    predictions: list[dict[str, str]]


def summarize(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the summary of exactly these runs, JSON-ready."""
    first = runs[0].ranking
    methods = {name: _method([r for r in runs if r.method == name]) for name in dict.fromkeys(r.method for r in runs)}
    further = {name: first[f"architectures_on_{name}"] for name in columns.further_names(first)}
    keys = ("reference_seeds", "reliability_tau", "perfect_tau", "perfect_tau_low", "perfect_tau_high")
    return {
        "architectures": first["architectures"],
        "split": first["split"],
        "seeds": sorted({r.seed for r in runs}),
        "methods": methods,
        "differences": _differences(runs),
        "baselines": {
            b: {k: first[f"{b}_kendall_tau{k}"] for k in ("", "_low", "_high")} | columns.of_baseline(first, b)
            for b in BASELINES
        },
        **({"further": further} if further else {}),
        "references": {key: first[key] for key in keys},
        "benchmark_best": runs[0].found["benchmark_best"],
        "settings_digests": {r.ranking["run"]: r.ranking["settings_digest"] for r in runs},
    }


def taus(summary: dict[str, Any]) -> list[tuple[str, float, float, float]]:
    """Return (label, tau, low, high) for the figure: methods, then the trivial predictors, then the ceiling."""
    rows = [
        (name, m["kendall_tau"], m["kendall_tau_low"], m["kendall_tau_high"]) for name, m in summary["methods"].items()
    ]
    rows += [(BASELINES[name], b[""], b["_low"], b["_high"])
             for name, b in summary["baselines"].items()]  # fmt: skip
    references = summary["references"]
    rows.append(("perfect predictor", *(references[f"perfect_tau{k}"] for k in ("", "_low", "_high"))))
    return [row for row in rows if None not in row]


def overview(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the few figures by which two experiments are told apart, by method: what DVC shows as columns."""
    return {
        name: {"tau": m["kendall_tau"], "low": m["kendall_tau_low"], "high": m["kendall_tau_high"],
               "true": m["found"][-1]["benchmark_accuracy"], "retrained": m["found"][-1]["retrained_accuracy"]}
        for name, m in summary["methods"].items()
    }  # fmt: skip


def markdown(summary: dict[str, Any]) -> str:
    """Return the summary as tables to read."""
    seeds = summary["seeds"]
    references = summary["references"]
    limits = [e["label"] for e in next(iter(summary["methods"].values()))["found"]]
    header = ["method", "Kendall tau", "95 % interval", "Spearman", "sub-model accuracy (%)"]
    header += [f"found {limit}: true / retrained (%)" for limit in limits] + columns.headings(summary)
    lines = [row(header), row(["---"] * len(header))]
    for name, m in summary["methods"].items():
        cells = [name, with_spread(number(m["kendall_tau"]), m["kendall_tau_std"], 3), interval(m, "kendall_tau")]
        cells.append(number(m["spearman_rho"]))
        cells.append(f"{m['submodel_accuracy_mean']:.2f} (spread {m['submodel_accuracy_std']:.2f})")
        cells += [f"{_accuracy(e)} / {percent(e['retrained_accuracy'])}" for e in m["found"]]
        cells += columns.cells(summary, m)
        lines.append(row(cells))
    for name, label in BASELINES.items():
        b = summary["baselines"][name]
        cells = [f"*{label}*", number(b[""]), interval(b, ""), "", "", *[""] * len(limits)]
        lines.append(row(cells + columns.baseline_cells(summary, b)))
    oracle = [f"{percent(e['benchmark_best'])} / " for e in next(iter(summary["methods"].values()))["found"]]
    lines.append(row(["*best in the table*", "", "", "", "", *oracle, *[""] * len(columns.headings(summary))]))
    text = "\n".join(lines) + "\n\n"
    text += (
        f"{summary['architectures']} architectures; predicted on the {summary['split']} split; supernet seeds "
        f"{seeds}. References: {references['reference_seeds']} seed{'s' * (references['reference_seeds'] != 1)} each; "
        f"{_noise(references)}. Best true accuracy in the table: {summary['benchmark_best']:.2f} %. "
        '"true" is the table\'s accuracy where the architecture is in it (-: it is not), "retrained" the test '
        f"accuracy after training from scratch.{columns.notes(summary)}\n"
    )
    if summary["differences"]:
        text += "\n" + row(["paired difference of tau", "value", "95 % interval"]) + "\n" + row(["---"] * 3) + "\n"
        for d in summary["differences"]:
            text += row([f"{d['of']} - {d['minus']}", number(d["value"]), interval(d, "")]) + "\n"
    return text


def _noise(references: dict[str, Any]) -> str:
    """Say how well the references rank by themselves, as far as it is known: those of one seed do not tell."""
    half, perfect = references["reliability_tau"], references["perfect_tau"]
    if half is None and perfect is None:
        return "how noisy they are is not known"
    return (
        f"split-half tau {number(half)}; a perfect predictor would reach tau {number(perfect)} "
        f"{interval(references, 'perfect_tau')}"
    )


def _method(runs: Sequence[Run]) -> dict[str, Any]:
    """Return one method's figures: means over its seeds, and the spread where there are several."""
    result: dict[str, Any] = {
        key: mean([r.ranking[key] for r in runs])
        for key in (
            "kendall_tau", "kendall_tau_low", "kendall_tau_high", "kendall_tau_a", "spearman_rho",
            "submodel_accuracy_mean", "submodel_accuracy_std",
        )
    }  # fmt: skip
    result["kendall_tau_std"] = std([r.ranking["kendall_tau"] for r in runs])
    reasons = [r.ranking["kendall_tau_reason"] for r in runs]
    result["kendall_tau_reason"] = next((reason for reason in reasons if reason), None)
    result |= columns.of_method([r.ranking for r in runs])
    result |= columns.of_scores([r.found for r in runs])
    result["seeds"] = [r.seed for r in runs]
    result["found"] = []
    for index, entry in enumerate(runs[0].found["found"]):
        entries = [r.found["found"][index] for r in runs]
        trained = [retrained(r, e["architecture"]) for r, e in zip(runs, entries, strict=True)]
        result["found"].append(
            {
                "limit": entry["limit"],
                "label": limit_label(entry["limit"], runs[0].found["cost"]),
                "architectures": [e["architecture"] for e in entries],
                "macs": [e["macs"] for e in entries],
                "benchmark_accuracy": mean([e["benchmark_accuracy"] for e in entries]),
                "benchmark_accuracy_std": std([e["benchmark_accuracy"] for e in entries]),
                "benchmark_best": entry["benchmark_best"],
                "retrained_accuracy": mean(trained),
            }
        )
    return result


def _differences(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the paired bootstrap of every later method minus the first listed ones, seed by seed averaged."""
    names = list(dict.fromkeys(r.method for r in runs))
    columns = {}
    for name in names:
        rows = [[float(p["predicted"]) for p in r.predictions] for r in runs if r.method == name]
        columns[name] = np.mean(rows, axis=0)  # of several seeds the mean prediction is compared
    reference = np.array([float(p["reference"]) for p in runs[0].predictions])
    result = []
    for later, of in enumerate(names):
        for minus in names[:later]:
            difference = paired_bootstrap(reference, columns[of], columns[minus], SETTINGS)
            entry = {"of": of, "minus": minus, "value": difference.value}
            result.append({**entry, "_low": difference.low, "_high": difference.high})
    return result


def retrained(run: Run, architecture: str, key: str = "test_accuracy") -> float | None:
    """Return the test accuracy (percent), or another figure, of an architecture trained from scratch, where it was."""
    return next((n.get(key) for n in run.retrain["networks"] if n["architecture"] == architecture), None)


def _accuracy(entry: dict[str, Any]) -> str:
    """Return the mean true accuracy of what was found, with its spread over seeds where there are several."""
    return with_spread(percent(entry["benchmark_accuracy"]), entry["benchmark_accuracy_std"], 2)


def limit_label(limit: float | None, cost: str) -> str:
    """Return a limit in words, such as `< 0.3M MACs`; `cost` is the name of what is limited."""
    unit = {"macs": "M MACs", "params": "M parameters"}.get(cost, f" {cost}")
    return "without limit" if limit is None else f"< {limit:g}{unit}"
