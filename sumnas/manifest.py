"""manifest.json: what `prepare_data` wrote, and all that a later stage has to know of it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sumnas import files
from sumnas.errors import UserError

SPLITS = ("train", "validation", "test")
NAME = "manifest.json"
REMEDY = "delete the folder and run prepare_data again"


class Manifest(BaseModel):
    """Kind `arrays`: x_<split>.npy and y_<split>.npy lie beside it. Kind `files`: <split>.csv, images under `root`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["arrays", "files"]
    source: str
    classes: list[str] = Field(min_length=2)
    image_size: int = Field(ge=1, description="height of the images as the networks see them")
    image_channels: int = Field(ge=1)
    mean: list[float] = Field(description="of the training images' values 0 to 255, per channel")
    std: list[float]
    counts: dict[Literal["train", "validation", "test"], int] = Field(min_length=3)
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
