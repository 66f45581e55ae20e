"""The cost of the preset for ImageNet: the committed files and the page, and speeds by the clock."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import imagenet_cost
from sumnas import estimate, files, params
from sumnas.streaming import ImageFiles
from workflow.readme import replaced

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / imagenet_cost.OUT).glob("imagenet_cost-*.json"))


def test_the_page_holds_what_the_committed_files_say() -> None:
    text = imagenet_cost.PAGE.read_text(encoding="utf-8")
    assert replaced(text, "imagenet-cost", imagenet_cost.block(ROOT)) == text
    assert "**estimate**" in text.partition("<!-- results: imagenet-cost -->")[0].rpartition("\n\n")[0][-900:]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_files_are_of_the_preset_as_it_is(path: Path) -> None:
    """Images counted anew, and hours that are these over the speeds, to the two digits that an estimate has."""
    found, settings = files.read_json(path), params.load(ROOT / f"presets/{imagenet_cost.PRESET}.yaml")
    items = estimate.images(settings, estimate.splits(settings.data, **imagenet_cost.IMAGES))
    assert [(s["stage"], s["of"], s["images_million"]) for s in found["stages"]] == [
        (item.stage, item.of, item.images / 1e6) for item in items
    ]
    for item, stage in zip(items, found["stages"], strict=True):
        hours = item.images / found["images_per_second"][item.way] / 3600
        assert stage["hours"] == pytest.approx(hours, rel=0.06)
    assert found["estimate"] is True


def test_a_loaded_machine_is_told(tmp_path: Path) -> None:
    assert FILES
    found = files.read_json(FILES[0])
    target = tmp_path / imagenet_cost.OUT / "imagenet_cost-cpu.json"
    files.write_json(target, {**found, "idle": False, "load": 7.5, "cpus": 2})
    assert "**Measured beside other work** (load 7.5 on 2 processors)" in imagenet_cost.block(tmp_path)
    files.write_json(target, {**found, "idle": True})
    files.write_json(target.with_name("imagenet_cost-cuda.json"), {**found, "idle": True, "device": "a GPU"})
    text = imagenet_cost.block(tmp_path)
    assert "beside other work" not in text and f"| hours of {found['device']} | hours of a GPU |" in text
    assert len(text.splitlines()[2].split("|")) == 8


def test_photographs_are_counted_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def stream(self: ImageFiles, keys: Any, augmentation: Any) -> Any:
        for key in keys:
            time.sleep(0.01)
            seen.append((augmentation, self.shape))
            yield key

    monkeypatch.setattr(ImageFiles, "stream", stream)
    settings = params.load(ROOT / f"presets/{imagenet_cost.PRESET}.yaml")
    found = imagenet_cost.decoding(settings, 0.2)
    assert set(found) == {"supernet", "retrain"} and all(5 < rate <= 100 for rate in found.values())
    assert {augmentation for augmentation, _ in seen} == {
        settings.supernet.augmentation, settings.retrain.recipe.augmentation,
    }  # fmt: skip
    assert {shape for _, shape in seen} == {(2, 224, 224, 3)}  # two photographs
