"""Data sets, prepared once as plain arrays that every later stage reads."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from sumnas import files, seeding
from sumnas.errors import UserError

SPLITS = ("train", "validation", "test")


class DataSettings(BaseModel):
    """Block `data`: what `prepare_data` writes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["digits", "npz"] = Field(
        description="digits: scikit-learn's 1,797 handwritten digits, 8x8, 10 classes; npz: the arrays of `path`"
    )
    path: str | None = Field(
        None,
        description="npz: x_train, x_test uint8 [N, H, W, C] or [N, H, W], y_train, y_test [N]; "
        "optionally classes, the names",
    )
    validation: float = Field(gt=0, lt=1, description="share held out for the prediction of accuracies")
    test: float = Field(0.0, ge=0, lt=1, description="digits: share held out for the true accuracies")
    seed: int = Field(ge=0)

    @model_validator(mode="after")
    def _fits_source(self) -> DataSettings:
        if self.source == "digits" and not self.test:
            raise ValueError("test: the digits come in one piece, so a share of them must be held out, such as 0.3")
        if self.source == "npz" and (self.path is None or self.test):
            raise ValueError("source npz takes path, the file, and no test: the file has a test set of its own")
        return self


class Raw(NamedTuple):
    """A data set as it comes: uint8 [N, H, W, C] and int64 [N]. `test` is None where it comes in one piece."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    test: tuple[NDArray[np.uint8], NDArray[np.int64]] | None
    classes: list[str]


def prepare(settings: DataSettings, folder: Path) -> dict[str, Any]:
    """Write x_<split>.npy (uint8 [N, H, W, C]), y_<split>.npy (int64 [N]) and manifest.json; return the latter."""
    raw = _digits() if settings.source == "digits" else _npz(Path(str(settings.path)))
    parts = _stratified(raw.labels, settings)
    splits = {name: (raw.images[index], raw.labels[index]) for name, index in parts.items()}
    if raw.test is not None:
        splits["test"] = raw.test
    folder.mkdir(parents=True, exist_ok=True)
    mean, std = _moments(splits["train"][0])
    manifest: dict[str, Any] = {
        "source": settings.source,
        "classes": raw.classes,
        "image_size": int(raw.images.shape[1]),
        "image_channels": int(raw.images.shape[3]),
        "mean": mean,
        "std": std,
        "counts": {name: len(labels) for name, (_, labels) in splits.items()},
        "sha256": {},
    }
    for name, arrays in splits.items():
        for letter, array in (("x", arrays[0]), ("y", arrays[1])):
            path = folder / f"{letter}_{name}.npy"
            with files.replacing(path) as part, part.open("wb") as file:
                np.save(file, array, allow_pickle=False)
            manifest["sha256"][path.name] = files.sha256(path)
    files.write_json(folder / "manifest.json", manifest)
    return manifest


def _moments(images: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel, from exact counts of the 256 values: no copy in floats."""
    values = np.arange(256, dtype=np.int64)
    counts = [np.bincount(images[..., c].ravel(), minlength=256) for c in range(images.shape[3])]
    means = [float((values * n).sum() / n.sum()) for n in counts]
    squares = [float((values**2 * n).sum() / n.sum()) for n in counts]
    return means, [(square - mean**2) ** 0.5 for square, mean in zip(squares, means, strict=True)]


def _digits() -> Raw:
    from sklearn.datasets import load_digits  # imported here: it takes seconds

    digits = load_digits()
    images = digits.images[..., None].astype(np.uint8)
    return Raw(images, digits.target.astype(np.int64), None, [str(n) for n in range(10)])


def _npz(path: Path) -> Raw:
    """Read the arrays of one file; UserError names the file and what is wrong with which array."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file (data.path); put it there, or change data.source") from None
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: no whole .npz file of plain arrays ({error}); make or copy it again") from None
    for name in ("x_train", "y_train", "x_test", "y_test"):
        if name not in arrays:
            raise UserError(f"{path}: no array {name!r}; the file has {', '.join(sorted(arrays)) or 'nothing'}")
    x, y = {}, {}
    for split in ("train", "test"):
        images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
        if images.ndim == 3:
            images = images[..., None]
        if images.ndim != 4 or images.dtype != np.uint8 or not images.size:
            raise UserError(f"{path}: x_{split} is {images.dtype} {images.shape}: must be uint8 [N, H, W, C]")
        if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise UserError(f"{path}: y_{split} is {labels.dtype} {labels.shape}: must be {len(images)} whole numbers")
        x[split], y[split] = images, labels.astype(np.int64)
    if x["train"].shape[1:] != x["test"].shape[1:]:
        raise UserError(f"{path}: images of x_train are {x['train'].shape[1:]}, of x_test {x['test'].shape[1:]}")
    count = int(y["train"].max()) + 1
    names = [str(n) for n in arrays.get("classes", np.arange(count)).tolist()]
    for split, labels in y.items():
        if labels.min() < 0 or labels.max() >= len(names):
            raise UserError(
                f"{path}: y_{split} goes from {labels.min()} to {labels.max()}: must be 0 to {len(names) - 1}"
            )
    if absent := sorted(set(range(len(names))) - set(y["train"].tolist())):
        raise UserError(f"{path}: class {absent[0]} ({names[absent[0]]}) has no image in x_train")
    return Raw(x["train"], y["train"], (x["test"], y["test"]), names)


def _stratified(labels: NDArray[np.int64], settings: DataSettings) -> dict[str, NDArray[np.int64]]:
    """Split indices by the settings' shares, with equal shares of every class; no `test` where its share is 0."""
    from sklearn.model_selection import train_test_split

    if settings.validation + settings.test >= 1:
        raise UserError(
            f"data.validation + data.test = {settings.validation + settings.test:g}: must leave images for training"
        )
    seed = seeding.derive(settings.seed, "splits") % 2**32
    rest, found = np.arange(len(labels)), {}
    if settings.test:
        rest, test = train_test_split(rest, test_size=settings.test, stratify=labels, random_state=seed)
        found["test"] = np.sort(test)
    share = settings.validation / (1 - settings.test)
    train, validation = train_test_split(rest, test_size=share, stratify=labels[rest], random_state=seed)
    return {"train": np.sort(train), "validation": np.sort(validation), **found}
