"""manifest.json: what `prepare_data` wrote, and all that a later stage has to know of it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sumnas import files
from sumnas.errors import UserError

SPLITS = ("train", "validation", "test")
"""All of them; validation may be empty."""
NAME = "manifest.json"
"""Of its file, beside the data."""
REMEDY = "delete the folder and run prepare_data again"
"""What to do about prepared data that cannot be used, for messages."""


class Manifest(BaseModel):
    """`kind` arrays: x_<split>.npy and y_<split>.npy lie beside it. `kind` files: <split>.csv, images under `root`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["arrays", "files"]
    source: str
    """What `data.source` was: digits, npz, imagefolder, or the name of a published set."""
    classes: list[str] = Field(min_length=2)
    """Names, in the order of the labels."""
    image_size: int = Field(ge=1, description="height of the images as the networks see them")
    image_channels: int = Field(ge=1)
    """As the networks see them: 3 for an image folder, whatever its files have."""
    mean: list[float] = Field(
        description="that is taken off values 0 to 255, per channel: of training images, or ImageNet's usual one"
    )
    std: list[float]
    """Standard deviation by which the difference is divided, per channel; of the same images."""
    counts: dict[Literal["train", "validation", "test"], int] = Field(min_length=3)
    """Images of every split; validation may have none."""
    sha256: dict[str, str] = Field(description="of every file beside this one")
    root: str | None = Field(None, description="kind files: the folder that the paths are relative to")
    crop: float | None = Field(None, description="kind files: share of the shorter side in the centre crop")


def read(folder: Path) -> Manifest:
    """Read a folder's manifest; UserError where it is absent or damaged."""
    path = folder / NAME
    raw = files.read_json(path)
    try:
        return Manifest.model_validate(raw)
    except ValidationError as failure:
        error = failure.errors()[0]
        where = ".".join(map(str, error["loc"])) or "the whole"
        raise UserError(f"{path}: damaged manifest ({where}: {error['msg']}); {REMEDY}") from None


def checked(folder: Path, name: str, manifest: Manifest) -> Path:
    """Return the path of a file beside the manifest; UserError where it is absent or another than described."""
    path = folder / name
    if not path.exists():
        raise UserError(f"{path}: no such file; {REMEDY}")
    if files.sha256(path) != manifest.sha256.get(name):
        raise UserError(f"{path}: not what the manifest describes (damaged or replaced); {REMEDY}")
    return path
