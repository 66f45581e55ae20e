"""Data sets, prepared once as plain arrays that every later stage reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from sumnas import files, seeding
from sumnas.errors import UserError

SPLITS = ("train", "validation", "test")


class DataSettings(BaseModel):
    """Block `data`: what `prepare_data` writes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Literal["digits"] = Field(description="digits: scikit-learn's 1,797 handwritten digits, 8x8, 10 classes")
    validation: float = Field(gt=0, lt=1, description="share held out for the prediction of accuracies")
    test: float = Field(gt=0, lt=1, description="share held out for the true accuracies")
    seed: int = Field(ge=0)


def prepare(settings: DataSettings, folder: Path) -> dict[str, Any]:
    """Write x_<split>.npy (uint8 [N, H, W, C]), y_<split>.npy (int64 [N]) and manifest.json; return the latter."""
    images, labels, names = _digits()
    splits = _stratified(labels, settings)
    folder.mkdir(parents=True, exist_ok=True)
    train = images[splits["train"]].astype(np.float64)
    manifest: dict[str, Any] = {
        "source": settings.source,
        "classes": names,
        "image_size": int(images.shape[1]),
        "image_channels": int(images.shape[3]),
        "mean": train.mean((0, 1, 2)).tolist(),
        "std": train.std((0, 1, 2)).tolist(),
        "counts": {name: len(index) for name, index in splits.items()},
        "sha256": {},
    }
    for name, index in splits.items():
        for letter, array in (("x", images), ("y", labels)):
            path = folder / f"{letter}_{name}.npy"
            with files.replacing(path) as part, part.open("wb") as file:
                np.save(file, array[index], allow_pickle=False)
            manifest["sha256"][path.name] = files.sha256(path)
    files.write_json(folder / "manifest.json", manifest)
    return manifest


def _digits() -> tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]:
    from sklearn.datasets import load_digits  # imported here: it takes seconds

    digits = load_digits()
    return digits.images[..., None].astype(np.uint8), digits.target.astype(np.int64), [str(n) for n in range(10)]


def _stratified(labels: NDArray[np.int64], settings: DataSettings) -> dict[str, NDArray[np.int64]]:
    """Split indices by the settings' shares, with equal shares of every class."""
    from sklearn.model_selection import train_test_split

    if settings.validation + settings.test >= 1:
        raise UserError(
            f"data.validation + data.test = {settings.validation + settings.test:g}: must leave images for training"
        )
    seed = seeding.derive(settings.seed, "splits") % 2**32
    everything = np.arange(len(labels))
    rest, test = train_test_split(everything, test_size=settings.test, stratify=labels, random_state=seed)
    share = settings.validation / (1 - settings.test)
    train, validation = train_test_split(rest, test_size=share, stratify=labels[rest], random_state=seed)
    return {"train": np.sort(train), "validation": np.sort(validation), "test": np.sort(test)}
