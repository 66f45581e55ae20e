"""Ranking measures against their definitions, scipy and values worked out by hand."""

from __future__ import annotations

import itertools
import json
import math
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.stats import kendalltau, spearmanr

from sumnas import ranking
from sumnas.ranking import (
    Measure,
    RankingSettings,
    best_rank_at_k,
    kendall,
    measured,
    paired_bootstrap,
    precision_at_k,
    predictors,
    rank_measures,
    regret_at_k,
    resample,
    resampled_tau,
    spearman,
    tau_a,
    tau_b,
    top,
    true_ranks,
    worst_rank_at_k,
)
from sumnas.seeding import numpy_stream

Floats = NDArray[np.float64]
SETTINGS = RankingSettings(bootstrap=200)
# Few values, so that ties are common; two arrays of one length.
RANKINGS = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=25)
few = hypothesis_settings(max_examples=30, deadline=None)


def split(pairs: list[tuple[int, int]]) -> tuple[Floats, Floats]:
    x, y = np.array(pairs, dtype=np.float64).T
    return x, y


def noisy(count: int, seed: int = 0, noise: float = 1.0, decimals: int = 1) -> tuple[Floats, Floats]:
    """Return accuracies with ties in both."""
    rng = np.random.default_rng(seed)
    x = rng.normal(90, 2, count)
    return np.round(x, decimals), np.round(x + rng.normal(0, noise, count), decimals)


def width(measure: Measure) -> float:
    assert measure.low is not None and measure.high is not None
    return measure.high - measure.low


def by_definition(x: Floats, y: Floats) -> tuple[float, float | None]:
    """Return tau-a and tau-b, pair by pair."""
    concordant = discordant = pairs = tied_x = tied_y = 0
    for (xi, yi), (xj, yj) in itertools.combinations(zip(x, y, strict=True), 2):
        pairs += 1
        concordant += (xi < xj and yi < yj) or (xi > xj and yi > yj)
        discordant += (xi < xj and yi > yj) or (xi > xj and yi < yj)
        tied_x += xi == xj
        tied_y += yi == yj
    excess = concordant - discordant
    denominator = math.sqrt((pairs - tied_x) * (pairs - tied_y))
    return excess / pairs, excess / denominator if denominator else None


@few
@given(RANKINGS)
def test_taus_are_those_of_their_definitions(pairs: list[tuple[int, int]]) -> None:
    x, y = split(pairs)
    a, b = by_definition(x, y)
    if b is None:
        assert tau_a(x, y) is tau_b(x, y) is None
    else:
        assert tau_a(x, y) == pytest.approx(a, abs=1e-12)
        assert tau_b(x, y) == pytest.approx(b, abs=1e-12)


def test_tau_by_hand() -> None:
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert tau_a(x, np.array([1.0, 2.0, 4.0, 3.0])) == pytest.approx(4 / 6)  # 5 concordant, 1 discordant
    tied = np.array([1.0, 2.0, 2.0, 3.0])  # 5 concordant, 1 tied
    assert tau_a(x, tied) == pytest.approx(5 / 6)
    assert tau_b(x, tied) == pytest.approx(5 / math.sqrt(6 * 5))
    assert tau_b(tied, tied) == pytest.approx(1.0)
    assert tau_a(tied, tied) == pytest.approx(5 / 6)


@pytest.mark.parametrize("pairs_at_once", [1, 7, 100, 2**22])
def test_the_cut_into_chunks_changes_nothing(pairs_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = noisy(40)
    weights = resample(40, 50, np.random.default_rng(0))
    expected, draws = tau_a(x, y), resampled_tau(x, y, weights)
    monkeypatch.setattr(ranking, "PAIRS_AT_ONCE", pairs_at_once)
    assert tau_a(x, y) == expected
    np.testing.assert_array_equal(resampled_tau(x, y, weights), draws)


def test_tau_a_of_a_whole_table_is_small_in_memory() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=16_000)
    y = x + rng.normal(size=16_000)
    tracemalloc.start()
    value = tau_a(x, y)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert value == pytest.approx(float(kendalltau(x, y).statistic), abs=1e-12)  # no ties: both are equal
    assert peak < 100e6


def test_huge_values_are_compared_not_subtracted() -> None:
    x = np.array([-1.7e308, 0.0, 5e-324, 1.7e308])
    assert tau_a(x, np.arange(4.0)) == 1
    assert kendall(x, np.arange(4.0), SETTINGS).low == 1


