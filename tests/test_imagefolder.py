"""Folders of images: what is listed, and what is refused at preparation, naming the image."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sumnas import manifest as manifests
from sumnas.data import load
from sumnas.datasets import folder
from sumnas.errors import UserError
from sumnas.preparation import DataSettings, prepare
from tests.published_fakes import tree

CLASSES = ("ant", "bee", "cat")


def settings(root: Path, **changes: Any) -> DataSettings:
    values = {"source": "imagefolder", "path": str(root), "resize": 8, "validation": 0.25, "seed": 0, **changes}
    return DataSettings.model_validate(values)


@pytest.fixture
def root(image_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(image_folder, tmp_path / "images"))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_only_a_listing_is_written_and_it_is_true(image_folder: Path, tmp_path: Path) -> None:
    before = tree(image_folder)
    manifest = prepare(settings(image_folder), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "test.csv", "train.csv", "validation.csv"]
    assert tree(image_folder) == before
    assert manifest == manifests.read(tmp_path)
    assert (manifest.kind, manifest.root, manifest.crop) == ("files", str(image_folder), 0.875)
    assert manifest.classes == list(CLASSES) and (manifest.image_size, manifest.image_channels) == (8, 3)
    listed = {split: rows(tmp_path / f"{split}.csv") for split in manifests.SPLITS}
    assert {split: len(found) for split, found in listed.items()} == manifest.counts
    every = [row["path"] for found in listed.values() for row in found]
    there = {path for path in before if path.lower().endswith((".png", ".jpg", ".jpeg"))}
    assert set(every) == there and len(every) == len(there)
    for split, found in listed.items():
        assert [row["path"] for row in found] == sorted(row["path"] for row in found)
        for row in found:
            part, name, _ = row["path"].split("/")
            assert part == ("test" if split == "test" else "train") and CLASSES[int(row["label"])] == name
            with Image.open(image_folder / row["path"]) as image:
                assert image.size == (int(row["width"]), int(row["height"]))
            assert len(before[row["path"]]) == int(row["bytes"])
    held = [row["label"] for row in listed["validation"]]
    assert sorted(held) == sorted([row["label"] for row in listed["train"] + listed["validation"]][::4])


def test_the_same_folder_gives_the_same_bytes(image_folder: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        prepare(settings(image_folder, seed=seed), tmp_path / name)
    one, same, other = (tree(tmp_path / name) for name in "abc")
    assert one == same and one["train.csv"] != other["train.csv"] and one["test.csv"] == other["test.csv"]


def test_a_limit_is_of_the_training_images(image_folder: Path, tmp_path: Path) -> None:
    whole = prepare(settings(image_folder), tmp_path / "whole")
    part = prepare(settings(image_folder, limit=9), tmp_path / "part")
    assert part.counts == {**whole.counts, "train": 9}
    assert [row["label"] for row in rows(tmp_path / "part/train.csv")] == ["0"] * 3 + ["1"] * 3 + ["2"] * 3


def test_moments_are_those_of_the_images_as_they_are_seen(image_folder: Path, tmp_path: Path) -> None:
    found = prepare(settings(image_folder), tmp_path / "estimated")
    images = load(tmp_path / "estimated").images["train"]
    pixels = images[np.arange(len(images))] if isinstance(images, np.ndarray) else np.concatenate(
        [part.numpy() for part in images.in_order(7)]  # type: ignore[union-attr]
    )  # fmt: skip
    assert found.mean == pytest.approx(pixels.mean((0, 1, 2))) and found.std == pytest.approx(pixels.std((0, 1, 2)))
    usual = prepare(settings(image_folder, statistics="imagenet"), tmp_path / "usual")
    assert usual.mean == pytest.approx([255 * m for m in (0.485, 0.456, 0.406)])
    assert usual.std == pytest.approx([255 * s for s in (0.229, 0.224, 0.225)])


def test_val_is_the_test_set_where_there_is_no_other(root: Path, tmp_path: Path) -> None:
    (root / "test").rename(root / "val")
    manifest = prepare(settings(root), tmp_path / "prepared")
    assert {row["path"].split("/")[0] for row in rows(tmp_path / "prepared/test.csv")} == {"val"}
    with pytest.raises(UserError, match=r"data\.validation = 0: .* must have val/ and test/"):
        prepare(settings(root, validation=0.0), tmp_path / "none")
    shutil.copytree(root / "val", root / "test")
    with pytest.raises(UserError, match=r"data\.validation = 0\.25: .* has val/ and test/; set it to 0"):
        prepare(settings(root), tmp_path / "none")
    given = prepare(settings(root, validation=0.0), tmp_path / "given")
    assert given.counts["validation"] == given.counts["test"] == manifest.counts["test"]
    assert given.counts["train"] == manifest.counts["train"] + manifest.counts["validation"]
    assert {row["path"].split("/")[0] for row in rows(tmp_path / "given/validation.csv")} == {"val"}


def test_other_files_are_left_alone(root: Path, tmp_path: Path) -> None:
    before = prepare(settings(root), tmp_path / "before")
    (root / "train/ant/notes.txt").write_text("not an image")
    (root / "train/ant/.hidden.png").write_text("not an image either")
    (root / "train/.cache").mkdir()
    assert prepare(settings(root), tmp_path / "after") == before


def broken(root: Path, how: str) -> Path:
    """Put one bad image among the good ones."""
    path = root / "train/bee/bad.png"
    good = next((root / "train/bee").glob("*.png")).read_bytes()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("<html>not found</html>")
    elif how == "header":
        path.write_bytes(good[:20])
    elif how == "gif":
        Image.new("RGB", (8, 8)).save(path, "GIF")
    elif how == "deep":
        Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(path)
    else:
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("empty", "an empty file"),
        ("text", "no readable JPEG or PNG image"),
        ("header", "no readable JPEG or PNG image"),
        ("gif", "no readable JPEG or PNG image"),
        ("deep", "pixels of kind I;16: must have 8 bits a channel"),
        ("folder", r"no readable JPEG or PNG image \(.*Is a directory"),
    ],
)
def test_a_bad_image_is_named(root: Path, tmp_path: Path, how: str, reason: str) -> None:
    path = broken(root, how)
    with pytest.raises(UserError, match=f"^{path}: {reason}.*; replace or remove it, and run this again$"):
        prepare(settings(root), tmp_path / "prepared")
    assert not (tmp_path / "prepared").exists()


def test_many_bad_images_are_counted(root: Path, tmp_path: Path) -> None:
    for number in range(folder.SHOWN + 7):
        (root / f"train/ant/z{number:03}.jpg").touch()
    with pytest.raises(UserError) as error:
        prepare(settings(root), tmp_path / "prepared")
    lines = str(error.value).splitlines()
    assert len(lines) == folder.SHOWN + 1 and lines[0].startswith(f"{root}/train/ant/z000.jpg: an empty file")
    assert lines[-1] == f"{root}/train: 7 more images like these"


def test_a_folder_that_lacks_something_is_named(root: Path, tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            prepare(settings(root), tmp_path / "prepared")
        assert not (tmp_path / "prepared").exists()

    (root / "test/dog").mkdir()
    refused(f"{root}/test/dog: no such class in train")
    (root / "test/dog").rmdir()
    (root / "train/dog").mkdir()
    refused(f"{root}/train/dog: no image in it .*; add some, or remove the class")
    (root / "train/dog").rmdir()
    (root / "test").rename(root / "tset")
    refused(f"{root}: has train only; .* must have train/<class>/ and test/<class>/")
    (root / "tset").rename(root / "test")
    (root / "train").rename(root / "training")
    refused(f"{root}: has test only")
    (root / "train").mkdir()
    refused(f"{root}/train: has 0 folders of classes: must be two or more")
    shutil.rmtree(root)
    refused(f"{root}: no such folder")


def test_a_class_too_small_to_be_split_is_refused(root: Path, tmp_path: Path) -> None:
    for path in list((root / "train/ant").iterdir())[1:]:
        path.unlink()
    with pytest.raises(UserError, match=r"data\.validation = 0\.25: .* cannot be split so \(The least populated class"):
        prepare(settings(root), tmp_path / "prepared")
