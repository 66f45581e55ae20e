"""What a space's lockstep form is written with, on a chain of inverted residuals; one graph for all paths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sumnas import seeding
from sumnas.lockstep.capture import Captured
from sumnas.lockstep.descent import JointLoss
from sumnas.lockstep.rounds import FairRound, indices
from sumnas.methods import base
from sumnas.methods.base import Method
from sumnas.paths import strictly_fair_paths
from sumnas.spaces.base import Architecture, Supernet
from tests.chains import space
from tests.steps import SEED, TOTAL, rounds_for, supernet


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, track_running_stats=False)


class Block(nn.Module):
    """Inverted residual with squeeze and excitation: other kernels and widths inside, the same shapes outside."""

    def __init__(self, inputs: int, outputs: int, kernel: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = expansion * inputs
        self.expand = nn.Sequential(nn.Conv2d(inputs, inner, 1, bias=False), norm(inner), nn.SiLU())
        depthwise = nn.Conv2d(inner, inner, kernel, stride, kernel // 2, groups=inner, bias=False)
        self.depthwise = nn.Sequential(depthwise, norm(inner), nn.SiLU())
        self.squeeze = nn.Sequential(nn.Conv2d(inner, 2, 1), nn.SiLU(), nn.Conv2d(2, inner, 1), nn.Sigmoid())
        self.project = nn.Sequential(nn.Conv2d(inner, outputs, 1, bias=False), norm(outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        y = y * self.squeeze(y.mean((2, 3), keepdim=True))
        out: Tensor = self.project(y)
        return out + x if self.residual else out


class Chain(Supernet):
    """Four choice layers of six operators, as the MobileNet space has nineteen."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), norm(4), nn.SiLU())
        shapes = [(4, 4, 1), (4, 6, 2), (6, 6, 1), (6, 8, 1)][:layers]
        kinds = [(kernel, expansion) for kernel in (3, 5, 7) for expansion in (1, 2)]
        self.blocks = nn.ModuleList(
            nn.ModuleList(Block(inputs, outputs, *kind, stride) for kind in kinds) for inputs, outputs, stride in shapes
        )
        self.head = nn.Sequential(nn.Conv2d(shapes[-1][1], 10, 1, bias=False), norm(10), nn.SiLU())
        self.classifier = nn.Linear(10, 3)
        self.operators = [list(layer) for layer in self.blocks]  # type: ignore[arg-type]
        self.choices = [[list(operator.parameters()) for operator in layer] for layer in self.operators]
        self.shared = [p for module in (self.stem, self.head, self.classifier) for p in module.parameters()]

    def forward(self, x: Tensor, architecture: Architecture) -> Tensor:
        x = self.stem(x)
        for layer, operator in enumerate(architecture):
            x = self.operators[layer][operator](x)
        logits: Tensor = self.classifier(self.head(x).mean((2, 3)))
        return logits

    def lockstep(self, images: Tensor, fair: FairRound) -> Tensor:
        x = fair.chain(fair.first("stem", images), self.operators)
        return fair.shared("classifier", fair.shared("head", x).mean((3, 4)))


def chain(layers: int = 4) -> Chain:
    with seeding.scoped(SEED, "chain"):
        return Chain(layers).double()


def pair(strategy: str, **settings: Any) -> list[Method]:
    module = base.module_of(strategy)
    methods: list[Method] = []
    for engine in ("sequential", "lockstep"):
        methods.append(module.METHOD(chain(), module.Settings(strategy=strategy, **settings), TOTAL, SEED))
        methods[-1].use(engine)  # type: ignore[arg-type]
    return methods


@pytest.mark.parametrize(
    ("strategy", "settings"),
    [
        ("sumnas", {"adaptation_steps": 1, "weight_decay": 0.01}),
        ("sumnas", {"adaptation_steps": 3, "weight_decay": 0.01, "clip_norm": 0.5}),
        ("sumnas", {"adaptation_steps": 2, "rounds": 3, "outer_momentum": 0.5}),
        ("fairnas", {"momentum": 0.9, "rounds": 3}),
    ],
)
def test_step_of_a_chain_is_the_sequential_one(strategy: str, settings: dict[str, Any]) -> None:
    one, other = pair(strategy, **settings)
    for step in range(2):
        given = rounds_for(one, step, size=8)
        assert float(other.step(given, [])["loss"]) == pytest.approx(float(one.step(given, [])["loss"]), abs=1e-10)
        for (name, p), q in zip(one.supernet.named_parameters(), other.supernet.parameters(), strict=True):
            torch.testing.assert_close(q, p, rtol=0, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}")


