"""Data sets: prepared once as plain arrays, then served from memory in seeded batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from sumnas import files, seeding
from sumnas.augmentation import Augmentation, augment
from sumnas.errors import UserError

if TYPE_CHECKING:
    from sumnas.spaces.base import Space

SPLITS = ("train", "validation", "test")
Batch = tuple[Tensor, Tensor]
"""Images [N, C, H, W] float32 channels_last, and labels [N] int64."""


class DataSettings(BaseModel):
    """Block `data`: what `prepare_data` writes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["digits"] = Field(description="digits: scikit-learn's 1,797 handwritten digits, 8x8, 10 classes")
    validation: float = Field(gt=0, lt=1, description="share held out for the prediction of accuracies")
    test: float = Field(gt=0, lt=1, description="share held out for the true accuracies")
    seed: int = Field(ge=0)


@dataclass(frozen=True)
class Prepared:
    """Three splits in memory as [N, H, W, C] uint8 and [N] int64, and how to normalise them."""

    images: dict[str, Tensor]
    labels: dict[str, Tensor]
    mean: Tensor
    std: Tensor
    classes: int

    def normalise(self, images: Tensor) -> Tensor:
        """[N, H, W, C] uint8 -> [N, C, H, W] float32, channels_last, mean 0 and variance 1 over the training set."""
        # A permuted NHWC array already has the strides of channels_last: no copy is made for it.
        return images.to(torch.float32).sub_(self.mean).div_(self.std).permute(0, 3, 1, 2)

    def split(self, name: str) -> Batch:
        """Return a whole split, normalised."""
        return self.normalise(self.images[name]), self.labels[name]

    def balanced_draw(self, count: int, seed: int) -> Tensor:
        """Return [count] indices of training images: a random draw with equally many of every class.

        Equal up to one where `count` is no multiple of the classes; sec. 4 and method sec. 3: data sets come sorted
        by class, and statistics of few classes ruin a network. UserError where a class has too few images.
        """
        rng = seeding.numpy_stream(seed, "calibration")
        labels = self.labels["train"].cpu().numpy()
        order = rng.permutation(len(labels))
        # Rank each image within its class in the shuffled order; the first `count` by rank are balanced.
        rank = np.empty(len(labels), dtype=np.int64)
        for label in np.unique(labels):
            members = order[labels[order] == label]
            rank[members] = np.arange(len(members))
        chosen = order[np.argsort(rank[order], kind="stable")][:count]
        if len(chosen) < count:
            raise UserError(f"calibration.images = {count}: the training split has only {len(labels)} images")
        return torch.from_numpy(rng.permutation(chosen))


def prepare(settings: DataSettings, folder: Path) -> dict[str, Any]:
    """Write x_<split>.npy (uint8 [N, H, W, C]), y_<split>.npy (int64 [N]) and manifest.json; return the latter."""
    images, labels, names = _digits()
    splits = _stratified(labels, settings)
    folder.mkdir(parents=True, exist_ok=True)
    train = images[splits["train"]].astype(np.float64)
    manifest: dict[str, Any] = {
        "source": settings.source,
        "classes": names,
        "image_size": int(images.shape[1]),
        "image_channels": int(images.shape[3]),
        "mean": train.mean((0, 1, 2)).tolist(),
        "std": train.std((0, 1, 2)).tolist(),
        "counts": {name: len(index) for name, index in splits.items()},
        "sha256": {},
    }
    for name, index in splits.items():
        for letter, array in (("x", images), ("y", labels)):
            path = folder / f"{letter}_{name}.npy"
            with files.replacing(path) as part, part.open("wb") as file:
                np.save(file, array[index], allow_pickle=False)
            manifest["sha256"][path.name] = files.sha256(path)
    files.write_json(folder / "manifest.json", manifest)
    return manifest


def load(folder: Path, device: torch.device | str = "cpu") -> Prepared:
    """Read what `prepare` wrote onto `device`; UserError names a file that is absent or not what was written."""
    manifest = files.read_json(folder / "manifest.json")
    images, labels = {}, {}
    for name in SPLITS:
        images[name] = torch.from_numpy(_read_array(folder, f"x_{name}.npy", manifest)).to(device)
        labels[name] = torch.from_numpy(_read_array(folder, f"y_{name}.npy", manifest)).to(device)
    mean, std = (torch.tensor(manifest[key], dtype=torch.float32, device=device) for key in ("mean", "std"))
    return Prepared(images, labels, mean, std, len(manifest["classes"]))


