"""What the training methods have in common, fairness and uniformity of the paths, and SPOS and FairNAS themselves."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from sumnas import seeding
from sumnas.errors import UserError
from sumnas.methods import base, spos
from sumnas.methods.base import Method, Rounds
from sumnas.methods.fairnas import FairNAS
from sumnas.schedules import factor
from sumnas.spaces import nasbench201
from sumnas.spaces.base import Architecture, Supernet
from sumnas.spaces.nasbench201 import CONV1, CONV3, NONE, SKIP

LAYERS, CANDIDATES = 3, 4
TOTAL = 8


class Toy(Supernet):
    """Vectors instead of images: cheap enough for thousands of steps. Remembers the paths it ran."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ParameterList(
            nn.Parameter(torch.randn(CANDIDATES, 4)[o]) for _ in range(LAYERS) for o in range(CANDIDATES)
        )
        self.head = nn.Linear(4, 3)
        self.choices = [[[self.scales[CANDIDATES * layer + o]] for o in range(CANDIDATES)] for layer in range(LAYERS)]
        self.shared = list(self.head.parameters())
        self.ran: list[Architecture] = []

    def forward(self, x: Tensor, architecture: Architecture) -> Tensor:
        self.ran.append(architecture)
        for layer, operator in enumerate(architecture):
            x = x + torch.tanh(x * self.choices[layer][operator][0])
        logits: Tensor = self.head(x)
        return logits


def toy() -> Toy:
    with seeding.scoped(3, "toy"):
        return Toy()


def network(dtype: torch.dtype = torch.float32) -> Supernet:
    """A small NAS-Bench-201 supernet without a weight at exactly zero or one."""
    settings = nasbench201.Settings(
        name="nasbench201", channels=2, cells=1, image_size=4, image_channels=2, classes=3
    )  # fmt: skip
    with seeding.scoped(3, "network"):
        supernet = nasbench201.build(settings).supernet().to(dtype)
        with torch.no_grad():
            for parameter in supernet.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return supernet


def make(supernet: Supernet, strategy: str, seed: int = 5, **changes: Any) -> Method:
    module = base.module_of(strategy)
    if strategy == "sumnas":
        changes = {"adaptation_steps": 2, **changes}
    method: Method = module.METHOD(supernet, module.Settings(strategy=strategy, **changes), TOTAL, seed)
    return method


def rounds_for(method: Method, step: int, dtype: torch.dtype = torch.float32) -> Rounds:
    generator = torch.Generator().manual_seed(50 + step)
    shape = (6, 4) if isinstance(method.supernet, Toy) else (6, 2, 4, 4)
    return [
        [
            (torch.randn(shape, generator=generator, dtype=dtype), torch.randint(3, shape[:1], generator=generator))
            for _ in range(method.streams)
        ]
        for _ in range(method.rounds)
    ]


def weights(supernet: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in supernet.named_parameters()}


def record(supernet: Supernet) -> list[Architecture]:
    """Let the supernet note every path it runs from now on."""
    ran: list[Architecture] = []
    # What follows the part that paths may share, where a supernet has one: `forward` calls it then, else it `forward`.
    name = "forward" if type(supernet).rest is Supernet.rest else "rest"
    run = getattr(supernet, name)

    def noting(x: Tensor, architecture: Architecture) -> Tensor:
        ran.append(architecture)
        logits: Tensor = run(x, architecture)
        return logits

    setattr(supernet, name, noting)
    return ran


