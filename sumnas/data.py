"""Prepared data, served from memory in seeded batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sumnas import files, seeding
from sumnas.augmentation import Augmentation, augment
from sumnas.errors import UserError
from sumnas.preparation import SPLITS

if TYPE_CHECKING:
    from sumnas.spaces.base import Space

Batch = tuple[Tensor, Tensor]
"""Images [N, C, H, W] float32 channels_last, and labels [N] int64."""


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
        by class, and statistics of few classes ruin a network. A class with too few images gives all it has, and the
        others make up for it; UserError where there are fewer than `count` in all.
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


def load(folder: Path, device: torch.device | str = "cpu") -> Prepared:
    """Read what preparation.prepare wrote onto `device`; UserError names a file that is absent or another."""
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
    if height != width:
        raise UserError(f"the prepared data has images of {height}x{width} pixels: the networks take square ones")
    for key, value in (("image_size", height), ("image_channels", channels), ("classes", prepared.classes)):
        if getattr(settings, key) != value:
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


def _read_array(folder: Path, name: str, manifest: dict[str, Any]) -> NDArray[Any]:
    path = folder / name
    remedy = "delete the folder and run prepare_data again"
    if not path.exists():
        raise UserError(f"{path}: no such file; {remedy}")
    if files.sha256(path) != manifest["sha256"].get(name):
        raise UserError(f"{path}: not what the manifest describes (damaged or replaced); {remedy}")
    array: NDArray[Any] = np.load(path, allow_pickle=False)
    return array
