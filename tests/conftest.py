"""What several test modules share: a small space, the digits, and the public data beside the repository."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch

from sumnas.data import Prepared, load
from sumnas.preparation import DataSettings, prepare
from sumnas.spaces import nasbench201
from sumnas.spaces.nasbench201 import NASBench201

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # hundreds of processes would each compile this package anew
os.environ["SUMNAS_TRACKING"] = "off"  # of stages that tests start; test_tracking.py switches it on
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny operators on several threads of a busy machine take twenty times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_space() -> NASBench201:
    """The smallest NAS-Bench-201 networks that take the digits."""
    settings = nasbench201.Settings(
        name="nasbench201", channels=4, cells=1, image_size=8, image_channels=1, classes=10, affine=True
    )
    return nasbench201.build(settings)


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as `prepare` writes them; to be copied by a test that damages them."""
    folder = tmp_path_factory.mktemp("digits")
    prepare(DataSettings(source="digits", validation=0.2, test=0.3, seed=0), folder)
    return folder


@pytest.fixture(scope="session")
def digits(digits_folder: Path) -> Prepared:
    """The digits in memory; no test may change them."""
    return load(digits_folder)


@pytest.fixture(scope="session")
def fresh_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database with an empty experiment, to be copied: making one takes seconds, and is done once for all."""
    several = "PYTEST_XDIST_WORKER" in os.environ  # whose folders lie beside each other in that of the session
    folder = tmp_path_factory.getbasetemp().parent / "fresh" if several else tmp_path_factory.mktemp("fresh")
    with filelock.FileLock(f"{folder}.lock"):
        if not (folder / "made").exists():  # what a worker that was killed left there is made again
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make_store(folder)
            (folder / "made").touch()
    return folder / "mlflow.db"


def make_store(folder: Path) -> None:
    """Make MLflow's database there."""
    from sumnas.tracking.store import Store

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        Store(folder)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits 0 to 2 as pictures of several sizes, kinds and colours: 45 to train, 9 to test; no test may change it."""
    from PIL import Image
    from sklearn.datasets import load_digits

    root, found = tmp_path_factory.mktemp("pictures"), load_digits()
    rng = np.random.default_rng(0)
    for label, name in enumerate(("ant", "bee", "cat")):
        images = found.images[found.target == label][:18]
        for number, image in enumerate(images):
            colour = (image[..., None] / 16 * rng.integers(100, 256, 3)).astype(np.uint8)
            picture = Image.fromarray(colour).resize((10 + number % 3 * 4, 10 + number % 4 * 3))
            path = root / ("test" if number >= 15 else "train") / name / f"{number:02}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if number % 5 == 0:
                picture.save(path.with_suffix((".jpg", ".JPEG")[number % 2]), "JPEG", quality=90)
            elif number % 5 == 1:
                picture.convert(("L", "P", "RGBA")[label]).save(path.with_suffix(".png"))
            else:
                picture.save(path.with_suffix(".png"))
    return root


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public benchmark data, <root>/../shared/data."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the public benchmark data in {SHARED_DATA}")
    return SHARED_DATA
