"""The NAS-Bench-201 space: one cell of six edges with five operators, repeated (paper App. A; method sec. 8)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from sumnas import seeding
from sumnas.spaces import costs
from sumnas.spaces.base import Architecture, Costs, Space, Stemmed
from sumnas.spaces.layers import AveragePool, Identity, ReLUConvBN, ResidualBlock, Zero

if TYPE_CHECKING:
    from sumnas.lockstep.rounds import FairRound, Wiring

OPERATORS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""Names of the operators in the official strings, in the order of their indices."""
NONE, SKIP, CONV1, CONV3, POOL = range(5)
"""Indices of the operators."""
SOMETHING = (SKIP, CONV1, CONV3, POOL)
"""The operators but `none`, which gives zeros."""
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""(source node, target node) in the order of the official strings; node 0 is the cell's input, node 3 its output."""


class Settings(BaseModel):
    """Block `space` for this space. The paper's network: 16 channels, 5 cells a stage, 32x32 RGB, 10 classes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["nasbench201"] = Field(description="of the space")
    channels: int = Field(ge=1, description="channels of the first stage; doubled at each of the two reductions")
    cells: int = Field(ge=1, description="cells per stage")
    image_size: int = Field(ge=4, description="height and width of the images, a multiple of 4")
    image_channels: int = Field(ge=1, description="3 for RGB, 1 for grey")
    classes: int = Field(ge=2, description="outputs of the classifier")
    affine: bool = Field(
        True, description="affine batch normalisation in the cells; without it their convolutions carry a bias"
    )


class Step(NamedTuple):
    """One edge that a cell runs: its index, the operator, source and target node."""

    edge: int
    operator: int
    source: int
    target: int


EVERY = tuple(
    Step(edge, operator, *nodes) for edge, nodes in enumerate(EDGES) for operator in range(len(OPERATORS)) if operator
)
"""What a mixture runs: every operator of every edge but `none`, which adds zeros."""


@lru_cache(maxsize=65536)
def plan(architecture: Architecture) -> tuple[Step, ...]:
    """Return the edges a cell has to run, in order.

    Left out are edges whose output cannot reach node 3, and the identity or pool of an all-zero node, which is zero.
    A convolution of an all-zero node stays: ReLU-Conv-BN of zeros is the normalisation's shift, not zero.
    """
    filled, steps = {0}, []
    for edge, (source, target) in enumerate(EDGES):  # in the order of the targets
        operator = architecture[edge]
        if operator in (CONV1, CONV3) or (operator in (SKIP, POOL) and source in filled):
            filled.add(target)
            steps.append(Step(edge, operator, source, target))
    useful = {3}
    for step in reversed(steps):
        if step.target in useful:
            useful.add(step.source)
    return tuple(step for step in steps if step.target in useful)


def terms(architecture: Architecture) -> tuple[Any, ...]:
    """Return what node 3 sums, written out: identities replaced by what their source sums, terms in sorted order.

    A term is the input, a pool of terms, or one edge's convolution of terms.
    """
    sums: dict[int, tuple[Any, ...]] = {0: ("input",), 1: (), 2: (), 3: ()}
    for step in plan(architecture):
        source = sums[step.source]
        if step.operator == SKIP:
            new: tuple[Any, ...] = source
        else:
            new = ((step.operator, step.edge if step.operator != POOL else None, source),)
        sums[step.target] = tuple(sorted(sums[step.target] + new, key=repr))
    return sums[3]


class Cell(nn.Module):
    """Four nodes; node j sums its incoming edges. Holds the operators listed in `choices`, one list per edge."""

    def __init__(self, channels: int, choices: Sequence[Sequence[int]], *, affine: bool, track: bool) -> None:
        super().__init__()

        def operator(index: int) -> nn.Module:
            if index in (CONV1, CONV3):
                return ReLUConvBN(channels, channels, 1 if index == CONV1 else 3, affine=affine, track=track)
            return {NONE: Zero, SKIP: Identity, POOL: AveragePool}[index]()

        self.edges = nn.ModuleList(nn.ModuleDict({OPERATORS[o]: operator(o) for o in edge}) for edge in choices)
        # Plain references beside the registered ones: a dictionary look-up per edge is all that a pass then pays.
        self.operators = [{o: self.edges[e][OPERATORS[o]] for o in edge} for e, edge in enumerate(choices)]  # type: ignore[index]

    def forward(self, x: Tensor, steps: tuple[Step, ...], weights: Sequence[Sequence[Tensor]] | None = None) -> Tensor:
        """[N, C, H, W] -> the same shape, running `steps` (see `plan`), each times its weight [edge][operator]."""
        nodes: list[Tensor | None] = [x, None, None, None]
        for edge, operator, source, target in steps:
            node = nodes[source]
            if node is None:  # an all-zero node, into a convolution
                node = torch.zeros_like(x)
            value = node if operator == SKIP else self.operators[edge][operator](node)
            if weights is not None:
                value = value * weights[edge][operator]
            present = nodes[target]
            nodes[target] = value if present is None else present + value
        out = nodes[3]
        return torch.zeros_like(x) if out is None else out

    def lockstep(self, x: Tensor, takes: Sequence[Wiring], puts: Sequence[Wiring]) -> Tensor:
        """[m, N, C, H, W] -> the same shape, all paths of a round; see `wirings`."""
        given: list[list[Tensor]] = [[], [], [], []]
        for source, wiring in enumerate(takes):
            slices = iter(wiring.take(puts[source - 1].put(given[source]) if source else x))
            for edge in leaving(source):
                target = given[EDGES[edge][1]]
                for operator in SOMETHING:
                    value = next(slices)
                    target.append(value if operator == SKIP else self.operators[edge][operator](value))
        return puts[2].put(given[3])


def leaving(node: int) -> list[int]:
    """Return the edges out of a node, in the order of their targets."""
    return [edge for edge, (source, _) in enumerate(EDGES) if source == node]


def entering(node: int) -> list[int]:
    """Return the edges into a node, in the order of their sources."""
    return [edge for edge, (_, target) in enumerate(EDGES) if target == node]


def wirings(fair: FairRound) -> tuple[list[Wiring], list[Wiring]]:
    """Return what every cell of a round takes from nodes 0, 1, 2 and puts into nodes 1, 2, 3."""
    takes = [fair.wiring(leaving(node), SOMETHING) for node in (0, 1, 2)]
    return takes, [fair.wiring(entering(node), SOMETHING) for node in (1, 2, 3)]


class Network(Stemmed):
    """Stem, three stages of cells with two reductions between, head. A supernet, or one architecture's network.

    `choices` lists for every edge the operators it holds; with one each, `forward` needs no architecture.
    """

    def __init__(self, settings: Settings, choices: Sequence[Sequence[int]], *, track: bool) -> None:
        super().__init__()
        self.settings = settings
        width = settings.channels
        self.stem = nn.Sequential(
            nn.Conv2d(settings.image_channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width, track_running_stats=track),
        )
        body: list[nn.Module] = []
        for stage in range(3):
            if stage:
                body.append(ResidualBlock(width, 2 * width, track=track))
                width *= 2
            body += [Cell(width, choices, affine=settings.affine, track=track) for _ in range(settings.cells)]
        self.body = nn.ModuleList(body)
        self.norm = nn.BatchNorm2d(width, track_running_stats=track)
        self.classifier = nn.Linear(width, settings.classes)
        cells = [module for module in body if isinstance(module, Cell)]
        owned = [
            [
                [p for cell in cells for p in cell.operators[e][o].parameters()] if o in edge else []
                for o in range(len(OPERATORS))
            ]
            for e, edge in enumerate(choices)
        ]
        self.settle(choices, owned)

    def rest(self, x: Tensor, architecture: Architecture) -> Tensor:
        """Return the logits [N, classes] from the stem's output."""
        return self._run(x, plan(architecture))

    def forward_mixture(self, x: Tensor, weights: Tensor, architecture: Architecture | None = None) -> Tensor:
        """Run every operator of every edge, or those of `architecture`, times [edges, operators] weights."""
        table = [row.unbind() for row in weights.unbind()]
        return self._run(self.stem(x), EVERY if architecture is None else plan(architecture), table)

    def lockstep(self, images: Tensor, fair: FairRound) -> Tensor:
        """Return the logits [m, N, classes] of all paths of a round."""
        takes, puts = wirings(fair)
        x = fair.first("stem", images)
        for number, module in enumerate(self.body):
            x = module.lockstep(x, takes, puts) if isinstance(module, Cell) else fair.shared(f"body.{number}", x)
        x = F.relu(fair.shared("norm", x))
        return fair.shared("classifier", x.mean((3, 4)))

    def _run(self, x: Tensor, steps: tuple[Step, ...], weights: Sequence[Sequence[Tensor]] | None = None) -> Tensor:
        for module in self.body:
            x = module(x, steps, weights) if isinstance(module, Cell) else module(x)
        x = F.relu(self.norm(x))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


