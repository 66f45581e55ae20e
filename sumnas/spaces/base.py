"""What can be searched: choice layers with candidate operators, and the networks made of them (method sec. 1)."""

from __future__ import annotations

import difflib
import importlib
import itertools
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor, nn

from sumnas.errors import UserError

if TYPE_CHECKING:
    from sumnas.lockstep.rounds import FairRound

Architecture = tuple[int, ...]
"""One operator index per choice layer; also called a path, or a sub-model of the supernet."""


class Block(NamedTuple):
    """A layer of a space that is a chain of blocks, as it is to be drawn.

    `stage` counts from 0, `expansion` and `kernel` are the chosen ones, `channels` and `size` (height and width) those
    of the output. `stride`, 1 or 2, divides height and width of the input.
    """

    stage: int
    expansion: int
    kernel: int
    channels: int
    stride: int
    size: int


class Part(NamedTuple):
    """A piece of a network that can be run alone: on [N, *shape], `shape` being [C, H, W] of one image."""

    run: Callable[[Tensor], Tensor]
    shape: tuple[int, int, int]


class Parts(NamedTuple):
    """What every sub-model runs (`rest`, such as stem and head), and every operator: choices[layer][operator]."""

    rest: list[Part]
    choices: list[list[Part]]


class Supernet(nn.Module):
    """Every operator's weights once; a forward pass runs one architecture.

    `choices[layer][operator]` are the parameters that belong to one operator of one layer, `shared` those on every
    path (stem, reductions, last normalisation, classifier). Its normalisation layers hold no running statistics: a
    pass normalises by its own batch, and a sub-model gets its statistics by recalibration (sec. 4).
    """

    choices: Sequence[Sequence[list[nn.Parameter]]]
    shared: list[nn.Parameter]

    def path_choices(self, architecture: Architecture) -> list[nn.Parameter]:
        """Return the choice parameters on this path, layer by layer."""
        return [p for layer, operator in zip(self.choices, architecture, strict=True) for p in layer[operator]]

    def common(self, x: Tensor) -> Tensor:
        """Return what every sub-model computes first from the images, whatever its path: here nothing, the images.

        Paths with equal weights that read the same batch can share it: see `rest`.
        """
        return x

    def rest(self, x: Tensor, architecture: Architecture) -> Tensor:
        """Return the logits [N, classes] of one sub-model from what `common` gave."""
        logits: Tensor = self(x, architecture)
        return logits

    def forward(self, x: Tensor, architecture: Architecture) -> Tensor:
        """[N, C, H, W] images -> [N, classes] logits of one sub-model."""
        raise TypeError(f"{type(self).__name__} must define forward")

    def forward_mixture(self, x: Tensor, weights: Tensor, architecture: Architecture | None = None) -> Tensor:
        """[N, C, H, W] images -> [N, classes] logits of the mixture of all operators, weighted by [layers, operators].

        With `architecture` only its operators run, each still times its weight. A space may do without a mixture:
        NotImplementedError.
        """
        raise NotImplementedError(f"{type(self).__name__} has no mixture of its operators")

    def lockstep(self, images: Tensor, fair: FairRound) -> Tensor:
        """[N, C, H, W] images -> [m, N, classes] logits of the m paths of a strictly fair round, all at once.

        Every operator of every layer runs once, on the path that `fair` says, and nothing depends on the paths but
        index tensors: edges that lead nowhere or come from nowhere run too. A space may do without
        (NotImplementedError); methods then go path by path.
        """
        raise NotImplementedError(f"{type(self).__name__} has no lockstep form")

    def macs(self, architecture: Architecture) -> float:
        """Multiply-adds of the sub-model as a stand-alone network, in millions (see `Space.macs`).

        NotImplementedError where the supernet does not know them.
        """
        raise NotImplementedError(f"{type(self).__name__} does not know its costs")


