"""How well a predicted ranking agrees with the true one (paper sec. 4.2 and App. B).

Accuracies are float64 arrays [A] in percent, one entry per architecture, the same order in both arrays. No
measure depends on that order, except that the bootstrap draws rows by their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from sumnas.seeding import numpy_stream

Floats = NDArray[np.float64]
"""A value per architecture [A], or per draw and architecture [draws, A]."""
Flat = dict[str, float | int | str | None]
"""A JSON object without levels: what engines and MLflow show as columns."""
Weights = NDArray[np.float32]
"""Multiplicities [draws, A]: whole numbers, whose sums are exact in single precision up to 2**24."""

PAIRS_AT_ONCE = 2**22
"""Pairs of architectures held in memory at a time: the 15,625 of NAS-Bench-201 make 244 million."""


class RankingSettings(BaseModel):
    """Block `ranking`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    top_k: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(1, 5, 10), description="K of the measures at the top of the ranking"
    )
    bootstrap: int = Field(default=1000, ge=100, description="resamples of the architectures for an interval")
    round_to: float = Field(
        default=0.1, gt=0, allow_inf_nan=False, description="percent points: grid of the rounded references"
    )
    seed: int = Field(default=0, ge=0, description="of the resampling")


@dataclass(frozen=True)
class Measure:
    """A value with its 95 % interval from `low` to `high`, or None with the reason why there is no number.

    Where there is no value, or no draw that has one, there is no interval: both ends are None.
    `dropped` counts the draws that the interval leaves out because they are constant and have no tau.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None
    dropped: int = 0


def check(rankings: Mapping[str, Floats]) -> None:
    """ValueError, by name, where an array is not [A], differs in length or has a non-finite entry."""
    shapes = {name: np.shape(values) for name, values in rankings.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"one entry per architecture each, but the shapes are {shapes}")
    for name, values in rankings.items():
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise ValueError(f"{name}[{bad[0]}] is {values[bad[0]]}: it has no rank")


def undefined(reference: Floats, predicted: Floats) -> str | None:
    """Return why no rank correlation of these finite arrays exists, or None where it does."""
    if len(reference) < 2:
        return "fewer than two architectures"
    for name, values in (("references", reference), ("predictions", predicted)):
        if (values == values[0]).all():
            return f"all {name} are equal"
    return None


def tau_a(x: Floats, y: Floats) -> float | None:
    """Return (concordant - discordant) / all pairs, formula 6 of App. B; a pair tied in x or y is neither.

    None where one array is constant (the formula's 0 would read as a measured one) or below two entries;
    ValueError for an entry that is not finite.
    """
    check({"x": x, "y": y})
    if undefined(x, y):
        return None
    excess = sum(int(np.sum(_signs(x, rows) * _signs(y, rows), dtype=np.int64)) for rows in _chunks(len(x)))
    return excess / (len(x) * (len(x) - 1))  # both count every pair twice


def tau_b(x: Floats, y: Floats) -> float | None:
    """Return Kendall's tau-b, which takes ties out of the denominator; None and ValueError as for `tau_a`."""
    check({"x": x, "y": y})
    if undefined(x, y):
        return None
    from scipy.stats import kendalltau

    return float(kendalltau(x, y).statistic)


def spearman(x: Floats, y: Floats) -> float | None:
    """Return Spearman's rho, ties given their mean rank; None and ValueError as for `tau_a`."""
    check({"x": x, "y": y})
    if undefined(x, y):
        return None
    from scipy.stats import rankdata

    # Not spearmanr, whose p-value divides by zero for two entries.
    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])


def resample(count: int, draws: int, rng: np.random.Generator) -> Weights:
    """Return [draws, count]: how often each of `count` architectures is in each bootstrap resample."""
    return rng.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float32)


