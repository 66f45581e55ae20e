"""Lay the arrays of an .npz file out as a folder of pictures: <folder>/train/<class>/00000.png and so on.

    python benchmarks/image_folder.py data/raw/cifar10.npz data/raw/cifar10

The arrays are those of the data source `npz` (docs/data.md): x_train, y_train, x_test, y_test and, optionally, classes.
A class without a name gets its number. PNG keeps every pixel. What is there already is written again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from sumnas.datasets import npz
from sumnas.errors import UserError


def lay_out(path: Path, folder: Path) -> int:
    """Write every image of the file; return how many. UserError as of the source `npz`."""
    found = npz.read(path)
    assert found.test is not None  # of this source, always
    count = 0
    for split, (images, labels) in {"train": (found.images, found.labels), "test": found.test}.items():
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            target = folder / split / found.classes[label] / f"{number:05}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(target)
            count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arrays", type=Path, help="the .npz file")
    parser.add_argument("folder", type=Path, help="where the pictures go")
    arguments = parser.parse_args()
    try:
        print(f"{lay_out(arguments.arrays, arguments.folder)} pictures in {arguments.folder}")
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