@few
@given(RANKINGS, st.sampled_from([np.exp, lambda v: 3 * v - 7, lambda v: v**3]))
def test_only_the_order_counts(pairs: list[tuple[int, int]], increasing: Any) -> None:
    x, y = split(pairs)
    for measure in (tau_a, tau_b, spearman):
        value = measure(x, y)
        assert measure(increasing(x), y) == measure(x, increasing(y)) == value
        assert measure(y, x) == (value if value is None else pytest.approx(value, abs=1e-12))
        assert measure(x, -y) == (value if value is None else pytest.approx(-value, abs=1e-12))


def test_spearman_is_scipys() -> None:
    x, y = noisy(60)
    assert spearman(x, y) == pytest.approx(float(spearmanr(x, y).statistic), abs=1e-12)
    assert spearman(x[:2], -x[:2]) == pytest.approx(-1)


CONSTANT, VARIED = np.full(5, 90.0), np.arange(5.0)


@pytest.mark.parametrize(
    ("reference", "predicted", "reason"),
    [
        (CONSTANT, VARIED, "all references are equal"),
        (VARIED, CONSTANT, "all predictions are equal"),
        (CONSTANT, CONSTANT, "all references are equal"),
        (VARIED[:1], VARIED[:1], "fewer than two architectures"),
        (VARIED[:0], VARIED[:0], "fewer than two architectures"),
    ],
)
def test_no_number_and_the_reason_why(reference: Floats, predicted: Floats, reason: str) -> None:
    assert {measure(reference, predicted) for measure in (tau_a, tau_b, spearman)} == {None}
    assert kendall(reference, predicted, SETTINGS) == Measure(None, None, None, reason)
    assert paired_bootstrap(reference, predicted, predicted, SETTINGS) == Measure(None, reason=reason)
    measures = rank_measures(reference, predicted, SETTINGS)
    assert measures["kendall_tau_reason"] == reason
    assert {measures[k] for k in measures if "tau" in k or "rho" in k} == {None, reason}


def test_either_prediction_can_lack_a_difference() -> None:
    expected = Measure(None, reason="all predictions are equal")
    assert paired_bootstrap(VARIED, VARIED, CONSTANT, SETTINGS) == expected
    assert paired_bootstrap(VARIED, CONSTANT, VARIED, SETTINGS) == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named(bad: float) -> None:
    broken = np.array([1.0, 2.0, bad, 4.0, bad])
    for measure in (tau_a, tau_b, spearman):
        with pytest.raises(ValueError, match=rf"^x\[2\] is {bad}"):
            measure(broken, VARIED)
        with pytest.raises(ValueError, match=r"^y\[2\]"):
            measure(CONSTANT, broken)
    for run in (kendall, rank_measures):
        with pytest.raises(ValueError, match=r"^reference\[2\]"):
            run(broken, VARIED, SETTINGS)
        with pytest.raises(ValueError, match=r"^predicted\[2\]"):
            run(VARIED, broken, SETTINGS)
    for at_k in (precision_at_k, best_rank_at_k, worst_rank_at_k, regret_at_k):
        with pytest.raises(ValueError, match=r"^predicted\[2\]"):
            at_k(VARIED, broken, 1)
    with pytest.raises(ValueError, match=r"^predicted_b\[2\]"):
        paired_bootstrap(VARIED, VARIED, broken, SETTINGS)
    with pytest.raises(ValueError, match=r"^macs\[2\]"):
        predictors(VARIED, {"params": VARIED, "macs": broken}, SETTINGS)


@pytest.mark.parametrize(("x", "y"), [(VARIED, VARIED[:4]), (np.ones((2, 2)), np.ones((2, 2)))])
def test_shapes_are_checked(x: Floats, y: Floats) -> None:
    for measure in (tau_a, tau_b, spearman):
        with pytest.raises(ValueError, match="one entry per architecture"):
            measure(x, y)
    with pytest.raises(ValueError, match="one entry per architecture"):
        rank_measures(x, y, SETTINGS)


# The bootstrap.


@pytest.mark.parametrize("decimals", [0, 1, 6])
def test_bootstrap_is_tau_b_of_the_resamples_written_out(decimals: int) -> None:
    x, y = noisy(30, decimals=decimals)
    weights = resample(30, 40, np.random.default_rng(1))
    assert (weights.sum(1) == 30).all()
    rows = [np.repeat(np.arange(30), counts.astype(int)) for counts in weights]
    expected = [float(kendalltau(x[row], y[row]).statistic) for row in rows]
    np.testing.assert_allclose(resampled_tau(x, y, weights), expected, rtol=0, atol=1e-12)


