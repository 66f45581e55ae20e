"""Pickled arrays, read without running anything that the pickle names.

CIFAR is published as pickles of Python 2, and a pickle may name any function to be called when it is read. The
checksum says that a file is the published one, but MD5 is too weak to lean on. So nothing that a file names is looked
up: the three names that an array's pickle needs stand for the small classes below, and any other is refused.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np


class _Class:
    """Stands for numpy.ndarray, which is only ever an argument."""


class _DType:
    """Stands for numpy.dtype, called with the code of a type and two flags."""

    def __init__(self, code: bytes | str, *_flags: Any) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else code

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Ignore the byte order: only single bytes are read."""


class _Array:
    """Stands for numpy's `_reconstruct`: an array that gets its content as state."""

    def __init__(self, *_arguments: Any) -> None:
        self.value = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, shape, dtype, fortran, content = state
        if not isinstance(dtype, _DType) or dtype.code != "u1" or not isinstance(content, bytes):
            raise pickle.UnpicklingError("an array that is not of plain bytes")
        self.value = np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


_KNOWN: dict[tuple[str, str], type] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Class,
    ("numpy", "dtype"): _DType,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no array needs") from None

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to something outside itself")


def read(content: bytes) -> dict[str, Any]:
    """Read a pickled dictionary of uint8 arrays, lists, numbers and byte strings. ValueError says what is wrong."""
    try:
        found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"no pickle of plain arrays: {' '.join(str(error).split()) or type(error).__name__}") from None
    if not isinstance(found, dict):
        raise ValueError(f"a pickle of {type(found).__name__}, not of a dictionary")
    plain = {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in found.items()}
    return {key: value.value if isinstance(value, _Array) else value for key, value in plain.items()}
