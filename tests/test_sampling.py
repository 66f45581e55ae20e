"""Which architectures are ranked: intervals, MACs, random draws."""

from __future__ import annotations

import csv
import itertools
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from sumnas.sampling import (
    CannotSample,
    Feasible,
    SamplingSettings,
    by_interval,
    draw_uniform,
    evenly_in_macs,
    sample,
)

TABLE = Path(__file__).parents[1].parent / "shared" / "data" / "nasbench201.csv"
with_table = pytest.mark.skipif(not TABLE.exists(), reason=f"needs the NAS-Bench-201 table, {TABLE}")


def anything(_architecture: tuple[int, ...]) -> bool:
    return True


def column(name: str) -> NDArray[np.float64]:
    with TABLE.open(newline="") as file:
        return np.array([float(row[name]) for row in csv.DictReader(file)])


def test_interval_edges_and_ties() -> None:
    # [0, 10] in 5: [0,2) [2,4) [4,6) [6,8) [8,10]
    accuracy = np.array([10.0, 0.0, 2.0, 1.9, 3.0, 3.0, 8.0])
    assert by_interval(accuracy, 5, None).tolist() == [0, 3, 4]
    assert by_interval(accuracy, 1, None).tolist() == [0]


def test_interval_by_brute_force() -> None:
    accuracy = np.random.default_rng(0).integers(0, 60, 300) / 2 + 10
    low, high = 10.5, accuracy.max()
    best: dict[int, int] = {}
    for index, value in enumerate(accuracy):
        if value > 10:
            part = min(int((value - low) / (high - low) * 17), 16)
            if part not in best or value > accuracy[best[part]]:
                best[part] = index
    assert by_interval(accuracy, 17, 10.0).tolist() == sorted(best.values())


def test_interval_floor_is_left_out_before_the_split() -> None:
    accuracy = np.array([10.0, 90.0, 91.0, 92.0])
    assert by_interval(accuracy, 2, 10.0).tolist() == [1, 3]
    assert by_interval(accuracy, 2, None).tolist() == [0, 3]
    assert by_interval(accuracy, 2, 99.0).tolist() == []
    assert by_interval(np.full(3, 50.0), 4, 10.0).tolist() == [0]


def test_an_accuracy_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="accuracy: row 1 is nan"):
        by_interval(np.array([1.0, np.nan]), 4, None)


@with_table
def test_intervals_of_the_public_table() -> None:
    accuracy = column("cifar10_test_acc")
    assert len(by_interval(accuracy, 400, 10.0)) == 315
    assert len(by_interval(accuracy, 400, None)) == 198
    macs, connected = column("flops_m"), accuracy != 10.0
    assert len(sample(SamplingSettings(strategy="intervals"), accuracy, macs, connected)) == 315
    assert len(sample(SamplingSettings(strategy="macs"), accuracy, macs, connected)) == 20
    assert len(sample(SamplingSettings(strategy="all"), accuracy, macs, connected)) == 15625 - 341


