"""Images that lie as files: decoded, cropped and augmented by worker processes when they are asked for.

What an image becomes follows from the seed, the epoch, the stream and its place in it: neither the number of workers
nor a resumption in the middle of an epoch changes anything.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
import signal
import threading
import warnings
from array import array
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sumnas import seeding
from sumnas.augmentation import Augmentation
from sumnas.errors import UserError

COLUMNS = ("path", "label", "width", "height", "bytes")
"""Of a listing: <split>.csv beside the manifest."""
CHUNK = 64
"""Images that a worker decodes at a time where no batch size is given."""
KEEP_BYTES = 10**9
"""Decoded images of a split that is read over and over, as in a search, are kept in memory up to this size, unless
another is given. What is read once alone, as after a training, takes none."""

Key = tuple[int, int, int]
"""Number of an image, stream, and place in the stream."""


def read_listing(path: Path) -> tuple[NDArray[np.bytes_], NDArray[np.int64], NDArray[np.int64]]:
    """Return paths, labels and lengths in bytes, [N] each, in a form that worker processes share without copying it.

    UserError where the file has other columns than COLUMNS.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        if tuple(next(rows, ())) != COLUMNS:
            raise UserError(f"{path}: not a listing with columns {', '.join(COLUMNS)}; run prepare_data again")
        names, labels, lengths = [], array("q"), array("q")
        for name, label, _, _, length in rows:  # row by row: a million of them at once would take a gigabyte
            names.append(name.encode())
            labels.append(int(label))
            lengths.append(int(length))
    return np.array(names, np.bytes_), np.frombuffer(labels, np.int64), np.frombuffer(lengths, np.int64)