def test_indices_say_who_is_where() -> None:
    paths = strictly_fair_paths(4, 6, np.random.default_rng(0))
    operators, places = indices(paths).tolist()
    for layer in range(4):
        assert operators[layer] == [path[layer] for path in paths]
        assert all(paths[places[layer][operator]][layer] == operator for operator in range(6))


def test_take_and_put_go_by_the_index_and_are_adjoint() -> None:
    generator = torch.Generator().manual_seed(0)
    paths = strictly_fair_paths(2, 4, np.random.default_rng(1))
    fair = FairRound(nn.Module(), indices(paths), {}, False, 4)
    wiring = fair.wiring([0, 1], [1, 3])
    x = torch.randn(4, 2, 3, 5, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    taken = wiring.take(x)
    wanted = [x[next(i for i, path in enumerate(paths) if path[layer] == o)] for layer in (0, 1) for o in (1, 3)]
    assert len(taken) == 4 and all(torch.equal(a, b) for a, b in zip(taken, wanted, strict=True))
    parts = [torch.randn(2, 3, 5, 5, generator=generator, dtype=torch.float64, requires_grad=True) for _ in taken]
    put = wiring.put(parts)
    for number, path in enumerate(paths):
        mine = [parts[2 * layer + (1, 3).index(path[layer])] for layer in (0, 1) if path[layer] in (1, 3)]
        torch.testing.assert_close(put[number], sum(mine, torch.zeros_like(parts[0])), rtol=0, atol=0)
    # <put(parts), x> = <parts, take(x)>, and so are the gradients.
    inner = sum((a * b).sum() for a, b in zip(taken, parts, strict=True))
    torch.testing.assert_close((put * x).sum(), inner)
    for one, other in zip(
        torch.autograd.grad((put * x).sum(), [x, *parts]), torch.autograd.grad(inner, [x, *parts]), strict=True
    ):
        torch.testing.assert_close(one, other)
    with pytest.raises(ValueError, match="3 slices for 4 operators"):
        wiring.put(parts[:3])


def test_a_captured_function_refuses_another_shape() -> None:
    captured = Captured(lambda x: [x + 1], torch.device("cpu"))
    assert torch.equal(captured(torch.zeros(2))[0], torch.ones(2))
    for other in (torch.zeros(3), torch.zeros(2, dtype=torch.float64)):
        with pytest.raises(ValueError, match="constant shape"):
            captured(other)


@pytest.mark.parametrize(
    "make",
    [lambda: chain(2), lambda: supernet(channels=4, image_size=8), lambda: space(image_size=8).supernet().double()],
    ids=["chain", "nasbench201", "mobilenet"],
)
def test_one_trace_serves_every_draw_of_paths(make: Any) -> None:
    """`torch.compile` gets the whole forward as one graph, once; it would be traced again if values entered it."""
    network: Supernet = make()
    layers, candidates = len(network.choices), len(network.choices[0])
    traced = []

    def backend(graph: Any, inputs: Any) -> Any:
        traced.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(JointLoss(network), backend=backend, fullgraph=True, dynamic=False)
    names = {id(p): name for name, p in network.named_parameters()}
    versions = {names[id(p)]: p.detach().expand(candidates, *p.shape).clone() for p in network.shared}
    rng, labels = np.random.default_rng(2), torch.arange(6) % 3
    for _ in range(3):
        paths = strictly_fair_paths(layers, candidates, rng)
        images = torch.randn(6, 2, 8, 8, dtype=torch.float64)
        losses = compiled(indices(paths), images, labels, versions, True)
        expected = torch.stack([F.cross_entropy(network(images, path), labels) for path in paths])
        torch.testing.assert_close(losses, expected, rtol=0, atol=1e-10)
    assert len(traced) == 1
