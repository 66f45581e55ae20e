"""NATS-Bench's official files: against the official program, against published numbers, and what is refused."""

from __future__ import annotations

import bz2
import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sumnas import files
from sumnas.benchmark import nats
from sumnas.benchmark.official import Imported
from sumnas.benchmark.settings import SETS, BenchmarkSettings, OfficialSettings
from sumnas.errors import UserError
from sumnas.params import Params
from tests import official_files
from tests.official_files import SPACE, last, pack, write_nats
from workflow import build_benchmark
from workflow.stage import Job
from workflow.stages import STAGES, TABLE

REAL = "NATS-tss-v1_0-3ffb9-simple"
OFFICIAL = {"train": "train", "validation": "valid", "test": "test", "validation_and_test": "valtest"}
"""What `get_more_info` calls the splits."""
INDICES = [0, 3, 4, 15624]


def settings(path: Path, **changes: Any) -> OfficialSettings:
    return OfficialSettings.model_validate({"path": str(path), "incomplete": "accept", **changes})


@pytest.fixture(scope="module")
def strings() -> list[str]:
    return official_files.strings()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, strings: list[str]) -> tuple[Path, dict[int, Any]]:
    """A folder that no test may change, and what is in it."""
    folder = tmp_path_factory.mktemp("nats") / "simple"
    return folder, write_nats(folder, strings, INDICES)


@pytest.fixture
def folder(pristine: tuple[Path, dict[int, Any]], tmp_path: Path) -> Path:
    """A copy of it to damage."""
    copy = tmp_path / "simple"
    copy.mkdir()
    for path in pristine[0].iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


@pytest.mark.parametrize(("dataset", "split"), SETS)
def test_every_split_of_every_data_set(
    dataset: str, split: str, pristine: tuple[Path, dict[int, Any]], strings: list[str]
) -> None:
    path, records = pristine
    epochs = 12 if split == "train" else 200
    seen: list[tuple[int, int]] = []
    chosen = settings(path, dataset=dataset, split=split, epochs=epochs)
    found = nats.read(chosen, SPACE, lambda *done: seen.append(done))
    expected = {SPACE.decode(strings[i]): last(records[i][str(epochs)], dataset, SETS[dataset, split]) for i in INDICES}
    assert found.accuracies == expected and list(found.accuracies) == list(expected)
    assert found.indices == {i: SPACE.decode(strings[i]) for i in INDICES}
    assert seen == [(done, 4) for done in range(1, 5)]
    assert found.absence() == "15621 of 15625 architectures are absent (000001, 000002, 000005, 000006, 000007, ...)"


@pytest.fixture(scope="module")
def official(shared_data: Path) -> Any:
    """The official program on two real records."""
    from nats_bench import create

    return create(str(shared_data / REAL), "tss", fast_mode=True, verbose=False)


@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")
@pytest.mark.parametrize(("dataset", "split"), SETS)
def test_the_official_program_reads_the_same(dataset: str, split: str, official: Any, shared_data: Path) -> None:
    for epochs in (12, 200):
        found = nats.read(settings(shared_data / REAL, dataset=dataset, split=split, epochs=epochs), SPACE)
        assert list(found.indices) == [0, 11]
        for index, architecture in found.indices.items():
            assert official.arch(index) == SPACE.encode(architecture)
            ours, key = found.accuracies[architecture], f"{OFFICIAL[split]}-accuracy"
            mean = official.get_more_info(index, dataset, hp=str(epochs), is_random=False)[key]
            assert sum(ours.values()) / len(ours) == pytest.approx(mean, rel=1e-14)
            for seed, accuracy in ours.items():
                assert official.get_more_info(index, dataset, hp=str(epochs), is_random=int(seed))[key] == accuracy


def test_the_published_table_has_the_same_means(shared_data: Path) -> None:
    columns = {
        ("cifar10", "test", 200): "cifar10_test_acc",
        ("cifar10", "test", 12): "cifar10_test_acc_12ep",
        ("cifar10-valid", "validation", 200): "cifar10_valid_acc",
        ("cifar10-valid", "test", 200): "cifar10_test_acc_trained_on_25k",
        ("cifar100", "test", 200): "cifar100_test_acc",
        ("ImageNet16-120", "validation", 200): "imagenet16_valid_acc",
    }
    rows = files.read_csv(shared_data / "nasbench201.csv")
    for (dataset, split, epochs), column in columns.items():
        found = nats.read(settings(shared_data / REAL, dataset=dataset, split=split, epochs=epochs), SPACE)
        for index, architecture in found.indices.items():
            assert rows[index]["arch"] == SPACE.encode(architecture)
            ours = list(found.accuracies[architecture].values())
            assert float(rows[index][column]) == pytest.approx(sum(ours) / len(ours), abs=6e-5), (column, index)


