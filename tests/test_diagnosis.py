"""What `sumnas doctor` finds on machines that lack something."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from click.testing import CliRunner

from sumnas.cli import main

ROOT = Path(__file__).resolve().parents[1]


class Usage(NamedTuple):
    free: int


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a GPU and with room, which has just git and make; return the folder of its programs."""
    programs, project = tmp_path / "bin", tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    monkeypatch.setenv("SUMNAS_CHECKPOINTS", str(tmp_path / "work"))
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Usage(10**12))
    for name in ("git", "make"):
        program(programs / name, "exit 0")
    write("cpu")
    return programs


def program(path: Path, script: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def write(device: str) -> None:
    """Write settings whose data come with scikit-learn."""
    settings = yaml.safe_load((ROOT / "params.yaml").read_text())
    settings["run"]["device"] = device
    Path("params.yaml").write_text(yaml.safe_dump(settings))


def doctor(missing: list[str]) -> dict[str, dict[str, str]]:
    """Return the findings by what was looked at; `missing` are those that decide the exit code."""
    result = CliRunner().invoke(main, ["doctor", "--json"])
    assert result.exit_code == (1 if missing else 0), result.output
    found = {finding["what"]: finding for finding in json.loads(result.stdout)}
    assert [what for what, finding in found.items() if finding["state"] == "missing"] == missing
    return found


def test_a_gpu_that_is_wanted_and_absent_decides_alone() -> None:
    for device in ("cpu", "auto"):
        write(device)
        gpu = doctor([])["gpu"]
        assert (gpu["state"], gpu["detail"]) == ("note", "torch finds none; everything runs on the CPU")
    write("cuda")
    assert doctor(["gpu"])["gpu"]["detail"] == (
        "torch finds none, and params.yaml has run.device: cuda; set it to auto or cpu"
    )
    result = CliRunner().invoke(main, ["doctor"])
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("missing"))
    assert result.exit_code == 1 and line.startswith("missing  gpu: torch finds none, ")


def test_gpus_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    write("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"card {number}")
    gpu = doctor([])["gpu"]
    assert (gpu["state"], gpu["detail"]) == ("ok", "card 0, card 1")


def test_little_room_is_said_of_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: Usage(4_960_000_000 if path == tmp_path / "work" else 10**12)
    )
    found = doctor([])
    assert found["room for results"]["detail"] == f"1000.0 GB free in {tmp_path / 'project'}"
    assert found["room for results"]["state"] == "ok" and found["room for checkpoints"]["state"] == "note"
    assert found["room for checkpoints"]["detail"] == (
        f"5.0 GB free in {tmp_path / 'work'}; a full disk stops a stage (and loses nothing)"
    )


@pytest.mark.parametrize(("folder", "what"), [("project", "room for results"), ("work", "room for checkpoints")])
def test_a_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, what: str
) -> None:
    (tmp_path / "work").mkdir()
    access: Callable[..., bool] = os.access
    monkeypatch.setattr(
        os, "access", lambda path, *more, **how: path != tmp_path / folder and access(path, *more, **how)
    )
    found = doctor([what])[what]
    assert found["detail"] == f"{tmp_path / folder}: cannot be written"


def test_checkpoints_cannot_be_written_below_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").write_text("a file")
    monkeypatch.setenv("SUMNAS_CHECKPOINTS", str(tmp_path / "work/below"))
    assert doctor(["room for checkpoints"])["room for checkpoints"]["detail"] == f"{tmp_path / 'work'}: no folder"


def test_programs_are_found_or_named(machine: Path) -> None:
    found = doctor([])
    for name in ("git", "make"):
        assert (found[name]["state"], found[name]["detail"]) == ("ok", str(machine / name))
    (machine / "make").unlink()
    make = doctor([])["make"]  # the engines do without it
    assert (make["state"], make["detail"]) == ("note", "not found; for the README's commands")
    (machine / "git").unlink()
    assert doctor(["git"])["git"]["detail"] == "not found; DVC needs it"


def test_a_machine_without_slurm() -> None:
    slurm = doctor([])["slurm"]
    assert slurm["state"] == "note" and slurm["detail"].startswith(
        "no sbatch here; `--profile slurm` needs a login node"
    )


@pytest.mark.parametrize(
    ("script", "state", "detail"),
    [
        ("echo 'short* 1 idle'\necho 'long 2 mix'", "ok", "short* 1 idle; long 2 mix"),
        ("exit 0", "ok", "no partition"),
        ("echo 'cannot contact controller' >&2\nexit 3", "note", "(cannot contact controller)"),
        ("exit 3", "note", "exit status 3"),
        (None, "note", "No such file or directory: 'sinfo'"),
    ],
    ids=["partitions", "none", "failing", "failing silently", "absent"],
)
def test_slurm_is_asked(machine: Path, script: str | None, state: str, detail: str) -> None:
    program(machine / "sbatch", "exit 0")
    if script is not None:
        program(machine / "sinfo", script)
    slurm = doctor([])["slurm"]
    assert slurm["state"] == state and detail in slurm["detail"]
    assert state == "ok" or slurm["detail"].startswith("sbatch is there, but sinfo does not answer (")


def test_a_slurm_that_is_silent_is_not_waited_for(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(machine / "sbatch", "exit 0")
    program(machine / "sinfo", "exec sleep 60")
    run: Callable[..., Any] = subprocess.run
    monkeypatch.setenv("PATH", f"{machine}{os.pathsep}{os.environ['PATH']}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setattr(subprocess, "run", lambda *args, **how: run(*args, **{**how, "timeout": how["timeout"] / 100}))
    slurm = doctor([])["slurm"]
    assert slurm["state"] == "note" and "timed out after 0.2 seconds" in slurm["detail"]
