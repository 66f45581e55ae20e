"""Published classification sets: fetched, checked and read. Addresses, names and checksums are torchvision's lists.

Only its lists are used, not its loaders: those unpack archives on disk and unpickle whatever lies there. The layout
under the folder of raw files is torchvision's, so that a copy which it made is taken as it is.
"""

from __future__ import annotations

import gzip
import math
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sumnas.datasets import download, pickles
from sumnas.datasets.base import Images, Labels, Raw
from sumnas.datasets.download import RawFile
from sumnas.errors import UserError

SIZES = {
    "cifar-10-python.tar.gz": 170_498_071,
    "cifar-100-python.tar.gz": 169_001_437,
    "FashionMNIST/raw/train-images-idx3-ubyte.gz": 26_421_880,
    "FashionMNIST/raw/train-labels-idx1-ubyte.gz": 29_515,
    "FashionMNIST/raw/t10k-images-idx3-ubyte.gz": 4_422_102,
    "FashionMNIST/raw/t10k-labels-idx1-ubyte.gz": 5_148,
    "KMNIST/raw/train-images-idx3-ubyte.gz": 18_165_135,
    "KMNIST/raw/train-labels-idx1-ubyte.gz": 29_497,
    "KMNIST/raw/t10k-images-idx3-ubyte.gz": 3_041_136,
    "KMNIST/raw/t10k-labels-idx1-ubyte.gz": 5_120,
    "MNIST/raw/train-images-idx3-ubyte.gz": 9_912_422,
    "MNIST/raw/train-labels-idx1-ubyte.gz": 28_881,
    "MNIST/raw/t10k-images-idx3-ubyte.gz": 1_648_877,
    "MNIST/raw/t10k-labels-idx1-ubyte.gz": 4_542,
    "train_32x32.mat": 182_040_794,
    "test_32x32.mat": 64_275_384,
}
"""Bytes, to be told to a person: torchvision's lists have none."""


def read(name: str, root: Path) -> Raw:
    """Return a published set, whose files lie or are put under `root`.

    UserError where a file cannot be had, with all that is needed to fetch it by hand, or is no whole one.
    """
    from torchvision import datasets  # imported here: it takes seconds

    dataset: Any = getattr(datasets, name)
    return READERS[name](dataset, root)


def _file(path: str, md5: str, *urls: str) -> RawFile:
    return RawFile(path, md5, urls, SIZES.get(path))


# CIFAR-10 and CIFAR-100: an archive of pickles, or the pickles unpacked from it.


def _cifar(dataset: Any, root: Path) -> Raw:
    archive = _file(dataset.filename, dataset.tgz_md5, dataset.url)
    parts = {name: md5 for name, md5 in (*dataset.train_list, *dataset.test_list)}
    parts[dataset.meta["filename"]] = dataset.meta["md5"]
    folder = root / dataset.base_folder
    unpacked = not (root / archive.path).exists() and all(
        (folder / name).is_file() and download.md5(folder / name) == md5 for name, md5 in parts.items()
    )
    if unpacked:
        contents = {name: (folder / name).read_bytes() for name in parts}
        source = folder
    else:
        (source,) = download.ensure(root, [archive])
        contents = _unpack(source, {f"{dataset.base_folder}/{name}": name for name in parts})
    entries = {name: _unpickle(source, name, content) for name, content in contents.items()}
    names = [name.decode() for name in entries[dataset.meta["filename"]][dataset.meta["key"]]]
    train = [_cifar_batch(entries[name]) for name, _ in dataset.train_list]
    test = [_cifar_batch(entries[name]) for name, _ in dataset.test_list]
    (x, y), (x_test, y_test) = (tuple(map(np.concatenate, zip(*part, strict=True))) for part in (train, test))
    return Raw(x, y, (x_test, y_test), names)


def _unpack(path: Path, members: dict[str, str]) -> dict[str, bytes]:
    """Read members of an archive into memory, under the names that they are given: nothing is unpacked on disk."""
    found = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:  # in order, so that the archive is read once
                if member.name in members and (file := archive.extractfile(member)) is not None:
                    found[members[member.name]] = file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: no whole archive ({error}); delete it and run this again") from None
    if missing := [name for name in members.values() if name not in found]:
        raise UserError(f"{path}: has no {missing[0]} in it; delete it and run this again")
    return found


def _unpickle(source: Path, name: str, content: bytes) -> dict[str, Any]:
    try:
        return pickles.read(content)
    except ValueError as error:
        raise UserError(f"{source}, {name}: {error}; delete it and run this again") from None


def _cifar_batch(entry: dict[str, Any]) -> tuple[Images, Labels]:
    """[N, 3072], all red, then green, then blue values -> [N, 32, 32, 3], and the (fine) labels."""
    images = entry["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.array(entry.get("labels", entry.get("fine_labels")), np.int64)


# MNIST and its kin: four files of raw numbers.


def _mnist(dataset: Any, root: Path) -> Raw:
    name = dataset.__name__
    wanted = [
        _file(f"{name}/raw/{file}", md5, *(f"{mirror}{file}" for mirror in dataset.mirrors))
        for file, md5 in dataset.resources
    ]
    x, y, x_test, y_test = (_idx(path) for path in download.ensure(root, wanted))
    images = x[..., None], x_test[..., None]
    return Raw(images[0], y.astype(np.int64), (images[1], y_test.astype(np.int64)), list(dataset.classes))


def _idx(path: Path) -> NDArray[np.uint8]:
    """Read an IDX file of bytes: two zeros, the type 8, the number of axes, their lengths (big-endian), the values."""
    try:
        content = gzip.decompress(path.read_bytes())
        zeros, kind, axes = struct.unpack(">HBB", content[:4])
        shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise UserError(f"{path}: no whole IDX file ({error}); delete it and run this again") from None
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
    if zeros or kind != 8 or len(values) != math.prod(shape):
        raise UserError(f"{path}: not an IDX file of {'x'.join(map(str, shape))} bytes; delete it and run this again")
    return values.reshape(shape)


# SVHN: a file of Matlab's for each split.


def _svhn(dataset: Any, root: Path) -> Raw:
    from scipy.io import loadmat

    wanted = [_file(name, md5, url) for url, name, md5 in (dataset.split_list[key] for key in ("train", "test"))]
    found = []
    for path in download.ensure(root, wanted):
        try:
            content = loadmat(path, variable_names=["X", "y"])
            images, labels = content["X"], content["y"].astype(np.int64).ravel()
        except (ValueError, KeyError, TypeError, OSError, NotImplementedError, zlib.error) as error:
            raise UserError(f"{path}: no whole file of images ({error}); delete it and run this again") from None
        labels[labels == 10] = 0  # Matlab counts from 1: the digit 0 is its class 10
        found.append((np.ascontiguousarray(images.transpose(3, 0, 1, 2)), labels))
    return Raw(*found[0], found[1], [str(digit) for digit in range(10)])


READERS: dict[str, Callable[[Any, Path], Raw]] = {
    "CIFAR10": _cifar,
    "CIFAR100": _cifar,
    "FashionMNIST": _mnist,
    "KMNIST": _mnist,
    "MNIST": _mnist,
    "SVHN": _svhn,
}
"""By torchvision's names."""
