"""The MobileNet space: a chain of inverted residual blocks, each with its own kernel and expansion (method sec. 9)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from sumnas.spaces import costs
from sumnas.spaces.base import Architecture, Block, Costs, Part, Parts, Space, Stemmed, Supernet

if TYPE_CHECKING:
    from sumnas.lockstep.rounds import FairRound

CHOICES = tuple((expansion, kernel) for expansion in (3, 6) for kernel in (3, 5, 7))
"""(expansion, kernel) of every operator, in the order of their indices."""
OPERATORS = tuple(f"e{expansion}k{kernel}" for expansion, kernel in CHOICES)
"""Names of the operators, in the order of their indices."""


class StageSettings(BaseModel):
    """Consecutive blocks of one width."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: int = Field(ge=1, description="output channels of every block")
    blocks: int = Field(ge=1, description="choice blocks of the stage")
    stride: Literal[1, 2] = Field(description="of the first block; the others have 1")


PAPER = tuple(
    StageSettings(channels=channels, blocks=blocks, stride=stride)
    for channels, blocks, stride in ((32, 2, 2), (40, 4, 2), (80, 4, 2), (96, 4, 1), (192, 4, 2), (320, 1, 1))
)
"""19 blocks, that of FairNAS (Chu et al. 2019)."""