# Strict fairness.


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize(
    ("strategy", "changes", "uses"),
    [
        ("fairnas", {}, 1),
        ("fairnas", {"rounds": 3}, 3),
        ("sumnas", {"adaptation_steps": 1}, 1),
        ("sumnas", {"adaptation_steps": 3}, 3),
        ("sumnas", {"adaptation_steps": 2, "rounds": 3, "batches": "reuse"}, 6),
    ],
)
def test_every_operator_of_every_layer_is_used_equally_often(
    strategy: str, changes: dict[str, Any], uses: int, steps: int
) -> None:
    supernet = toy()
    ran = record(supernet)
    method = make(supernet, strategy, **changes)
    for step in range(steps):
        method.step(rounds_for(method, step))
    counts = Counter((layer, operator) for path in ran for layer, operator in enumerate(path))
    assert counts == {(layer, o): uses * steps for layer in range(LAYERS) for o in range(CANDIDATES)}
    assert len(ran) == steps * method.passes_per_step == steps * uses * CANDIDATES
    if strategy == "sumnas":  # the k passes of an adaptation follow each other on one path
        k = changes["adaptation_steps"]
        assert all(len(set(ran[i : i + k])) == 1 for i in range(0, len(ran), k))


@pytest.mark.parametrize("strategy", ["fairnas", "sumnas"])
def test_each_round_is_fair_by_itself_and_new_paths_keep_coming(strategy: str) -> None:
    supernet = toy()
    changes = {"adaptation_steps": 1} if strategy == "sumnas" else {}
    method = make(supernet, strategy, rounds=2, **changes)
    seen: set[Architecture] = set()
    distinct = []
    for step in range(TOTAL):
        supernet.ran.clear()
        method.step(rounds_for(method, step))
        for turn in (supernet.ran[:CANDIDATES], supernet.ran[CANDIDATES:]):
            assert all(sorted(path[layer] for path in turn) == list(range(CANDIDATES)) for layer in range(LAYERS))
        seen.update(supernet.ran)
        distinct.append(len(seen))
    # 64 paths, 8 a step: one permutation held fixed, or a generator started afresh, would soon give no new ones.
    assert distinct[0] >= CANDIDATES
    assert all(later > earlier for earlier, later in zip(distinct, distinct[2:], strict=False))
    assert distinct[-1] > CANDIDATES**LAYERS / 3


# SPOS.


def test_spos_paths_are_uniform() -> None:
    supernet = toy()
    method = make(supernet, "spos")
    method.total_steps = 2000
    given = rounds_for(method, 0)
    for _ in range(method.total_steps):
        method.step(given)
    paths = np.array(supernet.ran)
    assert paths.shape == (2000, LAYERS)
    for layer in range(LAYERS):
        counts = np.bincount(paths[:, layer], minlength=CANDIDATES)
        assert stats.chisquare(counts).pvalue > 0.01
    whole = np.bincount(paths @ CANDIDATES ** np.arange(LAYERS), minlength=CANDIDATES**LAYERS)
    assert stats.chisquare(whole).pvalue > 0.01  # all architectures, and so the layers independently


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_spos_moves_the_parameters_of_its_path_and_no_others(momentum: float) -> None:
    supernet = network()
    ran = record(supernet)
    method = make(supernet, "spos", momentum=momentum, weight_decay=0.01)
    still = 0
    for step in range(6):
        before = weights(supernet)
        method.step(rounds_for(method, step))
        path = {id(p) for p in supernet.path_choices(ran[-1]) + supernet.shared}
        for name, p in supernet.named_parameters():
            # Decay alone moves every weight on the path, gradient or not.
            assert torch.equal(p, before[name]) == (id(p) not in path), name
            still += id(p) not in path
        assert all(p.grad is None for p in supernet.parameters())
    assert still > 6 * len(supernet.shared) and len(set(ran)) == 6


