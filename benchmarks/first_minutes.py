"""The first ten minutes, by the clock: a fresh clone of what is committed, and one after another what a new user types.

    python -m benchmarks.first_minutes FOLDER     # the clone is made there, and left; about ten minutes

Writes benchmarks/results/first_minutes.json and the table of docs/install.md that is made of it. Packages come from
pip's index or its cache, wherever this machine has them; results are as `make repro` makes them, offline.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

from sumnas import files
from sumnas.machine import commit, cpu_model
from workflow.readme import replaced

ROOT = Path(__file__).resolve().parents[1]
RESULT, PAGE, BLOCK = ROOT / "benchmarks/results/first_minutes.json", ROOT / "docs/install.md", "first minutes"
ONE = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|nor_conv_1x1~0|none~1|avg_pool_3x3~2|"
PORT = 5093


class Step(NamedTuple):
    """What a user does: shown, and as a shell runs it in the clone."""

    shown: str
    command: str
    gives: str


ACTIVE = "source .venv/bin/activate && "
STEPS = (
    Step("`make setup`", "make setup", "`.venv`"),
    Step("`make repro`", "make repro", "every stage on the digits, and the table of methods at its end"),
    Step(
        "`source .venv/bin/activate`, `ranking.bootstrap: 2000` in params.yaml, `dvc repro`",
        "sed -i 's/bootstrap: 1000/bootstrap: 2000/' params.yaml && ! git diff --quiet params.yaml && "
        f"{ACTIVE}dvc repro",
        "four rankings and the summary, nothing else, made anew",
    ),
    Step(
        "`git checkout params.yaml && dvc repro`",
        f"git checkout params.yaml && {ACTIVE}dvc repro",
        "the former results, from DVC's run cache",
    ),
    Step("`dvc repro` once more", f"{ACTIVE}dvc repro", "nothing to do"),
    Step(
        "`sumnas score 'ARCH' --weights results/supernet/sumnas-k2-0/weights.safetensors`",
        f"{ACTIVE}sumnas score '{ONE}' --weights results/supernet/sumnas-k2-0/weights.safetensors",
        "a prediction",
    ),
    Step("`sumnas doctor`", f"{ACTIVE}sumnas doctor", "what this machine lacks"),
    Step(
        "`sumnas estimate --params presets/cifar10-paper.yaml`",
        f"{ACTIVE}sumnas estimate --params presets/cifar10-paper.yaml",
        "what a preset would cost on it",
    ),
)
UI = Step("`make ui`", f"exec make ui PORT={PORT}", "every run in MLflow, on 127.0.0.1:5000")


def timed(step: Step, clone: Path) -> float:
    """Return the seconds of a step; CalledProcessError, with what it said, where it fails."""
    began = time.monotonic()
    subprocess.run(["bash", "-c", step.command], cwd=clone, env=environment(), check=True)
    return time.monotonic() - began


def until_it_answers(clone: Path, limit: float = 120) -> float:
    """Return the seconds until MLflow's page is there, and end it."""
    began = time.monotonic()
    server = subprocess.Popen(["bash", "-c", UI.command], cwd=clone, env=environment(), start_new_session=True)
    try:
        while time.monotonic() - began < limit:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/", timeout=5):
                    return time.monotonic() - began
            except (urllib.error.URLError, TimeoutError):
                time.sleep(0.1)
        raise SystemExit(f"make ui: no answer within {limit:g} s")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def environment() -> dict[str, str]:
    """Return this process's environment without the virtual environment that it runs in."""
    own = os.environ.get("VIRTUAL_ENV", "")
    kept = [part for part in os.environ["PATH"].split(os.pathsep) if not own or not part.startswith(own)]
    return {**{k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}, "PATH": os.pathsep.join(kept)}


def table(found: dict[str, Any]) -> str:
    """Return the page's table."""
    rows = [f"| {row['do']} | {clock(row['seconds'])} | {row['gives']} |" for row in found["steps"]]
    minutes = sum(row["seconds"] for row in found["steps"]) / 60
    return "\n".join(
        [
            "| do | took | gives |", "|---|---|---|", *rows, "",
            f"{minutes:.1f} minutes in all, on {found['cores']} cores ({found['cpu']}), Python {found['python']}, "
            f"{found['date']}; made by `python -m benchmarks.first_minutes`.", "",
        ]
    )  # fmt: skip


def clock(seconds: float) -> str:
    """Return a time as a reader wants it."""
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the clone is made; it must not be there yet")
    clone: Path = parser.parse_args().folder.resolve()
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    at = commit(clone)  # before `make repro` writes dvc.lock anew
    took = [{"do": step.shown, "seconds": round(timed(step, clone), 1), "gives": step.gives} for step in STEPS]
    took.append({"do": UI.shown, "seconds": round(until_it_answers(clone), 1), "gives": UI.gives})
    result = {
        "benchmark": "first_minutes", "date": datetime.date.today().isoformat(), "cpu": cpu_model(),
        "cores": os.cpu_count(), "python": platform.python_version(), "commit": at, "steps": took,
    }  # fmt: skip
    files.write_json(RESULT, result)
    files.write_text(PAGE, replaced(PAGE.read_text(encoding="utf-8"), BLOCK, table(result)))


if __name__ == "__main__":
    main()