class ImageFiles:
    """One split, [N, size, size, 3] uint8. Indexed by a tensor of numbers it gives centre crops, not augmented."""

    def __init__(
        self,
        root: Path,
        paths: NDArray[np.bytes_],
        lengths: NDArray[np.int64],
        size: int,
        crop: float,
        workers: int = 0,
        keep: int = KEEP_BYTES,
    ) -> None:
        self.root, self.paths, self.lengths, self.size, self.crop = root, paths, lengths, size, crop
        self.workers = min(workers, len(os.sched_getaffinity(0)))
        self.keep = keep
        self._kept: Tensor | None = None
        self._read = False

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[N, H, W, C], as of a tensor."""
        return len(self.paths), self.size, self.size, 3

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Tensor) -> Tensor:
        """[n] numbers -> [n, size, size, 3] uint8."""
        out = torch.empty(len(index), *self.shape[1:], dtype=torch.uint8)
        keys = ([(number, 0, 0) for number in part.tolist()] for part in torch.split(index.cpu(), CHUNK))
        for target, found in zip(torch.split(out, CHUNK), self.stream(keys), strict=True):
            target.copy_(found)
        return out

    def in_order(self, batch_size: int) -> Iterator[Tensor]:
        """Yield the whole split in batches [n, size, size, 3] uint8; what fits is kept when it is read again."""
        numbers = torch.arange(len(self))
        if self._kept is None and self._read and len(self) * self.size**2 * 3 <= self.keep:
            self._kept = self[numbers]
        self._read = True
        if self._kept is not None:
            yield from torch.split(self._kept, batch_size)
        else:
            yield from self.stream([(n, 0, 0) for n in part.tolist()] for part in torch.split(numbers, batch_size))

    def stream(
        self, batches: Iterable[list[Key]], augmentation: Augmentation | None = None, seed: int = 0, pin: bool = False
    ) -> Iterator[Tensor]:
        """Yield each batch of keys as [n, size, size, 3] uint8, prefetched by the workers.

        Augmentation draws from `seed` and the keys. UserError names an image that cannot be decoded, or that is
        another than when the data was prepared.
        """
        failed: list[str] = []
        loader: DataLoader[Any] = DataLoader(
            _Decoder(self, augmentation, seed),
            batch_sampler=itertools.takewhile(lambda _: not failed, batches), num_workers=self.workers,
            collate_fn=partial(_collate, self.shape[1:]), pin_memory=pin, worker_init_fn=_leave_signals,
            generator=torch.Generator(),  # else it would draw from the global stream
            multiprocessing_context="fork" if self.workers else None,  # shares what is imported and listed
        )  # fmt: skip
        with warnings.catch_warnings():  # of newer Pythons, about forks beside threads: workers use none of them
            warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
            results = iter(loader)
        try:
            for found in results:
                if isinstance(found, str):
                    failed.append(found)
                elif not failed:
                    yield found
            # Raised only here, when workers have done all they were given: to end them in the middle may leave the
            # thread that feeds them with a closed pipe, and its traceback on the screen.
            if failed:
                raise UserError(failed[0])
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                f"a process that decodes images died ({str(error).splitlines()[0]}): memory, or /dev/shm, may have run "
                "out; lower run.workers or the batch size"
            ) from None

    def decode(self, number: int) -> Any:
        """Return a PIL image in RGB, of its own size.

        UserError where its file is gone, has another length than when the data was prepared, or cannot be decoded.
        """
        from PIL import Image

        path = self.root / os.fsdecode(self.paths[number])
        try:
            content = path.read_bytes()
            if len(content) != self.lengths[number]:
                raise UserError(f"{path}: changed since the data was prepared; run prepare_data again")
            with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
                # Over RGBA where a palette has transparent entries: the direct way would warn.
                return (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")
        except FileNotFoundError:
            raise UserError(f"{path}: no such file any more; put it back, or run prepare_data again") from None
        except UserError:
            raise
        except Exception as error:  # a damaged image can raise anything
            raise UserError(
                f"{path}: cannot be decoded ({error or type(error).__name__}); replace or remove it, and run "
                "prepare_data again"
            ) from None


class _Decoder(Dataset[Any]):
    """What a worker does with one key. An error is handed back as its text: the loader would wrap an exception."""

    def __init__(self, images: ImageFiles, augmentation: Augmentation | None, seed: int) -> None:
        self.images, self.seed = images, seed
        self.random = augmentation is not None and augmentation != Augmentation()
        self.transform = transform(images.size, images.crop, augmentation)

    def __getitem__(self, key: Key) -> Tensor | str:
        number, stream, place = key
        try:
            image = self.images.decode(number)
        except UserError as error:
            return str(error)
        if not self.random:
            return self.transform(image)
        with seeding.scoped(self.seed, stream, place):
            return self.transform(image)


def transform(size: int, crop: float, augmentation: Augmentation | None) -> Callable[[Any], Tensor]:
    """Return what makes [size, size, 3] uint8 of an image: the centre crop, or a random one, with flips as asked for.

    The centre crop keeps the share `crop` of the shorter side (0.875 gives ImageNet's usual 224 of 256).
    """
    from torchvision.transforms import v2  # imported here: it takes seconds

    steps: list[Any] = [v2.Resize(round(size / crop), antialias=True), v2.CenterCrop(size)]
    if augmentation and augmentation.resized_crop is not None:
        steps = [v2.RandomResizedCrop(size, scale=(augmentation.resized_crop, 1.0), antialias=True)]
    if augmentation and augmentation.flip:
        steps.append(v2.RandomHorizontalFlip())
    if augmentation and augmentation.crop_padding:
        steps.append(v2.RandomCrop(size, padding=augmentation.crop_padding))
    if augmentation and augmentation.auto_augment:
        smooth = v2.InterpolationMode.BILINEAR
        other = {"randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide}.get(augmentation.auto_augment)
        if other is not None:
            steps.append(other(interpolation=smooth))
        else:
            steps.append(v2.AutoAugment(v2.AutoAugmentPolicy(augmentation.auto_augment), interpolation=smooth))
    whole = v2.Compose([*steps, v2.PILToTensor()])
    return lambda image: whole(image).permute(1, 2, 0).contiguous()


def _collate(shape: tuple[int, int, int], items: list[Tensor | str]) -> Tensor | str:
    """Stack a batch of images of that shape, which may have none, or pass on the first error in it."""
    if not items:
        return torch.empty(0, *shape, dtype=torch.uint8)
    tensors = [item for item in items if not isinstance(item, str)]
    return torch.stack(tensors) if len(tensors) == len(items) else next(i for i in items if isinstance(i, str))


def _leave_signals(_worker: int) -> None:
    """Leave signals to the main process, which saves its work first; only its own SIGTERM ends a worker.

    A scheduler signals every process of a job: a worker that obeyed would tear the main process down with it.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parent = os.getppid()

    def watch() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
