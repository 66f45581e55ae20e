"""Data sets, prepared once: plain arrays, or the listing of an image folder, that every later stage reads."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sumnas import files, resizing, seeding
from sumnas.datasets import base, folder, npz, published, splitting
from sumnas.errors import UserError
from sumnas.manifest import NAME, SPLITS, Manifest

RAW = "data/raw"
"""Where published sets are kept, unless `data.path` says otherwise."""
SAMPLE = 1000
"""Images of a folder from which mean and standard deviation are estimated."""
IMAGENET = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
"""The mean and standard deviation that networks for ImageNet are published with, on values 0 to 255."""


Source = Literal["digits", "npz", "imagefolder", "CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "SVHN"]
"""What `data.source` may be; from CIFAR10 on, the published sets, fetched where they are not there."""


class DataSettings(BaseModel):
    """Block `data`: what `prepare_data` writes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Source = Field(
        description="digits: scikit-learn's 1,797 handwritten digits, 8x8, 10 classes; npz: the arrays of `path`; "
        "imagefolder: the pictures under `path`; else a published set, fetched where it is not there"
    )
    path: str | None = Field(
        None, description=f"npz: the file; imagefolder: the folder; published sets: of their files, default {RAW}"
    )
    resize: int | None = Field(
        None,
        ge=1,
        description="pixels of the square images that are made, by averaging over areas; imagefolder: needed, by "
        "torchvision's resize and a crop",
    )
    limit: int | None = Field(
        None, ge=1, description="at most so many training images, equal shares of every class; other splits stay whole"
    )
    validation: float = Field(
        ge=0,
        lt=1,
        description="share of the training images held out for the prediction of accuracies; 0 trains on all, as the "
        "paper does, and leaves the test images for the prediction",
    )
    test: float = Field(0.0, ge=0, lt=1, description="digits: share held out for the true accuracies")
    crop: float = Field(
        0.875,
        gt=0,
        le=1,
        description="imagefolder: share of the shorter side that the centre crop of a test image keeps",
    )
    statistics: Literal["estimated", "imagenet"] = Field(
        "estimated", description="imagefolder: mean and standard deviation from a sample, or ImageNet's usual ones"
    )
    seed: int = Field(ge=0, description="of the draw of the splits")

    @field_validator("source", mode="before")
    @classmethod
    def _known(cls, source: object) -> object:
        """Say how a set comes in that is not among those fetched, such as torchvision's other ones."""
        if source not in (known := get_args(Source)):
            raise ValueError(
                f"must be {', '.join(map(repr, known[:-1]))} or {known[-1]!r}; images of any other set come in as "
                "source npz (arrays in one file) or imagefolder (a folder per class): docs/data.md"
            )
        return source

    @model_validator(mode="after")
    def _fits_source(self) -> DataSettings:
        if self.source == "digits" and not self.test:
            raise ValueError("test: the digits come in one piece, so a share of them must be held out, such as 0.3")
        if self.source == "npz" and (self.path is None or self.test):
            raise ValueError("source npz takes path, the file, and no test: the file has a test set of its own")
        if self.source == "imagefolder":
            if self.path is None or self.resize is None or self.test:
                raise ValueError("source imagefolder takes path, resize, and no test: the folder has a test set")
        elif given := {"crop", "statistics"} & self.model_fields_set:
            raise ValueError(f"{sorted(given)[0]}: is for source imagefolder only")
        elif not self.validation and self.source == "digits":
            raise ValueError("validation: must be above 0: accuracies are predicted on that share")
        if self.source in published.READERS and self.test:
            raise ValueError(f"source {self.source} takes no test: it has a test set of its own")
        return self

    @property
    def location(self) -> Path:
        """`path`, or its default."""
        return Path(self.path or RAW).expanduser()


def prepare(settings: DataSettings, target: Path) -> Manifest:
    """Write a prepared folder: kind `arrays`, or `files` for an image folder, of which only a listing is made.

    What was there before stays whole until everything is written. UserError says what is wrong with the source.
    """
    return _prepare_files(settings, target) if settings.source == "imagefolder" else _prepare_arrays(settings, target)


def _prepare_arrays(settings: DataSettings, target: Path) -> Manifest:
    """Write x_<split>.npy (uint8 [N, H, W, C]), y_<split>.npy (int64 [N]) and the manifest."""
    if settings.source == "digits":
        raw = base.digits()
    elif settings.source == "npz":
        raw = npz.read(settings.location)
    else:
        raw = published.read(settings.source, settings.location)
    parts = _parts(raw.labels, settings)
    splits = {name: (raw.images[index], raw.labels[index]) for name, index in parts.items()}
    if raw.test is not None:
        splits["test"] = raw.test
    # Without a share held out the split is there and empty.
    splits.setdefault("validation", (raw.images[:0], raw.labels[:0]))
    if settings.resize is not None:
        splits = {name: (resizing.shrink(x, settings.resize), y) for name, (x, y) in splits.items()}
    mean, std = _moments(splits["train"][0])
    with _renewing(target) as new:
        for name, arrays in splits.items():
            for letter, array in (("x", arrays[0]), ("y", arrays[1])):
                with files.replacing(new / f"{letter}_{name}.npy") as part, part.open("wb") as file:
                    np.save(_Plain(file.write), array, allow_pickle=False)
        _, size, _, channels = splits["train"][0].shape
        return _describe(
            new, kind="arrays", source=settings.source, classes=raw.classes, image_size=size, image_channels=channels,
            mean=mean, std=std, counts={name: len(splits[name][1]) for name in SPLITS},
        )  # fmt: skip


