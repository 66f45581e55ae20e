"""What tracking costs a stage: the same training with SUMNAS_TRACKING off and on, in turn, from the start each time.

    python benchmarks/tracking_cost.py            # in a project whose data are prepared (make repro)

A stage's own clock and processor time count; what its sender does afterwards is another process, and is reported too.
The comparison is of pairs: the median of on / off with a bootstrap interval, in benchmarks/results/tracking_cost.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from sumnas.machine import cpu_model

TARGET = 1.05


def measure(run: str, tracking: str, folder: Path) -> tuple[float, float]:
    """Return wall and processor seconds of one training from its start; what a sender takes later is not in them."""
    with tempfile.TemporaryDirectory(dir=folder) as work:
        env = {**os.environ, "SUMNAS_TRACKING": tracking, "SUMNAS_CHECKPOINTS": work,
               "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}  # fmt: skip
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "workflow.train_supernet", "--run", run], env=env, check=True, capture_output=True
        )
        wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="sumnas-k2-0")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "tracking_cost.json")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for pair in range(arguments.pairs):
            order = ("off", "on") if pair % 2 else ("on", "off")
            rows.append({which: measure(arguments.run, which, Path(temporary)) for which in order})
            print({which: [round(seconds, 2) for seconds in rows[-1][which]] for which in order}, flush=True)
            time.sleep(5)  # so that the sender of this pair is through before the next begins
    result = {
        "benchmark": "tracking_cost", "target": TARGET, "date": datetime.date.today().isoformat(), "cpu": cpu_model(),
        "cores": os.cpu_count(), "python": platform.python_version(), "run": arguments.run, "pairs": arguments.pairs,
    }  # fmt: skip
    rng = np.random.default_rng(0)
    for number, clock in enumerate(("clock", "processor_time")):
        on, off = (np.array([row[which][number] for row in rows]) for which in ("on", "off"))
        draws = rng.integers(0, len(rows), (2000, len(rows)))
        low, high = np.percentile(np.median((on / off)[draws], axis=1), [2.5, 97.5])
        result[clock] = {
            "ratio": round(float(np.median(on / off)), 4), "interval_95": [round(float(low), 4), round(float(high), 4)],
            "on_s": round(float(np.median(on)), 3), "off_s": round(float(np.median(off)), 3),
        }  # fmt: skip
    result["within_target"] = result["clock"]["ratio"] <= TARGET  # type: ignore[index]
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