def test_spos_step_is_sgd_on_the_path_and_decay_reaches_its_dead_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    # Edge 0 leads to node 1, from which nothing goes on: no gradient there.
    path = (CONV3, SKIP, NONE, CONV1, NONE, SKIP)
    monkeypatch.setattr(spos, "uniform_path", lambda *_: path)
    supernet, reference = network(torch.float64), network(torch.float64)
    rate, momentum, decay = 0.1, 0.9, 0.05
    method = make(supernet, "spos", learning_rate=rate, momentum=momentum, weight_decay=decay, schedule="cosine")
    parameters = reference.path_choices(path) + reference.shared
    velocity = [torch.zeros_like(p) for p in parameters]
    dead = weights(supernet)
    for step in range(2):
        given = rounds_for(method, step, torch.float64)
        loss = F.cross_entropy(reference(given[0][0][0], path), given[0][0][1])
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        assert sum(g is None for g in found) == len(reference.choices[0][CONV3]) > 0
        now = rate * factor("cosine", step / TOTAL)
        with torch.no_grad():
            for p, g, v in zip(parameters, found, velocity, strict=True):
                v.mul_(momentum).add_(p, alpha=decay)
                if g is not None:
                    v.add_(g)
                p.sub_(now * v)
        figures = method.step(given)
        assert float(figures["loss"]) == pytest.approx(loss.item(), abs=1e-12)
        assert figures["learning_rate"] == pytest.approx(now)
        for (name, p), q in zip(supernet.named_parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")
        if step == 0:
            for name, p in supernet.named_parameters():
                if id(p) in {id(q) for q in supernet.choices[0][CONV3]}:
                    torch.testing.assert_close(p.detach(), (1 - rate * decay) * dead[name], rtol=0, atol=1e-14)


# FairNAS.


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("decay", [0.0, 0.02])
@pytest.mark.parametrize(("rounds", "reduction"), [(1, "mean"), (3, "mean"), (2, "sum")])
def test_fairnas_step_is_the_sum_of_the_paths_gradients(
    momentum: float, decay: float, rounds: int, reduction: str
) -> None:
    supernet, reference = network(torch.float64), network(torch.float64)
    ran = record(supernet)
    changes = {"rounds": rounds, "round_reduction": reduction}
    method = make(
        supernet, "fairnas", learning_rate=0.1, momentum=momentum, weight_decay=decay, schedule="cosine", **changes
    )
    assert isinstance(method, FairNAS)
    parameters = list(reference.parameters())
    velocity = [torch.zeros_like(p) for p in parameters]
    for step in range(3):
        given = rounds_for(method, step, torch.float64)
        ran.clear()
        figures = method.step(given)
        total = [torch.zeros_like(p) for p in parameters]
        losses = []
        for turn, ((images, labels),) in enumerate(given):
            for path in ran[5 * turn : 5 * turn + 5]:
                loss = F.cross_entropy(reference(images, path), labels)
                losses.append(loss.item())
                found = torch.autograd.grad(loss, parameters, allow_unused=True)
                for sum_, g in zip(total, found, strict=True):
                    if g is not None:
                        sum_.add_(g)
        rate = 0.1 * factor("cosine", step / TOTAL)
        with torch.no_grad():
            for p, g, v in zip(parameters, total, velocity, strict=True):
                v.mul_(momentum).add_(g / (rounds if reduction == "mean" else 1)).add_(p, alpha=decay)
                p.sub_(rate * v)
        for (name, p), q in zip(supernet.named_parameters(), parameters, strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")
        assert float(figures["loss"]) == pytest.approx(np.mean(losses), abs=1e-12)
        assert figures["learning_rate"] == pytest.approx(rate)


# What all have in common.

ALL = [
    ("spos", {"momentum": 0.9}),
    ("spos", {}),
    ("fairnas", {"momentum": 0.9, "rounds": 2}),
    ("fairnas", {}),
    ("sumnas", {}),
    ("sumnas", {"outer_momentum": 0.9, "momentum_buffer": "carry", "rounds": 2}),
]


@pytest.mark.parametrize(("strategy", "changes"), ALL)
def test_state_survives_a_file(strategy: str, changes: dict[str, Any]) -> None:
    undisturbed, first = (make(network(), strategy, **changes) for _ in range(2))
    for step in range(TOTAL):
        undisturbed.step(rounds_for(undisturbed, step))
    for step in range(3):
        first.step(rounds_for(first, step))
    file = io.BytesIO()
    torch.save({"weights": first.supernet.state_dict(), "method": first.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)

    second = make(network(), strategy, seed=99, **changes)  # its own paths would be others
    second.supernet.load_state_dict(state["weights"])
    second.load_state_dict(state["method"])
    assert second.done_steps == 3 and second.progress == 3 / TOTAL
    for step in range(3, TOTAL):
        second.step(rounds_for(second, step))
    for (name, p), q in zip(second.supernet.named_parameters(), undisturbed.supernet.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert second.progress == 1.0


@pytest.mark.parametrize("strategy", ["spos", "fairnas", "sumnas"])
def test_paths_follow_from_the_seed(strategy: str) -> None:
    def paths(seed: int) -> list[Architecture]:
        supernet = toy()
        method = make(supernet, strategy, seed=seed)
        for step in range(3):
            method.step(rounds_for(method, step))
        return supernet.ran

    assert paths(1) == paths(1) != paths(2)


def test_unknown_strategy_names_the_nearest_and_all() -> None:
    with pytest.raises(UserError, match=r"'sumnass': no such method; did you mean 'sumnas'\?.*fairnas.*spos.*sumnas"):
        base.module_of("sumnass")
    with pytest.raises(UserError, match=r"'zzz': no such method; there are: .*fairnas"):
        base.module_of("zzz")


def test_the_protocol_itself_is_no_strategy() -> None:
    assert {"fairnas", "spos", "sumnas"} <= set(base.names())
    with pytest.raises(UserError, match="no such method"):
        base.module_of("base")
    for name in base.names():
        module = base.module_of(name)
        assert issubclass(module.METHOD, Method)
        assert module.Settings.model_config["extra"] == "forbid"


SGD = {"learning_rate": 0.2, "momentum": 0.0, "schedule": "cosine", "weight_decay": 4e-5}
HALVES = {"learning_rate": 0.025, "minimum_rate": 0.001, "momentum": 0.9, "nesterov": True, "schedule": "cosine",
          "weight_decay": 5e-4, "clip_norm": 5.0, "train_share": 0.5, "alpha_learning_rate": 3e-4,
          "alpha_betas": (0.5, 0.999), "alpha_weight_decay": 1e-3, "alpha_scale": 1e-3}  # fmt: skip
PUBLISHED = {
    "spos": SGD,
    "fairnas": {**SGD, "rounds": 1},
    "wpl": {**SGD, "batches_per_path": 7, "alpha": 60.0, "alpha_epochs": 15, "alpha_decay": 1.0, "fisher_decay": 0.1,
            "fisher_norm": 10.0},
    "nsas": {**SGD, "members": 8, "weight": 0.5, "draws": 10, "recent": 50, "neighbours": 10},
    "cream": {**SGD, "warmup": 20 / 120, "board": 10, "margin": 5.0, "stored": 4, "sampling": "board",
              "matching_every": 200, "matching_learning_rate": 1e-4, "matching_clip_norm": 1.0},
    "darts": {**HALVES, "order": 1, "difference": 1e-2},
    "gdas": {**HALVES, "tau_first": 10.0, "tau_last": 0.1},
    "enas": {"learning_rate": 0.05, "momentum": 0.9, "nesterov": True, "schedule": "cosine", "weight_decay": 2.5e-4,
             "clip_norm": 5.0, "train_share": 0.5, "controller_steps": 50, "controller_samples": 20, "choice": 100,
             "controller_learning_rate": 1e-3, "controller_betas": (0.0, 0.999), "controller_eps": 1e-3,
             "controller_clip_norm": 5.0, "hidden": 32, "temperature": 5.0, "tanh_constant": 2.5,
             "entropy_weight": 1e-4, "baseline_decay": 0.99},
}  # fmt: skip
"""Settings of the papers and of NAS-Bench-201; of SPOS to Cream the rates of SUMNAS's table 1."""


@pytest.mark.parametrize("strategy", PUBLISHED)
def test_the_defaults_are_the_published_settings(strategy: str) -> None:
    module = base.module_of(strategy)
    settings = module.Settings(strategy=strategy).model_dump()
    assert {key: settings[key] for key in PUBLISHED[strategy]} == PUBLISHED[strategy]
    assert set(base.names()) == {*PUBLISHED, "sumnas"}  # which has no default for its k
