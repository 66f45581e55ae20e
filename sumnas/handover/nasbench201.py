"""A NAS-Bench-201 network as a torch module of its own, which runs only the edges that reach a cell's output."""

from __future__ import annotations

from sumnas.spaces.base import Architecture
from sumnas.spaces.nasbench201 import CONV1, CONV3, OPERATORS, POOL, SKIP, Settings, Step, plan

LAYERS = '''class ReLUConvBN(nn.Module):
    """ReLU, convolution, batch normalisation: [N, Cin, H, W] -> [N, Cout, H/stride, W/stride]."""

    def __init__(self, inputs, outputs, kernel, stride=1, affine=True):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=not affine)
        self.norm = nn.BatchNorm2d(outputs, affine=affine)

    def forward(self, x):
        return self.norm(self.conv(F.relu(x)))


class Reduction(nn.Module):
    """Half the height and width, another number of channels, with a shortcut."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.first = ReLUConvBN(inputs, outputs, 3, 2)
        self.second = ReLUConvBN(outputs, outputs, 3)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x):
        return self.second(self.first(x)) + self.shortcut(F.avg_pool2d(x, 2))
'''
"""Source of the layers that every network of the space has."""

NETWORK = '''class Network(nn.Module):
    """Stem, three stages of cells with two reductions between, classifier: images -> logits [N, classes]."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d({image_channels}, {channels}, 3, padding=1, bias=False), nn.BatchNorm2d({channels})
        )
        self.body = nn.Sequential(
{body}
        )
        self.norm = nn.BatchNorm2d({last})
        self.classifier = nn.Linear({last}, {classes})

    def forward(self, x):
        x = F.relu(self.norm(self.body(self.stem(x))))
        return self.classifier(x.mean((2, 3)))
'''
"""Source of the network: a template for `str.format`."""


def definition(settings: Settings, architecture: Architecture) -> str:
    """Return the source of the layers, the cell and `Network`; it uses `torch`, `nn` and `F`."""
    body, width = list[str](), settings.channels
    for stage in range(3):
        if stage:
            body.append(f"            Reduction({width}, {2 * width}),")
            width *= 2
        body += [f"            Cell({width}),"] * settings.cells
    network = NETWORK.format(
        image_channels=settings.image_channels, channels=settings.channels, body="\n".join(body), last=width,
        classes=settings.classes,
    )  # fmt: skip
    return "\n\n".join([LAYERS, _cell(plan(architecture), settings.affine), network])


def renamed(name: str, architecture: Architecture) -> str | None:
    """Return what a parameter of the space's network is called there; None where no output depends on it."""
    parts = name.split(".")
    if parts[0] != "body" or parts[2] != "edges":
        return name
    for step in plan(architecture):
        if step.edge == int(parts[3]):
            return ".".join([*parts[:2], _name(step), *parts[5:]])
    return None


def _name(step: Step) -> str:
    return f"edge_{step.source}_{step.target}"


def _cell(steps: tuple[Step, ...], affine: bool) -> str:
    """Return the source of the cell: its convolutions, and a line for each node that is used."""
    lines = [
        "class Cell(nn.Module):",
        '    """[N, C, H, W] -> the same shape; edge_s_t leads from node s to node t, x is node 0."""',
        "",
        "    def __init__(self, channels):",
        "        super().__init__()",
    ]
    for step in steps:
        if step.operator in (CONV1, CONV3):
            kernel, bare = 1 if step.operator == CONV1 else 3, "" if affine else ", affine=False"
            lines.append(f"        self.{_name(step)} = ReLUConvBN(channels, channels, {kernel}{bare})")
    lines += ["", "    def forward(self, x):"]
    targets = {step.target for step in steps}
    for node in (1, 2, 3):
        # Summed in the order of the edges, as the original does: the same rounding.
        terms = [_term(step, targets) for step in steps if step.target == node]
        value = " + ".join(terms) if terms else "torch.zeros_like(x)"
        if node == 3:
            lines.append(f"        return {value}")
        elif terms:
            lines.append(f"        node_{node} = {value}")
    return "\n".join(lines) + "\n"


def _term(step: Step, targets: set[int]) -> str:
    source = "x" if step.source == 0 else f"node_{step.source}" if step.source in targets else "torch.zeros_like(x)"
    if step.operator == SKIP:
        return source
    if step.operator == POOL:
        return f"F.avg_pool2d({source}, 3, 1, 1, count_include_pad=False)"
    assert step.operator in (CONV1, CONV3), OPERATORS[step.operator]
    return f"self.{_name(step)}({source})"
