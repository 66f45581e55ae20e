"""Architectures evenly spaced in MACs of a space that is too large to go through (sec. 4.3)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sumnas.sampling import Accept, Architecture, CannotSample

DRAWS = 1_000
"""Random architectures of which a target gets the nearest one."""
STEPS = 200
"""Halvings in the search for a tilt."""


def draw_spaced(
    costs: NDArray[np.float64], base: float, count: int, rng: np.random.Generator, accept: Accept
) -> list[Architecture]:
    """Return `count` distinct architectures at even steps from the smallest to the largest MACs, ascending.

    `costs` [layers, candidates] and `base` are additive, in any unit. Uniform draws would crowd around the middle. So
    the operators of a target's draws have probabilities proportional to exp(tilt x cost), with the tilt that makes the
    mean the target: of all distributions with that mean the one of largest entropy. The nearest of many draws is
    taken. Equal generator states give equal lists. CannotSample (a ValueError) where too few distinct ones are found.
    """
    ends = costs.min(1).sum(), costs.max(1).sum()
    found: list[Architecture] = []
    for target in np.linspace(*ends, count):
        tilt = _tilt(costs, float(target))
        drawn = np.column_stack([rng.choice(len(p), size=DRAWS, p=p) for p in _probabilities(costs, tilt)])
        sums = costs[np.arange(len(costs)), drawn].sum(1)
        taken = set(found)
        for row in np.argsort(np.abs(sums - target), kind="stable"):
            architecture = tuple(drawn[row].tolist())
            if architecture not in taken and accept(architecture):
                found.append(architecture)
                break
        else:
            raise CannotSample(
                f"{count} architectures asked for; near {base + target:.6g}M MACs no further one was found in {DRAWS} "
                "draws; ask for fewer"
            )
    return sorted(found, key=lambda a: (float(costs[np.arange(len(costs)), list(a)].sum()), a))


def _probabilities(costs: NDArray[np.float64], tilt: float) -> NDArray[np.float64]:
    """Return [layers, candidates]; with an infinite tilt, only the dearest or cheapest of each layer."""
    if math.isinf(tilt):
        best = costs == (costs.max(1) if tilt > 0 else costs.min(1))[:, None]
        return np.asarray(best / best.sum(1, keepdims=True))
    logits = tilt * (costs - costs.mean(1, keepdims=True))
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(weights / weights.sum(1, keepdims=True))


def _tilt(costs: NDArray[np.float64], target: float) -> float:
    """Return the tilt whose mean cost is the target, by bisection: the mean rises with it."""
    low, high = float(costs.min(1).sum()), float(costs.max(1).sum())
    span = high - low
    if not span:
        return 0.0
    if target <= low + 1e-9 * span or target >= high - 1e-9 * span:
        return -math.inf if target < (low + high) / 2 else math.inf
    # In units of one over the largest spread within a layer; beyond 1e3 of them the ends are all but reached.
    unit = 1 / float(np.ptp(costs, axis=1).max())
    below, above = -1e3 * unit, 1e3 * unit
    for _ in range(STEPS):
        middle = (below + above) / 2
        if float((_probabilities(costs, middle) * costs).sum()) < target:
            below = middle
        else:
            above = middle
    return (below + above) / 2
