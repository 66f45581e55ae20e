"""What references with noise allow, on synthetic references whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from sumnas.ranking import Measure, tau_b
from sumnas.reliability import ONE_SEED, perfect_predictor_tau, split_half_tau

Floats = NDArray[np.float64]


def stream(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def references(
    seed: int, architectures: int = 150, seeds: int = 4, spread: float = 1.0, noise: float = 1.5
) -> tuple[Floats, Floats]:
    """Return the true means [A] and noisy references [A, S]."""
    rng = stream(seed)
    truth = rng.normal(90, spread, architectures)
    return truth, truth[:, None] + rng.normal(0, noise, (architectures, seeds))


def value(measure: Measure) -> float:
    assert measure.value is not None and measure.low is not None and measure.high is not None
    assert measure.low - 1e-12 <= measure.value <= measure.high + 1e-12
    return measure.value


def tau(x: Floats, y: Floats) -> float:
    result = tau_b(x, y)
    assert result is not None
    return result


def unshrunk(matrix: Floats, rng: np.random.Generator, draws: int = 50) -> float:
    """Return what the simulation gives where the observed means are taken for the truth as they are."""
    means, noise = matrix.mean(1), np.sqrt(matrix.var(1, ddof=1).mean() / matrix.shape[1])
    return float(np.mean([tau(means, means + rng.normal(0, noise, len(means))) for _ in range(draws)]))


@pytest.mark.parametrize("noise", [0.3, 1.5, 3.0])
def test_perfect_predictor_recovers_the_real_value(noise: float) -> None:
    real, estimated, naive = [], [], []
    for seed in range(20):
        truth, matrix = references(seed, noise=noise)
        real.append(tau(truth, matrix.mean(1)))
        estimated.append(value(perfect_predictor_tau(matrix, stream(seed), draws=50)))
        naive.append(unshrunk(matrix, stream(seed)))
    assert np.mean(estimated) == pytest.approx(np.mean(real), abs=0.02)
    if noise > 1:  # without shrinking the truths are too far apart
        assert np.mean(naive) > np.mean(real) + 0.05
        assert all(n > e for n, e in zip(naive, estimated, strict=True))


def test_perfect_predictor_agrees_with_the_formula_for_normals() -> None:
    # Truth N(0, 1) and a mean with noise variance 1.5^2 / 4: tau is 2/pi asin of their correlation.
    _, matrix = references(0, architectures=2000)
    expected = 2 / math.pi * math.asin(1 / math.sqrt(1 + 1.5**2 / 4))
    assert value(perfect_predictor_tau(matrix, stream(), draws=30)) == pytest.approx(expected, abs=0.02)


def test_interval_holds_the_real_value_about_as_often_as_it_says() -> None:
    inside = 0
    for seed in range(40):
        truth, matrix = references(100 + seed, architectures=60, seeds=8)
        measure = perfect_predictor_tau(matrix, stream(seed), draws=60)
        assert measure.low is not None and measure.high is not None
        inside += measure.low <= tau(truth, matrix.mean(1)) <= measure.high
    assert inside >= 33


def test_split_half_agrees_with_the_formula_for_normals() -> None:
    # Two halves of 2 seeds share the truth and nothing else: their correlation is 1 / (1 + 1.5^2 / 2).
    _, matrix = references(1, architectures=2000)
    expected = 2 / math.pi * math.asin(1 / (1 + 1.5**2 / 2))
    assert value(split_half_tau(matrix, stream(), splits=30)) == pytest.approx(expected, abs=0.03)


def test_split_half_of_two_seeds_is_the_tau_of_the_two() -> None:
    _, matrix = references(2, seeds=2)
    expected = tau(matrix[:, 0], matrix[:, 1])
    measure = split_half_tau(matrix, stream(), splits=10)
    assert (measure.value, measure.low, measure.high) == pytest.approx((expected,) * 3)


def test_split_half_of_three_seeds_compares_single_ones() -> None:
    _, matrix = references(3, seeds=3)
    pairs = [tau(matrix[:, i], matrix[:, j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    measure = split_half_tau(matrix, stream(), splits=100)
    assert (measure.low, measure.high) == pytest.approx((min(pairs), max(pairs)))
    assert measure.value == pytest.approx(np.mean(pairs), abs=0.02)


def test_references_without_noise_agree_fully() -> None:
    matrix = np.repeat(np.array([[90.1], [91.3], [91.3], [92.7]]), 4, axis=1)
    for measure in (split_half_tau(matrix, stream()), perfect_predictor_tau(matrix, stream())):
        assert (measure.value, measure.low, measure.high) == pytest.approx((1, 1, 1))


def test_equal_means_stay_tied_whatever_the_order_of_the_sum() -> None:
    # 0.1 + 0.2 + 0.3 depends on the order in its last bit: two rows would be told apart, each half otherwise.
    up, down = [0.1, 0.2, 0.3], [0.3, 0.2, 0.1]
    matrix = np.array([[*up, *down], [*down, *up], [0.4] * 6])
    assert matrix[0, :3].mean() != matrix[1, :3].mean()
    assert split_half_tau(matrix, FixedOrder(), splits=1).value == pytest.approx(1.0)


class FixedOrder(np.random.Generator):
    """Splits into the first and the last half."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def permutation(self, x: int, axis: int = 0) -> NDArray[np.int64]:  # type: ignore[override]
        return np.arange(x)


