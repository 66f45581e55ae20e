"""A network of the MobileNet space as a torch module of its own: one line per block."""

from __future__ import annotations

from sumnas.spaces.base import Architecture
from sumnas.spaces.mobilenet import CHOICES, Settings, places

LAYERS = '''class ConvBN(nn.Sequential):
    """Convolution, batch normalisation, SiLU where `act`: [N, Cin, H, W] -> [N, Cout, H/stride, W/stride]."""

    def __init__(self, inputs, outputs, kernel, stride=1, groups=1, act=True):
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            *([nn.SiLU()] if act else []),
        )

'''
"""Source of the layer that every network of the space has."""

EXCITATION = '''
class SqueezeExcitation(nn.Module):
    """Every channel times a gate in (0, 1), from the channels' means."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.gate = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.SiLU(), nn.Conv2d(hidden, channels, 1), nn.Sigmoid()
        )

    def forward(self, x):
        return x * self.gate(x.mean((2, 3), keepdim=True))

'''
"""Source of squeeze-and-excitation, for networks that have it (`se_ratio` above 0)."""

BLOCK = '''
class InvertedResidual(nn.Module):
    """Widen, depthwise convolution{gated}, narrow. The input is added where the shapes agree."""

    def __init__(self, inputs, outputs, expansion, kernel, stride{hidden}):
        super().__init__()
        wide = expansion * inputs
        self.expand = ConvBN(inputs, wide, 1)
        self.depthwise = ConvBN(wide, wide, kernel, stride, groups=wide)
{excite}        self.project = ConvBN(wide, outputs, 1, act=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        out = self.project({inner})
        return x + out if self.residual else out

'''
"""Source of a choice block: a template for `str.format`, since squeeze-and-excitation may be in it."""

NETWORK = '''
class Network(nn.Module):
    """Stem, separable convolution, chain of blocks, head, classifier: images -> logits [N, classes]."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            ConvBN({image_channels}, {stem}, 3, {stem_stride}),
            ConvBN({stem}, {stem}, 3, groups={stem}),
            ConvBN({stem}, {first}, 1, act=False),
        )
        # {columns}
        self.blocks = nn.Sequential(
{blocks}
        )
        self.head = ConvBN({last}, {head}, 1)
        self.classifier = nn.Linear({head}, {classes})

    def forward(self, x):
        x = self.head(self.blocks(self.stem(x)))
        return self.classifier(x.mean((2, 3)))
'''
"""Source of the network: a template for `str.format`."""


def definition(settings: Settings, architecture: Architecture) -> str:
    """Return the source of the layers and `Network`; it uses `nn`."""
    blocks, chain, gated = list[str](), places(settings), settings.se_ratio > 0
    for place, operator in zip(chain, architecture, strict=True):
        values = [place.inputs, place.outputs, *CHOICES[operator], place.stride]
        if gated:
            values.append(max(1, int(settings.se_ratio * place.inputs)))
        blocks.append(f"            InvertedResidual({', '.join(map(str, values))}),")
    network = NETWORK.format(
        image_channels=settings.image_channels, stem=settings.stem_channels, stem_stride=settings.stem_stride,
        first=settings.first_channels, blocks="\n".join(blocks), last=chain[-1].outputs, head=settings.head_channels,
        columns="inputs, outputs, expansion, kernel, stride" + (", hidden channels of the gate" if gated else ""),
        classes=settings.classes,
    )  # fmt: skip
    block = BLOCK.format(
        gated=", squeeze-and-excitation" if gated else "",
        hidden=", hidden" if gated else "",
        excite="        self.excite = SqueezeExcitation(wide, hidden)\n" if gated else "",
        inner="self.excite(self.depthwise(self.expand(x)))" if gated else "self.depthwise(self.expand(x))",
    )
    return LAYERS + (EXCITATION if gated else "") + block + network


def renamed(name: str, architecture: Architecture) -> str | None:
    """Return what a parameter of the space's network is called there: without the operator's name."""
    parts = name.split(".")
    return ".".join(["blocks", parts[1], *parts[3:]]) if parts[0] == "layers" else name