def write_tar(path: Path, folder: Path, change: Callable[[tarfile.TarInfo], None] = lambda _member: None) -> None:
    """Pack a folder as the official archive is packed, in an order that helps nobody."""
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("NATS-tss-v1_0-3ffb9-simple/notes.txt"))
        for file in sorted(folder.iterdir()):
            member = tarfile.TarInfo(f"NATS-tss-v1_0-3ffb9-simple/{file.name}")
            member.size = file.stat().st_size
            change(member)
            tar.addfile(member, io.BytesIO(file.read_bytes()) if member.size else None)


def test_the_archive_is_read_without_unpacking(pristine: tuple[Path, dict[int, Any]], tmp_path: Path) -> None:
    archive = tmp_path / "simple.tar"
    write_tar(archive, pristine[0])
    assert nats.read(settings(archive), SPACE) == nats.read(settings(pristine[0]), SPACE)
    assert [path.name for path in tmp_path.iterdir()] == ["simple.tar"]


def test_a_path_of_the_folder_finds_the_archive(folder: Path, pristine: tuple[Path, dict[int, Any]]) -> None:
    archive = folder.with_name("simple.tar")
    write_tar(archive, pristine[0])
    (folder / RECORD).write_bytes(b"x")
    with pytest.raises(UserError, match=rf"simple: {RECORD}: "):  # the folder goes first
        nats.read(settings(folder), SPACE)
    shutil.rmtree(folder)
    assert nats.read(settings(folder), SPACE) == nats.read(settings(pristine[0]), SPACE)
    archive.write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"simple\.tar: no whole \.tar file"):
        nats.read(settings(folder), SPACE)


def test_a_link_in_an_archive_is_no_record(pristine: tuple[Path, dict[int, Any]], tmp_path: Path) -> None:
    def link(member: tarfile.TarInfo) -> None:
        if member.name.endswith("000003.pickle.pbz2"):
            member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/passwd", 0

    write_tar(tmp_path / "simple.tar", pristine[0], link)
    assert list(nats.read(settings(tmp_path / "simple.tar"), SPACE).indices) == [0, 4, 15624]


def test_a_cut_archive_is_named(pristine: tuple[Path, dict[int, Any]], tmp_path: Path) -> None:
    archive = tmp_path / "simple.tar"
    write_tar(archive, pristine[0])
    archive.write_bytes(archive.read_bytes()[:-30_000])
    with pytest.raises(UserError, match=r"simple\.tar: no whole \.tar file \(.*end of data.*\); get it again"):
        nats.read(settings(archive), SPACE)
    archive.write_bytes(b"no archive")
    with pytest.raises(UserError, match=r"simple\.tar: no whole \.tar file"):
        nats.read(settings(archive), SPACE)


def test_absent_architectures_are_an_error_unless_accepted(folder: Path) -> None:
    with pytest.raises(UserError, match=r"15621 of 15625 architectures are absent .* accept that with incomplete"):
        nats.read(settings(folder, incomplete="error"), SPACE)


