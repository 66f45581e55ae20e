"""NAS-Bench-201's .pth file: a small one in the official structure, since the official one is too large to be here."""

from __future__ import annotations

import bz2
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sumnas.benchmark import nasbench201_pth, nats, pickles
from sumnas.benchmark.settings import SETS, OfficialSettings
from sumnas.errors import UserError
from tests.official_files import SPACE, last, state, strings

INDICES = [0, 3, 15624]


def settings(path: Path, **changes: Any) -> OfficialSettings:
    return OfficialSettings.model_validate({"path": str(path), "incomplete": "accept", **changes})


def save(value: object, path: Path) -> None:
    """Save as the official file was: by an old torch, and with the names of an old numpy."""
    torch.save(value, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"numpy._core", b"numpy.core"))


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """What `exps/NAS-Bench-201/statistics.py` of the publisher saves: one to three seeds, 12 epochs of one data set."""
    names = strings()
    infos = {
        i: {
            "full": state(names[i], i, 200, (777, 888, 999)[: 1 + i % 3]),
            "less": state(names[i], i, 12, (777,), ("cifar10-valid",)),
        }
        for i in INDICES
    }
    return {"meta_archs": names, "total_archs": len(names), "arch2infos": infos, "evaluated_indexes": INDICES}


@pytest.fixture(scope="module")
def pristine(whole: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pth") / "NAS-Bench-201-v1_0-e61699.pth"
    save(whole, path)
    assert b"numpy.core.multiarray\nscalar" in path.read_bytes()
    return path


def test_every_split_of_every_data_set(pristine: Path, whole: dict[str, Any]) -> None:
    for dataset, split in SETS:
        found = nasbench201_pth.read(settings(pristine, dataset=dataset, split=split), SPACE)
        expected = {
            SPACE.decode(whole["meta_archs"][i]): last(whole["arch2infos"][i]["full"], dataset, SETS[dataset, split])
            for i in INDICES
        }
        assert found.accuracies == expected and list(found.accuracies) == list(expected)
        assert list(found.indices) == INDICES and len(found.absent) == 15622


def test_real_records_give_the_same_in_either_format(shared_data: Path, tmp_path: Path) -> None:
    folder, infos = shared_data / "NATS-tss-v1_0-3ffb9-simple", {}
    for index in (0, 11):
        packed = (folder / f"{index:06d}.pickle.pbz2").read_bytes()
        record = pickles.load(bz2.decompress(packed), "record")
        infos[index] = {"full": record["200"], "less": record["12"]}
    meta = pickles.load(bz2.decompress((folder / "meta.pickle.pbz2").read_bytes()), "meta")
    save({"meta_archs": meta["meta_archs"], "arch2infos": infos}, tmp_path / "real.pth")
    for epochs in (12, 200):
        ours = nasbench201_pth.read(settings(tmp_path / "real.pth", epochs=epochs), SPACE)
        assert ours == nats.read(settings(folder, epochs=epochs), SPACE)


def test_twelve_epochs(pristine: Path, whole: dict[str, Any]) -> None:
    """File v1_0 has them for CIFAR-10 without its validation images only."""
    seen: list[tuple[int, int]] = []
    chosen = settings(pristine, dataset="cifar10-valid", split="test", epochs=12)
    found = nasbench201_pth.read(chosen, SPACE, lambda *done: seen.append(done))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for index, architecture in found.indices.items():
        assert found.accuracies[architecture] == last(whole["arch2infos"][index]["less"], "cifar10-valid", "ori-test")
    with pytest.raises(UserError, match="architecture 0: no result of cifar10 after 12 epochs; it has cifar10-valid$"):
        nasbench201_pth.read(settings(pristine, epochs=12), SPACE)


def test_the_new_format_of_torch_is_read_too(pristine: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    torch.save(whole, tmp_path / "new.pth")
    assert nasbench201_pth.read(settings(tmp_path / "new.pth"), SPACE) == nasbench201_pth.read(
        settings(pristine), SPACE
    )


def test_too_little_memory_is_said_before_the_file_is_read(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       99999999 kB\nMemFree:    1 kB\nMemAvailable:   2000000 kB\n")
    none = tmp_path / "absent"
    assert nasbench201_pth.available_memory(meminfo, none, none) == 2_048_000_000
    assert nasbench201_pth.available_memory(none, none, none) is None
    here = nasbench201_pth.available_memory()
    assert here is not None and 0 < here <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    large = tmp_path / "large.pth"
    with large.open("wb") as file:
        file.truncate(4_700_000_000)  # a hole: the size of the official file v1_1
    monkeypatch.setattr(nasbench201_pth, "available_memory", lambda: 16_000_000_000)
    message = r"large\.pth: takes about 40\.0 GB of memory to read, 16\.0 GB are free; use NATS-Bench's files"
    with pytest.raises(UserError, match=message):
        nasbench201_pth.read(settings(large), SPACE)


MEMBERSHIPS = {
    # What a process is told of its groups, files under /sys/fs/cgroup, and what is free of 2,048,000,000 bytes.
    "version 2": ("0::/job/step\n", {"memory.max": "max", "job/memory.max": "900", "job/step/memory.max": "max"}, 900),
    "a container": ("0::/of/the/host\n", {"memory.max": "700\n"}, 700),
    "no limit": ("0::/\n", {"memory.max": "max\n"}, 2_048_000_000),
    "a limit above what is free": ("0::/\n", {"memory.max": f"{1 << 40}\n"}, 2_048_000_000),
    "version 1": (
        "9:cpu,cpuacct:/cpu\n8:memory:/slurm/job\n",
        {"memory/memory.limit_in_bytes": "9223372036854771712", "memory/slurm/memory.limit_in_bytes": "800",
         "memory/cpu/memory.limit_in_bytes": "1"}, 800,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MEMBERSHIPS)
def test_a_limit_of_the_job_or_container_counts(name: str, tmp_path: Path) -> None:
    membership, limits, expected = MEMBERSHIPS[name]
    (tmp_path / "meminfo").write_text("MemAvailable:   2000000 kB\n")
    (tmp_path / "cgroup").write_text(membership)
    for file, text in limits.items():
        (tmp_path / "fs" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / file).write_text(text)
    where = (tmp_path / "meminfo", tmp_path / "cgroup", tmp_path / "fs")
    assert nasbench201_pth.available_memory(*where) == expected


class Call:
    """An object whose pickle runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("new", [False, True])
def test_code_is_refused_and_does_not_run(new: bool, tmp_path: Path, whole: dict[str, Any]) -> None:
    path, marker = tmp_path / "bad.pth", tmp_path / "marker"
    torch.save({**whole, "basestr": Call(f"touch {marker}")}, path, _use_new_zipfile_serialization=new)
    torch.load(path, weights_only=False)
    assert marker.exists(), "the payload itself does nothing: this test could not fail"
    marker.unlink()
    with pytest.raises(UserError, match=r"bad\.pth: refused: the class or function 'posix\.system'; no official") as e:
        nasbench201_pth.read(settings(path), SPACE)
    assert not marker.exists() and "\n" not in str(e.value)


def test_objects_of_numpy_are_refused(tmp_path: Path) -> None:
    import numpy as np

    save({"meta_archs": np.array([None], dtype=object)[:1].dtype}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match=r"bad\.pth: refused: numpy\.dtype of 'O8'"):
        nasbench201_pth.read(settings(tmp_path / "bad.pth"), SPACE)


def test_what_is_no_such_file_is_named(pristine: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "given.pth"
    with pytest.raises(UserError, match=r"given\.pth: no such file; docs/benchmarks\.md"):
        nasbench201_pth.read(settings(path), SPACE)
    for length in (0, 10, 5000, pristine.stat().st_size // 2):
        path.write_bytes(pristine.read_bytes()[:length])
        with pytest.raises(UserError, match=r"given\.pth: damaged, or no \.pth file"):
            nasbench201_pth.read(settings(path), SPACE)
    infos = whole["arch2infos"]
    for value, message in (
        ([1], "no meta_archs in it"),
        ({"meta_archs": whole["meta_archs"]}, "no arch2infos in it"),
        ({**whole, "meta_archs": whole["meta_archs"][1:]}, "not a list of 15625"),
        ({**whole, "arch2infos": [1]}, "arch2infos is not a dict of dicts"),
        ({**whole, "arch2infos": {}}, "holds no architecture at all"),
        ({**whole, "arch2infos": {0: {"less": {}}}}, r"architecture 0: no results after 200 epochs \('full'\)"),
        ({**whole, "arch2infos": {0: infos[3]}}, "architecture 0: of another architecture than the index says"),
    ):
        save(value, path)
        with pytest.raises(UserError, match=rf"given\.pth: .*{message}"):
            nasbench201_pth.read(settings(path), SPACE)
    shutil.copy(pristine, path)
    with pytest.raises(UserError, match="15622 of 15625 architectures are absent"):
        nasbench201_pth.read(settings(path, incomplete="error"), SPACE)