def test_resamples_are_uniform_draws_with_replacement() -> None:
    weights = resample(4, 20_000, np.random.default_rng(0))
    np.testing.assert_allclose(weights.mean(0), 1, atol=0.03)
    np.testing.assert_allclose(weights.var(0), 3 / 4, atol=0.03)  # binomial: 4 draws of probability 1/4
    assert weights.max() == 4


def test_interval_is_the_percentiles_of_the_draws() -> None:
    x, y = noisy(50)
    weights = resample(50, 200, numpy_stream(0, "bootstrap"))
    low, high = np.percentile(resampled_tau(x, y, weights), [2.5, 97.5])
    assert kendall(x, y, SETTINGS) == Measure(tau_b(x, y), low, high)


def test_constant_resamples_are_dropped_and_counted() -> None:
    x = np.array([1.0, 1.0, 1.0, 2.0])
    result = kendall(x, x, SETTINGS)  # a resample lacks the last row with probability (3/4)^4 = 0.32
    assert (result.value, result.low, result.high) == pytest.approx((1, 1, 1))
    assert 40 < result.dropped < 90
    assert paired_bootstrap(x, x, -x, SETTINGS).dropped == result.dropped
    assert measured(0.5, np.full(3, np.nan)) == Measure(0.5, dropped=3)


def test_bootstrap_is_fast() -> None:
    x, y = noisy(315)
    start = time.process_time()
    kendall(x, y, RankingSettings(bootstrap=1000))
    assert time.process_time() - start < 2


def test_interval_covers_the_true_tau() -> None:
    # Of two normals with correlation r, tau is 2/pi asin(r).
    rng, truth, inside = np.random.default_rng(3), 2 / math.pi * math.asin(0.8), 0
    for _ in range(100):
        x = rng.normal(size=80)
        tau = kendall(x, 0.8 * x + 0.6 * rng.normal(size=80), SETTINGS)
        assert tau.low is not None and tau.high is not None
        inside += tau.low <= truth <= tau.high
    assert 87 <= inside <= 100


def test_paired_difference() -> None:
    x, a = noisy(80, noise=0.5)
    b = np.round(x + np.random.default_rng(9).normal(0, 4, 80), 1)
    forth, back = paired_bootstrap(x, a, b, SETTINGS), paired_bootstrap(x, b, a, SETTINGS)
    tau_of_a, tau_of_b = tau_b(x, a), tau_b(x, b)
    assert tau_of_a is not None and tau_of_b is not None
    assert forth.value == tau_of_a - tau_of_b
    assert forth.low is not None and forth.high is not None and forth.low > 0
    assert (back.value, back.low, back.high) == pytest.approx((-forth.value, -forth.high, -forth.low))
    assert paired_bootstrap(x, a, a, SETTINGS) == Measure(0.0, 0.0, 0.0)
    # The same resamples: near-equal predictions differ by much less than two separate intervals would say.
    near = a.copy()
    near[0] += 0.3
    assert width(paired_bootstrap(x, a, near, SETTINGS)) < width(kendall(x, a, SETTINGS)) / 3


def test_same_seed_same_interval() -> None:
    x, y = noisy(40)
    assert kendall(x, y, SETTINGS) == kendall(x, y, SETTINGS)
    assert rank_measures(x, y, SETTINGS) == rank_measures(x, y, SETTINGS)
    other = kendall(x, y, RankingSettings(bootstrap=200, seed=1))
    assert other.value == kendall(x, y, SETTINGS).value
    assert other.low != kendall(x, y, SETTINGS).low


# The top of the ranking.

REFERENCE = np.array([90.0, 94.0, 93.0, 91.0, 92.0, 89.0])  # ranks 5 1 2 4 3 6
PREDICTED = np.array([70.0, 60.0, 65.0, 50.0, 40.0, 30.0])  # order: 0 2 1 3 4 5


@pytest.mark.parametrize(
    ("k", "precision", "best", "worst", "regret"),
    [(1, 0, 5, 5, 4), (2, 1 / 2, 2, 5, 1), (3, 2 / 3, 1, 5, 0), (4, 3 / 4, 1, 5, 0), (6, 1, 1, 6, 0)],
)
def test_top_k_by_hand(k: int, precision: float, best: int, worst: int, regret: float) -> None:
    assert precision_at_k(REFERENCE, PREDICTED, k) == pytest.approx(precision)
    assert best_rank_at_k(REFERENCE, PREDICTED, k) == best
    assert worst_rank_at_k(REFERENCE, PREDICTED, k) == worst
    assert regret_at_k(REFERENCE, PREDICTED, k) == pytest.approx(regret)


