"""A folder of images, one folder per class: listed and checked, never copied.

<path>/train/<class>/*.jpg    and    <path>/test/<class>/*.jpg    and/or    <path>/val/<class>/*.jpg
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sumnas.datasets.base import Labels
from sumnas.errors import UserError
from sumnas.progress import Progress

ENDINGS = (".jpg", ".jpeg", ".png")
"""Of the files that are read as images, in lower case; others are passed over."""
FORMATS = ("JPEG", "PNG")
"""What such a file may really be, whatever its ending; Pillow's names."""
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
"""Pixel formats of eight bits or fewer; a conversion of deeper ones to RGB would cut them off."""
THREADS = 8
"""Reading headers waits for the disk, not for the processor."""
SHOWN = 20
"""Bad images named one by one."""


class Listing(NamedTuple):
    """Images in the order of their class and name."""

    paths: list[str]
    """Relative to the root, with `/`."""
    labels: Labels
    """[N], from 0: positions among the sorted names of the classes."""
    sizes: NDArray[np.int64]
    """[N, 3]: width, height, length in bytes."""

    def take(self, index: NDArray[np.int64]) -> Listing:
        """Return the images of these numbers, in this order."""
        return Listing([self.paths[i] for i in index], self.labels[index], self.sizes[index])


def scan(root: Path) -> tuple[dict[str, Listing], list[str]]:
    """Return a listing of each of `train`, `val` and `test` that is there, and the names of the classes.

    Every header is read. UserError names the images that are empty or unreadable, and what a folder lacks.
    """
    layout = f"{root} must have train/<class>/ and test/<class>/ (or val/<class>/) with .jpg or .png files"
    if not root.is_dir():
        raise UserError(f"{root}: no such folder (data.path); {layout}")
    there = [name for name in ("train", "val", "test") if (root / name).is_dir()]
    if "train" not in there or len(there) < 2:
        raise UserError(f"{root}: has {' and '.join(there) or 'neither train nor test'} only; {layout}")
    classes = _folders(root / "train")
    if len(classes) < 2:
        raise UserError(f"{root / 'train'}: has {len(classes)} folders of classes: must be two or more; {layout}")
    listings = {}
    for name in there:
        if strange := sorted(set(_folders(root / name)) - set(classes)):
            raise UserError(f"{root / name / strange[0]}: no such class in train; remove it, or add {strange[0]} there")
        listings[name] = _listing(root, name, classes)
    return listings, classes


def _folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _listing(root: Path, split: str, classes: list[str]) -> Listing:
    paths: list[str] = []
    labels: list[int] = []
    for number, name in enumerate(classes):
        folder = root / split / name
        found = []
        if folder.is_dir():
            with os.scandir(folder) as entries:
                found = sorted(
                    e.name for e in entries if e.name.lower().endswith(ENDINGS) and not e.name.startswith(".")
                )
        if not found and split == "train":
            raise UserError(f"{folder}: no image in it ({', '.join(ENDINGS)}); add some, or remove the class")
        paths += [f"{split}/{name}/{file}" for file in found]
        labels += [number] * len(found)
    if not paths:
        raise UserError(f"{root / split}: no image in it ({', '.join(ENDINGS)}); add some, or remove the folder")
    sizes = np.empty((len(paths), 3), np.int64)
    bad: list[str] = []
    bar = Progress(f"reading headers of {split}", len(paths))
    with ThreadPoolExecutor(THREADS) as pool:
        for number, found_size in enumerate(pool.map(lambda path: _header(root / path), paths)):
            if isinstance(found_size, str):
                bad.append(f"{root / paths[number]}: {found_size}; replace or remove it, and run this again")
            else:
                sizes[number] = found_size
            bar.update(number + 1)
    if bad:
        more = [f"{root / split}: {len(bad) - SHOWN} more images like these"] if len(bad) > SHOWN else []
        raise UserError("\n".join([*bad[:SHOWN], *more]))
    return Listing(paths, np.array(labels, np.int64), sizes)


def _header(path: Path) -> tuple[int, int, int] | str:
    """Return width, height and length in bytes, or what is wrong with the image."""
    from PIL import Image, UnidentifiedImageError

    try:
        str(path).encode("utf-8")
        length = path.stat().st_size
        if not length:
            return "an empty file"
        with Image.open(path, formats=FORMATS) as image:
            if image.mode not in MODES:
                return f"pixels of kind {image.mode}: must have 8 bits a channel"
            return *image.size, length
    except UnicodeEncodeError:
        return "a name that is not UTF-8"
    except Image.DecompressionBombError as error:
        return str(error)
    except Exception as error:  # a damaged header can raise anything
        kind = "no readable JPEG or PNG image"
        return kind if isinstance(error, UnidentifiedImageError) else f"{kind} ({error or type(error).__name__})"
