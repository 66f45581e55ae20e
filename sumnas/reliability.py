"""How good a predictor can be at all, where every reference was trained with several seeds (sec. 4.2).

The paper asks only for references that are far enough apart; here their noise is measured. `matrix` is
[A, S]: the accuracies in percent of A architectures, trained with S seeds each.
"""

from __future__ import annotations

import numpy as np

from sumnas.ranking import Floats, Measure, measured, tau_b

ONE_SEED = "references of a single seed tell nothing about their noise"
"""Why there is no number where S is 1."""


def split_half_tau(matrix: Floats, rng: np.random.Generator, splits: int = 200) -> Measure:
    """Return the mean tau-b between the means of two disjoint random halves of the seeds of `matrix` [A, S].

    A half has floor(S/2) seeds: one is left out at random where S is odd. The mean of all S seeds is more
    reliable than such a half. The interval is over the splits, of which those with a constant half are
    dropped. ValueError for an entry that is not finite.
    """
    if reason := _unusable(matrix):
        return Measure(None, reason=reason)
    seeds = matrix.shape[1]
    half = seeds // 2
    taus = []
    for _ in range(splits):
        order = rng.permutation(seeds)
        taus.append(tau_b(_means(matrix[:, order[:half]]), _means(matrix[:, order[half : 2 * half]])))
    return _average(taus)


def perfect_predictor_tau(matrix: Floats, rng: np.random.Generator, draws: int = 200) -> Measure:
    """Return the tau-b that a predictor that knows all true means would reach against the S-seed means.

    The truth is not known, so it is simulated from `matrix` [A, S]:

    1. s2 is the variance between seeds, pooled over architectures: S seeds alone say too little about one. A shift
       that a seed gives to all architectures alike is taken out before.
    2. The observed means vary by the true variance plus s2/S. By the method of moments the true variance is
       therefore their variance less s2/S. The means are shrunk towards the grand mean until they have it,
       and are then taken for the truth. Not shrunk, they are too far apart and the tau comes out too high.
    3. Each draw adds noise of N(0, s2/S) to the truth and takes tau-b between the truth and the sum.

    The value is the mean over the draws, the interval theirs: it does not cover the uncertainty of s2. Noise
    is assumed normal and of one variance. No number where the means vary by no more than their noise.
    ValueError for an entry that is not finite.
    """
    if reason := _unusable(matrix):
        return Measure(None, reason=reason)
    architectures, seeds = matrix.shape
    means = _means(matrix)
    # What a seed adds to all architectures alike changes no rank and is no noise: only the rest counts.
    rest = matrix - matrix.mean(axis=1, keepdims=True) - matrix.mean(axis=0) + matrix.mean()
    noise = float((rest**2).sum()) / ((architectures - 1) * (seeds - 1)) / seeds
    observed = float(means.var(ddof=1))
    if observed <= noise:
        return Measure(None, reason="the references differ by no more than their noise")
    truth = means.mean() + (means - means.mean()) * np.sqrt(1 - noise / observed)
    errors = rng.normal(0, np.sqrt(noise), (draws, architectures))
    return _average([tau_b(truth, truth + error) for error in errors])


def _unusable(matrix: Floats) -> str | None:
    """Return why there is no number, or None; ValueError names an entry that is not finite."""
    if matrix.ndim != 2:
        raise ValueError(f"matrix has shape {matrix.shape}, must be [architectures, seeds]")
    bad = np.argwhere(~np.isfinite(matrix)).tolist()
    if bad:
        raise ValueError(f"matrix{bad[0]} is {matrix[tuple(bad[0])]}: it is no accuracy")
    if matrix.shape[1] < 2:
        return ONE_SEED
    return "fewer than two architectures" if len(matrix) < 2 else None


def _means(matrix: Floats) -> Floats:
    """Return the means [A], rounded, so that sums in another order do not tell equal means apart."""
    return np.asarray(np.round(matrix.mean(axis=1), 9))


def _average(taus: list[float | None]) -> Measure:
    """Return the mean and the interval of the draws that have a tau."""
    values = np.array([np.nan if tau is None else tau for tau in taus])
    if np.isnan(values).all():
        return Measure(None, reason="all references are equal", dropped=len(values))
    return measured(float(np.nanmean(values)), values)