def test_equal_references_share_the_best_rank() -> None:
    tied = np.array([93.0, 94.0, 93.0, 91.0, 94.0])
    assert true_ranks(tied).tolist() == [3, 1, 3, 5, 1]
    # Either of the two best is the top 1, whichever was predicted.
    for chosen in (1, 4):
        predicted = np.zeros(5)
        predicted[chosen] = 1
        assert precision_at_k(tied, predicted, 1) == 1 and worst_rank_at_k(tied, predicted, 1) == 1


def test_of_equal_predictions_the_worst_comes_first() -> None:
    # Order: 5, then 3 (91) 2 (93) 1 (94), then 0 (90) 4 (92).
    predicted = np.array([60.0, 70.0, 70.0, 70.0, 60.0, 80.0])
    assert top(REFERENCE, predicted, 6).tolist() == [5, 3, 2, 1, 0, 4]
    assert regret_at_k(REFERENCE, predicted, 2) == 3
    assert best_rank_at_k(REFERENCE, np.zeros(6), 2) == 5  # a constant predictor finds the two worst


@few
@given(RANKINGS, st.randoms(use_true_random=False), st.data())
def test_the_order_of_the_table_is_no_matter(pairs: list[tuple[int, int]], random: Any, data: Any) -> None:
    x, y = split(pairs)
    k = data.draw(st.integers(1, len(x)))
    order = list(range(len(x)))
    random.shuffle(order)
    for at_k in (precision_at_k, best_rank_at_k, worst_rank_at_k, regret_at_k):
        assert at_k(x, y, k) == at_k(x[order], y[order], k)
    assert precision_at_k(x, x, k) == 1 and best_rank_at_k(x, x, k) == 1 and regret_at_k(x, x, k) == 0
    assert best_rank_at_k(x, y, k) <= worst_rank_at_k(x, y, k)
    assert regret_at_k(x, y, k) >= 0
    assert best_rank_at_k(x, y, len(x)) == 1


@pytest.mark.parametrize("k", [-1, 0, 7])
def test_k_has_to_fit(k: int) -> None:
    for at_k in (precision_at_k, best_rank_at_k, worst_rank_at_k, regret_at_k):
        with pytest.raises(ValueError, match=f"top {k} of 6"):
            at_k(REFERENCE, PREDICTED, k)


# All together.


def test_rank_measures_are_flat_json() -> None:
    x, y = noisy(7, decimals=2)
    measures = rank_measures(x, y, SETTINGS)
    assert json.loads(json.dumps(measures, allow_nan=False)) == measures
    assert set(measures) == {
        "architectures", "kendall_tau", "kendall_tau_low", "kendall_tau_high", "kendall_tau_a",
        "kendall_tau_rounded", "kendall_tau_reason", "spearman_rho",
        *(f"{m}_at_{k}" for k in (1, 5) for m in ("precision", "best_rank", "worst_rank", "regret")),
    }  # fmt: skip
    assert measures["architectures"] == 7 and measures["kendall_tau_reason"] is None
    assert measures["kendall_tau"] == tau_b(x, y) and measures["kendall_tau_a"] == tau_a(x, y)
    assert measures["best_rank_at_5"] == best_rank_at_k(x, y, 5)
    assert all(type(value) in (int, float, str, type(None)) for value in measures.values())


def test_rounded_tau_forgives_differences_below_the_grid() -> None:
    reference, predicted = np.array([92.96, 93.04, 92.0, 91.0]), np.array([3.0, 4.0, 2.0, 1.0])
    measures = rank_measures(reference, predicted, RankingSettings(bootstrap=100))
    assert measures["kendall_tau"] == pytest.approx(1)
    assert measures["kendall_tau_rounded"] == pytest.approx(5 / math.sqrt(5 * 6))
    assert rank_measures(reference, predicted, RankingSettings(round_to=1000))["kendall_tau_rounded"] is None


def test_predictors_are_named() -> None:
    x, macs = noisy(30, noise=3)
    result = predictors(x, {"macs": macs, "params": np.full(30, 1.0)}, SETTINGS)
    tau = kendall(x, macs, SETTINGS)
    assert result == {
        "macs_kendall_tau": tau.value, "macs_kendall_tau_low": tau.low, "macs_kendall_tau_high": tau.high,
        "params_kendall_tau": None, "params_kendall_tau_low": None, "params_kendall_tau_high": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"bootstrap": 99}, {"round_to": 0}, {"round_to": math.inf}, {"top_k": [0]}, {"top_k": [-1]},
        {"seed": -1}, {"topk": [1]},
    ],
)  # fmt: skip
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RankingSettings(**wrong)
