"""A long run in pieces: each leaves small files in docs/results/<preset>/, and the next goes on from what is there.

These files are committed as they come, so that a machine that is lost costs the piece in hand and no more.
benchmarks/cifar10_cpu.py and benchmarks/mobilenet_cpu.py are such runs.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import yaml

from sumnas import data, files, machine, params, preparation
from sumnas.benchmark import pool, table
from sumnas.benchmark.settings import PoolSettings
from sumnas.errors import UserError
from sumnas.machine import cpu_model
from sumnas.params import Params
from sumnas.preparation import DataSettings
from sumnas.spaces import base
from workflow import sources
from workflow.stages import STAGES

ROOT = Path(__file__).resolve().parents[1]
TIMES = ("architecture", "seed", "seconds", "processor_seconds", "cpu", "python", "torch", "settings")
"""Of references_seconds.csv. Empty where a row is older than the column; the last is a digest."""


@contextlib.contextmanager
def told(command: str) -> Iterator[None]:
    """End the command with a line where what it was asked for cannot be done."""
    try:
        yield
    except UserError as error:
        raise SystemExit(f"{command}: error: {error}") from None


@dataclass(frozen=True)
class Plan:
    """A preset whose pieces are made, the command that makes them, and the project that holds both."""

    preset: str
    command: str
    root: Path = ROOT
    images: Path | None = None
    """In the place of the preset's `data.path`."""

    @property
    def folder(self) -> Path:
        """Where the small files lie."""
        return self.root / "docs/results" / self.preset

    @property
    def rows(self) -> Path:
        """Accuracies of the references, a row per architecture and seed."""
        return self.folder / "references.csv"

    @property
    def times(self) -> Path:
        """What each row took, and on what."""
        return self.folder / "references_seconds.csv"

    @property
    def table(self) -> Path:
        """The references as one table, a valid input of `benchmark.source: table`."""
        return self.folder / "benchmark.csv"

    def text(self, preset: str | None = None) -> dict[str, Any]:
        """Return the blocks of this preset, or of another one, with a path of the images that holds in any folder."""
        path = self.root / f"presets/{preset or self.preset}.yaml"
        blocks: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        if blocks["data"].get("path") is not None:
            blocks["data"]["path"] = str((self.images or self.root / blocks["data"]["path"]).absolute())
        return blocks

    def settings(self) -> Params:
        """Return the preset's settings."""
        return params.load(self.root / f"presets/{self.preset}.yaml")

    def digest(self) -> str:
        """Return a digest of what the accuracy of a reference depends on, beside its architecture and seed."""
        text = self.text()
        data = {key: value for key, value in text["data"].items() if key != "path"}
        return files.digest([data, text["space"], text["benchmark"]["pool"]["recipe"]])[:16]

    def prepared(self, work: Path) -> data.Prepared:
        """Load the images, prepared in a folder that belongs to these settings of theirs alone."""
        settings = DataSettings.model_validate(self.text()["data"])
        return prepared(work / f"prepared-{files.digest(settings.model_dump(mode='json'))[:12]}", settings)


def prepared(folder: Path, settings: DataSettings) -> data.Prepared:
    """Prepare the images into `folder`, where that was not done, and load them. Another process waits for the first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_name(f"{folder.name}.lock")):
        if not (folder / "manifest.json").exists():
            preparation.prepare(settings, folder)
    return data.load(folder)


def references(plan: Plan, work: Path, seconds: float, only: int | None = None) -> int:
    """Train what is missing of the pool, one network at a time; return how many are missing still.

    None is begun once the `seconds` are over. Several processes with one `work` folder share what is missing: each
    leaves out what another has in hand. `only`: one of the seeds.
    UserError where there are rows of other data, another space or recipe.
    """

    settings = plan.settings()
    machine.compute_with(settings.run.threads)
    space, wanted, digest = base.build(settings.space), settings.benchmark.pool, plan.digest()
    if {row.get("settings") or digest for row in read(plan.times, TIMES[:3])} - {digest}:
        raise UserError(
            f"{plan.rows}: has accuracies of other data, another space or recipe than presets/{plan.preset}.yaml; "
            f"put the preset back, or delete that file and {plan.times.name}"
        )
    deadline = time.monotonic() + seconds
    todo = [(a, s) for s in wanted.seeds if only in (None, s) for a in pool.draw(space, wanted)]
    images: data.Prepared | None = None
    for number, (architecture, seed) in enumerate(todo, 1):
        key = {"architecture": space.encode(architecture), "seed": str(seed)}
        if _has(plan, key):
            continue
        if time.monotonic() > deadline:
            break
        if images is None:
            images = plan.prepared(work)
        in_hand = plan.folder / f"reference-{files.digest(key)[:16]}.lock"  # let go by the system where its holder dies
        with contextlib.suppress(filelock.Timeout), filelock.FileLock(in_hand, timeout=0):
            if not _has(plan, key):  # another process may have finished it meanwhile
                alone = wanted.model_copy(update={"seeds": [seed]})
                accuracy = _reference(plan, digest, space, architecture, images, alone)
                print(f"{number}/{len(todo)}: {key['architecture']} {seed}: {accuracy:.2f} %", flush=True)
    return sum(not _has(plan, {"architecture": space.encode(a), "seed": str(s)}) for a, s in todo)


def _reference(
    plan: Plan, digest: str, space: base.Space, architecture: base.Architecture, images: data.Prepared,
    alone: PoolSettings,
) -> float:  # fmt: skip
    """Train one architecture with the one seed of `alone`, add its rows to the files and return its accuracy.

    `digest`: of the settings as they were read; the preset may have been edited meanwhile.
    """
    began, used = time.monotonic(), time.process_time()
    (row,) = pool.train_share(space, [architecture], images, alone)
    took = {
        "architecture": row["architecture"], "seed": row["seed"], "seconds": round(time.monotonic() - began, 1),
        "processor_seconds": round(time.process_time() - used, 1), **_versions(), "settings": digest,
    }  # fmt: skip
    with filelock.FileLock(plan.folder / "references.lock"):  # another process may have added rows meanwhile
        files.write_csv(plan.rows, pool.COLUMNS, [*read(plan.rows, pool.COLUMNS), row])
        older = [{name: r.get(name, "") for name in TIMES} for r in read(plan.times, TIMES[:3])]
        files.write_csv(plan.times, TIMES, [*older, took])
    return float(row["accuracy"])


def _has(plan: Plan, key: Mapping[str, str]) -> bool:
    return any(key.items() <= row.items() for row in read(plan.rows, pool.COLUMNS))


def _versions() -> dict[str, str]:
    import torch

    return {"cpu": cpu_model(), "python": platform.python_version(), "torch": torch.__version__}


def read(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read the rows of a file that may not be there yet."""
    return files.read_csv(path, tuple(columns)) if path.exists() else []


