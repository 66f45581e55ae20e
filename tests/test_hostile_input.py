"""Malformed input of every kind, generated: it is taken, or refused in words; never another error, never a file."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sumnas import files, params
from sumnas.benchmark import table
from sumnas.checkpoint import Work
from sumnas.cli import main
from sumnas.datasets import npz
from sumnas.errors import UserError
from sumnas.spaces.nasbench201 import NASBench201
from workflow.stage import _arguments as arguments_of
from workflow.stage import make_job, reporting
from workflow.stages import NAMED, STAGES

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = yaml.safe_load((ROOT / "params.yaml").read_text())
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(), st.text(max_size=20),
    st.sampled_from(["../../x", "/tmp/x", "$(touch x)", "`x`", "; rm x", "\x00", "a" * 5000, "\u202e", "{item}"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
MANY = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # fmt: skip
"""The same cases in every run; to look for new ones, make them more and random."""


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUMNAS_CHECKPOINTS", str(tmp_path / "work"))


def keys(block: Any, place: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return every place inside nested settings."""
    found = [place] if place else []
    for key, value in block.items() if isinstance(block, dict) else ():
        found += keys(value, (*place, key))
    return found


def refused(error: UserError) -> None:
    """A message is lines that can be read: no traceback, nothing that moves a terminal's cursor. The exit code is 1."""
    text = str(error)
    assert text.strip() and "Traceback" not in text
    assert all(len(line) < 20_000 and line.isprintable() for line in text.split("\n"))
    said = io.StringIO()
    with contextlib.redirect_stderr(said), pytest.raises(SystemExit) as ended, reporting("stage"):
        raise error
    assert ended.value.code == 1
    assert said.getvalue() == "".join(f"stage: error: {line}\n" for line in text.splitlines())


@MANY
@given(place=st.sampled_from(keys(DEFAULT)), value=VALUES, how=st.sampled_from(["set", "drop", "add"]))
def test_params(tmp_path: Path, place: tuple[str, ...], value: Any, how: str) -> None:
    blocks = yaml.safe_load((ROOT / "params.yaml").read_text())
    inner = blocks
    for key in place[:-1]:
        inner = inner[key]
    if how == "set":
        inner[place[-1]] = value
    elif how == "drop":
        del inner[place[-1]]
    else:
        inner[str(value)[:30]] = value
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(blocks, allow_unicode=True))
    try:
        loaded = params.load(path, NAMED)
    except UserError as error:
        refused(error)
        assert all(line.startswith(f"{path}: ") for line in str(error).splitlines())
        return
    # What is taken cannot lead a result's path out of the project.
    for name in loaded.run.methods:
        assert params.NAME.fullmatch(name)


@MANY
@given(content=st.binary(max_size=300) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_params_that_are_no_yaml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        params.load(path)
    refused(error.value)


CELL = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|"


PARTS = st.lists(st.sampled_from([*CELL.split("|"), "|", "+", "~0", "~9", " "]), max_size=30)


@MANY
@given(st.text(max_size=120) | PARTS.map("".join))
def test_architecture_strings(tiny_space: NASBench201, text: str) -> None:
    try:
        architecture = tiny_space.decode(text)
    except ValueError as error:  # which whoever knows where the string came from turns into a UserError
        assert 0 < len(str(error)) < 1000
    else:
        assert tiny_space.encode(architecture) == text.strip()


ROWS = [["architecture", "accuracy", "std", "seeds", "macs", "params"], [CELL, "91.5", "0.1", "3", "1.5", "0.2"]]


@MANY
@given(
    row=st.integers(0, 1), cell=st.integers(0, 5),
    value=st.text(max_size=30) | st.sampled_from(["nan", "inf", "-1", "1e999", "101", '"']),
    cut=st.integers(0, 300), twice=st.booleans(),
)  # fmt: skip
def test_tables(
    tmp_path: Path, tiny_space: NASBench201, row: int, cell: int, value: str, cut: int, twice: bool
) -> None:
    rows = [list(r) for r in ROWS]
    rows[row][cell] = value
    text = "\n".join(",".join(r) for r in [*rows, *([rows[1]] if twice else [])]) + "\n"
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode("utf-8", "surrogatepass")[: len(text) - cut if cut < 40 else None])
    try:
        known = table.read(path, tiny_space)
    except UserError as error:
        refused(error)
        assert str(path) in str(error)
    else:
        assert np.isfinite(known.accuracy).all() and (known.accuracy <= 100).all()


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def arrays() -> bytes:
    content = io.BytesIO()
    generator = np.random.default_rng(0)
    images = generator.integers(0, 255, (6, 4, 4, 3), dtype=np.uint8)
    labels = np.array([0, 1, 2, 0, 1, 2])
    np.savez(content, x_train=images, y_train=labels, x_test=images, y_test=labels)
    return content.getvalue()


WHOLE = arrays()


@MANY
@given(place=st.integers(0, len(WHOLE) - 1), change=st.binary(min_size=1, max_size=8), cut=st.booleans())
def test_npz(tmp_path: Path, place: int, change: bytes, cut: bool) -> None:
    path = tmp_path / "images.npz"
    path.write_bytes(WHOLE[:place] if cut else WHOLE[:place] + change + WHOLE[place + len(change) :])
    try:
        npz.read(path)
    except UserError as error:
        refused(error)
        assert str(path) in str(error)


