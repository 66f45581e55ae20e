"""Mistakes that a newcomer makes: each ends with a non-zero code and a line that mends it, never with a traceback."""

from __future__ import annotations

import os
import runpy
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from workflow import engine, stage

ROOT = Path(__file__).resolve().parents[2]
PYTHON = sys.executable


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a stage needs, without any result."""
    folder = tmp_path_factory.mktemp("mistakes") / "project"
    for name in ("sumnas", "workflow", "presets"):
        # With what is compiled of it, but for what is being written by another process of the tests.
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.pyc.*"))
    for name in ("params.yaml", "Makefile", "pyproject.toml", "constraints.txt", "Snakefile", "dvc.yaml"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "data/raw").mkdir(parents=True)
    return folder


def edited(old: str, new: str) -> Callable[[Path], None]:
    """Return a mistake in params.yaml."""

    def edit(folder: Path) -> None:
        path = folder / "params.yaml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return edit


def no_params(folder: Path) -> None:
    (folder / "params.yaml").unlink()


def nothing(_folder: Path) -> None:
    pass


STAGE = (PYTHON, "-m")
MISTAKES: dict[str, tuple[Callable[[Path], None], tuple[str, ...], str]] = {
    "a misspelt key": (
        edited("  epochs: 15", "  epohcs: 15"),
        (*STAGE, "workflow.prepare_data"),
        "supernet.epohcs: unknown key; did you mean 'supernet.epochs'?",
    ),
    "a list where a number belongs": (
        edited("  epochs: 15", "  epochs: [15]"),
        (*STAGE, "workflow.check"),
        "supernet.epochs = [15]: must be a valid integer",
    ),
    "a tab in the YAML": (edited("  epochs: 15", "\tepochs: 15"), (*STAGE, "workflow.check"), "params.yaml: line "),
    "no params.yaml": (no_params, (*STAGE, "workflow.check"), "no such file; run from the project's root"),
    "a stage before the data is there": (
        nothing,
        (*STAGE, "workflow.train_supernet", "--run", "spos-0"),
        "data/prepared/manifest.json: no such file; run the stage that writes it",
    ),
    "a stage before the one it reads": (
        nothing,
        (*STAGE, "workflow.retrain", "--run", "spos-0"),
        "results/search/spos-0/found.json: no such file; run the stage that writes it",
    ),
    "a run that is not there": (
        nothing,
        (*STAGE, "workflow.train_supernet", "--run", "sumnas-k3-0"),
        "sumnas-k3: unknown method; did you mean 'sumnas-k",
    ),
    "a run without a seed": (nothing, (*STAGE, "workflow.rank", "--run", "spos"), "and a seed, such as sumnas-k2-0"),
    "an image file that is not there": (
        edited("  source: digits", "  path: data/raw/mine.npz\n  source: npz"),
        (*STAGE, "workflow.prepare_data"),
        "",
    ),
    "a limit that nothing meets": (
        edited("limits: [0.3, null]", "limits: [0.001, null]"),
        (*STAGE, "workflow.check"),
        "search.limits = 0.001: no architecture has so few MACs; the smallest has 0.1",
    ),
    "a preset that is not there": (
        nothing,
        (*STAGE, "workflow.preset", "cifar10_cpu"),
        "did you mean NAME=cifar10-cpu?",
    ),
    "settings on Snakemake's command line": (
        nothing,
        (PYTHON, "-m", "snakemake", "-n", "--config", "epochs=3"),
        "params.yaml is the one settings file",
    ),
    "text where Snakemake needs a number": (
        edited("  threads: 1", "  threads: '1; x'"),
        (PYTHON, "-m", "snakemake", "-n", "--cores", "1"),
        "params.yaml: run.threads: must be a whole number; run `make check`",
    ),
    "a list where Snakemake needs a block": (
        edited("\nmethods:\n", "\nmethods: [x]\nothers:\n"),
        (PYTHON, "-m", "snakemake", "-n", "--cores", "1"),
        "is missing or misplaced; run `make check`",
    ),
    "a space that Snakemake does not find": (
        edited("name: nasbench201", "name: nasbench301"),
        (PYTHON, "-m", "snakemake", "-n", "--cores", "1"),
        "space.name: no space is called nasbench301; run `make check`",
    ),
    "a port in use": (
        nothing,
        (*STAGE, "sumnas.tracking", "ui", "--port", "PORT"),
        "choose another one: make ui PORT=",
    ),
    "an old Python": (nothing, ("make", "setup", "PYTHON=./old-python"), "Python 3.11 or newer is needed, this is 3.8"),
}


PROCESSES = ("a misspelt key", "a list where a number belongs", "a stage before the data is there")
"""Of the calls of `python -m workflow.*`, those in a process of their own, whose imports take seconds."""


def in_process(
    command: tuple[str, ...], folder: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[object, str]:
    """Call `python -m` in this process; return how it ended and what it said."""
    module, threads = command[2], torch.get_num_threads()
    patch.chdir(folder)
    patch.setattr(sys, "argv", list(command[2:]))
    patch.delitem(sys.modules, module, raising=False)  # else runpy warns of a second copy
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    torch.set_num_threads(threads)
    code, (out, err) = ended.value.code, capsys.readouterr()
    # A code that is a text is what the interpreter would print as it ends with 1.
    return (1, f"{out}{err}{code}\n") if isinstance(code, str) else (code or 0, out + err)


@pytest.mark.parametrize("name", MISTAKES)
def test_meets_a_message_that_mends_it(
    name: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make, command, message = MISTAKES[name]
    folder = tmp_path / "project"
    here = command[2].startswith("workflow.") and name not in PROCESSES
    if here:  # the code is this checkout's
        shutil.copytree(ROOT / "presets", folder / "presets")
        shutil.copy(ROOT / "params.yaml", folder)
        (folder / "data/raw").mkdir(parents=True)
    else:
        shutil.copytree(project, folder)
    make(folder)
    if name == "an image file that is not there":
        edited("  test: 0.3 # share for true accuracies\n", "")(folder)
        message = "data/raw/mine.npz"
    if name == "an old Python":
        # Answers to `sys.version_info` as an old one would; the real one does the rest.
        old = folder / "old-python"
        old.write_text(
            f"""#!/bin/sh\nexec {PYTHON} -c "import sys; sys.version_info = (3, 8, 0); exec(sys.argv[2])" "$@"\n"""
        )
        old.chmod(0o755)
    monkeypatch.setenv("SUMNAS_CHECKPOINTS", str(tmp_path / "work"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = tuple(
            word.replace("PORT", str(taken.getsockname()[1])) if word == "PORT" else word for word in command
        )
        if here:
            code, said = in_process(command, folder, monkeypatch, capsys)
        else:
            result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
            code, said = result.returncode, result.stdout + result.stderr
    assert code != 0 and message in said and "Traceback" not in said, said
    assert len([line for line in said.splitlines() if line.strip()]) <= 4 or "snakemake" in command or "make" in command
    left = [path for place in ("results", "data/prepared") for path in (folder / place).rglob("*") if path.is_file()]
    assert all(path.name.endswith("log.jsonl") for path in left)  # how the stage ended, for MLflow


def test_a_full_gpu_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, stage.reporting("rank"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has\nmuch to say")
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1 and line.startswith("rank: error: the GPU's memory is used up (CUDA out of memory.")
    assert "lower the batch sizes in params.yaml" in line
    with pytest.raises(RuntimeError, match="another"), stage.reporting("rank"):
        raise RuntimeError("another fault is no mistake of the user's")


def test_results_of_the_other_engine_are_noticed(tmp_path: Path) -> None:
    assert engine.hint("dvc", tmp_path) is None
    (tmp_path / ".snakemake/metadata").mkdir(parents=True)  # as after `snakemake -n`
    (tmp_path / "results/benchmark").mkdir(parents=True)
    (tmp_path / "results/benchmark/table.csv").touch()
    assert engine.hint("dvc", tmp_path) is None
    (tmp_path / ".snakemake/metadata/of-a-file").touch()
    text = engine.hint("dvc", tmp_path)
    assert text is not None and "dvc commit -f" in text
    assert engine.hint("snakemake", tmp_path) is None and engine.hint("hand", tmp_path) is None
    (tmp_path / "dvc.lock").touch()  # as in every clone
    assert engine.hint("dvc", tmp_path) == text
    (tmp_path / ".dvc/cache/files").mkdir(parents=True)
    assert engine.hint("dvc", tmp_path) is None


@pytest.mark.engine
@pytest.mark.parametrize("results", [True, False])
def test_snakemake_says_so_where_the_results_are_dvcs(results: bool, project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    shutil.copytree(project, folder)
    (folder / "dvc.lock").touch()  # as in every clone
    if results:
        (folder / "results/benchmark").mkdir(parents=True)
        (folder / "results/benchmark/table.csv").touch()
    fake = tmp_path / "bin/python"  # in the place of a real one, whose imports take seconds
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho {} > results/methods/spos.json\n")
    fake.chmod(0o755)
    env = {**os.environ, "PATH": f"{fake.parent}{os.pathsep}{os.environ['PATH']}"}
    command = (PYTHON, "-m", "snakemake", "--cores", "1", "results/methods/spos.json")
    result = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and ("snakemake --touch --cores 1" in result.stderr) == results
