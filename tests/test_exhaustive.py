"""Exhaustive scoring on NAS-Bench-201, from the stage score to what search finds, against brute force (sec. 4.2)."""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sumnas import data, files, params
from sumnas.benchmark import table
from sumnas.errors import UserError
from sumnas.evaluation import Predictor, Score
from sumnas.exhaustive import cases, in_orbits, orbit
from sumnas.lockstep.scoring import OrbitPredictor
from sumnas.spaces import base
from sumnas.spaces.base import Architecture
from sumnas.spaces.nasbench201 import NASBench201, terms
from tests.cells import ALL, PAPER
from tests.in_process import begin, run
from workflow import score
from workflow.search import oracle, spread
from workflow.stage import make_job
from workflow.stages import STAGES

RUN = "spos-0"
SCORES, RESULTS = Path(f"results/scores/{RUN}"), Path(f"results/search/{RUN}")
TABLE = Path("results/benchmark/table.csv")


def groups_of(architectures: list[Architecture], flatten: bool) -> list[list[Architecture]]:
    groups: dict[Any, list[Architecture]] = {}
    for architecture in architectures:
        groups.setdefault(PAPER.equivalence(architecture, flatten=flatten), []).append(architecture)
    return list(groups.values())


def some() -> list[Architecture]:
    """Sixty architectures in the space's order, four of them disconnected: too few to take minutes.

    Six times eight sum the same terms, some by other operations, half of the times three terms and more, where the
    order shows in rounding; the others are on their own.
    """
    connected = [a for a in ALL if PAPER.connected(a)]
    rng, chosen = random.Random(0), list[Architecture]()
    several = [group for group in groups_of(connected, flatten=True) if len(group) >= 8]
    long = [group for group in several if len(terms(group[0])) > 2]
    mixed = [group for group in several if 1 < len(groups_of(group, flatten=False)) < len(group)]
    for group in rng.sample(long, 3) + rng.sample([group for group in mixed if group not in long], 3):
        chosen += rng.sample(group, 8)
    chosen += rng.sample([a for a in connected if a not in chosen], 8)
    return sorted(chosen + rng.sample([a for a in ALL if not PAPER.connected(a)], 4))


CHOSEN = some()
CONNECTED = [a for a in CHOSEN if PAPER.connected(a)]
UNKNOWN = CONNECTED[::9]
"""Left out of the benchmark's table: without the accuracy, and without the measured cost."""


def small(settings: dict[str, Any]) -> None:
    settings["run"]["methods"] = ["spos"]
    settings["data"] |= {"validation": 0.1}
    settings["supernet"] |= {"epochs": 4, "batch_size": 32, "probes": 0}
    settings["calibration"] |= {"images": 30, "batch_size": 30}
    settings["search"] |= {"strategy": "exhaustive", "limits": [0.0085, 0.0095, None]}


def change(settings: Callable[[dict[str, Any]], object]) -> None:
    read = yaml.safe_load(Path("params.yaml").read_text())
    settings(read)
    Path("params.yaml").write_text(yaml.safe_dump(read))


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def scores() -> dict[str, float]:
    """Every shard's rows together; no architecture may be in two."""
    rows = [row for path in sorted(SCORES.glob("*.csv")) for row in rows_of(path)]
    found = {row["architecture"]: float(row["predicted"]) for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny supernet's project in which the space has the chosen architectures only; the current folder."""
    folder = tmp_path_factory.mktemp("exhaustive")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NASBench201, "architectures", lambda self: iter(CHOSEN))
        begin(folder, patch, small)
        run(RUN, ["prepare_data", "describe_method", "train_supernet"])
        space, rng = own_space(), np.random.default_rng(0)
        known = [a for a in CHOSEN if a not in UNKNOWN]
        random.Random(1).shuffle(known)  # nothing may go by the row
        # The best of all are disconnected, which count for nothing.
        accuracies = {a: {"0": float(rng.uniform(50, 90) + 9 * (not space.connected(a)))} for a in known}
        table.write(TABLE, space, accuracies, {a: {"delay": float(rng.uniform(1, 5))} for a in known})
        yield folder


@pytest.fixture
def project(trained: Path) -> Iterator[Path]:
    """The same, its settings as they were at first, without scores."""
    before = Path("params.yaml").read_bytes()
    yield trained
    Path("params.yaml").write_bytes(before)
    for path in [*SCORES.glob("*"), *RESULTS.glob("*")]:
        path.unlink()