def test_npz_cannot_run_code(tmp_path: Path) -> None:
    path, made = tmp_path / "images.npz", tmp_path / "made"
    harmful = np.empty(1, dtype=object)
    harmful[0] = Payload(made)
    np.savez(path, x_train=harmful, y_train=harmful, x_test=harmful, y_test=harmful)
    with pytest.raises(UserError):
        npz.read(path)
    assert not made.exists()


@MANY
@given(place=st.floats(0, 1), change=st.binary(min_size=1, max_size=8), cut=st.booleans())
def test_weights_and_checkpoints(tmp_path: Path, place: float, change: bytes, cut: bool) -> None:
    path = tmp_path / "weights.safetensors"
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.long)}
    files.write_tensors(path, tensors, {"of": "a test"})
    whole = path.read_bytes()
    at = int(place * (len(whole) - 1))
    damaged = whole[:at] if cut else whole[:at] + change + whole[at + len(change) :]
    path.write_bytes(damaged)
    try:
        found, _ = files.read_tensors(path)
    except UserError as error:
        refused(error)
        assert str(path) in str(error)
    else:
        assert damaged[: len(whole)] == whole or all(
            torch.equal(found[name], tensor) for name, tensor in tensors.items()
        )
    with Work("hostile", f"{at}{change!r}{cut}") as work:
        work.save({"step": 1})
        work.save({"step": 2})
        checkpoint = work.folder / "checkpoint.pt"
        content = checkpoint.read_bytes()
        at = int(place * (len(content) - 1))
        checkpoint.write_bytes(content[:at] if cut else content[:at] + change + content[at + len(change) :])
        state = work.load()
        assert state == {"step": 2 if checkpoint.read_bytes() == content else 1}


def test_weights_and_checkpoints_cannot_run_code(tmp_path: Path) -> None:
    made = tmp_path / "made"
    with Work("hostile", "payload") as work:
        harmful = work.folder / "checkpoint.pt"
        torch.save({"x": Payload(made)}, harmful)
        files.write_text(work.folder / "checkpoint.sha256", files.sha256(harmful))
        with pytest.raises((UserError, pickle.UnpicklingError)):
            work.load()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(pickle.dumps(Payload(made)))
    with pytest.raises(UserError, match="damaged"):
        files.read_tensors(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload(made)))
    with pytest.raises(UserError, match="damaged"):
        files.read_tensors(path)
    assert not made.exists()


WORDS = st.one_of(
    st.text(max_size=12).filter(lambda text: "\x00" not in text),
    st.sampled_from(["--run", "--shard", "--method", "--help", "--accept-code-change"]),
    st.sampled_from(["spos-0", "../x-0", "spos-00", "spos", "-1", "0"]),
)  # fmt: skip


@MANY
@given(stage=st.sampled_from(["train_supernet", "score", "describe_method", "rank"]), words=st.lists(WORDS, max_size=5))
def test_command_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stage: str, words: list[str]
) -> None:
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [stage, *words])
    before = sorted(tmp_path.rglob("*"))
    try:
        job = make_job(STAGES[stage], arguments_of(STAGES[stage]))
    except SystemExit as ended:
        assert ended.code in (0, 2)
        assert ended.code == 0 or f"{stage}: error: " in capsys.readouterr().err
    except UserError as error:
        refused(error)
    else:
        for template in job.stage.outputs:
            assert job.path(template).resolve().is_relative_to(tmp_path / "results")
    assert sorted(tmp_path.rglob("*")) == before


ENDINGS = ["score", "cost", "draw", "export", "import-benchmark", "presets", "doctor", "latency", "estimate", "no-such"]
LINES = st.one_of(
    WORDS,
    st.sampled_from(
        [CELL, "--weights", "--prepared", "--params", "--json", "-o", "--network", "--folder", "--batch-size"]
    ),
    st.sampled_from(
        ["params.yaml", "weights.safetensors", "../..", "/", "$(touch x)", "; touch x", "\u202e", "--repeats"]
    ),
)


@MANY
@given(command=st.sampled_from(ENDINGS), words=st.lists(LINES, min_size=1, max_size=5), spoilt=st.booleans())
def test_command_lines_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, words: list[str], spoilt: bool
) -> None:
    """Where nothing can be computed: the settings are cut in their middle, or the weights are no weights."""
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text[: len(text) // 2] if spoilt else text)
    (tmp_path / "weights.safetensors").write_bytes(pickle.dumps(Payload(tmp_path / "made")))
    monkeypatch.chdir(tmp_path)
    for heavy in ("sumnas.stopwatch.measure", "sumnas.estimate.speeds"):
        monkeypatch.setattr(heavy, not_reached)
    before = sorted(tmp_path.rglob("*"))
    ended = CliRunner().invoke(main, [command, *words])
    assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
    assert ended.exit_code in (0, 1, 2) and "Traceback" not in ended.output
    if ended.exit_code:
        assert ended.output.strip() and sorted(tmp_path.rglob("*")) == before


def not_reached(*_: Any, **__: Any) -> Any:
    """Stand for a measurement of minutes."""
    raise UserError("nothing is measured here")
