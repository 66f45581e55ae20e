"""Several processes train what one trains: four real ones, started once, and what they refuse."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sumnas import distributed, training
from sumnas.distributed import ALONE, Place, Ranks, dealt
from sumnas.errors import UserError
from sumnas.methods import sumnas
from sumnas.spaces.base import Supernet
from tests import ranks as four
from tests.processes import said_by
from tests.tiny import smooth
from tests.trainings import METHODS, SEED, network, prepared, settings

ROOT = Path(__file__).resolve().parents[1]
TRAINED = [name for name in four.BLOCKS if name != "sumnas, too fast"]
Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each of the four says."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save(four.trained(four.RESUMED, stop=four.STOP)["state"], folder / "alone.pt")
    torch.save(four.trained(four.RESUMED, stop=four.SPLIT_STOP, **four.UNEVEN)["state"], folder / "alone, uneven.pt")
    return said_by("tests.ranks", four.WORLD, folder)


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Any]]:
    """What one process comes to."""
    uneven = {f"{name}, uneven": four.trained(name, **four.UNEVEN) for name in four.SPLIT}
    return {name: four.trained(name) for name in four.BLOCKS} | uneven


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same weights and history up to the order of summation, in float64."""
    for name, value in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], value, rtol=1e-10, atol=1e-11, msg=name)
    assert len(found["history"]) == len(expected["history"]) == 2
    for row, other in zip(found["history"], expected["history"], strict=True):
        assert row == pytest.approx(other, rel=1e-10)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("name", TRAINED)
def test_several_processes_train_what_one_trains(
    name: str, world: int, found: Found, alone: dict[str, dict[str, Any]]
) -> None:
    results = [one[f"{name} on {world}"] for one in found]
    assert_equal(results[0], alone[name])
    for other in results[1:]:  # the very same bytes on every rank after every step, and the same figures
        assert other["digests"] == results[0]["digests"] and other["history"] == results[0]["history"]
    assert len(set(results[0]["digests"])) == len(alone[name]["digests"])


def test_a_training_goes_on_in_another_number_of_processes(found: Found, alone: dict[str, dict[str, Any]]) -> None:
    expected = alone[four.RESUMED]
    assert_equal(found[0]["from 2 to 4"], expected)
    assert_equal(found[0]["from 1 to 2"], expected)
    state = found[0]["begun"]["state"]
    assert state["progress"]["step"] == four.STOP[1]
    assert set(state["method"]["outer_buffers"]) == {name for name, _ in network().named_parameters()}
    assert_equal(four.trained(four.RESUMED, state=state), expected)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("name", four.SPLIT)
def test_ranks_that_share_every_batch_train_what_one_trains(
    name: str, world: int, found: Found, alone: dict[str, dict[str, Any]]
) -> None:
    expected, results = alone[f"{name}, uneven"], [one[f"{name} on {world}, split"] for one in found]
    assert_equal(results[0], expected)
    for other in results[1:]:
        assert other["digests"] == results[0]["digests"] and other["history"] == results[0]["history"]
    assert len(set(results[0]["digests"])) == len(expected["digests"]) == four.UNEVEN_STEPS


def test_a_training_on_shared_batches_goes_on_in_other_numbers(found: Found, alone: dict[str, dict[str, Any]]) -> None:
    expected = alone[f"{four.RESUMED}, uneven"]
    assert_equal(found[0]["from 2 x 2 to 2"], expected)
    assert_equal(found[0]["from 1 to 1 x 4"], expected)
    assert_equal(four.trained(four.RESUMED, state=found[0]["begun, split"]["state"], **four.UNEVEN), expected)


def test_a_loss_that_is_not_finite_ends_every_process_with_the_same_words(
    found: Found, alone: dict[str, dict[str, Any]]
) -> None:
    text = alone["sumnas, too fast"]["error"]
    assert "on path" in text
    assert {one[f"sumnas, too fast on {world}"]["error"] for one in found for world in (2, 4)} == {text}


def test_a_step_takes_one_sum_over_all_parameters_and_losses(found: Found) -> None:
    weights = sum(parameter.numel() for parameter in network().parameters())
    for one in found:
        assert one["sizes"] == [weights + 5] * 10  # two epochs of five steps, five paths each