def own_space() -> NASBench201:
    built = base.build(params.load(Path("params.yaml")).space)
    assert isinstance(built, NASBench201)
    return built


@pytest.fixture(scope="module")
def fresh(trained: Path) -> dict[Architecture, Score]:
    """Every connected architecture's own score, by a predictor that serves it alone."""
    settings, space = params.load(Path("params.yaml")), own_space()
    supernet, prepared = space.supernet(), data.load(Path("data/prepared"))
    supernet.load_state_dict(files.read_tensors(Path(f"results/supernet/{RUN}/weights.safetensors"))[0])
    return {
        a: Predictor(space, supernet, prepared, settings.calibration, settings.evaluation)(a) for a in CONNECTED
    }  # fmt: skip


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Architecture]:
    """What was really scored."""
    noted: list[Architecture] = []
    whole = Predictor.__call__

    def noting(self: Predictor, architecture: Architecture) -> Score:
        noted.append(architecture)
        return whole(self, architecture)

    monkeypatch.setattr(Predictor, "__call__", noting)
    return noted


def test_the_chosen_have_groups_of_both_kinds() -> None:
    operations, function = groups_of(CONNECTED, False), groups_of(CONNECTED, True)
    assert len(CONNECTED) == 56 and len(CHOSEN) == 60
    assert len(function) < len(operations) < len(CONNECTED)
    assert sum(len(group) > 1 for group in operations) > 5


def test_every_architecture_has_its_own_score_and_each_group_is_scored_once(
    project: Path, fresh: dict[Architecture, Score], calls: list[Architecture]
) -> None:
    run(RUN, ["score"])
    groups = groups_of(CONNECTED, flatten=False)
    assert calls == [group[0] for group in groups]
    for group in groups:
        assert len({fresh[a] for a in group}) == 1  # accuracy and loss, bit by bit
    rows = rows_of(SCORES / "0.csv")
    space = own_space()
    assert {row["architecture"]: float(row["predicted"]) for row in rows} == {
        space.encode(a): fresh[a].accuracy for a in CONNECTED
    }  # fmt: skip
    assert len(rows) == len(CONNECTED) and len({row["predicted"] for row in rows}) > 10
    assert all(float(row["macs"]) == space.macs(space.decode(row["architecture"])) for row in rows)


def test_memoised_by_function_fewer_are_scored_and_losses_agree_up_to_rounding(
    project: Path, fresh: dict[Architecture, Score], calls: list[Architecture]
) -> None:
    change(lambda settings: settings["search"].update(memoise="function"))
    run(RUN, ["score"])
    groups, space, found = groups_of(CONNECTED, flatten=True), own_space(), scores()
    assert calls == [group[0] for group in groups] and len(groups) < len(groups_of(CONNECTED, flatten=False))
    assert len(found) == len(CONNECTED)
    for group in groups:
        for architecture in group:
            assert fresh[architecture].loss == pytest.approx(fresh[group[0]].loss, abs=1e-4)
            assert found[space.encode(architecture)] == fresh[group[0]].accuracy
    different = [group for group in groups if len({fresh[a].loss for a in group}) > 1]
    assert different  # of rounding, or it would be the case of equal operations again


def test_any_number_of_shards_gives_the_same(project: Path) -> None:
    run(RUN, ["score", "search"])
    one = {path.name: path.read_bytes() for path in RESULTS.glob("*")}
    alone = scores()
    change(lambda settings: settings["run"].update(shards=[0, 1, 2]))
    for shard in (0, 1, 2):
        run(RUN, ["score"], shard)
    run(RUN, ["search"])
    assert scores() == alone
    sizes = [len(rows_of(SCORES / f"{shard}.csv")) for shard in (0, 1, 2)]
    assert min(sizes) > 5 and sum(sizes) == len(CONNECTED)
    three = {path.name: path.read_bytes() for path in RESULTS.glob("*")}
    # The digest of the settings alone tells them apart.
    found, expected = json.loads(three.pop("found.json")), json.loads(one.pop("found.json"))
    assert found.pop("settings_digest") != expected.pop("settings_digest")
    assert found == expected and three == one


