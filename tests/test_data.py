"""Loading of prepared arrays, and batches against multisets of images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sumnas.augmentation import Augmentation
from sumnas.data import Batches, Prepared, check_fits, load
from sumnas.errors import UserError
from sumnas.spaces import nasbench201
from sumnas.spaces.nasbench201 import NASBench201

SPLITS = ("train", "validation", "test")


def numbered(count: int, channels: int = 1, size: int = 4) -> Prepared:
    """A training split whose images and labels are their own numbers; normalising changes nothing."""
    numbers = torch.arange(count)
    images = numbers.to(torch.uint8)[:, None, None, None].expand(count, size, size, channels).contiguous()
    return Prepared({"train": images}, {"train": numbers}, torch.zeros(channels), torch.ones(channels), count)


Numbers = list[list[list[list[int]]]]
"""[step][round][stream][image]"""


def epoch_of(batches: Batches, epoch: int) -> Numbers:
    """One epoch as the numbers of its images; each label is found to belong to its image."""
    steps = []
    for rounds in batches.epoch(epoch):
        for streams in rounds:
            for images, labels in streams:
                assert images.dtype == torch.float32 and labels.dtype == torch.int64
                assert torch.equal(images[:, 0, 0, 0].long(), labels)
        steps.append([[labels.tolist() for _, labels in streams] for streams in rounds])
    return steps


def stream_of(numbers: Numbers, stream: int) -> list[int]:
    return [image for rounds in numbers for streams in rounds for image in streams[stream]]


# Loading.


@pytest.mark.parametrize("name", ["x_train.npy", "y_train.npy", "x_validation.npy", "y_test.npy"])
@pytest.mark.parametrize("damage", ["flip", "cut", "swap"])
def test_a_damaged_array_is_named(tmp_path: Path, digits_folder: Path, name: str, damage: str) -> None:
    folder = Path(shutil.copytree(digits_folder, tmp_path / "data"))
    path, content = folder / name, (folder / name).read_bytes()
    if damage == "flip":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        shutil.copy(folder / f"{name[0]}_{'test' if 'test' not in name else 'train'}.npy", path)
    with pytest.raises(UserError) as error:
        load(folder)
    assert str(path) in str(error.value) and "not what the manifest describes" in str(error.value)
    assert "run prepare_data again" in str(error.value)


@pytest.mark.parametrize("name", ["x_train.npy", "y_validation.npy", "manifest.json"])
def test_a_missing_file_is_named(tmp_path: Path, digits_folder: Path, name: str) -> None:
    folder = Path(shutil.copytree(digits_folder, tmp_path / "data"))
    (folder / name).unlink()
    with pytest.raises(UserError) as error:
        load(folder)
    assert str(error.value).startswith(f"{folder / name}: no such file")


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_a_truncated_manifest_is_named(tmp_path: Path, digits_folder: Path, kept: float) -> None:
    folder = Path(shutil.copytree(digits_folder, tmp_path / "data"))
    path = folder / "manifest.json"
    text = path.read_text()
    path.write_text(text[: int(kept * len(text))])
    with pytest.raises(UserError) as error:
        load(folder)
    assert str(error.value).startswith(f"{path}: damaged JSON")


@pytest.mark.parametrize(
    ("damage", "where"),
    [
        (lambda m: m.pop("classes"), r"classes: Field required"),
        (lambda m: m.pop("sha256"), r"sha256: Field required"),
        (lambda m: m["counts"].pop("test"), r"counts: "),
        (lambda m: m.update(mean="bright"), r"mean: "),
        (lambda m: m.update(kind="tables"), r"kind: "),
        (lambda m: m.update(made_by="hand"), r"made_by: "),
        (lambda m: [m.clear()], r"\w+: Field required"),
    ],
)
def test_a_manifest_that_lacks_something_is_named(tmp_path: Path, digits_folder: Path, damage: Any, where: str) -> None:
    folder = Path(shutil.copytree(digits_folder, tmp_path / "data"))
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"manifest\.json: damaged manifest \({where}.*run prepare_data again$"):
        load(folder)
    path.write_text("[1, 2]")
    with pytest.raises(UserError, match=r"damaged manifest \(the whole: "):
        load(folder)


def test_arrays_are_mapped_and_the_file_is_never_written(tmp_path: Path, digits_folder: Path) -> None:
    folder = Path(shutil.copytree(digits_folder, tmp_path / "data"))
    path, data = folder / "x_train.npy", load(folder)
    before = path.read_bytes()
    images = data.images["train"]
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(path) in line]
    spans = [[int(end, 16) for end in line[0].split("-")] for line in lines]
    assert isinstance(images, Tensor) and any(low <= images.data_ptr() < high for low, high in spans)
    images[:] = 7
    assert path.read_bytes() == before


def test_loaded_is_what_was_prepared(digits: Prepared, digits_folder: Path) -> None:
    for split in SPLITS:
        assert np.array_equal(digits.images[split].numpy(), np.load(digits_folder / f"x_{split}.npy"))
        assert np.array_equal(digits.labels[split].numpy(), np.load(digits_folder / f"y_{split}.npy"))
    assert digits.classes == 10


def test_normalised_training_images_have_mean_zero_and_variance_one(digits: Prepared) -> None:
    before = digits.images["train"].clone()
    images, labels = digits.split("train")
    assert images.dtype == torch.float32 and images.shape == (len(labels), 1, 8, 8)
    assert float(images.double().mean()) == pytest.approx(0, abs=1e-5)
    assert float(images.double().std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert torch.equal(digits.images["train"], before)
    # The other splits are normalised by the training images, not by themselves.
    raw = digits.images["test"].double()
    expected = (raw - before.double().mean()) / before.double().std(correction=0)
    found = digits.split("test")[0].permute(0, 2, 3, 1).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalised_images_are_channels_last_as_they_lie(channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (20, 6, 5, channels), generator=generator, dtype=torch.uint8)
    pixels = raw.double().flatten(0, 2)
    mean, std = pixels.mean(0), pixels.std(0, correction=0)
    labels = torch.zeros(20, dtype=torch.long)
    data = Prepared({"train": raw}, {"train": labels}, mean.float(), std.float(), 2)
    images, _ = data.split("train")
    assert images.shape == (20, channels, 6, 5)
    assert images.is_contiguous(memory_format=torch.channels_last)
    flat = images.permute(0, 2, 3, 1)
    assert flat.is_contiguous()  # the memory is still in the order of the file
    torch.testing.assert_close(flat.flatten(0, 2).double(), (pixels - mean) / std, rtol=0, atol=1e-5)


def fitting(**changes: Any) -> NASBench201:
    values = {"channels": 2, "cells": 1, "image_size": 8, "image_channels": 1, "classes": 10, **changes}
    return nasbench201.build(nasbench201.Settings(name="nasbench201", **values))


def test_data_that_fits_the_space(digits: Prepared, tiny_space: NASBench201) -> None:
    check_fits(digits, tiny_space)


@pytest.mark.parametrize(
    ("key", "value", "there"), [("image_size", 32, 8), ("image_channels", 3, 1), ("classes", 7, 10)]
)
def test_data_that_does_not_fit_the_space(digits: Prepared, key: str, value: int, there: int) -> None:
    with pytest.raises(UserError) as error:
        check_fits(digits, fitting(**{key: value}))
    text = f"space.{key} = {value}: the prepared data has {there}; set space.{key}: {there}"
    assert str(error.value) == text


def test_images_that_are_not_square_fit_no_space(digits: Prepared) -> None:
    oblong = Prepared(
        {"train": torch.zeros(5, 8, 12, 1, dtype=torch.uint8)}, digits.labels, digits.mean, digits.std, 10
    )
    with pytest.raises(UserError, match="images of 8x12 pixels: .* square"):
        check_fits(oblong, fitting())


# Batches.


@pytest.mark.parametrize(
    ("batch_size", "streams", "rounds"), [(10, 1, 1), (7, 3, 1), (6, 2, 3), (100, 1, 1), (1, 2, 1)]
)
def test_every_image_at_most_once_per_epoch_and_stream(batch_size: int, streams: int, rounds: int) -> None:
    data = numbered(100)
    batches = Batches(data, torch.arange(100), batch_size, 0, streams=streams, rounds=rounds)
    numbers = epoch_of(batches, 0)
    assert len(numbers) == batches.steps == 100 // batch_size // rounds
    for step in numbers:
        assert [len(turn) for turn in step] == [streams] * rounds
        assert all(len(batch) == batch_size for turn in step for batch in turn)
    for stream in range(streams):
        seen = stream_of(numbers, stream)
        assert len(seen) == len(set(seen)) == batches.steps * rounds * batch_size
        assert seen != sorted(seen) or batch_size * batches.steps == 1


@pytest.mark.parametrize(("count", "sizes"), [(100, [32, 32, 32, 4]), (96, [32, 32, 32]), (20, [20])])
@pytest.mark.parametrize("augmentation", [None, Augmentation(flip=True, crop_padding=1)], ids=str)
def test_the_images_that_fill_no_whole_batch_can_be_kept(
    count: int, sizes: list[int], augmentation: Augmentation | None
) -> None:
    batches = Batches(numbered(100, channels=3, size=6), torch.arange(count), 32, 0, augmentation, keep_last=True)
    epoch = list(batches.epoch(1))
    assert batches.steps == len(sizes) and [len(labels) for (((_, labels),),) in epoch] == sizes
    seen = torch.cat([labels for (((_, labels),),) in epoch])
    assert sorted(seen.tolist()) == sorted(numbered(100).labels["train"][:count].tolist())
    (((images, _),),) = list(batches.epoch(1, batches.steps - 1))[0]
    assert torch.equal(images, epoch[-1][0][0][0])


def test_streams_and_epochs_have_orders_of_their_own() -> None:
    batches = Batches(numbered(200), torch.arange(200), 10, 0, streams=4)
    orders = [stream_of(epoch_of(batches, epoch), stream) for epoch in range(3) for stream in range(4)]
    assert all(sorted(order) == list(range(200)) for order in orders)
    for i, one in enumerate(orders):
        for other in orders[:i]:
            # Two independent permutations agree in one place on average.
            assert sum(a == b for a, b in zip(one, other, strict=True)) < 10


def test_batches_follow_from_the_seed_alone() -> None:
    def make(seed: int, streams: int = 2) -> Batches:
        return Batches(numbered(60), torch.arange(60), 8, seed, streams=streams)

    first = make(0)
    expected = [epoch_of(first, epoch) for epoch in range(4)]
    torch.manual_seed(99)
    assert epoch_of(make(0), 3) == expected[3]  # without the epochs before it
    assert [epoch_of(first, epoch) for epoch in range(4)] == expected
    assert epoch_of(make(1), 0) != expected[0]
    # Another stream beside them changes nothing in the ones there are.
    more = epoch_of(make(0, streams=3), 0)
    assert [[turn[:2] for turn in step] for step in more] == expected[0]


def test_rounds_take_consecutive_batches() -> None:
    single = Batches(numbered(100), torch.arange(100), 6, 0, streams=2)
    triple = Batches(numbered(100), torch.arange(100), 6, 0, streams=2, rounds=3)
    assert (single.steps, triple.steps) == (16, 5)
    turns = [turn for step in epoch_of(single, 2) for turn in step]
    assert [turn for step in epoch_of(triple, 2) for turn in step] == turns[:15]


def test_only_the_given_images_are_used() -> None:
    indices = torch.arange(3, 90, 3)
    batches = Batches(numbered(100), indices, len(indices), 0)
    assert batches.steps == 1
    assert sorted(stream_of(epoch_of(batches, 0), 0)) == indices.tolist()


@pytest.mark.parametrize(("batch_size", "rounds"), [(101, 1), (51, 2), (26, 4)])
def test_a_batch_larger_than_the_data_is_refused(batch_size: int, rounds: int) -> None:
    with pytest.raises(UserError) as error:
        Batches(numbered(100), torch.arange(100), batch_size, 0, rounds=rounds)
    text = f"batch_size = {batch_size} (x {rounds} rounds): more than the 100 training images; lower it"
    assert str(error.value) == text


BOTH = Augmentation(flip=True, crop_padding=2)


@pytest.mark.parametrize("augmentation", [None, Augmentation(), BOTH], ids=str)
def test_batches_are_channels_last(augmentation: Augmentation | None) -> None:
    batches = Batches(numbered(30, channels=3, size=6), torch.arange(30), 10, 0, augmentation)
    for (((images, _),),) in batches.epoch(0):
        assert images.shape == (10, 3, 6, 6) and images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)


def test_augmentation_of_batches_follows_from_seed_epoch_and_stream(digits: Prepared) -> None:
    index = torch.arange(5, 6)  # one image: only the augmentation can differ

    def images(seed: int, epoch: int) -> list[Tensor]:
        ((streams,),) = Batches(digits, index, 1, seed, BOTH, streams=3).epoch(epoch)
        return [image for image, _ in streams]

    for one, other in zip(images(0, 0), images(0, 0), strict=True):
        assert torch.equal(one, other)
    draws = [image for seed in range(2) for epoch in range(4) for image in images(seed, epoch)]
    assert len({draw.numpy().tobytes() for draw in draws}) > 12  # of 24 draws from 50 possible ones