def write_table(plan: Plan) -> None:
    """Bring the trained references into the one table, with what they took beside it."""
    settings = plan.settings()
    space = base.build(settings.space)
    table.write(plan.table, space, pool.merge([plan.rows], space, settings.benchmark.pool))
    seconds = float(sum(float(row["seconds"]) for row in read(plan.times, TIMES[:3])))
    note(plan, plan.folder / "references_run.json", "references", seconds)
    count = len(table.read(plan.table, space).architectures)
    print(f"{plan.table}: {count} architectures, {seconds / 3600:.2f} core-hours")


def project(plan: Plan, work: Path, preset: str | None = None) -> tuple[Path, dict[str, Any]]:
    """Make the folder that stages run in, and return it with the preset's settings on the trained references."""
    folder = work / "project"
    for part in ("sumnas", "workflow"):
        shutil.copytree(ROOT / part, folder / part, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    text = plan.text(preset)
    trained = text["benchmark"]["pool"]["seeds"]
    seeds = [f"{table.PER_SEED}{seed}" for seed in trained if len(trained) > 1]  # the columns that such a table has
    text["benchmark"] |= {"source": "table", "table": {"path": str(plan.table), "seeds": seeds}}
    files.write_csv(folder / "results/benchmark/shards/0.csv", pool.COLUMNS, [])
    return folder, text


def call(folder: Path, text: Mapping[str, Any], name: str, *stages: str) -> None:
    """Run stages for one run in the folder, with these settings. SystemExit where one fails: it has said why."""
    files.write_text(folder / "params.yaml", yaml.safe_dump(dict(text), sort_keys=False))
    for stage in stages:
        per = STAGES[stage].per
        arguments = ("--run", name) if "seed" in per else ()
        if stage == "describe_method":
            arguments = ("--method", name.rpartition("-")[0])
        ended = subprocess.run([sys.executable, "-m", f"workflow.{stage}", *arguments], cwd=folder,
                               env={**os.environ, "PYTHONPATH": str(folder), "SUMNAS_TRACKING": "off"})  # fmt: skip
        if (code := ended.returncode) != 0:
            raise SystemExit(code if code > 0 else 128 - code)  # of a signal: as a shell has it


def call_once(
    folder: Path, text: Mapping[str, Any], name: str, inputs: Sequence[Path], *stages: str, after: str = ""
) -> str:
    """Run stages as `call` does, but for those that were done there with the same blocks, sources and `inputs`.

    What a stage of the list reads of an earlier one has not changed where that was not run again. Returns the key of
    all that was done: give it as `after` to a later call whose stages read of these.
    """
    method = name.rpartition("-")[0]
    key = files.digest([name, after, *(files.sha256(path) for path in inputs)])
    for stage in stages:
        code = sources.of_stage(stage, text["space"]["name"])
        if stage == "train_supernet":
            code.append(f"sumnas/methods/{text['methods'][method]['strategy']}.py")
        blocks = [_block(text, block.format(method=method)) for block in STAGES[stage].blocks]
        key = files.digest([key, stage, blocks, *(files.sha256(folder / path) for path in code)])
        mark = folder / "done" / f"{stage}-{name}"
        if not mark.exists() or mark.read_text(encoding="utf-8") != key:
            call(folder, text, name, stage)
            files.write_text(mark, key)
    return key


def _block(text: Mapping[str, Any], dotted: str) -> Any:
    """Return what a preset says of a block or of a key in it; None where that is left to its default."""
    head, _, tail = dotted.partition(".")
    return text.get(head) if not tail else (text.get(head) or {}).get(tail)


def keep(results: Path, target: Path, templates: Sequence[str], name: str) -> None:
    """Copy a run's files, named by templates under results/, into a folder of their own."""
    target.mkdir(parents=True, exist_ok=True)
    for template in templates:
        source = results / template.format(run=name)
        shutil.copyfile(source, target / source.name)


def note(plan: Plan, path: Path, command: str, seconds: float, **more: object) -> None:
    """Write what varies from run to run."""
    files.write_json(path, {
        "command": f"{plan.command} {command}", "seconds": round(seconds, 1), **more,
        "machine": platform.machine(), "threads": 1, "numpy": np.__version__, **_versions(),
    })  # fmt: skip
