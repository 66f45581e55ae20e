"""Published sets: fetched from a loopback server that can misbehave, and read as torchvision reads them."""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat
from torchvision import datasets

from sumnas.data import load
from sumnas.datasets import download, pickles, published
from sumnas.errors import UserError
from sumnas.preparation import DataSettings, prepare
from tests import published_fakes as fakes

ARCHIVE = "cifar-10-python.tar.gz"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses between attempts are counted, not waited for; no proxy comes between."""
    monkeypatch.setattr(download.time, "sleep", lambda _seconds: None)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def cifar(monkeypatch: pytest.MonkeyPatch) -> Iterator[fakes.Server]:
    """A mirror with a tiny CIFAR-10."""
    archive, _ = fakes.cifar(monkeypatch, datasets.CIFAR10)
    with fakes.serving({ARCHIVE: archive}) as server:
        monkeypatch.setenv(download.MIRROR, server.url)
        yield server


def settings(source: str, root: Path) -> DataSettings:
    return DataSettings.model_validate({"source": source, "path": str(root), "validation": 0.2, "seed": 0})


# Reading.


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_cifar_is_read_as_torchvision_reads_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = getattr(datasets, name)
    archive, members = fakes.cifar(monkeypatch, dataset)
    (tmp_path / dataset.filename).write_bytes(archive)
    raw = published.read(name, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [dataset.filename]  # nothing is unpacked on disk
    for member, content in members.items():
        (tmp_path / dataset.base_folder).mkdir(exist_ok=True)
        (tmp_path / dataset.base_folder / member).write_bytes(content)
    (tmp_path / dataset.filename).unlink()
    unpacked = published.read(name, tmp_path)  # torchvision's own layout will do
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the pickles name a module of NumPy 1
        expected = [dataset(tmp_path, train=train) for train in (True, False)]
    for found in (raw, unpacked):
        assert found.test is not None and found.classes == expected[0].classes
        for (images, labels), reference in zip(((found.images, found.labels), found.test), expected, strict=True):
            assert images.dtype == np.uint8 and labels.dtype == np.int64 and images.flags.c_contiguous
            assert np.array_equal(images, reference.data) and labels.tolist() == reference.targets


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_idx_files_are_read_as_torchvision_reads_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = getattr(datasets, name)
    files = fakes.mnist(monkeypatch, dataset)
    with fakes.serving(files) as server:
        monkeypatch.setenv(download.MIRROR, server.url)
        raw = published.read(name, tmp_path)
        assert fakes.tree(tmp_path) == files  # where torchvision keeps them
        monkeypatch.setattr(dataset, "mirrors", [f"{server.url}/{name}/raw/"])
        expected = [dataset(tmp_path, train=train, download=True) for train in (True, False)]
    assert raw.test is not None and raw.classes == expected[0].classes
    for (images, labels), reference in zip(((raw.images, raw.labels), raw.test), expected, strict=True):
        assert np.array_equal(images[..., 0], reference.data.numpy()) and images.shape[1:] == (28, 28, 1)
        assert labels.dtype == np.int64 and labels.tolist() == reference.targets.tolist()


def test_svhn_is_read_as_torchvision_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = {}
    for split, count in (("train", 30), ("test", 10)):
        path = tmp_path / f"{split}_32x32.mat"
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]  # 1 to 10, 10 is the digit 0
        savemat(path, {"X": fakes.RNG.integers(0, 256, (32, 32, 3, count), dtype=np.uint8), "y": labels})
        lists[split] = ["http://127.0.0.1:9/", path.name, download.md5(path)]
    monkeypatch.setattr(datasets.SVHN, "split_list", lists)
    raw = published.read("SVHN", tmp_path)
    assert raw.test is not None and raw.classes == list("0123456789")
    for split, (images, labels) in (("train", (raw.images, raw.labels)), ("test", raw.test)):
        reference = datasets.SVHN(tmp_path, split)
        assert np.array_equal(images, reference.data.transpose(0, 2, 3, 1)) and images.flags.c_contiguous
        assert np.array_equal(labels, reference.labels)


@pytest.mark.parametrize("name", ["CIFAR10", "FashionMNIST", "SVHN"])
def test_a_file_that_has_the_checksum_but_not_the_format_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / {"CIFAR10": ARCHIVE, "FashionMNIST": "FashionMNIST/raw/x.gz", "SVHN": "x.mat"}[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"nonsense " * 1000)
    checksum = download.md5(path)
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", checksum)
    monkeypatch.setattr(datasets.FashionMNIST, "resources", [("x.gz", checksum)] * 4)
    monkeypatch.setattr(datasets.SVHN, "split_list", dict.fromkeys(("train", "test"), ["", "x.mat", checksum]))
    with pytest.raises(UserError, match="no whole .*delete it and run this again"):
        published.read(name, tmp_path)


def test_the_sizes_that_are_told_are_of_files_that_there_are() -> None:
    known = {datasets.CIFAR10.filename, datasets.CIFAR100.filename}
    known |= {datasets.SVHN.split_list[split][1] for split in ("train", "test")}
    grey = {f"{d.__name__}/raw/{f}": checksum for d in (datasets.MNIST, datasets.FashionMNIST, datasets.KMNIST)
            for f, checksum in d.resources}  # fmt: skip
    known |= set(grey)
    assert set(published.SIZES) == known
    text = (Path(__file__).parents[1] / "docs/data.md").read_text()
    told = re.findall(r"^\|[^|]*\| `([^`]+)` \| ([\d,]+) \| (\w{32}) \|$", text, re.M)
    checksums = {
        datasets.CIFAR10.filename: datasets.CIFAR10.tgz_md5,
        datasets.CIFAR100.filename: datasets.CIFAR100.tgz_md5,
    }
    checksums |= {name: checksum for _, name, checksum in datasets.SVHN.split_list.values()}
    checksums |= grey
    assert {path for path, _, _ in told} == known
    for path, size, checksum in told:
        assert (published.SIZES[path], checksums[path]) == (int(size.replace(",", "")), checksum)
    assert set(published.READERS) < {*DataSettings.model_json_schema()["properties"]["source"]["enum"]}


# Pickles.


def test_a_pickle_that_names_anything_else_is_refused_and_not_run(tmp_path: Path) -> None:
    trap = b"cposix\nsystem\nT" + (len(str(tmp_path)) + 10).to_bytes(4, "little") + f"touch {tmp_path}/ran".encode()
    for content in (
        b"\x80\x02" + trap + b"\x85R.",
        b"\x80\x02}(U\x04data" + trap + b"\x85Ru.",
        b"\x80\x02cnumpy.core.multiarray\nscalar\n.",
        b"\x80\x02cnumpy\nload\nU\x01x\x85R.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.",
    ):
        with pytest.raises(ValueError, match="no pickle of plain arrays: it names "):
            pickles.read(content)
    with pytest.raises(ValueError, match="outside itself"):
        pickles.read(b"\x80\x02U\x01xQ.")
    assert not (tmp_path / "ran").exists()


def test_a_damaged_pickle_is_an_error_of_one_kind() -> None:
    whole = fakes.pickled({"data": np.arange(12, dtype=np.uint8).reshape(3, 4), "labels": [1, 2, 3]})
    found = pickles.read(whole)
    assert found["data"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]] and found["labels"] == [1, 2, 3]
    for place in range(len(whole)):
        for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 0x2A]) + whole[place + 1 :]):
            try:
                pickles.read(damaged)
            except ValueError as error:
                assert str(error).startswith(("no pickle of plain arrays: ", "a pickle of "))
    with pytest.raises(ValueError, match="not of plain bytes"):
        pickles.read(whole.replace(b"U\x02u1", b"U\x02O8"))


# Fetching.


def test_a_set_is_fetched_once(cifar: fakes.Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "raw"
    manifest = prepare(settings("CIFAR10", root), tmp_path / "prepared")
    assert manifest.counts == {"train": 80, "validation": 20, "test": 20} and manifest.source == "CIFAR10"
    assert fakes.tree(root) == cifar.files and cifar.asked == [ARCHIVE]
    assert f"fetching {ARCHIVE} (MB): 1/1" in capfd.readouterr().err
    prepare(settings("CIFAR10", root), tmp_path / "again")
    assert cifar.asked == [ARCHIVE]  # whole, and so not asked for again
    assert fakes.tree(tmp_path / "again") == fakes.tree(tmp_path / "prepared")
    assert load(tmp_path / "again").images["train"].shape == (80, 32, 32, 3)


@pytest.mark.parametrize("fault", ["truncated", 503, 429, b"another file"], ids=str)
def test_a_fault_that_passes_is_overcome(
    fault: Any, cifar: fakes.Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cifar.behaviour[ARCHIVE] = [fault, fault, "no length"]
    assert len(published.read("CIFAR10", tmp_path).images) == 100
    assert cifar.asked == [ARCHIVE] * 3 and fakes.tree(tmp_path) == cifar.files
    text = capfd.readouterr().err
    reason = {"truncated": "the transfer broke off after", 503: "the server says 503", 429: "the server says 429"}
    assert text.count(reason.get(fault, "gave another file (12 bytes, md5 ")) == 2
    assert "trying again in 1 s" in text and "trying again in 3 s" in text


@pytest.mark.parametrize(
    ("fault", "attempts", "reason"),
    [
        ("truncated", 4, r"the transfer broke off after [\d,]+ of [\d,]+ bytes"),
        (b"a page that asks for a login", 4, r"gave another file \(28 bytes, md5 \w{32}, not \w{32}\)"),
        (404, 1, "the server says 404 Not Found"),
        (403, 1, "the server says 403"),
        (500, 4, "the server says 500"),
    ],
    ids=str,
)
def test_a_fault_that_stays_is_told_in_one_line(
    fault: Any, attempts: int, reason: str, cifar: fakes.Server, tmp_path: Path
) -> None:
    cifar.behaviour[ARCHIVE] = [fault]
    with pytest.raises(UserError, match=reason) as error:
        prepare(settings("CIFAR10", tmp_path / "raw"), tmp_path / "prepared")
    assert_tells_what_to_do(str(error.value), tmp_path / "raw")
    assert len(cifar.asked) == attempts
    assert fakes.tree(tmp_path) == {}  # no part of a file, no prepared data


def assert_tells_what_to_do(text: str, root: Path) -> None:
    """One line with the official address, the size, the checksum and the place."""
    assert "\n" not in text
    url, checksum = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", datasets.CIFAR10.tgz_md5
    assert f"put {url} (170,498,071 bytes, md5 {checksum}) at {root / ARCHIVE}" in text
    assert "or set SUMNAS_DATA_URL to a mirror" in text


def test_without_a_network_each_missing_file_has_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = fakes.mnist(monkeypatch, datasets.FashionMNIST)
    with fakes.serving(files) as server:
        monkeypatch.setenv(download.MIRROR, server.url)  # nobody is there once it has ended
    present, *missing = files
    (tmp_path / present).parent.mkdir(parents=True)
    (tmp_path / present).write_bytes(files[present])
    with pytest.raises(UserError, match="no connection .*refused") as error:
        published.read("FashionMNIST", tmp_path)
    for path, line in zip(missing, str(error.value).splitlines(), strict=True):
        assert f"{Path(path).name} (" in line and f"md5 {fakes.md5(files[path])}) at {tmp_path / path}" in line
    for path, content in files.items():
        (tmp_path / path).write_bytes(content)
    assert len(published.read("FashionMNIST", tmp_path).images) == 40  # all there: nobody is asked


def test_a_damaged_file_is_replaced_but_only_by_a_whole_one(
    cifar: fakes.Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ARCHIVE).write_bytes(cifar.files[ARCHIVE][:-100])
    cifar.behaviour[ARCHIVE] = [404]
    with pytest.raises(UserError, match="the server says 404"):
        published.read("CIFAR10", tmp_path)
    assert f"{tmp_path / ARCHIVE}: not the published file" in capfd.readouterr().err
    assert (tmp_path / ARCHIVE).read_bytes() == cifar.files[ARCHIVE][:-100]
    cifar.behaviour.clear()
    assert len(published.read("CIFAR10", tmp_path).images) == 100
    assert fakes.tree(tmp_path) == cifar.files


def test_what_a_killed_download_left_is_cleared(cifar: fakes.Server, tmp_path: Path) -> None:
    old, new = (tmp_path / f".{ARCHIVE}.{name}.part" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 90_000,) * 2)
    published.read("CIFAR10", tmp_path)
    assert not old.exists() and new.exists()  # the other may be another process's


def test_the_second_official_address_is_asked_where_the_first_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = fakes.mnist(monkeypatch, datasets.MNIST)
    with fakes.serving(files) as server:
        mirrors = [f"{server.url}/gone/", f"{server.url}/MNIST/raw/"]
        monkeypatch.setattr(datasets.MNIST, "mirrors", mirrors)
        monkeypatch.delenv(download.MIRROR, raising=False)
        assert len(published.read("MNIST", tmp_path).images) == 40
        assert len(server.asked) == 8 and fakes.tree(tmp_path) == files


@pytest.mark.parametrize("address", ["file:///etc", "data/raw", "ftp://127.0.0.1/"])
def test_a_mirror_is_a_web_address(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(download.MIRROR, address)
    with pytest.raises(UserError, match=f"SUMNAS_DATA_URL = {address}: must start with http"):
        published.read("CIFAR10", tmp_path)