class NASBench201(Space):
    """15,625 architectures; strings such as `|nor_conv_3x3~0|+|none~0|skip_connect~1|+|...|`."""

    layers = len(EDGES)
    candidates = OPERATORS

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def encode(self, architecture: Architecture) -> str:
        """Return the official string."""
        parts = iter(f"{OPERATORS[o]}~{source}" for o, (source, _) in zip(architecture, EDGES, strict=True))
        return "+".join("|" + "|".join(next(parts) for _ in range(node)) + "|" for node in (1, 2, 3))

    def decode(self, text: str) -> Architecture:
        """Return the architecture of an official string; ValueError says what is wrong with it."""
        parts = [edge for node in text.strip().split("+") for edge in node.strip("|").split("|")]
        if len(parts) != len(EDGES):
            raise ValueError(f"{text!r} has {len(parts)} edges; a NAS-Bench-201 string has {len(EDGES)}")
        operators = []
        for part, (source, target) in zip(parts, EDGES, strict=True):
            name, _, tail = part.partition("~")
            if name not in OPERATORS:
                raise ValueError(f"{text!r}: no operator {name!r}; there are {', '.join(OPERATORS)}")
            if tail != str(source):
                raise ValueError(f"{text!r}: edge {part!r} into node {target} should come from node {source}")
            operators.append(OPERATORS.index(name))
        architecture = tuple(operators)
        if self.encode(architecture) != text.strip():
            raise ValueError(f"{text!r} is not of the form |op~0|+|op~0|op~1|+|op~0|op~1|op~2|")
        return architecture

    def connected(self, architecture: Architecture) -> bool:
        """Whether some path of edges other than `none` leads from node 0 to node 3."""
        reached = {0}
        for operator, (source, target) in zip(architecture, EDGES, strict=True):
            if operator != NONE and source in reached:
                reached.add(target)
        return 3 in reached

    def equivalence(self, architecture: Architecture, *, flatten: bool = False) -> Hashable:
        """Return what a cell runs (10,405 cases), or with `flatten` what it sums (8,720 cases)."""
        return terms(architecture) if flatten else plan(architecture)

    def graph(self, architecture: Architecture) -> list[tuple[int, int, str]]:
        """Return the cell: (source node, target node, operator) per edge, `none` included."""
        return [(*edge, OPERATORS[operator]) for edge, operator in zip(EDGES, architecture, strict=True)]

    def supernet(self, *, track: bool = False) -> Network:
        """Build a supernet with all five operators on every edge."""
        return Network(self.settings, [range(len(OPERATORS))] * len(EDGES), track=track)

    def network(self, architecture: Architecture) -> Network:
        """Build one stand-alone network."""
        return Network(self.settings, [[operator] for operator in self.check(architecture)], track=True)

    def count_costs(self) -> tuple[Costs, Costs]:
        """Count per edge and operator, summed over the cells, and the rest of the network once. In millions."""
        # The costs are those of the stand-alone networks, which the benchmark trains with affine normalisation.
        settings = self.settings.model_copy(update={"affine": True})
        with seeding.scoped(0, "costs"):  # the weights do not matter; the caller's random stream does
            network = Network(settings, [range(len(OPERATORS))] * len(EDGES), track=True).eval()
            bare = Network(settings, [[NONE]] * len(EDGES), track=True).eval()
        macs, params = np.zeros((2, len(EDGES), len(OPERATORS)))
        channels, size = settings.channels, settings.image_size
        for module in network.body:
            if isinstance(module, Cell):
                x = torch.zeros(1, channels, size, size)
                for edge, operators in enumerate(module.operators):
                    for index, operator in operators.items():
                        macs[edge, index] += costs.count_macs(operator, x)
                        params[edge, index] += costs.count_parameters(operator)
            else:
                channels, size = 2 * channels, size // 2
        image = torch.zeros(1, settings.image_channels, settings.image_size, settings.image_size)
        rest = costs.count_macs(bare, image)
        return Costs(rest / 1e6, macs / 1e6), Costs(costs.count_parameters(bare) / 1e6, params / 1e6)


def build(settings: Settings) -> NASBench201:
    """Build the space; ValueError where the images cannot be halved twice: their size must be a multiple of 4."""
    if settings.image_size % 4:
        raise ValueError(f"space.image_size = {settings.image_size}: must be a multiple of 4 (two reductions)")
    return NASBench201(settings)
