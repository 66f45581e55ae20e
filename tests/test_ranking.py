"""Rank measures against brute force over pairs, and against scipy on explicit resamples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from sumnas import ranking
from sumnas.ranking import RankingSettings
from sumnas.reliability import perfect_predictor_tau, split_half_tau

SETTINGS = RankingSettings(top_k=(1, 2, 3), bootstrap=200)
TIED = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=12)


def brute(x: list[float], y: list[float]) -> tuple[float, float | None]:
    """tau-a and tau-b from their definitions, pair by pair."""
    concordant = discordant = untied_x = untied_y = pairs = 0
    for i in range(len(x)):
        for j in range(i):
            a, b = x[i] - x[j], y[i] - y[j]
            pairs += 1
            concordant += a * b > 0
            discordant += a * b < 0
            untied_x += a != 0
            untied_y += b != 0
    difference = concordant - discordant
    below = math.sqrt(untied_x * untied_y)
    return difference / pairs, difference / below if below else None


@settings(max_examples=30, deadline=None)
@given(TIED)
def test_tau_equals_brute_force_with_ties_and_constants(pairs: list[tuple[int, int]]) -> None:
    x, y = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    tau_a, tau_b = brute(x.tolist(), y.tolist())
    if tau_b is not None:
        assert ranking.tau_a(x, y) == pytest.approx(tau_a)
    assert ranking.tau_b(x, y) == (None if tau_b is None else pytest.approx(tau_b))


def test_tau_a_in_chunks_equals_the_whole() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 300, (2, 1100)).astype(float)
    signs = np.sign(x[:, None] - x) * np.sign(y[:, None] - y)
    assert ranking.tau_a(x, y) == pytest.approx(signs.sum() / (1100 * 1099))


def test_resampled_tau_equals_scipy_on_the_same_resamples() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 8, (2, 20)).astype(float)
    weights = ranking.resample(20, 50, rng)
    assert (weights.sum(1) == 20).all()
    found = ranking.resampled_tau(x, y, weights)
    for row, value in zip(weights.astype(int), found, strict=True):
        index = np.repeat(np.arange(20), row)
        assert value == pytest.approx(kendalltau(x[index], y[index]).statistic)


def test_a_constant_resample_is_dropped() -> None:
    x = np.array([1.0, 2.0])
    values = ranking.resampled_tau(x, x, np.array([[2.0, 0.0], [1.0, 1.0]]))
    assert np.isnan(values[0]) and values[1] == 1
    kept, none = ranking.measured(1.0, values), ranking.measured(1.0, values[:1])
    assert (kept.low, kept.high, kept.dropped) == (1.0, 1.0, 1)
    assert (none.low, none.high, none.dropped) == (None, None, 1)


def test_paired_bootstrap_uses_the_same_resamples() -> None:
    rng = np.random.default_rng(2)
    truth = rng.normal(size=40)
    near, far = truth + rng.normal(size=40) * 0.3, truth + rng.normal(size=40) * 3
    found = ranking.paired_bootstrap(truth, near, far, SETTINGS)
    assert found.value == pytest.approx(kendalltau(truth, near).statistic - kendalltau(truth, far).statistic)
    assert found.low is not None and 0 < found.low < found.value < (found.high or 0)
    same = ranking.paired_bootstrap(truth, near, near, SETTINGS)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_measures_at_k_by_hand() -> None:
    reference = np.array([90.0, 80.0, 95.0, 95.0, 70.0])
    predicted = np.array([5.0, 5.0, 1.0, 4.0, 3.0])  # order: 1, 0 (of a tie the worse one first), 3, 4, 2
    assert ranking.true_ranks(reference).tolist() == [3, 4, 1, 1, 5]
    assert ranking.top(reference, predicted, 3).tolist() == [1, 0, 3]
    assert ranking.precision_at_k(reference, predicted, 3) == pytest.approx(2 / 3)
    assert ranking.best_rank_at_k(reference, predicted, 2) == 3
    assert ranking.worst_rank_at_k(reference, predicted, 3) == 4
    assert ranking.regret_at_k(reference, predicted, 1) == 15
    assert ranking.regret_at_k(reference, predicted, 3) == 0


def test_rank_measures_are_invariant_under_monotone_transforms() -> None:
    rng = np.random.default_rng(3)
    reference, predicted = rng.normal(90, 3, 25), rng.normal(60, 5, 25)
    one = ranking.rank_measures(reference, predicted, SETTINGS)
    other = ranking.rank_measures(reference, np.exp(predicted / 20), SETTINGS)
    assert one == pytest.approx(other)
    assert one == ranking.rank_measures(reference, predicted, SETTINGS)
    assert one["architectures"] == 25 and one["kendall_tau_reason"] is None
    rounded = np.round(reference, 1)
    assert one["kendall_tau_rounded"] == pytest.approx(kendalltau(rounded, predicted).statistic)


def test_constant_predictions_have_no_tau_but_a_reason() -> None:
    found = ranking.rank_measures(np.array([1.0, 2.0, 3.0]), np.full(3, 10.0), SETTINGS)
    assert found["kendall_tau"] is None and found["kendall_tau_low"] is None
    assert found["kendall_tau_reason"] == "all predictions are equal"
    alone = ranking.rank_measures(np.array([1.0]), np.array([1.0]), SETTINGS)
    assert alone["kendall_tau"] is None and alone["kendall_tau_reason"] == "fewer than two architectures"


def test_what_is_not_finite_is_named() -> None:
    with pytest.raises(ValueError, match=r"predicted\[1\] is nan"):
        ranking.rank_measures(np.array([1.0, 2.0]), np.array([1.0, math.nan]), SETTINGS)


def test_predictors_stand_beside() -> None:
    reference = np.array([1.0, 2.0, 3.0, 4.0])
    found = ranking.predictors(reference, {"macs": reference * 2, "params": -reference}, SETTINGS)
    assert found["macs_kendall_tau"] == 1 and found["params_kendall_tau"] == -1


def test_split_half_of_noise_and_of_signal() -> None:
    rng = np.random.default_rng(4)
    noise = rng.normal(size=(60, 6))
    signal = np.arange(60.0)[:, None] + np.zeros((1, 5))
    assert abs(split_half_tau(noise, rng).value or 0) < 0.15
    assert split_half_tau(signal, rng).value == 1
    assert split_half_tau(signal[:, :1], rng).reason is not None


@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_perfect_predictor_recovers_a_known_ceiling(sigma: float) -> None:
    """Truth is known here: average over repetitions what a real perfect predictor reaches, and what is estimated."""
    rng = np.random.default_rng(5)
    real, estimated, naive = [], [], []
    for _ in range(30):
        truth = rng.normal(size=50)
        matrix = truth[:, None] + rng.normal(0, sigma, (50, 3))
        means = matrix.mean(1)
        real.append(kendalltau(truth, means).statistic)
        estimated.append(perfect_predictor_tau(matrix, rng, 30).value)
        again = means + rng.normal(0, matrix.std(1, ddof=1).mean() / math.sqrt(3), 50)
        naive.append(kendalltau(means, again).statistic)
    bias = np.mean(estimated) - np.mean(real)
    assert abs(bias) < 0.025
    if sigma == 1.0:  # without shrinking the simulated truths lie too far apart
        assert np.mean(naive) - np.mean(real) > 2 * abs(bias)


def test_references_that_differ_only_by_noise_have_no_ceiling() -> None:
    matrix = np.array([[1.0, 3.0], [3.0, 1.0], [2.0, 2.0]])
    found = perfect_predictor_tau(matrix, np.random.default_rng(0))
    assert found.value is None and found.reason is not None
