"""Algorithm 2 and the exhaustive search."""

from __future__ import annotations

import csv
import itertools
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from sumnas.errors import UserError
from sumnas.sampling import Architecture, Feasible
from sumnas.search import (
    Generation,
    InfeasibleLimit,
    Scores,
    SearchSettings,
    best_under_limits,
    cross,
    evolve,
    evolve_under_limits,
    mutate,
)

TABLE = Path(__file__).parents[1].parent / "shared" / "data" / "nasbench201.csv"
LAYERS, CANDIDATES = 10, 4
COSTS: NDArray[np.float64] = np.tile(np.arange(1.0, CANDIDATES + 1), (LAYERS, 1))
BASE = 5.0


def settings(**changes: Any) -> SearchSettings:
    return SearchSettings(**{"strategy": "evolution", "limits": [None], **changes})


def separable(architecture: Architecture) -> float:
    """A score whose optimum is known: every layer's last operator, the first layers counting most."""
    return float(sum(operator * (LAYERS - layer) for layer, operator in enumerate(architecture)))


class Recorder:
    """Scores architectures and remembers the calls."""

    def __init__(self, score: Callable[[Architecture], float] = separable) -> None:
        self.calls: list[Architecture] = []
        self.score = score

    def __call__(self, architecture: Architecture) -> float:
        self.calls.append(architecture)
        return self.score(architecture)


def macs(architecture: Architecture) -> float:
    return BASE + float(sum(COSTS[layer, operator] for layer, operator in enumerate(architecture)))


def test_finds_the_optimum_with_and_without_limit() -> None:
    recorder = Recorder()
    scores = Scores(recorder)
    free, limited = evolve_under_limits(settings(limits=[None, 30]), scores, COSTS, BASE)
    assert free.found.architecture == (3,) * LAYERS and free.found.cost == 45
    assert free.found.predicted == separable((3,) * LAYERS) and free.found.limit is None
    # 15 steps above the cheapest (15 million): five layers with the last operator.
    assert limited.found.architecture == (3,) * 5 + (0,) * 5
    assert (limited.found.cost, limited.found.limit) == (30, 30)
    # Nothing is scored twice, also across limits.
    assert len(recorder.calls) == len(set(recorder.calls)) == scores.computed == len(scores.asked)


def test_a_measured_cost_can_be_the_limit() -> None:
    """Latencies known for some architectures only, against brute force over all of them."""
    few = settings(limits=[40, 12.5, None], cost="latency", population=20, generations=60, offspring=40)
    layers, candidates = 4, 3
    table = np.tile(np.arange(1.0, candidates + 1), (layers, 1))
    known = [a for a in itertools.product(range(candidates), repeat=layers) if sum(a) % 4]
    latency = {a: 10.0 + (7 * a[0] + 5 * a[1] + 3 * a[2] + a[3]) % 41 for a in known}

    def score(a: Architecture) -> float:
        return float(sum((3 * layer + 1) * operator for layer, operator in enumerate(a)))

    for limit, result in zip(
        few.limits, evolve_under_limits(few, Scores(score), table, 0.0, measured=latency), strict=True
    ):
        within = [a for a, ms in latency.items() if limit is None or ms <= limit]
        best = max(within, key=lambda a: (score(a), tuple(-x for x in a)))
        assert (
            score(result.found.architecture) == score(best) and result.found.cost == latency[result.found.architecture]
        )
        assert all(a in within for a in result.population)
    with pytest.raises(InfeasibleLimit, match=rf"within 9\.0 \(latency\).* is {min(latency.values())}0"):
        evolve_under_limits(settings(limits=[9], cost="latency"), Scores(score), table, 0.0, measured=latency)


def test_every_member_meets_limit_and_condition() -> None:
    recorder, rows = Recorder(), list[Generation]()

    def accept(architecture: Architecture) -> bool:
        return architecture[0] != 3

    (result,) = evolve_under_limits(settings(limits=[25]), Scores(recorder), COSTS, BASE, accept, rows.append)
    assert all(macs(a) <= 25 and accept(a) for a in recorder.calls)
    assert set(result.population) <= set(recorder.calls) and len(set(result.population)) == 20
    assert rows == result.history and [row.generation for row in rows] == list(range(31))
    assert all(row.limit == 25 and row.best >= row.mean >= row.worst for row in rows)
    assert all(a.best <= b.best and a.scored <= b.scored for a, b in zip(rows, rows[1:], strict=False))
    assert rows[0].scored == 20 and rows[-1].scored == len(recorder.calls) <= 20 + 30 * 64
    assert rows[-1].best == result.found.predicted


