"""Prepared data, served in seeded batches: from memory, or streamed from the files of an image folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sumnas import manifest as manifests
from sumnas import seeding
from sumnas.augmentation import Augmentation, augment, erase
from sumnas.errors import UserError
from sumnas.streaming import KEEP_BYTES, ImageFiles, Key, read_listing

if TYPE_CHECKING:
    from sumnas.spaces.base import Space

Batch = tuple[Tensor, Tensor]
"""Images [N, C, H, W] float32 channels_last, and labels [N] int64."""


@dataclass(frozen=True)
class Prepared:
    """Three splits as [N, H, W, C] uint8 and [N] int64, and how to normalise them.

    The images of a split lie in memory, or in files that are read when they are indexed; labels always in memory.
    """

    images: dict[str, Tensor | ImageFiles]
    labels: dict[str, Tensor]
    mean: Tensor
    """[C] float32, subtracted from the bytes 0 to 255; on the device that normalised images are to be on."""
    std: Tensor
    """[C] float32, by which the difference is divided; there too."""
    classes: int
    """Number of classes; labels are below it."""

    def normalise(self, images: Tensor) -> Tensor:
        """[N, H, W, C] uint8 -> [N, C, H, W] float32, channels_last, less the mean, over the deviation."""
        # A permuted NHWC array already has the strides of channels_last: no copy is made for it.
        images = images.to(self.mean.device, non_blocking=True)  # as bytes, where it is another device
        return images.to(torch.float32).sub_(self.mean).div_(self.std).permute(0, 3, 1, 2)

    def split(self, name: str) -> Split:
        """Return a split, normalised: whole where it lies in memory, else to be read batch by batch.

        UserError where it has no images: data.validation is 0.
        """
        images = self.images[name]
        if not len(self.labels[name]):
            raise UserError(f"the {name} split has no images (data.validation = 0): set evaluation.split: test")
        if isinstance(images, ImageFiles):
            return Streamed(self, name)
        return self.normalise(images), self.labels[name]

    @property
    def held_out(self) -> list[str]:
        """Names of the splits that are not trained on and have images: validation first, where there is one."""
        return [name for name in ("validation", "test") if len(self.labels.get(name, ()))]

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
        sizes = np.bincount(labels)
        rank[order[np.argsort(labels[order], kind="stable")]] = np.concatenate([np.arange(size) for size in sizes])
        chosen = order[np.argsort(rank[order], kind="stable")][:count]
        if len(chosen) < count:
            raise UserError(f"calibration.images = {count}: the training split has only {len(labels)} images")
        return torch.from_numpy(rng.permutation(chosen))


@dataclass(frozen=True)
class Streamed:
    """The split `name` of `data`, whose images are in files: read, normalised, in order."""

    data: Prepared
    name: str

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield the split in batches of `batch_size`, the last of which may be smaller."""
        images = self.data.images[self.name]
        assert isinstance(images, ImageFiles)
        for x, y in zip(images.in_order(batch_size), torch.split(self.data.labels[self.name], batch_size), strict=True):
            yield self.data.normalise(x), y


Split = Batch | Streamed
"""What an evaluation runs over."""


def in_batches(split: Split, batch_size: int) -> Iterator[Batch]:
    """Yield a split in order, in batches of `batch_size`, the last of which may be smaller."""
    if isinstance(split, Streamed):
        return split.batches(batch_size)
    return zip(*(torch.split(whole, batch_size) for whole in split), strict=True)


def load(folder: Path, device: torch.device | str = "cpu", workers: int = 0, keep: int = KEEP_BYTES) -> Prepared:
    """Read what preparation.prepare wrote onto `device`; UserError names a file that is absent or another.

    On the CPU arrays are mapped, not copied: processes of one machine share them. `workers` decode images that lie as
    files, of which those of a held-out split are kept in memory where they take at most `keep` bytes.
    """
    manifest = manifests.read(folder)
    images: dict[str, Tensor | ImageFiles] = {}
    labels = {}
    for name in manifests.SPLITS:
        if manifest.kind == "files":
            paths, numbers, lengths = read_listing(manifests.checked(folder, f"{name}.csv", manifest))
            root, size, crop = Path(str(manifest.root)), manifest.image_size, manifest.crop or 1.0
            images[name] = ImageFiles(root, paths, lengths, size, crop, workers, keep)
            labels[name] = torch.from_numpy(numbers).to(device)
        else:
            for letter, target in (("x", images), ("y", labels)):
                path = manifests.checked(folder, f"{letter}_{name}.npy", manifest)
                # Mode c: private to this process, and writable as torch wants it; the file itself stays as it is.
                array = np.load(path, mmap_mode="c", allow_pickle=False)
                target[name] = torch.from_numpy(array).to(device)
    mean, std = (torch.tensor(values, dtype=torch.float32, device=device) for values in (manifest.mean, manifest.std))
    return Prepared(images, labels, mean, std, len(manifest.classes))