def test_with_shared_batches_every_inner_step_takes_a_sum_of_the_paths_gradients_and_loss(found: Found) -> None:
    supernet, sizes = network(), [one["sizes, split"] for one in found]
    assert sizes[1] == sizes[0] and sizes[3] == sizes[2]
    largest = sum(parameter.numel() for parameter in supernet.parameters())
    for one in sizes:  # one of all weights per outer step, as where batches are whole
        assert one.count(largest + 5) == four.UNEVEN_STEPS and max(one) == largest + 5
    shared = sum(parameter.numel() for parameter in supernet.shared)
    # Five paths, two steps each, dealt out to two groups; nothing else is as large as the shared weights.
    steps = [sum(shared < size < largest for size in one) for one in (sizes[0], sizes[2])]
    assert sum(steps) == 5 * 2 * four.UNEVEN_STEPS and abs(steps[0] - steps[1]) == 2 * four.UNEVEN_STEPS


def test_a_signal_to_one_process_ends_all_after_the_same_step_and_the_first_has_saved(found: Found) -> None:
    assert [one["ranks"] for one in found] == [(rank, four.WORLD) for rank in range(four.WORLD)]
    steps = {one["work"]["stopped"] for one in found}
    assert len(steps) == 1 and steps == {(3, signal.SIGUSR1)}
    assert [one["work"]["due"] for one in found] == [[False] * 3 + [True], *[[False] * 4] * 3]
    assert all(one["work"]["loaded"] == {"step": 3, "rank": 0} and one["work"]["there"] for one in found)


def test_a_process_that_sees_other_data_or_sources_is_refused(found: Found) -> None:
    said = [one["work"]["other"] for one in found]
    assert said[1].startswith("process 1 sees other settings, inputs or source files than the first")
    assert said[0] == said[2] == said[3] == ""


def test_a_lost_process_is_an_error_of_one_line_to_the_others(found: Found) -> None:
    for one in found[:-1]:
        assert len(one["lost, split"]["digests"]) == four.LOST
        for text in (one["lost"], one["lost, split"]["error"]):
            assert text.startswith("another process of this training is gone") and "\n" not in text
            assert text.endswith("run the same command again to go on from the last checkpoint")


# Without other processes.