def resampled_tau(x: Floats, y: Floats, weights: Weights) -> Floats:
    """Return tau-b [draws] of the resamples `weights` [draws, A]; NaN where a resample is constant.

    With S the products of the signs of all pairs, (concordant - discordant) is w'Sw / 2. Two copies of an
    architecture are a pair tied in both arrays, as in tau-b of the resample written out. All sums are of
    whole numbers, hence exact and the same on every machine.
    """
    excess = np.zeros(len(weights))
    for rows in _chunks(len(x)):
        signs = (_signs(x, rows) * _signs(y, rows)).astype(np.float32)
        excess += np.einsum("da,da->d", weights @ signs.T, weights[:, rows], dtype=np.float64)
    denominator = np.sqrt(_untied(x, weights) * _untied(y, weights))
    return np.where(denominator > 0, excess / np.maximum(denominator, 1), np.nan)  # it is 0 or at least 1


def measured(value: float, draws: Floats) -> Measure:
    """Return `value` with the 95 % percentile interval of the draws that are numbers; the rest is dropped."""
    kept = draws[np.isfinite(draws)]
    low, high = np.percentile(kept, [2.5, 97.5]).tolist() if len(kept) else (None, None)
    return Measure(value, low, high, dropped=len(draws) - len(kept))


def kendall(reference: Floats, predicted: Floats, settings: RankingSettings) -> Measure:
    """Return tau-b with its bootstrap interval over architectures; ValueError for a non-finite entry."""
    check({"reference": reference, "predicted": predicted})
    value = tau_b(reference, predicted)
    if value is None:
        return Measure(None, reason=undefined(reference, predicted))
    weights = resample(len(reference), settings.bootstrap, numpy_stream(settings.seed, "bootstrap"))
    return measured(value, resampled_tau(reference, predicted, weights))


def paired_bootstrap(
    reference: Floats, predicted_a: Floats, predicted_b: Floats, settings: RankingSettings
) -> Measure:  # fmt: skip
    """Return tau-b(reference, a) - tau-b(reference, b), its interval from the same resamples for both.

    ValueError for a non-finite entry. A resample is dropped where either tau does not exist.
    """
    check({"reference": reference, "predicted_a": predicted_a, "predicted_b": predicted_b})
    a, b = tau_b(reference, predicted_a), tau_b(reference, predicted_b)
    if a is None or b is None:
        return Measure(None, reason=undefined(reference, predicted_a) or undefined(reference, predicted_b))
    weights = resample(len(reference), settings.bootstrap, numpy_stream(settings.seed, "bootstrap"))
    draws = resampled_tau(reference, predicted_a, weights) - resampled_tau(reference, predicted_b, weights)
    return measured(a - b, draws)


def top(reference: Floats, predicted: Floats, k: int) -> NDArray[np.intp]:
    """Return the indices [K] of the predicted top K, best first; ValueError unless K is in 1..A.

    Of equal predictions the one with the worst reference comes first. Table order would leak the truth where
    a table is sorted by it; the worst case depends on no order, and no predictor gains by predicting ties.
    """
    check({"reference": reference, "predicted": predicted})
    if not 1 <= k <= len(reference):
        raise ValueError(f"top {k} of {len(reference)} architectures")
    return np.lexsort((reference, -predicted))[:k]


def true_ranks(reference: Floats) -> NDArray[np.intp]:
    """Return 1-based ranks [A], the best accuracy first; equal accuracies share the best of their ranks."""
    return np.asarray(1 + len(reference) - np.searchsorted(np.sort(reference), reference, side="right"))


def precision_at_k(reference: Floats, predicted: Floats, k: int) -> float:
    """Return the share of the predicted top K with a true rank of K or better, 0 to 1."""
    return float((true_ranks(reference)[top(reference, predicted, k)] <= k).mean())


def best_rank_at_k(reference: Floats, predicted: Floats, k: int) -> int:
    """Return BR@K, the best true rank in the predicted top K; 1 is the best of all."""
    return int(true_ranks(reference)[top(reference, predicted, k)].min())


