"""The MobileNet space against the check values of its description and a network written a second time."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sumnas import seeding
from sumnas.batchnorm import recalibrate
from sumnas.errors import UserError
from sumnas.params import _validate_named
from sumnas.spaces import base, mobilenet
from sumnas.spaces.base import Architecture
from sumnas.spaces.mobilenet import MobileNet
from tests.chains import sample, space

FAIRNAS_A = (
    "e3k7-e3k3-e3k7-e6k3-e6k7-e3k3-e3k3-e6k7-e6k7-e3k5-e6k3-e3k5-e3k5-e6k3-e6k3-e6k7-e6k3-e6k7-e6k5"
)  # fmt: skip
NAMES = ["e3k3", "e3k5", "e3k7", "e6k3", "e6k5", "e6k7"]


def paper(se_ratio: float = 0.5) -> MobileNet:
    settings = mobilenet.Settings(
        name="mobilenet", image_size=224, image_channels=3, classes=1000, se_ratio=se_ratio
    )  # fmt: skip
    return mobilenet.build(settings)


def naive(weights: dict[str, Tensor], of: MobileNet, architecture: Architecture, x: Tensor) -> Tensor:
    """The network as method sec. 9 words it, from weights by name; normalised by the batch itself."""

    def conv(x: Tensor, name: str, stride: int = 1, *, depthwise: bool = False, act: bool = True) -> Tensor:
        kernel = weights[f"{name}.0.weight"]
        groups = x.shape[1] if depthwise else 1
        x = F.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2, groups=groups)
        mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        x = (x - mean) / (variance + 1e-5).sqrt()
        x = x * weights[f"{name}.1.weight"][:, None, None] + weights[f"{name}.1.bias"][:, None, None]
        return x * torch.sigmoid(x) if act else x

    def dense(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].flatten(1).T + weights[f"{name}.bias"]

    settings = of.settings
    x = conv(x, "stem.0", settings.stem_stride)
    x = conv(conv(x, "stem.1", depthwise=True), "stem.2", act=False)
    strides = [s.stride if i == 0 else 1 for s in settings.stages for i in range(s.blocks)]
    for layer, (operator, stride) in enumerate(zip(architecture, strides, strict=True)):
        name = f"layers.{layer}.{NAMES[operator]}"
        expansion, kernel = int(NAMES[operator][1]), int(NAMES[operator][3])
        assert weights[f"{name}.depthwise.0.weight"].shape == (expansion * x.shape[1], 1, kernel, kernel)
        wide = conv(conv(x, f"{name}.expand"), f"{name}.depthwise", stride, depthwise=True)
        if settings.se_ratio:
            hidden = dense(wide.mean((2, 3)), f"{name}.excite.gate.0")
            assert hidden.shape[1] == max(1, int(settings.se_ratio * x.shape[1]))
            gate = torch.sigmoid(dense(hidden * torch.sigmoid(hidden), f"{name}.excite.gate.2"))
            wide = wide * gate[:, :, None, None]
        out = conv(wide, f"{name}.project", act=False)
        x = out + x if stride == 1 and out.shape == x.shape else out
    return dense(conv(x, "head").mean((2, 3)), "classifier")


def images(of: MobileNet, count: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    s, generator = of.settings, torch.Generator().manual_seed(seed)
    return torch.randn(count, s.image_channels, s.image_size, s.image_size, generator=generator, dtype=dtype)


def supernet_of(of: MobileNet, dtype: torch.dtype = torch.float64) -> mobilenet.Network:
    """Normalisation off its initial values, so that an error in it shows."""
    with seeding.scoped(1, "supernet"):
        network = of.supernet().to(dtype)
        for name, p in network.named_parameters():
            if p.ndim == 1 and ".gate." not in name:
                nn.init.normal_(p, 1.0 if name.endswith("weight") else 0.0, 0.3)
    return network


# Costs and sizes.


@pytest.mark.parametrize(
    ("se_ratio", "text", "macs", "params"),
    [
        (0.5, FAIRNAS_A, 389.344, 5.8819),
        (0.0, FAIRNAS_A, 388.123, 4.651352),
        (0.5, "-".join(["e3k3"] * 19), 247.786, 3.8509),
        (0.5, "-".join(["e6k7"] * 19), 558.717, 6.4129),
    ],
)
def test_costs_are_those_written_down(se_ratio: float, text: str, macs: float, params: float) -> None:
    of = paper(se_ratio)
    architecture = of.decode(text)
    assert round(of.macs(architecture), 3) == macs
    assert of.params(architecture) == pytest.approx(params, abs=5e-5 if se_ratio else 5e-7)
    assert of.size == 6**19 and of.candidates == tuple(NAMES)


@pytest.mark.parametrize("changes", [{}, {"se_ratio": 0.0, "image_size": 7, "classes": 5, "stem_stride": 2}])
def test_costs_are_those_of_the_whole_network(changes: dict[str, Any]) -> None:
    of = space(**changes)
    for architecture in sample(of, 6):
        network = of.network(architecture)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network.eval()(images(of, 1, torch.float32))
        assert round(of.macs(architecture) * 1e6) == counter.get_total_flops() // 2
        assert round(of.params(architecture) * 1e6) == sum(p.numel() for p in network.parameters())
        assert network.macs(architecture) == of.macs(architecture)


def test_counting_costs_leaves_the_random_stream_alone() -> None:
    before = torch.get_rng_state()
    assert paper().macs((0,) * 19) > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_the_chain_is_that_of_the_paper() -> None:
    blocks = paper().chain(paper().decode(FAIRNAS_A))
    assert [b.channels for b in blocks] == [32] * 2 + [40] * 4 + [80] * 4 + [96] * 4 + [192] * 4 + [320]
    assert [i for i, b in enumerate(blocks) if b.stride == 2] == [0, 2, 6, 14]
    assert [b.size for b in blocks] == [56] * 2 + [28] * 4 + [14] * 8 + [7] * 5
    assert "-".join(f"e{b.expansion}k{b.kernel}" for b in blocks) == FAIRNAS_A
    assert space().graph((0, 5, 1, 2)) == [(0, 1, "e3k3"), (1, 2, "e6k7"), (2, 3, "e3k5"), (3, 4, "e3k7")]


# Strings and settings.


def test_strings_go_both_ways() -> None:
    of = space()
    for architecture in itertools.product(range(6), repeat=4):
        assert of.decode(of.encode(architecture)) == architecture
    assert of.decode(" e6k7-e3k3-e3k5-e6k3\n") == (5, 0, 1, 3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("e3k3-e3k3-e3k3", "has 3 blocks; this space has 4"),
        ("e3k3-e3k3-e4k3-e3k3", r"no operator 'e4k3' \(block 3\); there are e3k3, e3k5, e3k7, e6k3, e6k5, e6k7"),
        ("e3k3-e3k3--e3k3", r"no operator '' \(block 3\)"),
        ("", r"no operator '' \(block 1\)"),
        ("E3K3-e3k3-e3k3-e3k3", "no operator 'E3K3'"),
    ],
)
def test_a_string_that_is_none_is_refused_with_the_reason(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        space().decode(text)


def test_images_must_survive_the_strides() -> None:
    with pytest.raises(ValueError, match=r"space.image_size = 16: the strides divide it by 32"):
        mobilenet.build(mobilenet.Settings(name="mobilenet", image_size=16, image_channels=3, classes=10))
    with pytest.raises(ValueError, match=r"space.stages = \[\]: must have a stage"):
        space(stages=())
    problems: list[str] = []
    block = {
        "name": "mobilenet", "image_size": 32, "image_channels": 3, "classes": 10,
        "stages": [{"channels": 8, "blocks": 1, "stride": 3}, {"channels": 8, "blocks": 1, "stride": 1, "channel": 3}],
    }  # fmt: skip
    assert _validate_named(base.module_of, "name", block, "space", problems) is None
    assert problems == [
        "space.stages.0.stride = 3: must be 1 or 2",
        "space.stages.1.channel: unknown key; did you mean 'space.stages.1.channels'?",
    ]
    assert "mobilenet" in base.names()
    with pytest.raises(UserError, match="did you mean 'mobilenet'"):
        base.module_of("mobilnet")


# The network.


@pytest.mark.parametrize(
    "changes", [{}, {"se_ratio": 0.0}, {"se_ratio": 0.25, "stem_stride": 2, "image_size": 9}], ids=str
)
def test_logits_and_gradients_are_those_of_the_second_network(changes: dict[str, Any]) -> None:
    of = space(**changes)
    supernet = supernet_of(of)
    parameters, labels = dict(supernet.named_parameters()), torch.tensor([0, 1, 2, 0, 1])
    for number, architecture in enumerate(sample(of, 8)):
        x = images(of, 5, seed=number)
        logits, expected = supernet(x, architecture), naive(parameters, of, architecture, x)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
        assert torch.equal(supernet.rest(supernet.common(x), architecture), logits)
        ours, theirs = (
            torch.autograd.grad(F.cross_entropy(out, labels), list(parameters.values()), allow_unused=True)
            for out in (logits, expected)
        )
        on_path = {id(p) for p in supernet.path_choices(architecture) + supernet.shared}
        for (name, p), g, h in zip(parameters.items(), ours, theirs, strict=True):
            assert (g is not None) == (h is not None) == (id(p) in on_path), name
            if g is not None and h is not None:
                torch.testing.assert_close(g, h, rtol=0, atol=1e-9, msg=name)


def test_a_mixture_weighs_every_operator() -> None:
    of = space(stages=STAGES_OF_ONE)
    supernet, x = supernet_of(of), images(of, 4)
    weights = torch.rand(1, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features = torch.stack([w * supernet.operators[0][o](supernet.stem(x)) for o, w in enumerate(weights[0])]).sum(0)
    expected = supernet.classifier(supernet.head(features).mean((2, 3)))
    torch.testing.assert_close(supernet.forward_mixture(x, weights), expected, rtol=0, atol=1e-10)
    for architecture in sample(of := space(), 3):
        supernet = supernet_of(of)
        one_hot = F.one_hot(torch.tensor(architecture), 6).double()
        logits = supernet(x, architecture)
        torch.testing.assert_close(supernet.forward_mixture(x, one_hot), logits, rtol=0, atol=1e-10)
        torch.testing.assert_close(supernet.forward_mixture(x, one_hot, architecture), logits, rtol=0, atol=1e-10)


STAGES_OF_ONE = ({"channels": 3, "blocks": 1, "stride": 1},)


def test_a_supernet_needs_an_architecture() -> None:
    with pytest.raises(ValueError, match="a supernet needs the architecture"):
        space().supernet()(images(space(), 1, torch.float32))


# Sub-models.


def test_a_sub_model_is_the_stand_alone_network_with_its_weights() -> None:
    of = space()
    supernet, x = supernet_of(of, torch.float32), images(of, 5, torch.float32)
    weights = supernet.state_dict()
    assert not list(supernet.buffers())  # no running statistics, so nothing of a pass is left behind
    tracked = of.tracked(supernet)
    for architecture in sample(of, 6, seed=1):
        alone = of.network(architecture)
        held = alone.state_dict()
        missing, _ = alone.load_state_dict({n: v for n, v in weights.items() if n in held}, strict=False)
        assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in missing)
        extracted = of.extract(supernet, architecture)
        for network in (alone, extracted):
            assert torch.equal(network.train()(x), supernet(x, architecture))
        assert torch.equal(tracked.train()(x, architecture), supernet(x, architecture))
        own = dict(supernet.named_parameters())
        for name, parameter in extracted.named_parameters():
            assert parameter.untyped_storage().data_ptr() == own[name].untyped_storage().data_ptr(), name
        # Recalibrated, they agree too, and nothing of it is left in the supernet.
        recalibrate(extracted, x.split(3))
        recalibrate(alone, x.split(3))
        assert torch.equal(extracted(x), alone(x))
    assert all(torch.equal(value, weights[name]) for name, value in supernet.state_dict().items())


def test_shared_and_choices_partition_the_parameters() -> None:
    of = space()
    supernet = of.supernet()
    flat = [p for layer in supernet.choices for operator in layer for p in operator] + supernet.shared
    assert len(flat) == len({id(p) for p in flat}) == len(list(supernet.parameters()))
    names = {id(p): name for name, p in supernet.named_parameters()}
    for number, layer in enumerate(supernet.choices):
        for operator, parameters in enumerate(layer):
            # Three convolutions, two values of normalisation each, and two biased convolutions of the gate.
            assert len(parameters) == 3 + 6 + 4
            assert all(names[id(p)].startswith(f"layers.{number}.{NAMES[operator]}.") for p in parameters)
    for architecture in sample(of, 5, seed=2):
        mine = {names[id(p)] for p in supernet.path_choices(architecture) + supernet.shared}
        assert mine == {name for name, _ in of.network(architecture).named_parameters()}
