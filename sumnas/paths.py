"""Which sub-models a supernet is trained on (paper sec. 3.2)."""

from __future__ import annotations

import numpy as np

from sumnas.spaces.base import Architecture


def uniform_path(layers: int, candidates: int, rng: np.random.Generator) -> Architecture:
    """Draw one path, every operator equally likely in every layer (SPOS)."""
    return tuple(rng.integers(candidates, size=layers).tolist())


def strictly_fair_paths(layers: int, candidates: int, rng: np.random.Generator) -> list[Architecture]:
    """Draw `candidates` paths in which every operator of every layer occurs once (Algorithm 1, lines 5 to 7).

    For each layer a permutation of its operators; path i takes the i-th entry of every permutation.
    """
    permutations = [rng.permutation(candidates).tolist() for _ in range(layers)]
    return list(zip(*permutations, strict=True))
