"""Preparation against multisets of images and areas averaged by hand; what is wrong with a source is named."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from sklearn.datasets import load_digits

from sumnas import files, preparation
from sumnas.data import load
from sumnas.datasets.splitting import limited
from sumnas.errors import UserError
from sumnas.preparation import DataSettings, prepare
from sumnas.resizing import shrink

SPLITS = ("train", "validation", "test")
SETTINGS = DataSettings(source="digits", validation=0.2, test=0.3, seed=0)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_splits_are_disjoint_and_complete(digits_folder: Path) -> None:
    source = load_digits()
    expected = Counter(
        (image.astype(np.uint8).tobytes(), int(label))
        for image, label in zip(source.images, source.target, strict=True)
    )
    found: Counter[tuple[bytes, int]] = Counter()
    for split in SPLITS:
        images, labels = (np.load(digits_folder / f"{letter}_{split}.npy") for letter in "xy")
        assert images.dtype == np.uint8 and images.shape[1:] == (8, 8, 1)
        assert labels.dtype == np.int64 and len(labels) == len(images)
        found.update((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))
    assert found == expected and sum(found.values()) == 1797


@pytest.mark.parametrize(("validation", "test"), [(0.2, 0.3), (0.5, 0.1)])
def test_every_split_has_its_share_of_every_class(tmp_path: Path, validation: float, test: float) -> None:
    manifest = prepare(DataSettings(source="digits", validation=validation, test=test, seed=1), tmp_path)
    data = load(tmp_path)
    whole = np.bincount(load_digits().target)
    shares = {"train": 1 - validation - test, "validation": validation, "test": test}
    for split, share in shares.items():
        counts = torch.bincount(data.labels[split], minlength=10).numpy()
        assert np.abs(counts - share * whole).max() < 2, split
        assert manifest.counts[split] == counts.sum() == len(data.images[split])
        assert abs(counts.sum() - share * 1797) < 2


def test_the_manifest_describes_the_data(digits_folder: Path) -> None:
    manifest = json.loads((digits_folder / "manifest.json").read_text())
    train = np.load(digits_folder / "x_train.npy").astype(np.float64)
    assert manifest["mean"] == pytest.approx([train.mean()])
    assert manifest["std"] == pytest.approx([train.std()])
    assert (manifest["image_size"], manifest["image_channels"]) == (8, 1)
    assert manifest["classes"] == [str(label) for label in range(10)] and manifest["source"] == "digits"
    assert sorted([*manifest["sha256"], "manifest.json"]) == sorted(contents(digits_folder))


def test_preparing_twice_gives_the_same_bytes(tmp_path: Path, digits_folder: Path) -> None:
    np.random.seed(123)  # the global stream has no part in it
    prepare(SETTINGS, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(digits_folder)
    prepare(SETTINGS, tmp_path / "again")  # over what is there
    assert contents(tmp_path / "again") == contents(digits_folder)
    prepare(SETTINGS.model_copy(update={"seed": 1}), tmp_path / "other")
    other = contents(tmp_path / "other")
    assert all(other[f"x_{split}.npy"] != contents(digits_folder)[f"x_{split}.npy"] for split in SPLITS)


def test_shares_must_leave_images_for_training(tmp_path: Path) -> None:
    settings = DataSettings(source="digits", validation=0.5, test=0.5, seed=0)
    with pytest.raises(UserError, match=r"data\.validation \+ data\.test = 1: must leave images"):
        prepare(settings, tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_share_that_leaves_a_class_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.validation = 0\.001: 1797 images of 10 classes cannot be split so"):
        prepare(DataSettings(source="digits", validation=0.001, test=0.3, seed=0), tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"source": "digits", "validation": 0.2}, "a share of them must be held out"),
        ({"source": "digits", "validation": 0.0, "test": 0.3}, "validation: must be above 0"),
        ({"source": "npz", "validation": 0.2}, "takes path"),
        ({"source": "npz", "path": "x.npz", "validation": 0.2, "test": 0.1}, "no test"),
        ({"source": "CIFAR10", "validation": 0.2, "test": 0.1}, "CIFAR10 takes no test"),
        ({"source": "imagefolder", "path": "x", "validation": 0.2}, "takes path, resize"),
        ({"source": "SVHN", "validation": 0.2, "crop": 0.9}, "crop: is for source imagefolder only"),
        ({"source": "cifar10", "validation": 0.2}, "'CIFAR10'"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_the_source(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataSettings.model_validate({"seed": 0, **values})


# Writing.


def test_an_earlier_set_stays_whole_until_the_new_one_is(
    tmp_path: Path, digits_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(SETTINGS, tmp_path)
    (tmp_path / "train.csv").write_text("of an image folder that was here before")
    before = contents(tmp_path)
    writes = []

    def failing(path: Path, value: Any) -> None:
        writes.append(sorted(p.name for p in path.parent.iterdir()))
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", failing)  # the last thing that is written
        with pytest.raises(OSError, match="No space left"):
            prepare(SETTINGS.model_copy(update={"seed": 1}), tmp_path)
    assert len(writes[0]) == 6 and contents(tmp_path) == before
    prepare(SETTINGS, tmp_path)
    assert contents(tmp_path) == contents(digits_folder)  # what was not of this set is gone


def test_a_kill_between_two_files_leaves_no_mixture(tmp_path: Path, digits_folder: Path) -> None:
    """Killed while it renames: a later stage is told, and the next run mends it."""
    prepare(SETTINGS.model_copy(update={"seed": 1}), tmp_path)
    code = f"""
import os, pathlib
from sumnas import preparation
replace = os.replace
def kill(old, new):
    replace(old, new)
    if os.path.basename(new) == "x_test.npy" and ".new-" not in str(new):
        os._exit(9)