def check_fits(prepared: Prepared, space: Space) -> None:
    """UserError where the space's networks take other images or give other classes than the data has."""
    settings = space.settings  # type: ignore[attr-defined]
    _, height, width, channels = prepared.images["train"].shape
    for key, value in (("image_size", height), ("image_channels", channels), ("classes", prepared.classes)):
        if getattr(settings, key) != value or height != width:
            raise UserError(
                f"space.{key} = {getattr(settings, key)}: the prepared data has {value}; set space.{key}: {value}"
            )


class Batches:
    """Training batches for supernet steps: `streams` independent permutations of the images per epoch.

    One step takes `rounds` consecutive batches of every stream. The permutations follow from (seed, epoch, stream)
    alone, so any epoch can be started without the ones before it.
    """

    def __init__(
        self, data: Prepared, indices: Tensor, batch_size: int, seed: int, augmentation: Augmentation | None = None,
        *, streams: int = 1, rounds: int = 1,
    ) -> None:  # fmt: skip
        self.data, self.indices, self.batch_size, self.seed = data, indices, batch_size, seed
        self.augmentation, self.streams, self.rounds = augmentation, streams, rounds
        self.steps = len(indices) // batch_size // rounds
        if self.steps == 0:
            raise UserError(
                f"batch_size = {batch_size} (x {rounds} rounds): more than the {len(indices)} training images; lower it"
            )

    def epoch(self, epoch: int) -> Iterator[list[list[Batch]]]:
        """Yield for each step a list of rounds, each a list of one batch per stream."""
        device = self.data.labels["train"].device
        orders, noise = [], []
        for stream in range(self.streams):
            generator = seeding.torch_stream(self.seed, "order", epoch, stream)
            orders.append(self.indices[torch.randperm(len(self.indices), generator=generator)].to(device))
            noise.append(seeding.torch_stream(self.seed, "augmentation", epoch, stream, device=device))
        for step in range(self.steps):
            rounds = []
            for turn in range(self.rounds):
                start = (step * self.rounds + turn) * self.batch_size
                rounds.append(
                    [self._batch(o[start : start + self.batch_size], n) for o, n in zip(orders, noise, strict=True)]
                )
            yield rounds

    def _batch(self, index: Tensor, generator: torch.Generator) -> Batch:
        images = self.data.images["train"][index]
        if self.augmentation is not None:
            images = augment(images, self.augmentation, generator)
        return self.data.normalise(images), self.data.labels["train"][index]


def _digits() -> tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]:
    from sklearn.datasets import load_digits  # imported here: it takes seconds

    digits = load_digits()
    return digits.images[..., None].astype(np.uint8), digits.target.astype(np.int64), [str(n) for n in range(10)]


def _stratified(labels: NDArray[np.int64], settings: DataSettings) -> dict[str, NDArray[np.int64]]:
    """Split indices by the settings' shares, with equal shares of every class."""
    from sklearn.model_selection import train_test_split

    if settings.validation + settings.test >= 1:
        raise UserError(
            f"data.validation + data.test = {settings.validation + settings.test:g}: must leave images for training"
        )
    seed = seeding.derive(settings.seed, "splits") % 2**32
    everything = np.arange(len(labels))
    rest, test = train_test_split(everything, test_size=settings.test, stratify=labels, random_state=seed)
    share = settings.validation / (1 - settings.test)
    train, validation = train_test_split(rest, test_size=share, stratify=labels[rest], random_state=seed)
    return {"train": np.sort(train), "validation": np.sort(validation), "test": np.sort(test)}


def _read_array(folder: Path, name: str, manifest: dict[str, Any]) -> NDArray[Any]:
    path = folder / name
    remedy = "delete the folder and run prepare_data again"
    if not path.exists():
        raise UserError(f"{path}: no such file; {remedy}")
    if files.sha256(path) != manifest["sha256"].get(name):
        raise UserError(f"{path}: not what the manifest describes (damaged or replaced); {remedy}")
    array: NDArray[Any] = np.load(path, allow_pickle=False)
    return array
