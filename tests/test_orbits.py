"""Sub-models scored an orbit at a time, against the same scored one by one; and which of a list go together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sumnas import seeding
from sumnas.batchnorm import CalibrationSettings, recalibrate
from sumnas.data import Prepared
from sumnas.errors import UserError
from sumnas.evaluation import EvaluationSettings, Predictor, Score, SubModel
from sumnas.exhaustive import in_orbits, orbit
from sumnas.lockstep.rounds import indices
from sumnas.lockstep.scoring import JointNetwork, OrbitPredictor
from sumnas.spaces.base import Architecture, Space, Supernet
from sumnas.spaces.nasbench201 import CONV1, CONV3, NONE, POOL, SKIP, NASBench201
from tests import cells, chains
from tests.replayed import without_gpu
from tests.tiny import smooth

# Which go together.


def same_orbit(one: Architecture, other: Architecture, m: int) -> bool:
    """By the definition: one shift for all layers."""
    return len({(a - b) % m for a, b in zip(one, other, strict=True)}) == 1


def test_the_whole_space_is_3125_orbits_which_use_each_operator_once() -> None:
    found = in_orbits(cells.ALL, 5)
    assert len(found) == 3125 and all(len(members) == 5 for members in found)
    assert sorted(a for members in found for a in members) == cells.ALL
    for members in found:
        assert all(len({a[layer] for a in members}) == 5 for layer in range(6))
        assert all(same_orbit(members[0], a, 5) for a in members)
        assert sorted(members) == orbit(members[3], 5)


@pytest.mark.parametrize("count", [1, 40, 900, 12_000])
def test_every_wanted_architecture_is_in_one_orbit(count: int) -> None:
    wanted = cells.sample(count, seed=count)
    found = in_orbits(wanted, 5)
    assert sorted(a for members in found for a in members) == sorted(wanted)
    # Those apart are no members of one orbit: there are as many orbits as smallest members, by brute force.
    least = {min(tuple((o + c) % 5 for o in a) for c in range(5)) for a in wanted}
    assert len(found) == len(least)
    assert all(same_orbit(members[0], a, 5) for members in found for a in members)
    assert [members[0] for members in found] == sorted((members[0] for members in found), key=wanted.index)


def test_orbits_of_a_chain_of_six_operators() -> None:
    assert orbit((4, 0, 5, 3), 6) == [
        (0, 2, 1, 5),
        (1, 3, 2, 0),
        (2, 4, 3, 1),
        (3, 5, 4, 2),
        (4, 0, 5, 3),
        (5, 1, 0, 4),
    ]
    assert in_orbits([(4, 0, 5), (1, 1, 1), (0, 2, 1)], 6) == [[(4, 0, 5), (0, 2, 1)], [(1, 1, 1)]]


# Statistics and logits, in float64.

DEAD: list[Architecture] = [
    (NONE, NONE, NONE, CONV3, CONV1, CONV3),  # convolutions of empty nodes
    (CONV3, NONE, CONV1, NONE, NONE, NONE),  # edges that lead nowhere, and a cell that gives zeros
    (POOL, CONV3, SKIP, CONV1, NONE, CONV3),
]
CASES: list[tuple[Space, Architecture]] = [
    *[(cells.space(), path) for path in DEAD],
    (cells.space(cells=2, affine=False), DEAD[2]),
    (chains.space(), (0, 3, 5, 1)),
    (chains.space(se_ratio=0, stem_stride=2, image_size=8), (2, 2, 0, 4)),
]


def supernet_of(space: Space, dtype: torch.dtype = torch.float64) -> Supernet:
    with seeding.scoped(2, "test"):
        supernet = space.supernet().to(dtype)
        with torch.no_grad():
            for parameter in supernet.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return supernet


def batches_of(space: Space, sizes: tuple[int, ...], seed: int) -> list[Tensor]:
    """Batches whose means and spreads differ a lot."""
    generator, of = torch.Generator().manual_seed(seed), space.settings
    return [
        (i + 1) * torch.randn(size, of.image_channels, of.image_size, of.image_size, generator=generator).double() + i
        for i, size in enumerate(sizes)
    ]


def statistics(network: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    found = {}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            found[name] = layer.running_mean.clone(), layer.running_var.clone()
    return found


@pytest.mark.parametrize(("space", "path"), CASES, ids=lambda v: type(v).__name__ if isinstance(v, Space) else str(v))
def test_statistics_and_logits_are_those_of_every_sub_model_alone(space: Space, path: Architecture) -> None:
    supernet = supernet_of(space)
    calibration, (images,) = batches_of(space, (7, 6, 6), 0), batches_of(space, (5,), 1)
    before = {name: value.numpy().tobytes() for name, value in supernet.state_dict().items()}
    joint = JointNetwork(space, supernet, calibration[0][:2])
    alone = SubModel(space.tracked(supernet).double(), ())
    for paths in (orbit(path, len(space.candidates)), orbit((0,) * space.layers, len(space.candidates))):
        index = indices(paths)
        joint.recalibrate(calibration, lambda x, index=index: joint.batch_statistics(index, x)[0])
        joint.network.eval()
        logits, own = joint(index, images), statistics(joint.network)
        compared = 0
        for i, architecture in enumerate(paths):
            alone.architecture = architecture
            recalibrate(alone, calibration)
            with torch.no_grad():
                torch.testing.assert_close(logits[i], alone(images), rtol=0, atol=1e-10)
            for name, found in statistics(alone.network).items():
                if not found[0].any() and bool((found[1] == 1).all()):
                    continue  # not reached by this sub-model
                several = [head for head in joint.several if f"{name}.".startswith(f"{head}.")]
                keys = [f"{name}.{key}".removeprefix(f"{head}.") for head in several
                        for key in ("running_mean", "running_var")]  # fmt: skip
                pair = [joint.several[several[0]][key][i] for key in keys] if several else own[name]
                compared += 1
                for value, expected in zip(pair, found, strict=True):  # some variances are in the hundred thousands
                    torch.testing.assert_close(
                        value, expected, rtol=1e-13, atol=1e-10, msg=lambda t, n=name: f"{n}: {t}"
                    )
        assert compared > 30
    assert {name: value.numpy().tobytes() for name, value in supernet.state_dict().items()} == before


# Scores.

PATH: Architecture = (3, 2, 1, 4, 3, 2)


def predictor(space: NASBench201, data: Prepared, **changes: Any) -> Predictor:
    """Batches of 34 and 33 images to calibrate on, of 150 and 60 to score."""
    settings: dict[str, Any] = {"split": "validation", "batch_size": 150, **changes}
    return Predictor(
        space, supernet_of(space, torch.float32), data, CalibrationSettings(images=100, batch_size=30, seed=1),
        EvaluationSettings(**settings),
    )  # fmt: skip


def assert_same(found: list[Score], expected: list[Score]) -> None:
    assert [score.accuracy for score in found] == [score.accuracy for score in expected]
    assert [score.loss for score in found] == pytest.approx([score.loss for score in expected], rel=1e-5)


def test_scores_are_those_of_one_by_one(tiny_space: NASBench201, digits: Prepared) -> None:
    alone = predictor(tiny_space, digits)
    together = OrbitPredictor(alone)
    orbits = [orbit(path, 5) for path in [PATH, *DEAD, *cells.sample(1)]]
    found = [together(members) for members in orbits]
    for members, scores in zip(orbits, found, strict=True):
        assert_same(scores, [alone(a) for a in members])
    assert len({score.accuracy for scores in found for score in scores}) > 10
    assert together(orbits[0]) == found[0]  # nothing is left over of another orbit


def test_those_wanted_come_in_their_order_and_one_alone_is_scored_alone(
    tiny_space: NASBench201, digits: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, (a, b, c, d, e) = OrbitPredictor(predictor(tiny_space, digits)), orbit(PATH, 5)
    every = together([a, b, c, d, e])
    assert together([d, b]) == [every[3], every[1]]
    assert_same([together.alone(c)], [every[2]])
    with pytest.raises(ValueError):
        together([a, (0, 0, 0, 0, 0, 1)])
    passes = []
    monkeypatch.setattr(JointNetwork, "__call__", lambda *_: passes.append(1))
    assert together([c]) == [together.alone(c)] and together([]) == [] and not passes


def test_weights_that_went_wrong_spoil_their_own_sub_model_alone(tiny_space: NASBench201, digits: Prepared) -> None:
    alone = predictor(tiny_space, digits)
    together, members = OrbitPredictor(alone), orbit((CONV3, CONV1, SKIP, CONV3, CONV1, CONV3), 5)
    expected, others = together(members), together(orbit(PATH, 5))
    broken = alone.supernet.choices[3][CONV3][0]
    kept, place = broken.detach().clone(), [a[3] for a in members].index(CONV3)
    with torch.no_grad():
        broken.fill_(float("nan"))
    assert together([a for a in members if a[3] != CONV3]) == [s for i, s in enumerate(expected) if i != place]
    with pytest.raises(UserError, match="the loss on the scored images is nan") as failure:
        together(members)
    assert tiny_space.encode(members[place]) in str(failure.value)
    with torch.no_grad():
        broken.copy_(kept)
    assert together(orbit(PATH, 5)) == others and together(members) == expected


class Operations(TorchDispatchMode):
    """Notes every operation, with the shapes that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, list[torch.Size]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        shapes = [x.shape for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        self.seen.append((func.overloadpacket.__name__, shapes))
        return func(*args, **(kwargs or {}))

    def reads(self) -> int:
        """What makes the host wait for a device: a value read, or a shape that depends on values."""
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "item", "is_nonzero")
        return sum(name in waits for name, _ in self.seen)