@pytest.mark.parametrize(("world", "count", "rounds"), [(1, 5, 1), (2, 5, 1), (4, 5, 3), (3, 6, 2), (7, 5, 2)])
def test_every_path_is_of_one_rank_and_none_has_two_more_than_another(world: int, count: int, rounds: int) -> None:
    shares = [
        [turn * count + i for turn in range(rounds) for i in Ranks(rank, world).own(count, turn * count)]
        for rank in range(world)
    ]
    assert sorted(sum(shares, [])) == list(range(rounds * count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(("count", "groups", "before"), [(5, 2, 0), (5, 2, 5), (6, 2, 0), (5, 3, 5), (6, 4, 6)])
def test_paths_are_dealt_out_by_what_they_cost(count: int, groups: int, before: int) -> None:
    """Close to the best of all ways, and closer than in turn; each path once, and as many as there is room for."""
    rng = np.random.default_rng(count)
    room = [len(Ranks(group, groups).own(count, before)) for group in range(groups)]
    lost: dict[str, list[float]] = {"dealt": [], "in turn": []}
    for _ in range(30):
        costs, begun = rng.uniform(1, 4, count), rng.uniform(0, 1, groups)

        def busiest(shares: Any, costs: Any = costs, begun: Any = begun) -> float:
            return float(max(begun[group] + sum(costs[list(share)]) for group, share in enumerate(shares)))

        loads = list(map(float, begun))
        shares = dealt(list(map(float, costs)), room, loads)
        assert sorted(sum(shares, [])) == list(range(count)) and list(map(len, shares)) == room
        assert loads == pytest.approx([begun[g] + sum(costs[share]) for g, share in enumerate(shares)])
        every = (
            [[i for i in range(count) if way[i] == group] for group in range(groups)]
            for way in itertools.product(range(groups), repeat=count)
            if [way.count(group) for group in range(groups)] == room
        )
        best = min(map(busiest, every))
        lost["dealt"].append(busiest(shares) / best)
        lost["in turn"].append(busiest([Ranks(group, groups).own(count, before) for group in range(groups)]) / best)
    assert min(lost["dealt"]) > 1 - 1e-9 and np.mean(lost["dealt"]) < 1.02
    assert np.mean(lost["dealt"]) < np.mean(lost["in turn"]) - 0.03


def test_paths_of_a_supernet_that_does_not_know_its_costs_are_dealt_out_in_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = sumnas.SUMNAS(smooth(), sumnas.Settings(strategy="sumnas", adaptation_steps=1), 4, SEED)
    monkeypatch.setattr(type(method.supernet), "macs", Supernet.macs)
    paths = [(operator,) * method.layers for operator in range(method.candidates)]
    for rank in range(2):
        method.share(Ranks(rank, 2))
        assert list(method.own(0, paths)) == list(range(rank, method.candidates, 2)) and not method.loads


@pytest.mark.parametrize(
    ("name", "changes", "world", "expected"),
    [
        ("spos", {}, 2, "strategy 'spos' has no independent paths to share out; these have: fairnas, sumnas"),
        ("darts", {}, 2, "strategy 'darts' has no independent paths"),
        ("sumnas with all state", {}, 2, "momentum_buffer: carry hands the momentum of shared weights"),
        ("sumnas", {"engine": "lockstep"}, 2, "lockstep runs all paths in one"),
        ("fairnas", {}, 6, "a step has only 5 paths to share out"),
        ("fairnas", {"split_batch": 2}, 12, "a step has only 5 paths to share out"),
    ],
)
def test_what_cannot_be_shared_is_refused(name: str, changes: dict[str, Any], world: int, expected: str) -> None:
    def start(ranks: Ranks) -> None:
        training.assemble(network(), prepared(), settings(**changes), METHODS[name], SEED, ranks)

    if "split_batch" not in changes:
        start(ALONE)
    with pytest.raises(UserError, match=f"^training in {world} processes: {expected}[^\n]*; or take one process$"):
        start(Ranks(0, world))


@pytest.mark.parametrize(
    ("split", "world", "expected"),
    [
        (2, 1, "1 process cannot stand in groups of so many; set supernet.processes to a multiple of it, or .*"),
        (2, 3, "3 processes cannot stand in groups of so many; set supernet.processes to a multiple of it, or .*"),
        (9, 9, "more than the 8 images of a batch; lower it"),
    ],
)
def test_what_cannot_share_a_batch(split: int, world: int, expected: str) -> None:
    given = settings(split_batch=split)
    with pytest.raises(UserError, match=f"^supernet.split_batch = {split}: {expected}$"):
        training.assemble(network(), prepared(), given, METHODS["sumnas"], SEED, Ranks(0, world))
    # One that trains in one process has its batches whole.
    method, batches, _ = training.assemble(network(), prepared(), given, METHODS["spos"], SEED)
    assert not method.sharers.several and len(next(batches.epoch(0))[0][0][1]) == 8


def test_a_layer_that_looks_beyond_an_image_in_another_way_is_refused() -> None:
    supernet = network()
    supernet.more = torch.nn.BatchNorm1d(2)
    training.assemble(supernet, prepared(), settings(), METHODS["sumnas"], SEED, Ranks(0, 2))
    with pytest.raises(UserError, match="^more: several processes cannot share the batch of a layer BatchNorm1d"):
        training.assemble(supernet, prepared(), settings(split_batch=2), METHODS["sumnas"], SEED, Ranks(0, 2))


@pytest.mark.parametrize("name", four.SPLIT)
def test_a_process_lost_at_any_sum_ends_the_step_and_leaves_the_layers(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = {"call": 0, "lost": 0}

    def add(_ranks: Ranks, _tensors: list[torch.Tensor]) -> None:
        at["call"] += 1
        if at["call"] == at["lost"]:
            raise distributed.RankLost("gone")

    monkeypatch.setattr(Ranks, "add", add)
    supernet = network()
    method, batches, _ = training.assemble(
        supernet, prepared(), settings(split_batch=2), four.BLOCKS[name], SEED, Ranks(0, 2)
    )  # fmt: skip
    rounds = next(batches.epoch(0))
    assert len(rounds[0][0][1]) == 4
    method.step(rounds)
    everything = at["call"]
    assert everything > 100
    for number in range(1, everything, everything // 15):  # in both directions of a pass, and between them
        at |= {"call": 0, "lost": number}
        with pytest.raises(distributed.RankLost, match="^gone$"):
            method.step(rounds)
        assert not any("forward" in module.__dict__ for module in supernet.modules())


def test_a_launcher_is_known_by_its_variables() -> None:
    said = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
    assert distributed.place(said) == Place(3, 8, 1)
    for name in said:
        assert distributed.place({key: value for key, value in said.items() if key != name}) is None


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="finds only 1 GPU: every process"), distributed.joined(Place(1, 2, 1), "cuda"):
        pass


def test_one_process_of_a_launcher_is_alone() -> None:
    with distributed.joined(Place(0, 1, 0), "cpu") as ranks:
        assert ranks == ALONE and ranks.largest(3) == 3 and ranks.from_first("it") == "it"