@dataclass(frozen=True)
class _Plain:
    """A file of which numpy knows `write` alone. Into a real one it writes by itself, and hides the system's error."""

    write: Callable[[bytes], int]


def _prepare_files(settings: DataSettings, target: Path) -> Manifest:
    """Write <split>.csv (path, label, width, height, bytes) and the manifest."""
    from sumnas import streaming  # imported here: it takes torch

    root, size = settings.location, int(settings.resize or 0)
    found, classes = folder.scan(root)
    if not settings.validation:
        if len(found) < 3:
            raise UserError(f"data.validation = 0: {root} must have val/ and test/ beside train/; or hold out a share")
        splits = {"train": found["train"], "validation": found["val"], "test": found["test"]}
    else:
        if len(found) > 2:
            raise UserError(
                f"data.validation = {settings.validation:g}: {root} has val/ and test/; set it to 0 to predict "
                "accuracies on val/, or remove one of the two"
            )
        splits = {name: found["train"] for name in ("train", "validation")}
        splits["test"] = found.get("test", found.get("val", found["train"]))
    for name, index in _parts(found["train"].labels, settings).items():
        splits[name] = splits[name].take(index)
    train = splits["train"]
    if settings.statistics == "imagenet":
        mean, std = IMAGENET
    else:
        draw = np.sort(seeding.numpy_stream(settings.seed, "statistics").permutation(len(train.paths))[:SAMPLE])
        sample = train.take(draw)
        paths = np.array([os.fsencode(path) for path in sample.paths], np.bytes_)
        images = streaming.ImageFiles(root, paths, sample.sizes[:, 2], size, settings.crop)
        mean, std = _moments(np.concatenate([part.numpy() for part in images.in_order(streaming.CHUNK)]))
    with _renewing(target) as new:
        for name, listing in splits.items():
            rows = zip(listing.paths, listing.labels.tolist(), *listing.sizes.T.tolist(), strict=True)
            listed = [dict(zip(streaming.COLUMNS, row, strict=True)) for row in rows]
            # Without checksums of its own: the manifest has the file's.
            files.write_csv(new / f"{name}.csv", streaming.COLUMNS, listed, checked=False)
        return _describe(
            new, kind="files", source=settings.source, classes=classes, image_size=size, image_channels=3, mean=mean,
            std=std, counts={name: len(splits[name].paths) for name in SPLITS}, root=str(root), crop=settings.crop,
        )  # fmt: skip


def _parts(labels: NDArray[np.int64], settings: DataSettings) -> dict[str, NDArray[np.int64]]:
    """Return which images belong to each split that the source does not give; at most `limit` to train on."""
    parts = splitting.stratified(labels, settings.validation, settings.test, settings.seed)
    if settings.limit is not None:
        chosen = splitting.limited(labels[parts["train"]], settings.limit, settings.seed)
        parts["train"] = parts["train"][np.sort(chosen)]
    return parts


def _describe(new: Path, **facts: Any) -> Manifest:
    """Write the manifest of what lies in a folder."""
    manifest = Manifest(**facts, sha256={path.name: files.sha256(path) for path in sorted(new.iterdir())})
    files.write_json(new / NAME, manifest.model_dump(mode="json", exclude_none=True))
    return manifest


@contextlib.contextmanager
def _renewing(target: Path) -> Iterator[Path]:
    """Give an empty folder inside `target`; at the end its files replace those of an earlier set, the manifest last.

    Stopped while it writes, the earlier set is whole; stopped while it renames, there is no manifest, which says so.
    """
    target.mkdir(parents=True, exist_ok=True)
    for remains in target.glob(".new-*"):
        shutil.rmtree(remains, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=target))
    try:
        yield new
        names = {path.name for path in new.iterdir()} - {NAME}
        (target / NAME).unlink(missing_ok=True)
        for name in sorted(names):
            os.replace(new / name, target / name)
        for name in [f"{kind}.{end}" for split in SPLITS for kind, end in _kinds(split)]:
            if name not in names:
                (target / name).unlink(missing_ok=True)
        os.replace(new / NAME, target / NAME)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _kinds(split: str) -> list[tuple[str, str]]:
    return [(f"x_{split}", "npy"), (f"y_{split}", "npy"), (split, "csv")]


def _moments(images: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel, from exact counts of the 256 values: no copy in floats."""
    values = np.arange(256, dtype=np.int64)
    counts = [np.bincount(images[..., c].ravel(), minlength=256) for c in range(images.shape[3])]
    means = [float((values * n).sum() / n.sum()) for n in counts]
    squares = [float((values**2 * n).sum() / n.sum()) for n in counts]
    stds = [max(square - mean**2, 0.0) ** 0.5 for square, mean in zip(squares, means, strict=True)]
    if 0.0 in stds:
        raise UserError(
            f"channel {stds.index(0.0)} has one and the same value in every training image: nothing to learn"
        )
    return means, stds
