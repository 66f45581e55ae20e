"""How well a predicted ranking agrees with the true one (paper sec. 4.2, App. B; method sec. 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from sumnas import seeding

Floats = NDArray[np.float64]


class RankingSettings(BaseModel):
    """Block `ranking`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    top_k: tuple[int, ...] = Field((1, 5, 10), description="K of the measures at the top of the ranking")
    bootstrap: int = Field(1000, ge=100, description="resamples of the architectures for an interval")
    round_to: float = Field(0.1, gt=0, description="percent points that references are rounded to for a second tau")
    seed: int = Field(0, ge=0)


@dataclass(frozen=True)
class Measure:
    """A value with its 95 % interval, or None with the reason why there is no number."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


def undefined(x: Floats, y: Floats) -> str | None:
    """Return why no rank correlation exists, or None. ValueError names an entry that is not finite."""
    for name, values in (("first", x), ("second", y)):
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise ValueError(f"the {name} ranking has {values[bad[0]]} at index {bad[0]}: it has no rank")
    if len(x) != len(y):
        raise ValueError(f"rankings of {len(x)} and {len(y)} architectures")
    if len(x) < 2:
        return "fewer than two architectures"
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return f"all {'references' if np.ptp(x) == 0 else 'predictions'} are equal"
    return None


def tau_a(x: Floats, y: Floats) -> float | None:
    """Return (concordant - discordant) / all pairs, formula 6; a tied pair is neither. None below two entries."""
    if len(x) < 2:
        return None
    total = 0.0
    for start in range(0, len(x), 512):  # rows in chunks: the whole matrix of signs would be gigabytes
        rows = slice(start, start + 512)
        signs = np.sign(x[rows, None] - x[None, :]) * np.sign(y[rows, None] - y[None, :])
        total += float(signs.sum())
    return total / (len(x) * (len(x) - 1))


def tau_b(x: Floats, y: Floats) -> float | None:
    """Return Kendall's tau with ties taken out of the denominator; None where it is undefined."""
    if undefined(x, y):
        return None
    from scipy.stats import kendalltau

    return float(kendalltau(x, y).statistic)


def spearman(x: Floats, y: Floats) -> float | None:
    """Return Spearman's rho; None where it is undefined."""
    if undefined(x, y):
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(x, y).statistic)


def resample(count: int, draws: int, rng: np.random.Generator) -> Floats:
    """Return [draws, count]: how often each of `count` architectures is in each bootstrap resample."""
    return rng.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)