def check_fits(prepared: Prepared, space: Space) -> None:
    """UserError where the space's networks take other images or give other classes than the data has."""
    settings = space.settings
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
    alone, so any epoch can be started without the ones before it, and at any step.

    Where processes share every batch, `part` gives the images of this one out of so many, and no others are decoded.
    What is drawn for an image does not depend on how they are shared.
    """

    def __init__(
        self, data: Prepared, indices: Tensor, batch_size: int, seed: int, augmentation: Augmentation | None = None,
        *, streams: int = 1, rounds: int = 1, keep_last: bool = False, part: Callable[[int], slice] = slice,
    ) -> None:  # fmt: skip
        """With `keep_last` the images that fill no whole batch make one more, of a single round."""
        self.data, self.indices, self.batch_size, self.seed = data, indices, batch_size, seed
        self.augmentation, self.streams, self.rounds, self.part = augmentation, streams, rounds, part
        self.steps = (len(indices) + (batch_size - 1 if keep_last else 0)) // batch_size // rounds
        if self.steps == 0:
            raise UserError(
                f"batch_size = {batch_size} (x {rounds} rounds): more than the {len(indices)} training images; lower it"
            )
        in_files = isinstance(data.images["train"], ImageFiles)
        if augmentation is not None and not in_files and (key := augmentation.needs_files) is not None:
            raise UserError(
                f"augmentation.{key}: is for image folders only, and this data lies in arrays; take crop_padding, "
                "flip, random_erasing"
            )

    def size(self, turn: int) -> int:
        """Return the images of a stream's batch number `turn` of an epoch, those of other processes included."""
        return min(self.batch_size, len(self.indices) - turn * self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[list[Batch]]]:
        """Yield for each step from number `start` on a list of rounds, each a list of one batch per stream."""
        orders = []
        for stream in range(self.streams):
            generator = seeding.torch_stream(self.seed, "order", epoch, stream)
            orders.append(self.indices[torch.randperm(len(self.indices), generator=generator)])
        images = self.data.images["train"]
        if isinstance(images, ImageFiles):
            batches = self._from_files(images, orders, epoch, start)
        else:
            batches = self._from_memory(orders, epoch, start)
        for _ in range(start, self.steps):
            yield [[next(batches) for _ in orders] for _ in range(self.rounds)]

    def _erased(self, batch: Batch, epoch: int, stream: int, first: int) -> Batch:
        """Erase rectangles as the settings say; the draw follows from the batch's place alone."""
        if self.augmentation is None or not self.augmentation.random_erasing:
            return batch
        images, labels = batch
        generator = seeding.torch_stream(self.seed, "erasing", epoch, stream, first, device=images.device)
        count = self.size(first // self.batch_size)
        return erase(images, self.augmentation.random_erasing, generator, count, self.part(count)), labels

    def _parts(self, orders: list[Tensor], start: int) -> Iterator[tuple[int, int, Tensor]]:
        """Yield stream, place in it and images of each batch from step `start` on, in the order of their use."""
        for turn in range(start * self.rounds, self.steps * self.rounds):
            first = turn * self.batch_size
            for stream, order in enumerate(orders):
                yield stream, first, order[first : first + self.batch_size]

    def _from_memory(self, orders: list[Tensor], epoch: int, start: int) -> Iterator[Batch]:
        device = self.data.labels["train"].device
        orders = [order.to(device) for order in orders]
        noise = [seeding.torch_stream(self.seed, "augmentation", epoch, s, device=device) for s in range(len(orders))]
        if self.augmentation is not None and start:  # draw what the skipped batches drew
            for stream, first, index in self._parts(orders, 0):
                if first >= start * self.rounds * self.batch_size:
                    break
                self._batch(index, noise[stream])
        for stream, first, index in self._parts(orders, start):
            yield self._erased(self._batch(index, noise[stream]), epoch, stream, first)

    def _from_files(self, images: ImageFiles, orders: list[Tensor], epoch: int, start: int) -> Iterator[Batch]:
        labels = self.data.labels["train"]
        seed = seeding.derive(self.seed, "augmentation", epoch)
        keys: Iterator[list[Key]] = (
            [(number, stream, place) for place, number in enumerate(index.tolist(), first)][self.part(len(index))]
            for stream, first, index in self._parts(orders, start)
        )
        found = images.stream(keys, self.augmentation, seed, pin=labels.device.type == "cuda")
        for (stream, first, index), x in zip(self._parts(orders, start), found, strict=True):
            batch = self.data.normalise(x), labels[index[self.part(len(index))].to(labels.device)]
            yield self._erased(batch, epoch, stream, first)

    def _batch(self, index: Tensor, generator: torch.Generator) -> Batch:
        images = self.data.images["train"][index]
        if self.augmentation is not None:
            images = augment(images, self.augmentation, generator)  # all, so that every process draws the same
        part = self.part(len(index))
        return self.data.normalise(images[part]), self.data.labels["train"][index[part]]