@pytest.mark.parametrize("engine", ["sequential", "lockstep"])
def test_shards_beyond_the_work_there_is_are_empty(project: Path, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    few = orbit(CONNECTED[0], 5)
    monkeypatch.setattr(NASBench201, "architectures", lambda self: iter(few))
    change(lambda settings: settings["run"].update(shards=list(range(6))))
    change(lambda settings: settings["search"].update(engine=engine, limits=[None]))
    for shard in range(6):
        run(RUN, ["score"], shard)
    filled = {path.stem for path in SCORES.glob("*.csv") if rows_of(path)}
    assert "0" in filled and "5" not in filled and len(list(SCORES.glob("*.csv"))) == 6
    assert len(scores()) == sum(PAPER.connected(a) for a in few)
    run(RUN, ["search"])


def test_in_lockstep_orbits_have_the_scores_of_one_by_one(
    project: Path, calls: list[Architecture], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six orbits, of one of which one is wanted, and of another three, in any order and number of shards."""
    whole = [orbit(a, 5) for a in random.Random(2).sample(CONNECTED, 6)]
    few = [*whole[0], *whole[1], *whole[2], *whole[3], *whole[4][1:4], whole[5][2]]
    random.Random(3).shuffle(few)
    monkeypatch.setattr(NASBench201, "architectures", lambda self: iter(few))
    run(RUN, ["score"])
    expected = scores()
    served, scored = {a: group[0] for group in cases(own_space(), flatten=False) for a in group}, len(calls)
    assert scored == len(set(served.values())) > 15
    change(lambda settings: settings["search"].update(engine="lockstep", limits=[None]))
    for shards in ([0], [0, 1, 2]):
        change(lambda settings, shards=shards: settings["run"].update(shards=shards))
        calls.clear()
        for shard in shards:
            run(RUN, ["score"], shard)
        assert scores() == expected
        lonely = [members[0] for members in in_orbits(dict.fromkeys(served.values()), 5) if len(members) == 1]
        assert sorted(calls) == sorted(lonely) and whole[5][2] in calls
    run(RUN, ["search"])
    found = json.loads((RESULTS / "found.json").read_text())
    assert found["scores"]["count"] == len(expected)


def test_the_engine_that_ran_is_noted(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NASBench201, "architectures", lambda self: iter(orbit(CONNECTED[0], 5)))
    stage = STAGES["score"]
    for engine, ran in (("auto", "sequential"), ("sequential", "sequential"), ("lockstep", "lockstep")):
        change(lambda settings, engine=engine: settings["search"].update(engine=engine))
        job = make_job(stage, argparse.Namespace(run=RUN, shard=0))
        score.main(job)
        assert job.facts == {"engine": ran}


def best_by_hand(costs: dict[str, float], limit: float | None) -> tuple[str, float]:
    """The best predicted within a limit, of equals the first in the space's order."""
    found, space = scores(), own_space()
    within = [a for a in costs if a in found and (limit is None or costs[a] <= limit)]
    return min((-found[a], space.decode(a), a) for a in within)[2], max(found[a] for a in within)


def true_best_by_hand(cost: str, limit: float | None) -> float:
    rows = [row for row in rows_of(TABLE) if PAPER.connected(PAPER.decode(row["architecture"]))]
    return max(float(row["accuracy"]) for row in rows if limit is None or float(row[cost]) <= limit)


@pytest.mark.parametrize(
    ("cost", "column", "limits"),
    [("macs", "macs", [0.0085, 0.0095, None]), ("delay", "cost_delay", [1.5, 3.0, None])],
)
def test_the_best_and_the_oracle_under_limits_are_those_of_brute_force(
    project: Path, cost: str, column: str, limits: list[float | None]
) -> None:
    space, known = own_space(), {row["architecture"]: row for row in rows_of(TABLE)}
    # MACs are known of every architecture, a measured cost of those in the table alone.
    costs = {text: float(row[column]) for text, row in known.items()}
    if cost == "macs":
        costs = {space.encode(a): space.macs(a) for a in CONNECTED}
    run(RUN, ["score"])
    # Which sub-model is the best after so short a training depends on the processor: make it one that limits leave out.
    rows, dearest = rows_of(SCORES / "0.csv"), max(costs, key=lambda text: costs[text])
    next(row for row in rows if row["architecture"] == dearest)["predicted"] = "100.0"
    files.write_csv(SCORES / "0.csv", score.COLUMNS, [{name: row[name] for name in score.COLUMNS} for row in rows])
    change(lambda settings: settings["search"].update(cost=cost, limits=limits))
    run(RUN, ["search"])
    result = json.loads((RESULTS / "found.json").read_text())
    for limit, entry in zip(limits, result["found"], strict=True):
        text, predicted = best_by_hand(costs, limit)
        assert (entry["limit"], entry["architecture"], entry["predicted"]) == (limit, text, predicted)
        assert entry["cost"] == costs[text] and entry["macs"] == space.macs(space.decode(text))
        truth = float(known[text]["accuracy"]) if text in known else None
        assert entry["benchmark_accuracy"] == truth
        assert entry["benchmark_best"] == true_best_by_hand(column, limit)
    for key in ("benchmark_best", "architecture"):
        assert len({entry[key] for entry in result["found"]}) > 1  # the limits bind
    assert result["scored"] == len(rows_of(RESULTS / "scored.csv")) == len(CONNECTED)
    values = list(scores().values())
    assert result["scores"].pop("count") == len(CONNECTED)
    assert result["scores"] == pytest.approx({"mean": statistics.mean(values), "std": statistics.stdev(values)})


def test_an_evolution_tells_nothing_of_all(project: Path) -> None:
    change(lambda settings: settings["search"].update(strategy="evolution", limits=[None]))
    run(RUN, ["score", "search"])
    assert scores() == {} and "scores" not in json.loads((RESULTS / "found.json").read_text())
    assert spread([90.0]) == {"count": 1, "mean": 90.0, "std": None}


def test_limits_that_nothing_meets_and_costs_that_are_not_there_are_named(project: Path) -> None:
    run(RUN, ["score"])
    read = table.read(TABLE, own_space())
    assert oracle(read, own_space(), "delay", [0.5, None]) == [None, true_best_by_hand("cost_delay", None)]
    change(lambda settings: settings["search"].update(cost="delay", limits=[0.5]))
    with pytest.raises(UserError, match=r"nothing is within 0\.5 \(delay\); the smallest reachable is 1\."):
        run(RUN, ["search"])
    change(lambda settings: settings["search"].update(cost="watts"))
    with pytest.raises(UserError, match=r"'watts': .* there are: macs, params, delay"):
        run(RUN, ["search"])


def test_interrupted_scores_go_on_behind_the_last_finished_block(
    project: Path, calls: list[Architecture], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "BLOCK", 8)
    run(RUN, ["score"])
    whole, count = (SCORES / "0.csv").read_bytes(), len(calls)
    (SCORES / "0.csv").unlink()
    noting = Predictor.__call__

    def stopping(self: Predictor, architecture: Architecture) -> Score:
        if len(calls) == 20:
            raise KeyboardInterrupt
        return noting(self, architecture)

    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "__call__", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(RUN, ["score"])
    assert not (SCORES / "0.csv").exists()
    calls.clear()
    run(RUN, ["score"])
    assert len(calls) == count - 16 and (SCORES / "0.csv").read_bytes() == whole


def test_interrupted_orbits_go_on_behind_the_last_finished_block(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orbits = [orbit(a, 5) for a in random.Random(4).sample(CONNECTED, 4)]
    monkeypatch.setattr(NASBench201, "architectures", lambda self: iter([a for members in orbits for a in members]))
    monkeypatch.setattr(score, "BLOCK", 9)  # one orbit
    change(lambda settings: settings["search"].update(engine="lockstep", limits=[None]))
    predict, seen = OrbitPredictor.__call__, list[Architecture]()

    def noting(self: OrbitPredictor, wanted: list[Architecture]) -> list[Score]:
        seen.append(wanted[0])
        if len(seen) == stop:
            raise KeyboardInterrupt
        return predict(self, wanted)

    monkeypatch.setattr(OrbitPredictor, "__call__", noting)
    stop = 0
    run(RUN, ["score"])
    whole, every = (SCORES / "0.csv").read_bytes(), list(seen)
    assert len(every) > 3
    seen.clear()
    stop = 3
    with pytest.raises(KeyboardInterrupt):
        run(RUN, ["score"])
    seen.clear()
    stop = 0
    run(RUN, ["score"])
    assert seen == every[2:] and (SCORES / "0.csv").read_bytes() == whole
