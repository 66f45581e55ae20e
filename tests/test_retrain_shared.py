"""Several processes retrain what one retrains, image by image of every batch: two real ones, started once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sumnas.augmentation import Augmentation
from sumnas.data import Batches
from sumnas.distributed import ALONE, Ranks
from sumnas.errors import UserError
from sumnas.retraining import train_network
from sumnas.sharing import check
from tests import shares
from tests.processes import said_by
from tests.trainings import prepared

ROOT = Path(__file__).resolve().parents[1]
Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each of the two says."""
    folder = tmp_path_factory.mktemp("shares")
    torch.save(shares.trained("everything", stop=shares.STOP)["state"], folder / "alone.pt")
    return said_by("tests.shares", shares.WORLD, folder)


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Any]]:
    """What one process comes to."""
    return {name: shares.trained(name) for name in shares.RECIPES}


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same weights and statistics up to the order of summation, in float64, and the same scores."""
    assert list(found["weights"]) == list(expected["weights"])
    for name, value in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], value, rtol=1e-10, atol=1e-12, msg=name)
    losses = expected["losses"][-len(found["losses"]) :]  # added up in float32
    assert found["losses"] == pytest.approx(losses, rel=1e-5) and losses
    for split, (accuracy, loss, top5) in expected["scores"].items():
        assert found["scores"][split] == (accuracy, pytest.approx(loss, rel=1e-10), top5)


@pytest.mark.parametrize("name", shares.STEPS)
def test_two_processes_retrain_what_one_retrains(name: str, found: Found, alone: dict[str, dict[str, Any]]) -> None:
    first, second = (one[name] for one in found)
    assert_equal(first, alone[name])
    epochs = shares.RECIPES[name].epochs
    assert first["steps"] == alone[name]["steps"] == epochs * shares.STEPS[name] and len(first["losses"]) == epochs
    # The very same bytes on every rank.
    assert second["losses"] == first["losses"] and second["scores"] == first["scores"]
    assert all(torch.equal(value, first["weights"][key]) for key, value in second["weights"].items())
    assert first["own forwards"] == second["own forwards"] == 0  # layers are what they were


def test_a_retraining_goes_on_in_another_number_of_processes(found: Found, alone: dict[str, dict[str, Any]]) -> None:
    assert_equal(found[0]["from 1 to 2"], alone["everything"])
    state = found[0]["begun"]["state"]
    assert (state["epoch"], state["steps"]) == divmod(shares.STOP, shares.STEPS["everything"])
    assert_equal(shares.trained("everything", state=state), alone["everything"])


def test_a_loss_that_is_not_finite_ends_every_process_with_the_same_words(
    found: Found, alone: dict[str, dict[str, Any]]
) -> None:
    text = alone["too fast"]["error"]
    assert "the loss became nan in epoch 1" in text and {one["too fast"]["error"] for one in found} == {text}


def test_a_step_takes_one_sum_of_gradients_and_two_of_each_normalisation(found: Found) -> None:
    space, architecture, _ = shares.places("plain")
    network = space.network(architecture)
    widths = [module.num_features for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    weights = sum(parameter.numel() for parameter in network.parameters())
    # A row of mean, variance and count by rank; two sums; the gradients with the loss.
    step = [2 * (2 * width + 1) for width in widths] + [2 * width for width in widths] + [weights + 1]
    expected = step * shares.RECIPES["plain"].epochs * shares.STEPS["plain"]
    expected += [1] * 3  # the scored batches of two splits, and that there are no more
    for one in found:
        assert sorted(one["sizes"]) == sorted(expected)


@pytest.mark.parametrize("name", shares.NORMS)
def test_normalisation_over_all_ranks_is_torchs_of_the_whole_batch(name: str, found: Found) -> None:
    expected, results = shares.normalised(name), [one["norms"][name] for one in found]
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}[shares.NORMS[name][0]]
    for key, value in expected.items():
        shared = [one[key] for one in results]
        actual: torch.Tensor = shared[0]
        if key in ("out", "grad", "fixed"):  # of the images
            actual = torch.cat(shared)
        elif key.endswith(".grad"):
            actual = shared[0] + shared[1]
        else:
            assert torch.equal(*shared), key
        torch.testing.assert_close(actual, value, rtol=tolerance, atol=tolerance, msg=key)


def test_a_lost_process_is_an_error_of_one_line_to_the_other(found: Found) -> None:
    assert found[0]["lost"].startswith("another process of this training is gone") and "\n" not in found[0]["lost"]


def test_they_wait_for_a_lock_together_and_never_long_for_each_other(found: Found) -> None:
    assert all(0.05 < one["waited"] < 30 for one in found)


# Without other processes.


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("last", [False, True])
def test_the_parts_are_the_whole_batches_with_the_same_draws(world: int, last: bool) -> None:
    def batches(ranks: Ranks) -> Batches:
        how = Augmentation(flip=True, crop_padding=1, random_erasing=0.6)
        return Batches(prepared(), torch.arange(44), 8, 0, how, keep_last=last, part=ranks.part)

    whole = [batch for ((batch,),) in batches(ALONE).epoch(1, 2)]
    parts = [[batch for ((batch,),) in batches(Ranks(rank, world)).epoch(1, 2)] for rank in range(world)]
    assert [len(labels) for _, labels in whole] == [8] * 3 + [4] * last
    assert [batches(ALONE).size(step) for step in range(2, 5 + last)] == [8] * 3 + [4] * last
    for (images, labels), *shared in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([x for x, _ in shared]), images)
        assert torch.equal(torch.cat([y for _, y in shared]), labels)
        sizes = [len(y) for _, y in shared]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3), nn.InstanceNorm2d(3), nn.Dropout2d(0.1)], ids=str)
def test_layers_that_look_beyond_an_image_in_another_way_are_refused(layer: nn.Module) -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Dropout(0.1), nn.LayerNorm(3))
    check(network, Ranks(0, 2), 8)
    check(network.append(layer), ALONE, 8)
    text = f"^4: several processes cannot share the batch of a layer {type(layer).__name__}; take one process$"
    with pytest.raises(UserError, match=text):
        check(network, Ranks(0, 2), 8)


def test_more_processes_than_images_are_refused() -> None:
    space, architecture, images = shares.places("plain")
    with pytest.raises(UserError, match="^10 processes cannot share a batch of 9 images; start fewer$"):
        train_network(space, architecture, prepared(images), shares.RECIPES["plain"], 0, ranks=Ranks(0, 10))