class Settings(BaseModel):
    """Block `space` for this space. The defaults are the paper's network for ImageNet, 224x224 RGB, 1000 classes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["mobilenet"] = Field(description="of the space")
    image_size: int = Field(ge=1, description="height and width of the images")
    image_channels: int = Field(ge=1, description="3 for RGB, 1 for grey")
    classes: int = Field(ge=2, description="outputs of the classifier")
    stem_channels: int = Field(32, ge=1, description="of the first convolution")
    stem_stride: Literal[1, 2] = Field(2, description="of the first convolution")
    first_channels: int = Field(16, ge=1, description="of the separable convolution between stem and choice blocks")
    stages: tuple[StageSettings, ...] = Field(PAPER, description="the choice blocks, from input to output")
    head_channels: int = Field(1280, ge=1, description="of the last 1x1 convolution, before pooling")
    se_ratio: float = Field(
        0.5,
        ge=0,
        le=1,
        description="hidden channels of squeeze-and-excitation, as a share of a block's input channels; 0: none",
    )

    @property
    def strides(self) -> int:
        """By how much the last map is smaller than the image."""
        return int(np.prod([self.stem_stride, *(stage.stride for stage in self.stages)]))


class Place(NamedTuple):
    """Where a choice block stands in the chain: what is the same for all its operators.

    `stage` counts from 0, `inputs` and `outputs` are channels, `size` is the output's height and width: those of the
    input divided by `stride`, rounded up.
    """

    stage: int
    inputs: int
    outputs: int
    stride: int
    size: int


def places(settings: Settings) -> list[Place]:
    """Return every choice block's place, in order. A map of odd size is rounded up where it is halved."""
    found, inputs, size = [], settings.first_channels, -(-settings.image_size // settings.stem_stride)
    for number, stage in enumerate(settings.stages):
        for index in range(stage.blocks):
            stride = stage.stride if index == 0 else 1
            size = -(-size // stride)
            found.append(Place(number, inputs, stage.channels, stride, size))
            inputs = stage.channels
    return found


class ConvBN(nn.Sequential):
    """Convolution without bias, batch normalisation, SiLU where `act`: [N, Cin, H, W] -> [N, Cout, H/s, W/s]."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, *, act: bool, track: bool
    ) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs, track_running_stats=track),
            *([nn.SiLU()] if act else []),
        )


class SqueezeExcitation(nn.Module):
    """Every channel times a gate in (0, 1), from the channels' means: [N, C, H, W] -> the same shape."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.SiLU(), nn.Conv2d(hidden, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape, every channel times its gate of 0 to 1."""
        out: Tensor = x * self.gate(x.mean((2, 3), keepdim=True))
        return out


class InvertedResidual(nn.Module):
    """One operator: widen by `expansion`, depthwise convolution, squeeze-and-excitation, narrow; a linear end.

    [N, Cin, H, W] -> [N, Cout, H/stride, W/stride]. Its input is added where the shapes agree.
    """

    def __init__(self, place: Place, expansion: int, kernel: int, se_ratio: float, *, track: bool) -> None:
        super().__init__()
        wide = expansion * place.inputs
        self.expand = ConvBN(place.inputs, wide, 1, act=True, track=track)
        self.depthwise = ConvBN(wide, wide, kernel, place.stride, wide, act=True, track=track)
        # Of the block's input channels, not of the widened ones; a narrow network keeps at least one.
        hidden = max(1, int(se_ratio * place.inputs))
        self.excite = SqueezeExcitation(wide, hidden) if se_ratio else nn.Identity()
        self.project = ConvBN(wide, place.outputs, 1, act=False, track=track)
        self.residual = place.stride == 1 and place.inputs == place.outputs

    def forward(self, x: Tensor) -> Tensor:
        """[N, Cin, H, W] -> [N, Cout, H/stride, W/stride]."""
        out: Tensor = self.project(self.excite(self.depthwise(self.expand(x))))
        return x + out if self.residual else out


class Network(Stemmed):
    """Stem, separable convolution, the chain of choice blocks, head. A supernet, or one architecture's network.

    `layers[l]` holds the operators of block l by name; `held` lists their indices, with one each `forward` needs no
    architecture.
    """

    def __init__(self, settings: Settings, held: Sequence[Sequence[int]], *, track: bool) -> None:
        super().__init__()
        self.settings = settings
        stem, first, chain = settings.stem_channels, settings.first_channels, places(settings)
        self.stem = nn.Sequential(
            ConvBN(settings.image_channels, stem, 3, settings.stem_stride, act=True, track=track),
            ConvBN(stem, stem, 3, groups=stem, act=True, track=track),
            ConvBN(stem, first, 1, act=False, track=track),
        )
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {OPERATORS[o]: InvertedResidual(place, *CHOICES[o], settings.se_ratio, track=track) for o in operators}
            )
            for place, operators in zip(chain, held, strict=True)
        )
        # Plain references beside the registered ones: a dictionary look-up per block is all that a pass then pays.
        self.operators = [
            {o: modules[OPERATORS[o]] for o in operators}  # type: ignore[index]
            for modules, operators in zip(self.layers, held, strict=True)
        ]
        self.head = ConvBN(chain[-1].outputs, settings.head_channels, 1, act=True, track=track)
        self.dropout = nn.Dropout(0.0)  # a recipe sets its rate: sumnas.recipe
        self.classifier = nn.Linear(settings.head_channels, settings.classes)
        self.settle(held, [
            [list(layer[o].parameters()) if o in layer else [] for o in range(len(OPERATORS))]
            for layer in self.operators
        ])  # fmt: skip

    def rest(self, x: Tensor, architecture: Architecture) -> Tensor:
        """Return the logits [N, classes] from what goes into the first choice block."""
        for layer, operator in zip(self.operators, architecture, strict=True):
            x = layer[operator](x)
        return self.classify(x)

    def forward_mixture(self, x: Tensor, weights: Tensor, architecture: Architecture | None = None) -> Tensor:
        """Run every operator of every block, or those of `architecture`, times [blocks, operators] weights."""
        x = self.stem(x)
        for number, (layer, row) in enumerate(zip(self.operators, weights.unbind(), strict=True)):
            chosen = layer if architecture is None else (architecture[number],)
            x = torch.stack([row[o] * layer[o](x) for o in chosen]).sum(0)
        return self.classify(x)

    def lockstep(self, images: Tensor, fair: FairRound) -> Tensor:
        """Return the logits [m, N, classes] of all paths of a round.

        Operators of a block differ in their inner widths and kernels, so each runs alone, on its path's slice.
        """
        x = fair.chain(fair.first("stem", images), [list(layer.values()) for layer in self.operators])
        return fair.shared("classifier", fair.shared("head", x).mean((3, 4)))

    def classify(self, x: Tensor) -> Tensor:
        """Return the logits [N, classes] from the last choice block's output."""
        logits: Tensor = self.classifier(self.dropout(self.head(x).mean((2, 3))))
        return logits


