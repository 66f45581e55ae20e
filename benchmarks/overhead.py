"""What the engines cost: the pipeline's wall time beside the stages' own, start-ups, and a call that has nothing to do.

    python benchmarks/overhead.py                       # the default pipeline in two new clones: about ten minutes
    python benchmarks/overhead.py --engines snakemake   # one of them; what the file has of the other is kept
    python benchmarks/overhead.py --tiny                # one stage alone, of no interest: does it run?

The commit that is checked out is cloned into a temporary folder. Each engine runs it there one job at a time, with
tracking as it is by default, then three times more with nothing to do. A stage's own clock (`seconds` in its run.json)
starts when its imports are done. What the whole run took beyond the sum of these clocks is `overhead_s`, per job; of it

- `start_s` is Python's start and the stage's imports: how long `python -m workflow.<stage> --help` takes, the median of
  three calls, and the mean over the jobs;
- `engine_s` is the rest: the engine's own work, a stage's end, and tracking's.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sumnas import files
from sumnas.machine import commit, cpu_model

ROOT = Path(__file__).resolve().parents[1]
ENGINES = {"dvc": ("dvc", "repro", "--quiet"), "snakemake": ("snakemake", "--cores", "1", "--quiet", "all", "--")}
TINY = {
    "dvc": ("describe_method@spos",),
    "snakemake": ("results/methods/spos.json",),
}
"""What an engine is asked for where the numbers are of no interest: one stage that takes seconds."""


def took(folder: Path, *command: str, tracked: bool = True) -> float:
    """Run a command of the environment in the folder; return its wall seconds."""
    env = {
        **os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder), "SUMNAS_CHECKPOINTS": str(folder.parent / f"{folder.name}-work"),
        **({} if tracked else {"SUMNAS_TRACKING": "off"}),
    }  # fmt: skip
    began = time.monotonic()
    ended = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)} in {folder}: {ended.stdout}{ended.stderr}")
    return time.monotonic() - began


def starts(folder: Path, stages: set[str], calls: int) -> dict[str, float]:
    """Return how long each stage takes until it looks at its arguments."""
    found = {}
    for stage in sorted(stages):
        times = [took(folder, sys.executable, "-m", f"workflow.{stage}", "--help") for _ in range(calls)]
        found[stage] = statistics.median(times)
    return found


def measure(engine: str, folder: Path, *, tiny: bool) -> dict[str, Any]:
    """Run the pipeline of the commit that is checked out with one engine."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    if tiny:  # DVC reads and writes the whole of it for every stage
        (folder / "dvc.lock").unlink(missing_ok=True)
    command = (*ENGINES[engine], *(TINY[engine] if tiny else ()))
    whole = took(folder, *command, tracked=not tiny)
    runs = [files.read_json(p) for top in ("results", "data/prepared") for p in (folder / top).rglob("*run.json")]
    nothing = [took(folder, *command, tracked=not tiny) for _ in range(1 if tiny else 3)]
    if len(again := [p for top in ("results", "data/prepared") for p in (folder / top).rglob("*run.json")]) != len(
        runs
    ):
        raise SystemExit(f"{engine} has made {len(again) - len(runs)} more results where nothing was to do")
    return row(whole, runs, nothing, starts(folder, {run["stage"] for run in runs}, 1 if tiny else 3))


def row(whole: float, runs: list[dict[str, Any]], nothing: list[float], start: dict[str, float]) -> dict[str, Any]:
    """Say what the run took, of which the stages say what they took, and the rest per job."""
    stages: dict[str, list[float]] = {}
    for run in runs:
        stages.setdefault(run["stage"], []).append(run["seconds"])
    own = sum(run["seconds"] for run in runs)
    overhead, started = (whole - own) / len(runs), statistics.mean(start[run["stage"]] for run in runs)
    return {
        "jobs": len(runs), "wall_s": round(whole, 1), "stages_s": round(own, 1),
        "overhead_share": round(1 - own / whole, 3),
        "per_job": {
            "overhead_s": round(overhead, 2), "start_s": round(started, 2), "engine_s": round(overhead - started, 2)
        },
        "nothing_to_do_s": round(statistics.median(nothing), 2),
        "stages": {
            name: {"jobs": len(s), "seconds": round(sum(s), 1), "start_s": round(start[name], 2)}
            for name, s in sorted(stages.items())
        },
    }  # fmt: skip


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--tiny", action="store_true", help="one stage alone: does it run?")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "overhead.json")
    options = parser.parse_args(words)
    kept = files.read_json(options.out)["engines"] if options.out.exists() else {}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        for engine in options.engines:
            found = measure(engine, Path(temporary) / engine, tiny=options.tiny)
            kept[engine] = {"commit": (commit(ROOT) or "").removesuffix("-dirty"), **found}  # a clone has nothing else
            print(engine, {key: value for key, value in kept[engine].items() if key != "stages"}, flush=True)
    files.write_json(options.out, {
        "benchmark": "overhead", "date": datetime.date.today().isoformat(), "cpu": cpu_model(),
        "cores": os.cpu_count(), "load_before": round(load, 1), "load_after": round(os.getloadavg()[0], 1),
        "python": platform.python_version(), "engines": kept,
    })  # fmt: skip


if __name__ == "__main__":
    main()