def distance(macs: NDArray[np.float64], chosen: Any, count: int) -> float:
    targets = np.linspace(macs.min(), macs.max(), count)
    return float(np.abs(np.sort(macs[list(chosen)]) - targets).sum())


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("count", [2, 3, 5])
def test_macs_by_brute_force(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    # Few distinct values, and clumps beside gaps: what makes targets compete.
    macs = rng.integers(0, 6, 9).astype(float) ** 3
    chosen = evenly_in_macs(macs, count)
    assert len(set(chosen.tolist())) == count
    least = min(distance(macs, c, count) for c in itertools.combinations(range(9), count))
    assert distance(macs, chosen, count) == pytest.approx(least)
    for index in chosen:  # of equal MACs, the lowest indices are taken
        same = np.flatnonzero(macs == macs[index])
        taken = [i for i in same if i in chosen]
        assert taken == same[: len(taken)].tolist()


def test_macs_evenly_spaced_and_ties() -> None:
    assert evenly_in_macs(np.arange(101.0)[::-1], 5).tolist() == [0, 25, 50, 75, 100]
    assert evenly_in_macs(np.array([5.0, 5.0, 5.0]), 2).tolist() == [0, 1]
    assert evenly_in_macs(np.array([0.0, 6.0, 4.0, 10.0]), 3).tolist() == [0, 2, 3]  # fewer MACs first


def test_macs_says_how_many_exist() -> None:
    with pytest.raises(CannotSample, match="only 3 architectures exist"):
        evenly_in_macs(np.arange(3.0), 4)


def test_sample_maps_back_to_the_table() -> None:
    accuracy, macs = np.array([10.4, 80.0, 90.0, 70.0]), np.array([1.0, 2.0, 3.0, 4.0])
    connected = np.array([False, True, True, True])

    def chosen(**settings: Any) -> list[int]:
        return list(sample(SamplingSettings(**settings), accuracy, macs, connected))

    assert chosen(strategy="all") == [1, 2, 3]
    assert chosen(strategy="all", disconnected="keep") == [0, 1, 2, 3]
    assert chosen(strategy="intervals", intervals=2) == [2, 3]
    assert chosen(strategy="macs", count=2) == [1, 3]
    assert chosen(strategy="macs", count=2, disconnected="keep") == [0, 3]


def test_sample_of_one_says_what_to_change() -> None:
    one, disconnected = np.array([50.0, 10.0]), np.array([True, False])
    with pytest.raises(CannotSample, match=r"1 of 2 .*disconnected to keep, raise .*intervals, lower"):
        sample(SamplingSettings(strategy="intervals"), one, one, disconnected)
    with pytest.raises(CannotSample, match=r"= all: 1 of 2 .*needs 2; .*extend the table"):
        sample(SamplingSettings(strategy="all"), one, one, disconnected)
    with pytest.raises(ValueError, match="one entry per architecture"):
        sample(SamplingSettings(strategy="all"), one, one[:1], disconnected)


@pytest.mark.parametrize("wrong", [{"intervals": 0}, {"count": 1}, {"strategy": "best"}, {"interval": 3}])
def test_settings_refuse(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SamplingSettings(**{"strategy": "macs", **wrong})


def test_draw_is_distinct_deterministic_and_uniform() -> None:
    def even(architecture: tuple[int, ...]) -> bool:
        return sum(architecture) % 2 == 0

    def draw(seed: int, count: int) -> list[tuple[int, ...]]:
        return draw_uniform(3, 2, count, np.random.default_rng(seed), even)

    assert draw(1, 3) == draw(1, 3)
    assert set(draw(1, 4)) == {(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)}
    # Eight draws at most for two of four: often completed from the list, and still uniform.
    seen = Counter(a for seed in range(2000) for a in draw(seed, 2))
    assert len(seen) == 4 and all(abs(n - 1000) < 100 for n in seen.values())
    assert all(even(a) for a in seen)


def test_draw_says_how_many_exist() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(CannotSample, match="9 architectures asked for, only 8 exist"):
        draw_uniform(3, 2, 9, rng, anything)
    with pytest.raises(CannotSample, match=r"only 0 found among 6\^19"):
        draw_uniform(19, 6, 2, rng, lambda a: a == (0,) * 19)


def test_feasible_draws_all_of_a_few_in_a_huge_space() -> None:
    costs = np.tile(np.arange(1.0, 7.0), (19, 1))
    feasible = Feasible(costs, 100.0, 120.0)  # the cheapest is 119
    drawn = feasible.draw(30, np.random.default_rng(0))
    assert len(drawn) == len(set(drawn)) == 1 + 19 and all(map(feasible.admits, drawn))
    assert feasible.smallest() == 119


def test_feasible_draws_where_members_are_rare_but_many() -> None:
    costs = np.tile(np.arange(1.0, 7.0), (19, 1))
    feasible = Feasible(costs, 0.0, 30.0, lambda a: a[0] == 0)
    drawn = feasible.draw(50, np.random.default_rng(0))
    assert len(set(drawn)) == 50 and all(map(feasible.admits, drawn)) and feasible.members is None
    assert max(map(feasible.cost, drawn)) <= 30
    assert np.mean(drawn, axis=0)[1:].min() > 0  # every free layer gets its share of the slack


@with_table
def test_the_floors_that_the_page_names_drop_chance_and_nothing_that_has_learnt() -> None:
    page = (Path(__file__).parents[1] / "docs/benchmarks.md").read_text(encoding="utf-8")
    told = re.search(r"(\d+\.\d+) for `cifar100`, (\d+\.\d+) for `ImageNet16-120`", page)
    assert told
    floors = {"cifar10_test_acc": (10.0, 10), "cifar100_test_acc": (float(told[1]), 100),
              "imagenet16_test_acc": (float(told[2]), 120)}  # fmt: skip
    for name, (floor, classes) in floors.items():
        accuracy = column(name)
        accuracy[np.abs(accuracy - 100 / classes) < 1e-4] = 100 / classes  # the table has four digits
        by_floor = by_interval(accuracy, 10**6, floor)
        assert accuracy[by_floor].min() == accuracy[accuracy > 100 / classes].min(), name
    assert ((accuracy > 1) & (accuracy < 10)).any()  # what CIFAR-10's floor would drop, of ImageNet16-120's
