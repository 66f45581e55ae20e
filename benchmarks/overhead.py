"""What the engines cost: the pipeline's wall time beside the stages' own, and a call that finds nothing to do.

    python benchmarks/overhead.py                 # the default pipeline in two new clones: about ten minutes
    python benchmarks/overhead.py --engines dvc   # one of them

The commit that is checked out is cloned into a temporary folder. Each engine runs it there one job at a time, with
tracking as it is by default, then three times more with nothing to do. A stage's own clock (`seconds` in its run.json)
starts when its imports are done: what the whole run took beyond their sum is the engine's and Python's, per job.
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
ENGINES = {"dvc": ("dvc", "repro", "--quiet"), "snakemake": ("snakemake", "--cores", "1", "--quiet", "all")}


def took(folder: Path, *command: str) -> float:
    """Run a command of the environment in the folder; return its wall seconds."""
    env = {
        **os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder), "SUMNAS_CHECKPOINTS": str(folder.parent / f"{folder.name}-work"),
    }  # fmt: skip
    began = time.monotonic()
    ended = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)} in {folder}: {ended.stdout}{ended.stderr}")
    return time.monotonic() - began


def measure(engine: str, temporary: Path) -> dict[str, Any]:
    """Run the default pipeline with one engine."""
    folder = temporary / engine
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    whole = took(folder, *ENGINES[engine])
    runs = [files.read_json(p) for top in ("results", "data/prepared") for p in (folder / top).rglob("*run.json")]
    own = sum(run["seconds"] for run in runs)
    stages: dict[str, list[float]] = {}
    for run in runs:
        stages.setdefault(run["stage"], []).append(run["seconds"])
    nothing = [took(folder, *ENGINES[engine]) for _ in range(3)]
    return {
        "jobs": len(runs), "wall_s": round(whole, 1), "stages_s": round(own, 1),
        "overhead_s_per_job": round((whole - own) / len(runs), 2), "overhead_share": round(1 - own / whole, 3),
        "nothing_to_do_s": round(statistics.median(nothing), 2),
        "stages": {name: {"jobs": len(s), "seconds": round(sum(s), 1)} for name, s in sorted(stages.items())},
    }  # fmt: skip


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "overhead.json")
    options = parser.parse_args(words)
    kept = files.read_json(options.out)["engines"] if options.out.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        for engine in options.engines:
            kept[engine] = measure(engine, Path(temporary))
            print(engine, {key: value for key, value in kept[engine].items() if key != "stages"}, flush=True)
    files.write_json(options.out, {
        "benchmark": "overhead", "date": datetime.date.today().isoformat(), "commit": commit(ROOT), "cpu": cpu_model(),
        "cores": os.cpu_count(), "python": platform.python_version(), "engines": kept,
    })  # fmt: skip


if __name__ == "__main__":
    main()
