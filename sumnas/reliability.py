"""How good a predictor can be at all, references being noisy (method sec. 5)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sumnas.ranking import Measure, interval, tau_b

Floats = NDArray[np.float64]
ONE_SEED = "references of a single seed tell nothing about their noise"


def split_half_tau(matrix: Floats, rng: np.random.Generator, splits: int = 200) -> Measure:
    """Return the mean tau-b between the means of two disjoint random halves of the seeds.

    `matrix` is [A, S], accuracies in percent; each half has floor(S/2) seeds, so with odd S one is left out at random.
    The interval is over the splits.
    """
    seeds = matrix.shape[1]
    if seeds < 2:
        return Measure(None, reason=ONE_SEED)
    half = seeds // 2
    values = []
    for _ in range(splits):
        order = rng.permutation(seeds)
        tau = tau_b(matrix[:, order[:half]].mean(1), matrix[:, order[half : 2 * half]].mean(1))
        values.append(np.nan if tau is None else tau)
    return _average(np.array(values))


def perfect_predictor_tau(matrix: Floats, rng: np.random.Generator, draws: int = 200) -> Measure:
    """Return the tau-b that a predictor of every architecture's true mean would reach against the observed mean.

    Simulated. The noise variance s2 of one seed is pooled over architectures; few seeds say too little about one
    alone. Observed means [A] vary by the true variance plus s2/S, so they are shrunk towards their mean until their
    variance is the difference (method of moments): without that the simulated truths are too far apart, and the tau
    too high. Each draw adds N(0, s2/S) to these truths and compares. The interval is over the draws.
    """
    architectures, seeds = matrix.shape
    if seeds < 2:
        return Measure(None, reason=ONE_SEED)
    means = matrix.mean(1)
    noise = float(matrix.var(1, ddof=1).mean()) / seeds
    observed = float(means.var(ddof=1))
    if observed <= noise:
        return Measure(None, reason="the references differ by no more than their noise")
    truth = means.mean() + (means - means.mean()) * np.sqrt((observed - noise) / observed)
    taus = [tau_b(truth, truth + rng.normal(0, np.sqrt(noise), architectures)) for _ in range(draws)]
    return _average(np.array([np.nan if tau is None else tau for tau in taus]))


def _average(values: Floats) -> Measure:
    if not np.isfinite(values).any():
        return Measure(None, reason="all references are equal")
    return Measure(float(np.nanmean(values)), *interval(values))