class MobileNet(Space):
    """6^19 architectures with the paper's stages; strings such as `e3k7-e6k5-...`, a part per block."""

    candidates = OPERATORS
    has_dropout = True

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.layers = sum(stage.blocks for stage in settings.stages)

    def encode(self, architecture: Architecture) -> str:
        """Return the blocks' operators, joined by `-`."""
        return "-".join(OPERATORS[operator] for operator in architecture)

    def decode(self, text: str) -> Architecture:
        """Return the architecture of such a string; ValueError says what is wrong with it."""
        parts = text.strip().split("-")
        for number, part in enumerate(parts, 1):
            if part not in OPERATORS:
                raise ValueError(f"{text!r}: no operator {part!r} (block {number}); there are {', '.join(OPERATORS)}")
        if len(parts) != self.layers:
            raise ValueError(f"{text!r} has {len(parts)} blocks; this space has {self.layers} (space.stages)")
        return tuple(OPERATORS.index(part) for part in parts)

    def connected(self, architecture: Architecture) -> bool:
        """Every operator passes its input on."""
        return True

    def chain(self, architecture: Architecture) -> list[Block]:
        """Return every block as it is to be drawn."""
        return [
            Block(place.stage, *CHOICES[operator], place.outputs, place.stride, place.size)
            for place, operator in zip(places(self.settings), architecture, strict=True)
        ]

    def supernet(self, *, track: bool = False) -> Network:
        """Build a supernet with all six operators in every block."""
        return Network(self.settings, [range(len(OPERATORS))] * self.layers, track=track)

    def network(self, architecture: Architecture) -> Network:
        """Build one stand-alone network."""
        return Network(self.settings, [[operator] for operator in self.check(architecture)], track=True)

    def parts(self, supernet: Supernet) -> Parts:
        """Return stem and head, and every block's operators."""
        assert isinstance(supernet, Network)
        settings, last = self.settings, places(self.settings)[-1]
        image = settings.image_channels, settings.image_size, settings.image_size
        return Parts(
            [Part(supernet.stem, image), Part(supernet.classify, (last.outputs, last.size, last.size))],
            [
                [Part(operator, (place.inputs, size, size)) for operator in operators.values()]
                for operators, (place, size) in zip(supernet.operators, self._inputs(), strict=True)
            ],
        )

    def count_costs(self) -> tuple[Costs, Costs]:
        """Count per block and operator, and the rest of the network once. In millions.

        Biases count among the parameters, but their additions not among the multiply-adds: so FairNAS-A has 389.3M.
        """
        settings = self.settings
        with torch.device("meta"):
            network = self.supernet(track=True).eval()
            image = torch.zeros(1, settings.image_channels, settings.image_size, settings.image_size)
            features = torch.zeros(1, settings.head_channels)
            into = [torch.zeros(1, place.inputs, size, size) for place, size in self._inputs()]
            last = places(settings)[-1]
            out = torch.zeros(1, last.outputs, last.size, last.size)
        macs, params = np.zeros((2, self.layers, len(OPERATORS)))
        for layer, (operators, x) in enumerate(zip(network.operators, into, strict=True)):
            for index, operator in operators.items():
                macs[layer, index] = costs.count_macs(operator, x)
                params[layer, index] = costs.count_parameters(operator)
        rest = costs.count_macs(network.stem, image) + costs.count_macs(network.head, out)
        rest += costs.count_macs(network.classifier, features, linear_bias=False)
        shared = sum(parameter.numel() for parameter in network.shared)
        return Costs(rest / 1e6, macs / 1e6), Costs(shared / 1e6, params / 1e6)

    def _inputs(self) -> list[tuple[Place, int]]:
        """Return every block's place, and the size of its input."""
        chain = places(self.settings)
        first = -(-self.settings.image_size // self.settings.stem_stride)
        return list(zip(chain, [first, *(place.size for place in chain[:-1])], strict=True))


def build(settings: Settings) -> MobileNet:
    """Build the space; ValueError where it has no stage, or the strides leave nothing of the images."""
    if not settings.stages:
        raise ValueError("space.stages = []: must have a stage")
    if settings.image_size < settings.strides:
        raise ValueError(
            f"space.image_size = {settings.image_size}: the strides divide it by {settings.strides}, so it must be at "
            "least that; lower space.stem_stride or a stride of space.stages"
        )
    return MobileNet(settings)