def test_the_stage_writes_the_table_and_says_what_is_absent(
    folder: Path, pristine: tuple[Path, dict[int, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    block = {"source": "nats", "nats": {"path": str(folder), "incomplete": "accept"}}
    params = Params({"benchmark": BenchmarkSettings.model_validate(block), "space": SPACE.settings, "shards": [0]})
    closing = build_benchmark.main(Job(STAGES["build_benchmark"], params, {}))
    assert closing.startswith("4 architectures, best accuracy ")
    assert "15621 of 15625 architectures are absent (000001, " in closing
    rows = files.read_csv(tmp_path / TABLE)
    assert [row["seeds"] for row in rows] == ["2", "3", "2", "2"]
    truth = last(pristine[1][3]["200"], "cifar10", "ori-test")
    assert float(rows[1]["accuracy"]) == pytest.approx(sum(truth.values()) / 3, rel=1e-14)
    assert {k: float(rows[1][f"accuracy_seed_{k}"]) for k in truth} == truth


def other_record(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Write record 3 anew with a change in its part of 200 epochs."""

    def damage(folder: Path) -> None:
        made = official_files.record(official_files.strings()[3], 3)
        change(made["200"])
        (folder / "000003.pickle.pbz2").write_bytes(pack(made))

    return damage


def replace(name: str, value: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(value if isinstance(value, bytes) else pack(value))


RECORD, META = "000003.pickle.pbz2", "meta.pickle.pbz2"
RESULT = ("cifar10", 777)
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut off": (lambda f: (f / RECORD).write_bytes((f / RECORD).read_bytes()[:-50]), f"{RECORD}: cut off"),
    "empty": (replace(RECORD, b""), f"{RECORD}: cut off"),
    "no bzip2": (replace(RECORD, b"x" * 99), f"{RECORD}: damaged bzip2 data"),
    "no pickle": (replace(RECORD, bz2.compress(b"hello")), f"{RECORD}: .*get it again"),
    "a list": (replace(RECORD, [1]), f"{RECORD}: no results after 200 epochs"),
    "other hyper-parameters": (replace(RECORD, {"90": {}}), f"{RECORD}: no results after 200 epochs"),
    "an empty state": (replace(RECORD, {"200": {}}), f"{RECORD}: lacks 'arch_str'"),
    "another architecture": (
        lambda f: (f / RECORD).write_bytes((f / "000004.pickle.pbz2").read_bytes()),
        rf"{RECORD}: of another architecture than the index says; it should be \|",
    ),
    "not this data set": (
        other_record(lambda s: s["dataset_seed"].pop("cifar10")),
        f"{RECORD}: no result of cifar10 after 200 epochs; it has cifar10-valid, cifar100",
    ),
    "a seed without result": (
        other_record(lambda s: s["all_results"].pop(RESULT)),
        rf"{RECORD}: lacks \('cifar10', 777\)",
    ),
    "not trained to the end": (
        other_record(lambda s: s["all_results"][RESULT]["eval_acc1es"].pop("ori-test@199")),
        f"{RECORD}: lacks 'ori-test@199'",
    ),
    "fewer epochs": (
        other_record(lambda s: s["all_results"][RESULT].update(epochs=90)),
        f"{RECORD}: no record of this benchmark .*another number of epochs than 200",
    ),
    "not in percent": (
        other_record(lambda s: s["all_results"][RESULT]["eval_acc1es"].update({"ori-test@199": 100.5})),
        f"{RECORD}: accuracy 100.5 of seed 777 is not in percent",
    ),
    "not a number": (
        other_record(lambda s: s["all_results"][RESULT]["eval_acc1es"].update({"ori-test@199": None})),
        f"{RECORD}: no record of this benchmark",
    ),
    "no meta file": (lambda f: (f / META).unlink(), f"no {META} in it"),
    "meta of fewer": (replace(META, {"meta_archs": ["|none~0|"]}), f"{META}: meta_archs is not a list of 15625"),
    "meta is a list": (replace(META, []), f"{META}: meta_archs is not a list of 15625"),
    "meta of another space": (replace(META, {"meta_archs": ["|x~0|"] * 15625}), f"{META}: meta_archs: .* has 1 edges"),
    "meta with one twice": (
        lambda f: replace(META, {"meta_archs": [official_files.strings()[0]] * 15625})(f),
        f"{META}: meta_archs has an architecture twice",
    ),
    "no records": (lambda f: [p.unlink() for p in f.glob("0*")], "holds no architecture at all"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_named(name: str, folder: Path) -> None:
    damage, message = DAMAGES[name]
    damage(folder)
    with pytest.raises(UserError, match=message) as error:
        nats.read(settings(folder), SPACE)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_nothing_is_there(tmp_path: Path) -> None:
    message = r"absent: no such folder or \.tar file \(nor a file absent\.tar\); docs/benchmarks\.md"
    with pytest.raises(UserError, match=message):
        nats.read(settings(tmp_path / "absent"), SPACE)
    with pytest.raises(UserError, match=r"absent\.tar: no such folder or \.tar file; docs/benchmarks\.md"):
        nats.read(settings(tmp_path / "absent.tar"), SPACE)


def test_a_file_that_is_too_large_is_refused_before_it_fills_the_memory(folder: Path) -> None:
    (folder / RECORD).write_bytes(bz2.compress(bytes(64 << 20)))
    with pytest.raises(UserError, match=rf"{RECORD}: refused: unpacks to more than 2 MB"):
        nats.read(settings(folder), SPACE)
    with (folder / RECORD).open("wb") as file:
        file.truncate(1 << 40)  # a hole: it takes no room on the disk
    with pytest.raises(UserError, match=f"{RECORD}: refused: 1099512 MB packed"):
        nats.read(settings(folder), SPACE)


def test_a_few_absent_are_all_named() -> None:
    imported = Imported(indices={i: () for i in range(3)}, absent=[7, 11])
    assert imported.absence() == "2 of 5 architectures are absent (000007, 000011)"


@pytest.mark.parametrize(
    ("dataset", "split", "message"),
    [
        ("cifar10", "validation", r"no split 'validation'; there are train, test \(cifar10-valid has"),
        ("cifar10-valid", "validation_and_test", "there are train, validation, test"),
    ],
)
def test_a_split_that_does_not_exist_is_refused(dataset: str, split: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(Path("x"), dataset=dataset, split=split)
