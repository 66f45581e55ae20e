"""A trained supernet from its file alone: weights, and the settings of the space they belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sumnas import files
from sumnas.errors import UserError
from sumnas.precision import Arithmetic
from sumnas.spaces import base
from sumnas.spaces.base import Space, Supernet


def load(path: Path, device: str = "cpu") -> tuple[Space, Supernet, dict[str, Any]]:
    """Return the space, the supernet on the device, and what the file says of itself: method, seed, settings.

    UserError where the file is absent, damaged, or not a supernet of this package's.
    """
    tensors, metadata = files.read_tensors(path)
    try:
        space = base.from_plain(metadata["space"])
        network = space.supernet()
        network.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, ValidationError, RuntimeError) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: not a supernet of this version's ({text}); name a run's weights.safetensors"
        ) from None
    Arithmetic().place(network, device)
    return space, network, metadata
