"""Figures that only some summaries have: against further accuracies, the methods' own choices, of all sub-models.

Every function gives nothing where the runs have none of them, so that a summary without them does not speak of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sumnas.shown import interval, number, percent, with_spread

Ranking = Mapping[str, Any]
"""What the stage rank wrote about one run."""


def further_names(ranking: Ranking) -> list[str]:
    """Return the names of the further accuracies that a run was ranked against."""
    return [key.removeprefix("architectures_on_") for key in ranking if key.startswith("architectures_on_")]


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean, or None where a value is not known."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def std(values: Sequence[float | None]) -> float | None:
    """Return the standard deviation over several seeds, or None where there is one, or a value is not known."""
    known = [value for value in values if value is not None]
    return float(np.std(known, ddof=1)) if len(known) == len(values) > 1 else None


def of_method(rankings: Sequence[Ranking]) -> dict[str, Any]:
    """Return by key what the runs of one method have: taus against further accuracies, and its own choices.

    A tau comes with the ends of its interval (`_low`, `_high`) and its spread over seeds (`_std`). Own choices have the
    architecture of every seed, accuracies (percent, and the reason where there is none), MACs and parameters
    (millions). Numbers are means over seeds, None where one of them is not known.
    """
    found: dict[str, Any] = {}
    for name in further_names(rankings[0]):
        key = f"kendall_tau_on_{name}"
        found |= {key + end: mean([r[key + end] for r in rankings]) for end in ("", "_low", "_high")}
        found[f"{key}_std"] = std([r[key] for r in rankings])
    if any("derived_architecture" in r for r in rankings):
        accuracies = [r.get("derived_accuracy") for r in rankings]
        found |= {
            "derived_architectures": [r.get("derived_architecture") for r in rankings],
            "derived_accuracy": mean(accuracies),
            "derived_accuracy_std": std(accuracies),
            "derived_accuracy_reason": next(filter(None, (r.get("derived_accuracy_reason") for r in rankings)), None),
            "derived_macs": mean([r.get("derived_macs") for r in rankings]),
            "derived_params": mean([r.get("derived_params") for r in rankings]),
        }
        for name in further_names(rankings[0]):
            key = f"derived_accuracy_on_{name}"
            found[key] = mean([r.get(key) for r in rankings])
    return found


def of_scores(founds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean and spread of all sub-models' accuracies, where searches were exhaustive: means over seeds."""
    scores = [found["scores"] for found in founds if "scores" in found]
    if not scores or len(scores) < len(founds):
        return {}
    return {
        "scores_count": scores[0]["count"],
        "scores_mean": mean([s["mean"] for s in scores]),
        "scores_std": mean([s["std"] for s in scores]),
    }


def of_baseline(ranking: Ranking, baseline: str) -> dict[str, Any]:
    """Return a trivial predictor's taus against further accuracies."""
    return {
        f"_on_{name}{end}": ranking[f"{baseline}_kendall_tau_on_{name}{end}"]
        for name in further_names(ranking)
        for end in ("", "_low", "_high")
    }


def headings(summary: Mapping[str, Any]) -> list[str]:
    """Return the headings of the further columns of the table of methods."""
    names = [f"tau on {name}" for name in summary.get("further", ())]
    names += ["own choice: true (%)"] * _any_own_choice(summary)
    return names + ["all sub-models' accuracy (%)"] * any_scores(summary)


def cells(summary: Mapping[str, Any], method: Mapping[str, Any]) -> list[str]:
    """Return one method's cells under `headings`, in their order."""
    found = []
    for name in summary.get("further", ()):
        key = f"kendall_tau_on_{name}"
        text = with_spread(number(method[key]), method[f"{key}_std"], 3)
        found.append(f"{text} {interval(dict(method), key)}")
    if _any_own_choice(summary):
        own = "derived_architectures" in method
        found.append(with_spread(percent(method["derived_accuracy"]), method["derived_accuracy_std"], 2) if own else "")
    if any_scores(summary):
        known = "scores_mean" in method
        found.append(f"{percent(method['scores_mean'])} (spread {percent(method['scores_std'])})" if known else "")
    return found


def baseline_cells(summary: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[str]:
    """Return a trivial predictor's cells under `headings`, in their order."""
    found = [
        f"{number(baseline[f'_on_{name}'])} {interval(dict(baseline), f'_on_{name}')}"
        for name in summary.get("further", ())
    ]
    return found + [""] * (_any_own_choice(summary) + any_scores(summary))


def notes(summary: Mapping[str, Any]) -> str:
    """Return what is to be known of the further columns."""
    text = ""
    for name, count in summary.get("further", {}).items():
        text += f" {name}: {count} of the architectures have that accuracy."
    if _any_own_choice(summary):
        text += (
            ' "own choice" is the architecture that a training itself ended with, without a ranking (-: not in the '
            "table; empty: the method makes none); metrics.json has its string and costs."
        )
    if any_scores(summary):
        counts = sorted({m["scores_count"] for m in summary["methods"].values() if "scores_count" in m})
        text += (
            f' "all sub-models" are the {" or ".join(map(str, counts))} that an exhaustive search scored; "sub-model '
            'accuracy" is of the ranked ones.'
        )
    return text


def any_scores(summary: Mapping[str, Any]) -> bool:
    """Whether some method has the accuracies of all sub-models."""
    return any("scores_mean" in method for method in summary["methods"].values())


def _any_own_choice(summary: Mapping[str, Any]) -> bool:
    return any("derived_architectures" in method for method in summary["methods"].values())