def worst_rank_at_k(reference: Floats, predicted: Floats, k: int) -> int:
    """Return WR@K, the worst true rank in the predicted top K."""
    return int(true_ranks(reference)[top(reference, predicted, k)].max())


def regret_at_k(reference: Floats, predicted: Floats, k: int) -> float:
    """Return the best accuracy of all minus the best in the predicted top K, in percent points."""
    return float(reference.max() - reference[top(reference, predicted, k)].max())


def rank_measures(reference: Floats, predicted: Floats, settings: RankingSettings) -> Flat:
    """Return every measure, JSON-ready. Undefined ones are None, with a reason; K above A are left out."""
    tau = kendall(reference, predicted, settings)
    result: Flat = {
        "architectures": len(reference),
        "kendall_tau": tau.value,
        "kendall_tau_low": tau.low,
        "kendall_tau_high": tau.high,
        "kendall_tau_reason": tau.reason,
        "kendall_tau_a": tau_a(reference, predicted),
        "kendall_tau_rounded": tau_b(np.round(reference / settings.round_to), predicted),
        "spearman_rho": spearman(reference, predicted),
    }
    for k in settings.top_k:
        if k <= len(reference):
            result[f"precision_at_{k}"] = precision_at_k(reference, predicted, k)
            result[f"best_rank_at_{k}"] = best_rank_at_k(reference, predicted, k)
            result[f"worst_rank_at_{k}"] = worst_rank_at_k(reference, predicted, k)
            result[f"regret_at_{k}"] = regret_at_k(reference, predicted, k)
    return result


def predictors(reference: Floats, costs: Mapping[str, Floats], settings: RankingSettings) -> Flat:
    """Return tau-b and its interval for each trivial predictor [A], by name: what any method has to beat."""
    result: Flat = {}
    for name, values in costs.items():
        check({"reference": reference, name: values})
        tau, key = kendall(reference, values, settings), f"{name}_kendall_tau"
        result |= {key: tau.value, f"{key}_low": tau.low, f"{key}_high": tau.high}
    return result


def further_measures(truths: Mapping[str, Floats], predicted: Mapping[str, Floats], settings: RankingSettings) -> Flat:
    """Return tau-b and its interval of every predictor [A] against every further truth [A], by their names.

    A truth is not a number where it is not known: that architecture is left out. Keys are
    `<predictor>kendall_tau_on_<truth>`; a predictor's name may be empty, or ends with `_`.
    """
    result: Flat = {}
    for name, truth in truths.items():
        known = np.isfinite(truth)
        result[f"architectures_on_{name}"] = int(known.sum())
        for prefix, values in predicted.items():
            tau, key = kendall(truth[known], values[known], settings), f"{prefix}kendall_tau_on_{name}"
            result |= {key: tau.value, f"{key}_low": tau.low, f"{key}_high": tau.high}
    return result


def _chunks(count: int) -> Iterator[slice]:
    """Cut the rows of a [count, count] matrix into pieces of about PAIRS_AT_ONCE entries."""
    rows = max(1, PAIRS_AT_ONCE // count)
    return (slice(start, start + rows) for start in range(0, count, rows))


def _signs(values: Floats, rows: slice) -> NDArray[np.int8]:
    """Return sign(v_i - v_j) [rows, A]; compared, not subtracted, which could overflow."""
    column = values[rows, None]
    return (column > values).view(np.int8) - (column < values).view(np.int8)


def _untied(values: Floats, weights: Weights) -> Floats:
    """Return [draws]: ordered pairs of each resample that are not tied, from the sizes of tied groups."""
    order = np.argsort(values)
    groups = np.flatnonzero(np.append(True, values[order][1:] != values[order][:-1]))
    sizes = np.add.reduceat(weights[:, order], groups, axis=1).astype(np.float64)
    return np.asarray(weights.sum(1, dtype=np.float64) ** 2 - (sizes**2).sum(1))
