"""A tiny pipeline, run once by each engine in a clone of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.workflow import warm
from workflow.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 1800  # seconds: an engine beside much other work


def tiny(params: dict[str, Any]) -> dict[str, Any]:
    """Make the default settings small: the same stages, seconds of computing."""
    params["run"] |= {"methods": ["spos", "sumnas-k2"], "seeds": [0], "shards": [0, 1], "threads": 1, "device": "cpu"}
    params["space"] |= {"channels": 2}
    params["benchmark"]["pool"] |= {"architectures": 6, "seeds": [0, 1]}
    params["benchmark"]["pool"]["recipe"] |= {"epochs": 1, "batch_size": 128}
    params["supernet"] |= {"epochs": 2, "batch_size": 256, "probes": 2, "probe_every": 1}
    params["calibration"] |= {"images": 100, "batch_size": 50}
    params["ranking"] |= {"bootstrap": 100, "top_k": [1, 3]}
    params["search"] |= {"population": 4, "generations": 1, "offspring": 4}
    params["retrain"]["recipe"] |= {"epochs": 1, "batch_size": 128}
    return params


class Clone:
    """A copy of the project in which an engine runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "SUMNAS_CHECKPOINTS": str(folder.parent / f"{folder.name}-work"),
            "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@example.org",
            "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@example.org",
        }  # fmt: skip

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the clone."""
        result = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=TIMEOUT)
        assert not check or result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
        return result

    @property
    def params(self) -> dict[str, Any]:
        """The settings."""
        loaded: dict[str, Any] = yaml.safe_load((self.folder / "params.yaml").read_text())
        return loaded

    @params.setter
    def params(self, value: dict[str, Any]) -> None:
        (self.folder / "params.yaml").write_text(yaml.safe_dump(value))

    def outputs(self) -> dict[str, bytes]:
        """Return the bytes of every file that some stage declares as its output, by path."""
        params, found = self.params, {}
        for stage in STAGES.values():
            for template in stage.outputs:
                for method in params["run"]["methods"]:
                    for seed in params["run"]["seeds"]:
                        for shard in params["run"]["shards"]:
                            names = {"method": method, "seed": seed, "shard": shard, "run": f"{method}-{seed}"}
                            path = self.folder / template.format(**names)
                            files = sorted(path.glob("*")) if path.is_dir() else [path]
                            for file in files:
                                if file.name not in ("run.json", "log.jsonl", ".snakemake_timestamp"):
                                    found[str(file.relative_to(self.folder))] = file.read_bytes()
        return found


def make_clone(folder: Path) -> Clone:
    """Copy what git knows or would add, with tiny settings, as a repository of its own."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, listed):
        source, target = ROOT / name, folder / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    (folder / "dvc.lock").unlink(missing_ok=True)
    clone = Clone(folder)
    clone.params = tiny(clone.params)
    clone.run("git", "init", "-q")
    clone.run("git", "add", "-A")
    # Neither a key nor a hook of whoever runs the tests.
    clone.run("git", "-c", "commit.gpgsign=false", "-c", "core.hooksPath=/dev/null", "commit", "-qm", "start")
    return clone


@contextmanager
def changed(clone: Clone, change: Callable[[dict[str, Any]], None] | None = None, *names: str) -> Iterator[None]:
    """Change the settings, append a comment to source files, and put everything back afterwards."""
    paths = [clone.folder / name for name in ("params.yaml", *names)]
    before = {path: path.read_bytes() if path.exists() else None for path in paths}
    try:
        if change:
            params = clone.params
            change(params)
            clone.params = params
        for path in paths[1:]:
            path.write_bytes((before[path] or b'"""New."""\n') + b"# a comment\n")
        yield
    finally:
        for path, content in before.items():
            path.unlink() if content is None else path.write_bytes(content)


@pytest.fixture(scope="session")
def clones(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Clone]]:
    """The tiny pipeline, run by both engines at the same time, each in a clone of its own."""
    folder = tmp_path_factory.mktemp("engines")
    commands = {"dvc": ("dvc", "repro"), "snakemake": ("snakemake", "--cores", "2")}
    made = {engine: make_clone(folder / engine) for engine in commands}
    with ExitStack() as servers, ThreadPoolExecutor() as pool:
        for clone in made.values():
            first = servers.enter_context(warm.python())
            clone.env["PATH"] = f"{first}{os.pathsep}{clone.env['PATH']}"
        for ended in [pool.submit(made[engine].run, *command) for engine, command in commands.items()]:
            ended.result()
        yield made


@pytest.fixture(scope="session")
def dvc_clone(clones: dict[str, Clone]) -> Clone:
    """Of them, that of `dvc repro`."""
    return clones["dvc"]


@pytest.fixture(scope="session")
def snakemake_clone(clones: dict[str, Clone]) -> Clone:
    """Of them, that of `snakemake --cores 2`."""
    return clones["snakemake"]
