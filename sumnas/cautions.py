"""What a reader of the results should know before believing them, in plain words and from the numbers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sumnas.shown import BASELINES

FEW_ARCHITECTURES = 50
"""Below this the interval of a tau is about 0.4 wide: most differences between methods are within it."""
NOISY_REFERENCES = 0.9
"""A perfect predictor's tau below which the references' own noise decides much of the ranking."""


def cautions(summary: dict[str, Any]) -> list[str]:
    """Return one sentence for everything in the summary that limits what it shows; empty where nothing does."""
    return [*_setting(summary), *_references(summary), *_methods(summary), *_differences(summary)]


def searches(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return a sentence for every search that a search under a stricter limit beat, from what each run found.

    `found` has by run the entries of its `found.json` (`limit`, None for none, and `predicted` in percent) with a
    `label` each. An architecture under a stricter limit is under the looser one, too: an evolution ended too early.
    """
    texts = []
    for run, entries in found.items():
        for entry in entries:
            limit = float("inf") if entry["limit"] is None else entry["limit"]
            stricter = [e for e in entries if e["limit"] is not None and e["limit"] < limit]
            best = max(stricter, key=lambda e: float(e["predicted"]), default=entry)
            if best["predicted"] > entry["predicted"]:
                texts.append(
                    f"{run}: what the search found {entry['label']} is predicted at {entry['predicted']:.2f} %, less "
                    f"than what it found {best['label']} ({best['predicted']:.2f} %): it ended too early "
                    "(search.generations, search.population)."
                )
    return texts


def _setting(summary: dict[str, Any]) -> list[str]:
    found = []
    if (count := summary["architectures"]) < FEW_ARCHITECTURES:
        found.append(
            f"Only {count} architectures are ranked; with fewer than {FEW_ARCHITECTURES} a Kendall tau is so uncertain "
            "that most differences between methods are within its interval."
        )
    if summary["split"] == "test":
        found.append(
            "Predicted on the test split, as the true accuracies are: images that are hard by chance are so for both, "
            "and the taus are too high for a search that may not see the test split."
        )
    if len(summary["seeds"]) == 1:
        found.append("One supernet per method: how much the taus vary from one training to the next is not known.")
    return found


def _references(summary: dict[str, Any]) -> list[str]:
    references = summary["references"]
    perfect, seeds = references["perfect_tau"], references["reference_seeds"]
    if perfect is None:
        why = "each was trained once" if seeds < 2 else "they differ by no more than their noise"
        return [f"How noisy the true accuracies are cannot be told ({why}), nor what a perfect predictor would reach."]
    if perfect < NOISY_REFERENCES:
        return [
            f"The true accuracies are noisy (mean of {seeds} trainings): even a perfect predictor would only reach a "
            f"tau of {perfect:.3f}, less than {NOISY_REFERENCES}."
        ]
    return []


def _methods(summary: dict[str, Any]) -> list[str]:
    found = []
    macs, label = summary["baselines"]["macs"][""], BASELINES["macs"]
    for name, method in summary["methods"].items():
        if method["kendall_tau"] is None:
            found.append(f"{name} has no Kendall tau: {method['kendall_tau_reason']}.")
            continue
        low, high = method["kendall_tau_low"], method["kendall_tau_high"]
        if None in (macs, low, high) or low > macs:
            continue
        if high < macs:
            found.append(f"{name} ranks worse than {label}: its interval lies below their tau of {macs:.3f}.")
        else:
            found.append(
                f"{name} is not shown to rank better than {label}: its interval [{low:.3f}, {high:.3f}] includes "
                f"their tau of {macs:.3f}."
            )
    return found


def _differences(summary: dict[str, Any]) -> list[str]:
    known = [d for d in summary["differences"] if None not in (d["_low"], d["_high"])]
    if known and all(d["_low"] <= 0 <= d["_high"] for d in known):
        return ["No two methods are shown to differ: every paired interval of the difference of their taus includes 0."]
    return []