def test_more_seeds_make_better_references() -> None:
    _, matrix = references(4, seeds=12)
    for measure in (split_half_tau, perfect_predictor_tau):
        values = [value(measure(matrix[:, :seeds], stream(), 50)) for seeds in (2, 6, 12)]
        assert values == sorted(values)


@pytest.mark.parametrize("seeds", [0, 1])
def test_one_seed_tells_nothing(seeds: int) -> None:
    matrix = np.arange(10.0)[:, None][:, :seeds]
    assert split_half_tau(matrix, stream()) == Measure(None, reason=ONE_SEED)
    assert perfect_predictor_tau(matrix, stream()) == Measure(None, reason=ONE_SEED)


def test_no_number_and_the_reason_why() -> None:
    alone = np.array([[90.0, 91.0]])
    for measure in (split_half_tau, perfect_predictor_tau):
        assert measure(alone, stream()) == Measure(None, reason="fewer than two architectures")
    constant = np.full((5, 4), 90.0)
    expected = Measure(None, reason="all references are equal", dropped=20)
    assert split_half_tau(constant, stream(), splits=20) == expected
    reason = "the references differ by no more than their noise"
    assert perfect_predictor_tau(constant, stream()) == Measure(None, reason=reason)
    only_noise = np.array([[90.0, 92.0], [92.0, 90.0], [91.5, 90.5]])
    assert perfect_predictor_tau(only_noise, stream()) == Measure(None, reason=reason)


def test_splits_with_a_constant_half_are_dropped() -> None:
    matrix = np.array([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 2.0, 3.0]])
    measure = split_half_tau(matrix, stream(), splits=60)  # {0, 1} against {2, 3} in a third of the splits
    assert measure.value == pytest.approx(1.0)
    assert 8 < measure.dropped < 35


def test_what_is_not_finite_is_named() -> None:
    matrix = np.arange(12.0).reshape(4, 3)
    matrix[2, 1] = math.nan
    for measure in (split_half_tau, perfect_predictor_tau):
        with pytest.raises(ValueError, match=r"matrix\[2, 1\] is nan"):
            measure(matrix, stream())
        with pytest.raises(ValueError, match="architectures, seeds"):
            measure(np.arange(4.0), stream())


def test_same_stream_same_value() -> None:
    _, matrix = references(5, seeds=6)
    for measure in (split_half_tau, perfect_predictor_tau):
        assert measure(matrix, stream(1), 30) == measure(matrix, stream(1), 30)
        assert measure(matrix, stream(1), 30) != measure(matrix, stream(2), 30)


def test_a_shift_that_all_architectures_share_is_no_noise() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(40, 1)) + rng.normal(0, 0.6, (40, 4))
    shifted = matrix + rng.normal(0, 5, (1, 4))
    one = perfect_predictor_tau(matrix, np.random.default_rng(1))
    other = perfect_predictor_tau(shifted, np.random.default_rng(1))
    assert one.value == pytest.approx(other.value, abs=1e-6)