def test_survivors_are_the_best_of_parents_and_children() -> None:
    recorder = Recorder()
    rng = np.random.default_rng(0)
    once = settings(generations=1)
    result = evolve(once, Scores(recorder), Feasible(COSTS, BASE, None), rng)
    assert len(recorder.calls) == 20 + 64  # half mutants, half crossovers, none of them in the population
    assert result.population == sorted(recorder.calls, key=lambda a: (-separable(a), a))[:20]


def test_ties_go_to_the_lowest_tuple() -> None:
    recorder = Recorder(lambda architecture: 1.0)
    result = evolve(settings(generations=3), Scores(recorder), Feasible(COSTS, BASE, None), np.random.default_rng(0))
    assert result.population == sorted(recorder.calls)[:20]


def test_deterministic_and_each_limit_on_its_own() -> None:
    def run(seed: int, *limits: float | None) -> list[Any]:
        return evolve_under_limits(settings(limits=limits, seed=seed), Scores(separable), COSTS, BASE)

    first, again = run(0, 25, None), run(0, 25, None)
    assert first == again and run(1, 25)[0].history != first[0].history
    assert run(0, None)[0].population == first[1].population


def test_resumes_a_killed_search() -> None:
    whole = Scores(separable)
    expected = evolve_under_limits(settings(limits=[25, None]), whole, COSTS, BASE)

    def dies(architecture: Architecture) -> float:
        if len(killed.known) == 700:
            raise KeyboardInterrupt
        return separable(architecture)

    killed = Scores(dies)
    with pytest.raises(KeyboardInterrupt):
        evolve_under_limits(settings(limits=[25, None]), killed, COSTS, BASE)
    resumed = Scores(separable, killed.known)
    assert evolve_under_limits(settings(limits=[25, None]), resumed, COSTS, BASE) == expected
    assert resumed.computed == whole.computed - 700 and resumed.known == whole.known


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(0, 1\): a score of nan"):
        Scores(lambda architecture: float("nan"))((0, 1))


def test_impossible_limit_states_the_smallest_macs() -> None:
    recorder = Recorder()
    with pytest.raises(InfeasibleLimit, match=r"within 14\.9 million .*smallest reachable is 15\.000000") as e:
        evolve_under_limits(settings(limits=[14.9]), Scores(recorder), COSTS, BASE)
    assert isinstance(e.value, ValueError) and isinstance(e.value, UserError) and not recorder.calls
    assert str(pickle.loads(pickle.dumps(e.value))) == str(e.value)


def test_impossible_limit_counts_the_condition() -> None:
    costs, few = COSTS[:5], settings(limits=[11])

    def top(architecture: Architecture) -> bool:
        return architecture[0] >= 2

    with pytest.raises(InfeasibleLimit, match=r"smallest reachable is 12\.0"):
        evolve_under_limits(few, Scores(separable), costs, BASE, top)
    with pytest.raises(InfeasibleLimit, match="whatever its MACs"):
        evolve_under_limits(few, Scores(separable), costs, BASE, lambda a: False)


def test_the_smallest_macs_of_the_message_are_a_limit_that_can_be_met() -> None:
    rng = np.random.default_rng(3)
    costs = np.round(rng.uniform(1, 9, (19, 6)), 6)  # whole multiply-adds whose float sums round
    smallest = Feasible(costs, 0.1, None).smallest()
    (result,) = evolve_under_limits(settings(limits=[float(f"{smallest:.6f}")]), Scores(sum), costs, 0.1)
    assert result.population == [tuple(costs.argmin(axis=1).tolist())]


@pytest.mark.parametrize(("limit", "members"), [(15, 1), (16, 11)])
def test_tiny_feasible_sets_end_and_give_the_best(limit: float, members: int) -> None:
    recorder = Recorder()
    (result,) = evolve_under_limits(settings(limits=[limit]), Scores(recorder), COSTS, BASE)
    assert len(recorder.calls) == len(result.population) == members
    assert result.found.architecture == ((1,) if limit == 16 else (0,)) + (0,) * 9
    assert len(result.history) == 31


def test_two_members_of_a_condition() -> None:
    both = {(0,) * 6, (3,) * 6}
    (result,) = evolve_under_limits(settings(), Scores(separable), COSTS[:6], BASE, both.__contains__)
    assert set(result.population) == both and result.found.architecture == (3,) * 6


