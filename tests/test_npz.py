"""Arrays of one's own: what is read back, and what is refused, each time naming the file, the array and the remedy."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sumnas.data import load
from sumnas.datasets import npz
from sumnas.errors import UserError
from sumnas.preparation import DataSettings, prepare

RNG = np.random.default_rng(0)


def arrays(**changes: Any) -> dict[str, Any]:
    """Forty training and ten test images of five classes; a change to None leaves an array out."""
    made: dict[str, Any] = {
        "x_train": RNG.integers(0, 256, (40, 6, 6, 3), dtype=np.uint8),
        "y_train": np.arange(40) % 5,
        "x_test": RNG.integers(0, 256, (10, 6, 6, 3), dtype=np.uint8),
        "y_test": np.arange(10, dtype=np.uint8) % 5,
    }
    return {name: value for name, value in {**made, **changes}.items() if value is not None}


def test_what_is_prepared_is_what_was_saved(tmp_path: Path) -> None:
    whole = arrays(classes=np.array(["ant", "bee", "cat", "dog", "emu"]))
    np.savez_compressed(tmp_path / "own.npz", **whole)
    settings = DataSettings(source="npz", path=str(tmp_path / "own.npz"), validation=0.25, seed=0)
    manifest = prepare(settings, tmp_path / "prepared")
    assert manifest.classes == ["ant", "bee", "cat", "dog", "emu"]
    assert manifest.counts == {"train": 30, "validation": 10, "test": 10}
    data = load(tmp_path / "prepared")
    found: Counter[tuple[bytes, int]] = Counter()
    for split in ("train", "validation"):
        for image, label in zip(data.images[split], data.labels[split], strict=True):
            found[image.numpy().tobytes(), int(label)] += 1
    assert found == Counter((x.tobytes(), int(y)) for x, y in zip(whole["x_train"], whole["y_train"], strict=True))
    assert np.array_equal(data.images["test"].numpy(), whole["x_test"])
    assert np.array_equal(data.labels["test"].numpy(), whole["y_test"])


def test_the_example_in_the_documentation_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[1] / "docs/data.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "np.savez" in block]
    (tmp_path / "data/raw").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    (block,) = re.findall(r"```yaml\ndata: (\{ source: npz.*?\})\n", text)
    manifest = prepare(DataSettings.model_validate(yaml.safe_load(block)), tmp_path / "prepared")
    assert manifest.classes == ["ant", "bee", "cat", "dog"]
    assert manifest.counts == {"train": 128, "validation": 32, "test": 40} and manifest.image_size == 32


def test_grey_images_may_come_without_an_axis_for_it(tmp_path: Path) -> None:
    grey = arrays(x_train=np.ones((40, 6, 6), np.uint8), x_test=np.ones((10, 6, 6), np.uint8))
    np.savez(tmp_path / "own.npz", **grey)
    raw = npz.read(tmp_path / "own.npz")
    assert raw.images.shape == (40, 6, 6, 1) and raw.labels.dtype == np.int64 and raw.classes == list("01234")


OBJECTS = np.array([{}] * 40, dtype=object)
DEFECTS: dict[str, tuple[dict[str, Any], str]] = {
    "no array": ({"y_test": None}, "no array 'y_test'; the file has x_test, x_train, y_train"),
    "floats in 0 to 1": ({"x_train": np.zeros((40, 6, 6, 3))}, r"x_train is float64: must be uint8.*rint\(255 \* x\)"),
    "floats": ({"x_test": np.full((10, 6, 6, 3), 9.0)}, r"x_test is float64: must be uint8 .*np\.clip\(x, 0, 255\)"),
    "whole numbers": ({"x_train": np.zeros((40, 6, 6, 3), int)}, "x_train is int64: must be uint8"),
    "strings": ({"x_train": np.array(["a"] * 40)}, "x_train is <U1: must be uint8"),
    "flat images": ({"x_train": np.zeros((40, 108), np.uint8)}, "x_train has shape 40x108: must be uint8"),
    "channels first": ({"x_test": np.zeros((10, 3, 6, 6), np.uint8)}, r"x_test has shape 10x3x6x6.*transpose\("),
    "no image": ({"x_test": np.zeros((0, 6, 6, 3), np.uint8)}, r"x_test is empty \(0x6x6x3\)"),
    "other images": ({"x_test": np.zeros((10, 8, 8, 3), np.uint8)}, "x_train are 6x6x3, of x_test 8x8x3: must be"),
    "too few labels": ({"y_train": np.arange(39) % 5}, "y_train has 39 labels for 40 images"),
    "no labels": ({"y_test": np.zeros(0, int)}, "y_test has 0 labels for 10 images"),
    "float labels": ({"y_test": np.zeros(10)}, r"y_test is float64: must be whole numbers; y\.astype"),
    "one-hot labels": ({"y_train": np.eye(5, dtype=int)[np.arange(40) % 5]}, r"y_train has shape 40x5.*argmax\(1\)"),
    "a column of labels": ({"y_train": (np.arange(40) % 5)[:, None]}, r"y_train has shape 40x1.*ravel\(\)"),
    "a gap": ({"y_train": np.arange(40) % 5 * 2}, "y_train has 5 classes numbered 0 to 8: must be 0 to 4; .*inverse"),
    "from one": ({"y_train": np.arange(40) % 5 + 1}, "y_train has 5 classes numbered 1 to 5: must be 0 to 4"),
    "a huge label": ({"y_train": np.r_[np.arange(39) % 5, 10**12]}, "6 classes numbered 0 to 1000000000000"),
    "a label too high": ({"y_test": np.arange(10)}, "y_test goes from 0 to 9: must be 0 to 4, the classes of y_train"),
    "a negative label": ({"y_test": np.arange(10) - 5}, "y_test goes from -5 to 4: must be 0 to 4"),
    "more labels than names": ({"classes": ["a", "b"]}, "y_train goes from 0 to 4: must be 0 to 1, the positions"),
    "a name without images": ({"classes": list("abcdef")}, r"class 5 \(f\) has no image in x_train"),
    "a name twice": ({"classes": list("abcda")}, "classes has 'a' twice"),
    "names in a table": ({"classes": [["a"], ["b"]]}, "classes is <U1 2x1: must be a list"),
    "pickled images": ({"x_train": OBJECTS}, "x_train holds Python objects, which are not read"),
    "pickled labels": ({"y_train": OBJECTS}, "y_train holds Python objects"),
    "pickled names": ({"classes": np.array(["a", None], dtype=object)}, "classes holds Python objects"),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_named_and_nothing_is_written(tmp_path: Path, defect: str) -> None:
    changes, message = DEFECTS[defect]
    path = tmp_path / "own.npz"
    np.savez(path, **arrays(**changes))
    settings = DataSettings(source="npz", path=str(path), validation=0.25, seed=0)
    with pytest.raises(UserError, match=message) as error:
        prepare(settings, tmp_path / "prepared")
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    assert not (tmp_path / "prepared").exists()


def test_an_object_array_runs_no_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    np.savez(tmp_path / "own.npz", **arrays(y_test=np.array([Trap()] * 10, dtype=object)))
    with pytest.raises(UserError, match="y_test holds Python objects"):
        npz.read(tmp_path / "own.npz")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "own.npz"
    np.savez(path, **arrays())
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match=r"own\.npz: no whole \.npz file \(.+\); make or copy the file again"):
        npz.read(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_array_is_named(tmp_path: Path, save: Any) -> None:
    """Any byte of an array that is changed is seen, and whatever it does to the file is told without a traceback."""
    path, seen = tmp_path / "own.npz", 0
    save(path, **arrays())
    content = path.read_bytes()
    for place in range(60, len(content), 97):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            npz.read(path)
        except UserError as error:
            assert str(error).startswith(f"{path}: ")
            seen += "is damaged" in str(error)
    assert seen > 20


def test_what_is_no_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.npz: no such file \(data\.path\); put it there"):
        npz.read(tmp_path / "absent.npz")
    with pytest.raises(UserError, match="is a folder"):
        npz.read(tmp_path)
    np.save(tmp_path / "one.npy", np.arange(3))
    with pytest.raises(UserError, match="one array, not an .npz file"):
        npz.read(tmp_path / "one.npy")
    (tmp_path / "text.npz").write_text("x_train")
    with pytest.raises(UserError, match="no whole .npz file"):
        npz.read(tmp_path / "text.npz")
