"""The measurement of the import makes its records and runs the stage on them, from folder and archive."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.official_files import strings, write_nats

ROOT = Path(__file__).resolve().parents[1]


def test_three_records_are_made_and_read(tmp_path: Path) -> None:
    source = tmp_path / "official"
    write_nats(source, strings(), [0, 4])
    command = [sys.executable, str(ROOT / "benchmarks/import_nats.py"), str(source), "--count", "3"]
    command += ["--keep", str(tmp_path / "kept"), "--out", str(tmp_path / "out.json")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["records"] == 3 and [run["from"] for run in result["runs"]] == ["folder", "archive"]
    assert done.stderr.count("3 architectures, best accuracy") + done.stdout.count("3 architectures, best") == 2

    # What the stage refuses is said by the stage: no traceback of the measurement's own.
    kept = tmp_path / "kept/NATS-tss-v1_0-3ffb9-simple"
    (kept / "000001.pickle.pbz2").write_bytes(b"damaged")
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "000001.pickle.pbz2: damaged" in done.stderr and "Traceback" not in done.stderr