def test_a_condition_met_by_none_in_a_huge_space() -> None:
    small = settings(population=2)
    with pytest.raises(InfeasibleLimit, match=r"that meets the conditions; without them .* 15\.0"):
        evolve_under_limits(small, Scores(separable), COSTS, BASE, lambda architecture: False)


def test_a_few_more_members_than_the_population() -> None:
    # 66 members, and populations of one: what breeding does not find is drawn.
    one = settings(limits=[17], population=1, offspring=2, generations=60)
    (result,) = evolve_under_limits(one, Scores(separable), COSTS, BASE)
    assert result.found.architecture == (2,) + (0,) * 9


def test_a_limit_near_the_smallest_in_a_huge_space() -> None:
    costs = np.tile(np.arange(1.0, 7.0), (19, 1))
    recorder = Recorder(lambda a: float(sum((operator + 1) * (19 - i) for i, operator in enumerate(a))))
    (result,) = evolve_under_limits(settings(limits=[29]), Scores(recorder), costs, 0.0)
    assert all(sum(a) <= 10 for a in recorder.calls)
    assert result.found.architecture == (5, 5) + (0,) * 17


def test_mutation_rate_and_choice() -> None:
    rng, parent = np.random.default_rng(0), (0, 1, 2, 3, 0, 1)
    children = np.array([mutate(parent, 4, 0.1, rng) for _ in range(20000)])
    assert np.allclose((children != parent).mean(axis=0), 0.1, atol=0.01)
    others = Counter(children[:, 2][children[:, 2] != 2].tolist())
    assert set(others) == {0, 1, 3} and max(others.values()) < 1.2 * min(others.values())
    assert (np.array([mutate(parent, 4, 1.0, rng) for _ in range(200)]) != parent).all()
    assert mutate((0, 0), 1, 1.0, rng) == (0, 0)


def test_crossover_takes_each_layer_from_a_parent() -> None:
    rng, first, second = np.random.default_rng(0), (0, 1, 2, 3), (3, 1, 0, 2)
    children = np.array([cross(first, second, rng) for _ in range(4000)])
    assert ((children == first) | (children == second)).all()
    assert np.allclose((children == first).mean(axis=0), [0.5, 1, 0.5, 0.5], atol=0.03)
    assert len(np.unique(children, axis=0)) == 8  # layers mix independently


@pytest.mark.parametrize(
    "wrong",
    [
        {"limits": []},
        {"limits": [20, 20.0]},
        {"limits": [0]},
        {"limits": [float("inf")]},
        {"offspring": 3},
        {"mutation_probability": 0},
        {"mutation_probability": 1.1},
        {"population": 0},
        {"generation": 3},
    ],
)
def test_settings_refuse(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        settings(**wrong)


def test_settings_limits_are_floats() -> None:
    # The random stream of a limit is named after it: 20 and 20.0 must be the same.
    assert repr(settings(limits=[20, None]).limits) == "(20.0, None)"


def test_best_under_limits_and_ties() -> None:
    architectures = [(0,), (1,), (2,), (3,)]
    predicted, cost = np.array([50.0, 70.0, 70.0, 90.0]), np.array([1.0, 2.0, 2.0, 3.0])
    found = best_under_limits(architectures, predicted, cost, [1, 2.5, 3, None])
    assert [f.architecture for f in found] == [(0,), (1,), (3,), (3,)]
    assert [f.limit for f in found] == [1, 2.5, 3, None] and found[1].predicted == 70 and found[1].cost == 2
    with pytest.raises(InfeasibleLimit, match=r"smallest reachable is 1\.0"):
        best_under_limits(architectures, predicted, cost, [0.5])
    with pytest.raises(InfeasibleLimit, match="whatever its MACs"):
        best_under_limits([], np.array([]), np.array([]), [None])
    with pytest.raises(ValueError, match="one finite prediction"):
        best_under_limits(architectures, predicted * np.nan, cost, [None])


@pytest.mark.skipif(not TABLE.exists(), reason=f"needs the NAS-Bench-201 table, {TABLE}")
def test_oracle_row_of_the_public_table() -> None:
    with TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    accuracy = np.array([float(row["cifar10_test_acc"]) for row in rows])
    cost = np.array([float(row["flops_m"]) for row in rows])
    found = best_under_limits([(i,) for i in range(len(rows))], accuracy, cost, [20, 50, 100, None])
    assert [f.predicted for f in found] == pytest.approx([91.315, 93.397, 94.307, 94.373], abs=5e-4)
    assert not {20.0, 50.0, 100.0} & set(cost.tolist())  # "<" and "at most" are the same
    assert rows[found[-1].architecture[0]]["index"] == "6111"
