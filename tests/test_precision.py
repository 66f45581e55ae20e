"""Training in bfloat16 and in either memory format, against the same arithmetic written out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sumnas import seeding
from sumnas.methods import sumnas
from sumnas.paths import strictly_fair_paths
from sumnas.precision import Arithmetic
from sumnas.recipe import Recipe
from sumnas.retraining import train_network
from sumnas.spaces.mobilenet import Network
from sumnas.training import assemble, train
from tests.chains import space
from tests.trainings import METHODS, SEED, prepared, settings

BFLOAT16 = Arithmetic(precision="bfloat16")


def supernet() -> Network:
    with seeding.scoped(SEED, "network"):
        return space().supernet()


def trained(name: str, arithmetic: Arithmetic) -> tuple[list[dict[str, Any]], Network]:
    network = supernet()
    arithmetic.place(network, "cpu")
    method, batches, heldout = assemble(network, prepared(), settings(1), METHODS[name], SEED)
    return train(method, batches, heldout, 1, arithmetic=arithmetic), network


def noted_formats(network: nn.Module) -> list[tuple[torch.dtype, bool]]:
    """Let the network's convolutions note what comes out of them: type, and whether as channels_last."""
    found: list[tuple[torch.dtype, bool]] = []

    def note(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if min(output.shape[1:]) > 1:  # else both formats are the same
            found.append((output.dtype, inputs[0].is_contiguous(memory_format=torch.channels_last)))

    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups == 1:
            module.register_forward_hook(note)
    return found


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_passes_run_as_the_settings_say(precision: Any, channels_last: bool) -> None:
    arithmetic = Arithmetic(precision=precision, channels_last=channels_last)
    network = supernet()
    arithmetic.place(network, "cpu")
    found = noted_formats(network)
    method, batches, heldout = assemble(network, prepared(), settings(1), METHODS["fairnas"], SEED)
    train(method, batches, heldout, 1, arithmetic=arithmetic)
    assert set(found) == {(getattr(torch, precision), channels_last)}
    assert {p.dtype for p in network.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_in_bfloat16_to_about_the_same(name: str) -> None:
    (one,), _ = trained(name, Arithmetic())
    (other,), network = trained(name, BFLOAT16)
    assert one["loss"] != other["loss"]
    assert other["loss"] == pytest.approx(one["loss"], rel=0.1)
    assert all(p.dtype == torch.float32 for p in network.parameters())


def test_the_memory_format_changes_rounding_alone() -> None:
    (one,), first = trained("sumnas", Arithmetic())
    (other,), second = trained("sumnas", Arithmetic(channels_last=False))
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-3)


def test_every_inner_step_sees_the_weights_that_the_one_before_it_left() -> None:
    """Autocast keeps converted weights for as long as it lasts, unless told not to: here it lasts one pass."""
    chosen = sumnas.Settings(
        strategy="sumnas", adaptation_steps=2, inner_learning_rate=0.3, scale_inner=False, weight_decay=0
    )
    _, network = method_run(chosen)
    theta, rng = supernet(), seeding.numpy_stream(SEED, "paths")
    Arithmetic().place(theta, "cpu")
    batches = assemble(supernet(), prepared(), settings(1), chosen, SEED)[1]
    rounds = next(batches.epoch(0))
    sums = [torch.zeros_like(p) for p in theta.parameters()]
    for path in strictly_fair_paths(4, 6, rng):
        clone = copy.deepcopy(theta)
        optimizer = torch.optim.SGD(clone.parameters(), 0.3, momentum=0.9)
        for images, labels in rounds[0]:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(clone(images, path), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        for total, p, q in zip(sums, theta.parameters(), clone.parameters(), strict=True):
            total += (p - q).detach()
    for p, g, q in zip(theta.parameters(), sums, network.parameters(), strict=True):
        torch.testing.assert_close(q, p - g, rtol=0, atol=1e-6)


def method_run(chosen: sumnas.Settings) -> tuple[Any, Network]:
    """One step, in bfloat16, of the training loop."""

    class Stop(Exception):
        pass

    def stop(_progress: Any) -> None:
        raise Stop

    network = supernet()
    BFLOAT16.place(network, "cpu")
    method, batches, heldout = assemble(network, prepared(), settings(1), chosen, SEED)
    with pytest.raises(Stop):
        train(method, batches, heldout, 1, on_step=stop, arithmetic=BFLOAT16)
    return method, network


def test_a_stand_alone_network_trains_in_bfloat16() -> None:
    values = {"epochs": 2, "batch_size": 8, "learning_rate": 0.05, "augmentation": {"flip": True}}
    losses: dict[str, list[float]] = {}
    for precision in ("float32", "bfloat16"):
        recipe = Recipe.model_validate({**values, "arithmetic": {"precision": precision, "channels_last": False}})
        seen = losses.setdefault(precision, [])
        found = train_network(
            space(), (0, 5, 1, 3), prepared(), recipe, 0, lambda _e, loss, seen=seen: seen.append(loss)
        )  # type: ignore[misc]
        assert {p.dtype for p in found.network.parameters()} == {torch.float32}
    assert losses["float32"] != losses["bfloat16"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.1)