os.replace = kill
settings = preparation.DataSettings(source="digits", validation=0.2, test=0.3, seed=0)
preparation.prepare(settings, pathlib.Path({str(tmp_path)!r}))
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 9
    with pytest.raises(UserError, match=r"manifest\.json: no such file; run the stage"):
        load(tmp_path)
    prepare(SETTINGS, tmp_path)
    assert contents(tmp_path) == contents(digits_folder)


# Fewer images.


def test_a_limit_takes_equal_shares_of_every_class_and_leaves_the_other_splits(
    digits_folder: Path, tmp_path: Path
) -> None:
    manifest = prepare(SETTINGS.model_copy(update={"limit": 205}), tmp_path)
    assert manifest.counts["train"] == 205
    whole, part = load(digits_folder), load(tmp_path)
    for split in ("validation", "test"):
        assert contents(tmp_path)[f"x_{split}.npy"] == contents(digits_folder)[f"x_{split}.npy"]
    shares = torch.bincount(whole.labels["train"]) * 205 / len(whole.labels["train"])
    assert (torch.bincount(part.labels["train"]) - shares).abs().max() < 1
    images = {image.numpy().tobytes() for image in whole.images["train"]}
    chosen = {image.numpy().tobytes() for image in part.images["train"]}
    assert chosen < images and len(chosen) == 205


def test_limits_are_drawn_one_within_the_other() -> None:
    labels = np.repeat(np.arange(4), [50, 30, 15, 5])
    draws = {limit: limited(labels, limit, 0) for limit in range(4, 101)}
    for limit, draw in draws.items():
        assert len(set(draw.tolist())) == limit
        counts = np.bincount(labels[draw], minlength=4)
        assert np.abs(counts - np.array([50, 30, 15, 5]) * limit / 100).max() < 2 and counts.min() >= 1
        assert set(draw.tolist()) <= set(draws[min(limit + 7, 100)].tolist())
    assert set(limited(labels, 50, 0).tolist()) != set(limited(labels, 50, 1).tolist())
    assert len(limited(labels, 1000, 0)) == 100
    with pytest.raises(UserError, match=r"data\.limit = 3: must be at least 4"):
        limited(labels, 3, 0)


# Smaller images.


def pixels(size: int, count: int = 3, channels: int = 2) -> NDArray[np.uint8]:
    return np.random.default_rng(size).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


@pytest.mark.parametrize(("old", "new"), [(8, 4), (32, 16), (12, 3), (5, 1)])
def test_whole_blocks_are_averaged(old: int, new: int) -> None:
    images, factor = pixels(old, count=700), old // new  # more than are averaged at a time
    blocks = images.reshape(700, new, factor, new, factor, 2).astype(np.int64).sum((2, 4))
    found = shrink(images, new)
    assert found.dtype == np.uint8 and np.array_equal(found, np.rint(blocks / factor**2))


@pytest.mark.parametrize(("old", "new"), [(5, 3), (7, 4), (8, 5), (6, 4)])
def test_parts_of_pixels_count_by_their_area(old: int, new: int) -> None:
    images = pixels(old)
    found, side = shrink(images, new), Fraction(old, new)
    for n, i, j, c in np.ndindex(*found.shape):
        total = Fraction(0)
        for h, w in np.ndindex(old, old):
            height = min(Fraction(h + 1), (i + 1) * side) - max(Fraction(h), i * side)
            width = min(Fraction(w + 1), (j + 1) * side) - max(Fraction(w), j * side)
            total += max(height, Fraction(0)) * max(width, Fraction(0)) * int(images[n, h, w, c])
        assert found[n, i, j, c] == round(total / side**2)  # exact, half to even


def test_only_square_images_are_shrunk_and_none_enlarged() -> None:
    assert shrink(pixels(6), 6) is not None and np.array_equal(shrink(pixels(6), 6), pixels(6))
    with pytest.raises(UserError, match=r"data\.resize = 9: the images have only 6x6 pixels"):
        shrink(pixels(6), 9)
    with pytest.raises(UserError, match=r"data\.resize = 4: the images have 6x5 pixels, and only square"):
        shrink(pixels(6)[:, :, :5], 4)


def test_resized_data_is_described_as_such(tmp_path: Path) -> None:
    manifest = prepare(SETTINGS.model_copy(update={"resize": 4}), tmp_path)
    train = np.load(tmp_path / "x_train.npy")
    assert train.shape[1:] == (4, 4, 1) and manifest.image_size == 4
    assert manifest.mean == pytest.approx([train.mean()]) and manifest.std == pytest.approx([train.std()])


def test_cifar_at_half_the_size_is_what_the_public_script_makes(shared_data: Path, tmp_path: Path) -> None:
    """Its own averaging, written by others: source npz at 32x32 with resize 16 gives the same bytes."""
    if not (shared_data / "unpack_cifar10.py").exists():
        pytest.skip("needs CIFAR-10 in the public data")
    for size in ("32", "16"):
        command = [sys.executable, shared_data / "unpack_cifar10.py", tmp_path / f"{size}.npz", "--size", size]
        subprocess.run([*command, "--train", "400", "--test", "100"], check=True, capture_output=True)
    for size, extra in (("32", {"resize": 16}), ("16", {})):
        settings = {"source": "npz", "path": str(tmp_path / f"{size}.npz"), "validation": 0.2, "seed": 0, **extra}
        prepare(DataSettings.model_validate(settings), tmp_path / size)
    assert contents(tmp_path / "32") == contents(tmp_path / "16") and preparation.RAW == "data/raw"