def resampled_tau(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Return tau-b [draws] of resamples given as multiplicities [draws, A]; NaN where a resample is constant.

    Copies of one architecture are pairs tied in both rankings, which tau-b leaves out of both denominators.
    """
    signs_x, signs_y = np.sign(x[:, None] - x[None, :]), np.sign(y[:, None] - y[None, :])

    def pairs(matrix: Floats) -> Floats:
        total: Floats = ((weights @ matrix) * weights).sum(1)
        return total

    denominator = np.sqrt(pairs(np.abs(signs_x)) * pairs(np.abs(signs_y)))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(denominator > 0, pairs(signs_x * signs_y) / denominator, np.nan))


def interval(draws: Floats) -> tuple[float | None, float | None]:
    """Return the 95 % percentile interval of the draws that are numbers."""
    kept = draws[np.isfinite(draws)]
    if not len(kept):
        return None, None
    low, high = np.percentile(kept, [2.5, 97.5])
    return float(low), float(high)


def kendall(reference: Floats, predicted: Floats, settings: RankingSettings) -> Measure:
    """Return tau-b with its bootstrap interval over architectures."""
    if reason := undefined(reference, predicted):
        return Measure(None, reason=reason)
    rng = seeding.numpy_stream(settings.seed, "bootstrap")
    draws = resampled_tau(reference, predicted, resample(len(reference), settings.bootstrap, rng))
    return Measure(tau_b(reference, predicted), *interval(draws))


def paired_bootstrap(reference: Floats, predicted_a: Floats, predicted_b: Floats, settings: RankingSettings) -> Measure:
    """Return tau(reference, a) - tau(reference, b), its interval from the same resamples for both."""
    if reason := undefined(reference, predicted_a) or undefined(reference, predicted_b):
        return Measure(None, reason=reason)
    rng = seeding.numpy_stream(settings.seed, "bootstrap")
    weights = resample(len(reference), settings.bootstrap, rng)
    draws = resampled_tau(reference, predicted_a, weights) - resampled_tau(reference, predicted_b, weights)
    first, second = tau_b(reference, predicted_a), tau_b(reference, predicted_b)
    assert first is not None and second is not None
    return Measure(first - second, *interval(draws))


def true_ranks(reference: Floats) -> NDArray[np.int64]:
    """Return 1-based ranks [A], best accuracy first; equal accuracies share the best of their ranks."""
    return np.asarray(1 + (reference[None, :] > reference[:, None]).sum(1), dtype=np.int64)


def top(values: Floats, k: int) -> NDArray[np.int64]:
    """Return the indices of the K highest values; of equal ones the first in the table: a choice blind to truth."""
    return np.argsort(-values, kind="stable")[:k]


def precision_at_k(reference: Floats, predicted: Floats, k: int) -> float:
    """Return the share of the predicted top K that is in the true top K (equal accuracies count as in)."""
    return float((true_ranks(reference)[top(predicted, k)] <= k).mean())


def best_rank_at_k(reference: Floats, predicted: Floats, k: int) -> int:
    """Return BR@K, the best true rank in the predicted top K; 1 is the best of all."""
    return int(true_ranks(reference)[top(predicted, k)].min())


def worst_rank_at_k(reference: Floats, predicted: Floats, k: int) -> int:
    """Return WR@K, the worst true rank in the predicted top K."""
    return int(true_ranks(reference)[top(predicted, k)].max())


def regret_at_k(reference: Floats, predicted: Floats, k: int) -> float:
    """Return the best accuracy of all minus the best in the predicted top K, in percent points."""
    return float(reference.max() - reference[top(predicted, k)].max())


def rank_measures(
    reference: Floats, predicted: Floats, settings: RankingSettings
) -> dict[str, float | int | str | None]:
    """Return every measure, flat and JSON-ready; accuracies in percent [A]. Undefined ones are None, with a reason."""
    tau = kendall(reference, predicted, settings)
    rounded = np.round(reference / settings.round_to) * settings.round_to
    result: dict[str, float | int | str | None] = {
        "architectures": len(reference),
        "kendall_tau": tau.value,
        "kendall_tau_low": tau.low,
        "kendall_tau_high": tau.high,
        "kendall_tau_reason": tau.reason,
        "kendall_tau_a": None if tau.reason else tau_a(reference, predicted),
        "kendall_tau_rounded": tau_b(rounded, predicted),
        "spearman_rho": spearman(reference, predicted),
    }
    for k in settings.top_k:
        if k <= len(reference):
            result[f"precision_at_{k}"] = precision_at_k(reference, predicted, k)
            result[f"best_rank_at_{k}"] = best_rank_at_k(reference, predicted, k)
            result[f"worst_rank_at_{k}"] = worst_rank_at_k(reference, predicted, k)
            result[f"regret_at_{k}"] = regret_at_k(reference, predicted, k)
    return result


def predictors(reference: Floats, costs: Mapping[str, Floats], settings: RankingSettings) -> dict[str, float | None]:
    """Return tau-b with its interval of each trivial predictor, by name: what any method has to beat."""
    result: dict[str, float | None] = {}
    for name, values in costs.items():
        tau = kendall(reference, values, settings)
        result |= {
            f"{name}_kendall_tau": tau.value,
            f"{name}_kendall_tau_low": tau.low,
            f"{name}_kendall_tau_high": tau.high,
        }
    return result