class Stemmed(Supernet):
    """A supernet, or one architecture's network, that begins with a stem which is on every path.

    A subclass has its settings, and calls `settle` once its modules are there.
    """

    settings: BaseModel
    stem: nn.Module
    only: Architecture | None
    """The architecture of a stand-alone network: `forward` then needs none."""

    def settle(self, held: Sequence[Sequence[int]], choices: Sequence[Sequence[list[nn.Parameter]]]) -> None:
        """Take the choice parameters as they are given, and all others as shared; `held` are each layer's operators."""
        self.only = tuple(layer[0] for layer in held) if all(len(layer) == 1 for layer in held) else None
        self.choices = choices
        owned = {id(p) for layer in choices for operator in layer for p in operator}
        self.shared = [p for p in self.parameters() if id(p) not in owned]

    def forward(self, x: Tensor, architecture: Architecture | None = None) -> Tensor:
        """[N, C, H, W] images -> [N, classes] logits; ValueError where a supernet gets no architecture."""
        architecture = architecture or self.only
        if architecture is None:
            raise ValueError("a supernet needs the architecture that is to run")
        return self.rest(self.stem(x), architecture)

    def common(self, x: Tensor) -> Tensor:
        """[N, C, H, W] images -> the stem's output [N, C', H', W'], which the first choice layer reads."""
        out: Tensor = self.stem(x)
        return out

    def macs(self, architecture: Architecture) -> float:
        """Multiply-adds of the sub-model as a stand-alone network, in millions."""
        return self.space.macs(architecture)

    @cached_property
    def space(self) -> Space:
        """The space that the network is of, for its costs."""
        return build(self.settings)


class Costs:
    """Additive costs: an architecture costs `base` plus one entry per layer of `table` [layers, operators]."""

    def __init__(self, base: float, table: NDArray[np.float64]) -> None:
        self.base = base
        self.table = table

    def of(self, architecture: Architecture) -> float:
        """Return the cost of one architecture, in the table's unit."""
        return self.base + float(self.table[np.arange(len(architecture)), list(architecture)].sum())


