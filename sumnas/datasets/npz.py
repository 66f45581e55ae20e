"""Arrays of one's own in one .npz file: x_train, y_train, x_test, y_test, and optionally classes, the names."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sumnas.datasets.base import Images, Labels, Raw
from sumnas.errors import UserError

UNREADABLE = (ValueError, OSError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What numpy raises at a file, or at an array in it, that is damaged or is none."""
NAMES = ("x_train", "y_train", "x_test", "y_test")
"""Arrays that the file must hold."""


def read(path: Path) -> Raw:
    """Read and check the arrays; UserError names the file, the array and what to do about it."""
    arrays = _load(path)
    x, y = {}, {}
    for split in ("train", "test"):
        x[split] = _images(path, f"x_{split}", arrays[f"x_{split}"])
        y[split] = _labels(path, f"y_{split}", arrays[f"y_{split}"], len(x[split]))
    if x["train"].shape[1:] != x["test"].shape[1:]:
        raise UserError(
            f"{path}: images of x_train are {_shape(x['train'][0])}, of x_test {_shape(x['test'][0])}: must be alike"
        )
    names = _classes(path, arrays.get("classes"), y["train"])
    for split, labels in y.items():
        if labels.min() < 0 or labels.max() >= len(names):
            of = "the positions in classes" if "classes" in arrays else "the classes of y_train"
            raise UserError(
                f"{path}: y_{split} goes from {labels.min()} to {labels.max()}: must be 0 to {len(names) - 1}, {of}"
            )
    if absent := sorted(set(range(len(names))) - set(y["train"].tolist())):
        raise UserError(
            f"{path}: class {absent[0]} ({names[absent[0]]}) has no image in x_train; add some, or number the classes "
            "without it"
        )
    return Raw(x["train"], y["train"], (x["test"], y["test"]), names)


def _load(path: Path) -> dict[str, NDArray[Any]]:
    """Load every array that is needed; never a pickle."""
    damaged = "make or copy the file again"
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise UserError(f"{path}: one array, not an .npz file; write it with np.savez(path, x_train=..., ...)")
            if missing := [name for name in NAMES if name not in archive.files]:
                there = ", ".join(sorted(archive.files)) or "nothing"
                raise UserError(f"{path}: no array {missing[0]!r}; the file has {there}, and needs {', '.join(NAMES)}")
            arrays = {}
            for name in (*NAMES, *({"classes"} & set(archive.files))):
                try:
                    arrays[name] = archive[name]
                except UNREADABLE as error:
                    if "pickle" in str(error):
                        raise UserError(
                            f"{path}: {name} holds Python objects, which are not read; save a plain array of numbers "
                            "(or, for classes, of strings)"
                        ) from None
                    raise UserError(f"{path}: {name} is damaged ({_text(error)}); {damaged}") from None
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file (data.path); put it there, or set data.source to a set that is fetched, "
            "such as CIFAR10, without data.path: docs/data.md"
        ) from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder (data.path); source npz takes one .npz file") from None
    except UNREADABLE as error:
        raise UserError(f"{path}: no whole .npz file ({_text(error)}); {damaged}") from None
    return arrays


def _images(path: Path, name: str, images: NDArray[Any]) -> Images:
    """Return [N, H, W, C]; UserError where it is something else."""
    wanted = "must be uint8 [N, H, W, C] or [N, H, W]"
    if images.dtype != np.uint8:
        low, high = (images.min(), images.max()) if images.size and images.dtype.kind in "fiub" else (0, 0)
        hint = "np.rint(255 * x)" if images.dtype.kind == "f" and low >= 0 and high <= 1 else "np.clip(x, 0, 255)"
        raise UserError(
            f"{path}: {name} is {images.dtype}: {wanted}, values 0 to 255; {hint}.astype(np.uint8) makes it"
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4:
        raise UserError(f"{path}: {name} has shape {_shape(images)}: {wanted}")
    if not images.size:
        raise UserError(f"{path}: {name} is empty ({_shape(images)}); save at least one image of every class")
    if images.shape[3] > 4 and images.shape[1] in (1, 3):
        raise UserError(f"{path}: {name} has shape {_shape(images)}: {wanted}; x.transpose(0, 2, 3, 1) makes it")
    return images


def _labels(path: Path, name: str, labels: NDArray[Any], count: int) -> Labels:
    """Return [N] int64; UserError where it is something else, or not as many."""
    if labels.ndim != 1:
        hint = "y.ravel()" if labels.size == count else "y.argmax(1), of one-hot rows,"
        raise UserError(f"{path}: {name} has shape {_shape(labels)}: must be [N], one number an image; {hint} makes it")
    if labels.dtype.kind not in "iu":
        raise UserError(f"{path}: {name} is {labels.dtype}: must be whole numbers; y.astype(np.int64) makes it")
    if len(labels) != count:
        raise UserError(f"{path}: {name} has {len(labels)} labels for {count} images; save one for each")
    return labels.astype(np.int64)


def _classes(path: Path, names: NDArray[Any] | None, labels: Labels) -> list[str]:
    """Return the names given, or the numbers of the classes that there are."""
    if names is None:
        present = np.unique(labels)
        if present[0] < 0 or present[-1] >= len(present):
            raise UserError(
                f"{path}: y_train has {len(present)} classes numbered {present[0]} to {present[-1]}: must be 0 to "
                f"{len(present) - 1}; np.unique(y, return_inverse=True)[1] numbers them so"
            )
        return [str(number) for number in range(len(present))]
    if names.ndim != 1 or names.dtype.kind not in "SUiu":
        raise UserError(f"{path}: classes is {names.dtype} {_shape(names)}: must be a list of the classes' names")
    found = [name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in names.tolist()]
    if twice := [name for name in found if found.count(name) > 1]:
        raise UserError(f"{path}: classes has {twice[0]!r} twice; give every class a name of its own")
    return found


def _shape(array: NDArray[Any]) -> str:
    return "x".join(map(str, array.shape)) or "()"


def _text(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