def test_every_orbit_is_the_same_operations_and_nothing_is_read_among_them(
    tiny_space: NASBench201, digits: Prepared
) -> None:
    alone = predictor(tiny_space, digits)
    together = OrbitPredictor(alone)
    with Operations() as one:
        alone(PATH)
    noted = []
    for path in [PATH, *DEAD[:2]]:
        with Operations() as operations:
            together(orbit(path, 5))  # a list of all figures is taken at the end, which is no operation
        noted.append(operations)
    assert one.reads() == 2 and not any(operations.reads() for operations in noted)
    assert len(noted[0].seen) > 500 and all(operations.seen == noted[0].seen for operations in noted)


def test_replayed_graphs_get_new_images_and_architectures(
    tiny_space: NASBench201, digits: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One graph for every number of images that a batch has, however many orbits are scored."""
    orbits = [orbit(path, 5) for path in [PATH, DEAD[0], *cells.sample(1)]]
    plain = OrbitPredictor(predictor(tiny_space, digits))
    expected, graphs = [plain(members) for members in orbits], without_gpu(monkeypatch)
    replaying = OrbitPredictor(plain.alone)
    make = replaying._graph

    def graph(*arguments: Any) -> Any:
        captured = make(*arguments)
        captured.graphs = True
        return captured

    monkeypatch.setattr(replaying, "_graph", graph)
    assert [replaying(members) for members in orbits] == expected
    assert set(replaying.graphs) == {("train", 34), ("train", 33), ("eval", 150), ("eval", 60)}
    assert len(graphs) == 4 and all(captured.captures == 1 for captured in replaying.graphs.values())


# What is refused.


def test_fitted_sub_models_are_refused(tiny_space: NASBench201, digits: Prepared) -> None:
    with pytest.raises(UserError, match=r"search\.engine = 'lockstep': .*adaptation_steps: 0"):
        OrbitPredictor(predictor(tiny_space, digits, adaptation_steps=1))


def test_a_space_without_a_lockstep_form_is_refused(tiny_space: NASBench201) -> None:
    with pytest.raises(UserError, match="no lockstep form"):
        JointNetwork(tiny_space, smooth(), torch.zeros(2, 4))