class Space(ABC):
    """A search space: `layers` choice layers with the same `candidates`, strings, costs and networks.

    Subclasses give the networks; everything here follows from them. `settings` is the validated `space` block; it has
    image_size (height and width), image_channels and classes, which the data must fit.
    """

    settings: Any
    layers: int
    candidates: tuple[str, ...]
    has_dropout = False
    """Whether stand-alone networks have an attribute `dropout`, a torch.nn.Dropout that a recipe may set."""

    @property
    def size(self) -> int:
        """Number of architectures."""
        return int(len(self.candidates) ** self.layers)

    def architectures(self) -> Iterator[Architecture]:
        """Every architecture, first layer slowest."""
        return itertools.product(range(len(self.candidates)), repeat=self.layers)

    def check(self, architecture: Sequence[int]) -> Architecture:
        """Return the architecture as a tuple; ValueError names the layer that lies outside the space."""
        if len(architecture) != self.layers:
            raise ValueError(f"an architecture here has {self.layers} layers, got {len(architecture)}")
        for layer, operator in enumerate(architecture):
            if not 0 <= operator < len(self.candidates):
                raise ValueError(f"layer {layer} has no operator {operator} (0..{len(self.candidates) - 1})")
        return tuple(int(operator) for operator in architecture)

    @abstractmethod
    def encode(self, architecture: Architecture) -> str:
        """Return the architecture's string."""

    @abstractmethod
    def decode(self, text: str) -> Architecture:
        """Return the architecture of a string; ValueError says what is wrong with it."""

    @abstractmethod
    def connected(self, architecture: Architecture) -> bool:
        """Whether the output depends on the input at all."""

    def equivalence(self, architecture: Architecture, *, flatten: bool = False) -> Hashable:
        """Return a key that architectures share only if they give the same logits, whatever the weights.

        Equal keys run the very same operations, so logits are equal bit by bit; with `flatten` also those that sum
        the same terms in another order, equal up to rounding. A space that knows of none keeps them all apart.
        """
        return architecture

    def graph(self, architecture: Architecture) -> list[tuple[int, int, str]]:
        """Return what to draw: (source node, target node, operator) per layer. Here a chain of layers."""
        return [(layer, layer + 1, self.candidates[operator]) for layer, operator in enumerate(architecture)]

    def chain(self, architecture: Architecture) -> list[Block] | None:
        """Return the blocks to draw instead of a graph, where the space is a chain of them; else None."""
        return None

    @abstractmethod
    def supernet(self, *, track: bool = False) -> Supernet:
        """Build a supernet, initialised from torch's global stream (see seeding.scoped).

        With `track` its normalisation layers hold running statistics: see `tracked`.
        """

    @abstractmethod
    def network(self, architecture: Architecture) -> nn.Module:
        """Build one stand-alone network, initialised from torch's global stream, with running statistics."""

    @abstractmethod
    def count_costs(self) -> tuple[Costs, Costs]:
        """Count multiply-adds (millions) and parameters (millions) from the real layers."""

    @cached_property
    def _costs(self) -> tuple[Costs, Costs]:
        # Every stage counts before it knows its number of threads, and tiny operators on several threads of a busy
        # machine take many times as long: seconds in place of a tenth of one.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return self.count_costs()
        finally:
            torch.set_num_threads(threads)

    @property
    def mac_costs(self) -> Costs:
        """Multiply-adds in millions."""
        return self._costs[0]

    def additive(self, name: str) -> Costs | None:
        """Return the cost called `name` (macs, params) if it is a sum over layers, else None."""
        return dict(zip(("macs", "params"), self._costs, strict=True)).get(name)

    def macs(self, architecture: Architecture) -> float:
        """Multiply-adds of one image through the stand-alone network, in millions."""
        return self._costs[0].of(architecture)

    def params(self, architecture: Architecture) -> float:
        """Parameters of the stand-alone network, in millions."""
        return self._costs[1].of(architecture)

    def parts(self, supernet: Supernet) -> Parts | None:
        """Return the pieces of a supernet that a sub-model runs one after another; None where it is no such chain."""
        return None

    def extract(self, supernet: Supernet, architecture: Architecture) -> nn.Module:
        """Return the sub-model as a stand-alone network that shares the supernet's weight tensors.

        Nothing is copied; the running statistics are its own, so that the supernet stays as it was.
        """
        with torch.device("meta"):
            network = self.network(architecture)
        return _adopt(network, supernet)

    def tracked(self, supernet: Supernet) -> Supernet:
        """Return a supernet on the same weight tensors with running statistics of its own, for scoring many.

        It runs any sub-model, to be recalibrated anew for each; `extract` builds a network per sub-model instead.
        """
        with torch.device("meta"):
            network = self.supernet(track=True)
        return _adopt(network, supernet)


Built = TypeVar("Built", bound=nn.Module)
"""A supernet or a network."""


def _adopt(network: Built, supernet: Supernet) -> Built:
    """Give a network built on the meta device the supernet's tensors, and fresh statistics."""
    weights = supernet.state_dict()
    own = {name: weights[name] for name in network.state_dict() if name in weights}
    network.load_state_dict(own, strict=False, assign=True)
    device = supernet.shared[0].device
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
            module.running_mean = torch.zeros(module.num_features, device=device)
            module.running_var = torch.ones(module.num_features, device=device)
            module.num_batches_tracked = torch.zeros((), dtype=torch.long, device=device)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network


def names() -> list[str]:
    """Return the names of the spaces there are: one file each in sumnas/spaces/."""
    import sumnas.spaces as package

    helpers = {"base", "layers", "costs"}
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name not in helpers)


def module_of(name: str) -> Any:
    """Return the module of the space called `name`, which has `Settings` and `build`; UserError if unknown."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UserError(f"space.name = {name!r}: no such space; {hint}there are: {', '.join(names())}")
    return importlib.import_module(f"sumnas.spaces.{name}")


def from_plain(settings: Mapping[str, Any]) -> Space:
    """Build the space of a `space` block that is plain data, such as metadata; ValueError or KeyError if it is none."""
    return build(module_of(settings["name"]).Settings.model_validate(settings))


def build(settings: BaseModel) -> Space:
    """Build the space that a validated `space` block describes."""
    name: str = settings.name  # type: ignore[attr-defined]
    space: Space = module_of(name).build(settings)
    return space
