"""Result files: read back as written, whole or not at all, the same bytes again; damage is named."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import math
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sumnas import files
from sumnas.errors import UserError


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Round trips.


def test_text_and_json_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.json"  # made on the way
    value = {"b": [1, 2.5, None, True], "a": {"τ": "ümläut\n"}, "tenth": 0.1}
    files.write_json(path, value)
    assert files.read_json(path) == value == json.loads(path.read_text(encoding="utf-8"))
    other = tmp_path / "b.json"
    files.write_json(other, dict(reversed(value.items())))  # another order of keys
    assert other.read_bytes() == path.read_bytes()
    files.write_text(path, "Zürich\n")
    assert path.read_bytes() == "Zürich\n".encode()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_what_is_no_number(tmp_path: Path, value: float) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, 1)
    with pytest.raises(ValueError):
        files.write_json(path, {"loss": value})
    assert files.read_json(path) == 1 and leftovers(tmp_path) == ["a.json"]


def test_csv_comes_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    generator = np.random.default_rng(0)
    values = [0.1, 1 / 3, 1e-300, 94.373, math.pi, *generator.normal(size=50).tolist()]
    rows = [{"name": f'a,"{i}"\nb', "value": n, "numpy": np.float64(n), "n": i} for i, n in enumerate(values)]
    files.write_csv(path, ["n", "name", "value", "numpy"], rows)
    found = files.read_csv(path, ["value", "n"])
    assert len(found) == len(rows) and list(found[0]) == ["n", "name", "value", "numpy"]
    for row, back in zip(rows, found, strict=True):
        assert (int(back["n"]), back["name"]) == (row["n"], row["name"])
        assert float(back["value"]) == float(back["numpy"]) == row["value"]
    # The bytes are those of the plain csv module, with unix line ends and a checksum behind every line.
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["n", "name", "value", "numpy"])
    writer.writerows([row["n"], row["name"], row["value"], row["value"]] for row in rows)
    assert re.sub(",(crc32|[0-9a-f]{8})\n", "\n", path.read_text(encoding="utf-8")) == text.getvalue()


def test_csv_refuses_columns_that_the_header_lacks(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    with pytest.raises(ValueError, match="extra"):
        files.write_csv(path, ["a"], [{"a": 1}, {"a": 2, "extra": 3}])
    assert leftovers(tmp_path) == []


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    last = torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last)
    return {
        "weights": torch.nn.Parameter(torch.randn(4, 3, generator=generator)),
        "channels_last": last,
        "view": torch.arange(20).view(4, 5)[:, 1:3],
        "count": torch.tensor(7),
        "bytes": torch.arange(6, dtype=torch.uint8),
        "double": torch.randn(3, generator=generator, dtype=torch.float64),
        "empty": torch.empty(0, 3),
    }


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    path, tensors = tmp_path / "a.safetensors", some_tensors()
    metadata = {"seed": 3, "space": {"name": "nasbench201", "affine": True}, "rate": 0.1, "none": None}
    files.write_tensors(path, tensors, metadata)
    found, described = files.read_tensors(path)
    assert described == metadata
    for back in (found, load_file(path)):  # and any other reader of safetensors
        assert back.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name
            assert not back[name].requires_grad


def test_tensors_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    metadata = {f"key{i}": i for i in range(12)}
    written = set()
    for turn in range(20):
        # Neither the order of the keys nor where tensors lie in memory may show.
        tensors, described = list(some_tensors().items()), list(metadata.items())
        if turn % 2:
            tensors.reverse()
            described.reverse()
        path = tmp_path / f"{turn}.safetensors"
        files.write_tensors(path, dict(tensors), dict(described))
        written.add(path.read_bytes())
    assert len(written) == 1


def test_tensors_without_metadata_of_ours(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "plain.safetensors")
    tensors, metadata = files.read_tensors(tmp_path / "plain.safetensors")
    assert metadata == {} and torch.equal(tensors["a"], torch.ones(2))


def test_digests(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc" * 100000)
    assert files.sha256(path) == hashlib.sha256(b"abc" * 100000).hexdigest()
    one = files.digest({"a": 1, "b": [1, 2], "c": {"d": None, "e": 0.1}})
    assert one == files.digest({"c": {"e": 0.1, "d": None}, "b": [1, 2], "a": 1})
    assert one != files.digest({"a": 1, "b": [2, 1], "c": {"d": None, "e": 0.1}})
    assert len(one) == 64


# Whole or not at all.


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("before", [None, "old"])
def test_an_error_leaves_the_old_file(tmp_path: Path, before: str | None, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    if before is not None:
        path.write_text(before)
    with pytest.raises(error), files.replacing(path) as part:
        part.write_text("half of the n")
        raise error
    assert leftovers(tmp_path) == ([] if before is None else ["a.txt"])
    assert before is None or path.read_text() == before


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with files.replacing(path) as part:
        assert part.parent == tmp_path and part.suffix == ".part"  # one folder, or the move would be a copy
        part.write_text("half")
        assert path.read_text() == "old"
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and leftovers(tmp_path) == ["a.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_two_writers_at_once_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with files.replacing(path) as outer, files.replacing(path) as inner:
        assert outer != inner
        inner.write_text("inner")
        outer.write_text("outer")
    assert path.read_text() == "outer" and leftovers(tmp_path) == ["a.txt"]


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "a.json": lambda path, turn: files.write_json(path, [turn] * 5000),
    "a.csv": lambda path, turn: files.write_csv(path, ["turn"], [{"turn": turn}] * 5000),
    "a.safetensors": lambda path, turn: files.write_tensors(path, {"a": torch.full((20_000,), turn)}, {}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_reader_at_any_moment_sees_one_whole_file(tmp_path: Path, name: str) -> None:
    path, write, seen = tmp_path / name, WRITERS[name], set()
    for turn in (0, 1):
        write(path, turn)
        seen.add(path.read_bytes())
    writer = threading.Thread(target=lambda: [write(path, turn % 2) for turn in range(40)])
    writer.start()
    read = [path.read_bytes()]
    while writer.is_alive():
        read.append(path.read_bytes())
    writer.join()
    assert len(seen) == 2 and set(read) == seen, "half a file was seen, or none was written meanwhile"


def test_a_failing_move_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, "old")

    def full(*_: Any) -> None:
        raise OSError("disk full")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(OSError, match="disk full"):
                files.write_json(path, "new")
        assert files.read_json(path) == "old" and leftovers(tmp_path) == ["a.json"]


def test_a_failing_writer_of_tensors_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    files.write_tensors(path, {"a": torch.ones(2)}, {"turn": 1})
    before = path.read_bytes()
    with pytest.raises(TypeError):
        files.write_tensors(path, {"a": torch.zeros(2)}, {"turn": object()})
    assert path.read_bytes() == before and leftovers(tmp_path) == ["a.safetensors"]


# Damage.

READERS: list[tuple[str, Callable[[Path], Any]]] = [
    ("a.json", files.read_json),
    ("a.csv", files.read_csv),
    ("a.safetensors", files.read_tensors),
]


@pytest.mark.parametrize(("name", "read"), READERS, ids=[name for name, _ in READERS])
def test_a_missing_file_is_named(tmp_path: Path, name: str, read: Callable[[Path], Any]) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: no such file; run the stage that writes it")


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b'{"a": 1}}', b"\xff\xfe", b"nonsense"])
def test_damaged_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        files.read_json(path)
    assert str(error.value).startswith(f"{path}: damaged JSON (") and "delete it" in str(error.value)


def test_no_flipped_bit_in_a_csv_file_is_overlooked(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    files.write_csv(path, ["arch", "accuracy"], [{"arch": f"|a~{i}|", "accuracy": 60.5 + i} for i in range(3)])
    whole = path.read_bytes()
    name = range(whole.index(b"crc32"), whole.index(b"crc32") + 5)  # a column that is not ours has nothing to check
    for place, bit in itertools.product(set(range(len(whole))) - set(name), range(8)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        with pytest.raises(UserError, match=re.escape(str(path))):
            files.read_csv(path, ["arch", "accuracy"])


def test_a_csv_file_whose_lines_are_not_those_written_is_refused_unless_by_intent(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    files.write_csv(path, ["arch", "accuracy"], [{"arch": f"|a~{i}|", "accuracy": 60.5 + i} for i in range(3)])
    header, one, two, three = path.read_bytes().splitlines(keepends=True)
    wrong = [(2, [header, two, one, three]), (3, [header, one, three, two]), (2, [header, one, two])]
    for number, lines in wrong:
        path.write_bytes(b"".join(lines))
        with pytest.raises(UserError, match=f"line {number}: not what was written there; delete it and run"):
            files.read_csv(path)
    assert len(files.read_csv(path, ours=False)) == 2
    plain = [b",".join(line.split(b",")[:2]) + b"\n" for line in (header, two, one)]
    path.write_bytes(b"".join(plain))
    assert files.read_csv(path) == [{"arch": "|a~1|", "accuracy": "61.5"}, {"arch": "|a~0|", "accuracy": "60.5"}]


def test_damaged_csv_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    files.write_csv(path, ["arch", "accuracy"], [{"arch": f"|a~{i}|", "accuracy": 0.1 + i} for i in range(9)])
    whole = path.read_bytes()

    def message() -> str:
        with pytest.raises(UserError) as error:
            files.read_csv(path, ["accuracy"])
        return str(error.value)

    remedy = "; delete it and run the stage that writes it"

    path.write_bytes(whole[: whole.rindex(b",")])  # the last line is cut
    assert message() == f"{path}: cut off in line 10{remedy}"
    path.write_bytes(whole[: whole.rindex(b"8.1") + 2])  # ... in its last number
    assert message() == f"{path}: cut off in line 10{remedy}"
    path.write_bytes(whole[:-12])
    with pytest.raises(UserError, match="line 10: not as many fields"):
        files.read_csv(path, ours=False)
    path.write_bytes(whole + b"a,1,2,3\n")
    assert message() == f"{path}, line 11: not as many fields as the header has{remedy}"
    path.write_bytes(whole.replace(b"accuracy", b"acc"))
    assert message() == f"{path}: no column 'accuracy'; the file has arch, acc, crc32{remedy}"
    path.write_bytes(b"")
    assert message() == f"{path}: no column 'accuracy'; the file has nothing{remedy}"
    path.write_bytes(whole.replace(b"|a~3|", b"|\xff\xfe|"))
    assert message().startswith(f"{path}: damaged CSV (")
    path.write_bytes(whole.replace(b"|a~3|", b"x" * 200000))  # longer than any field the csv module takes
    assert message().startswith(f"{path}: damaged CSV (")


@pytest.mark.parametrize("kept", [0, 4, 30, 150, -1])
def test_damaged_tensors_are_named(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "a.safetensors"
    files.write_tensors(path, some_tensors(), {"seed": 0})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError) as error:
        files.read_tensors(path)
    assert str(error.value).startswith(f"{path}: damaged (") and "delete it" in str(error.value)


def test_damaged_metadata_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    files.write_tensors(path, {"a": torch.ones(2)}, {"seed": 0})
    path.write_bytes(path.read_bytes().replace(rb"{\"seed\"", rb"[\"seed\""))
    with pytest.raises(UserError, match=r"a\.safetensors: damaged"):
        files.read_tensors(path)
