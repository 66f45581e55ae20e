"""Mean taus over groups of methods."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from sumnas.errors import UserError
from workflow.means import rows

ROOT = Path(__file__).resolve().parents[1]
TAUS = {"lr01-a": 0.5, "lr01-b": 0.7, "lr01-c": 0.9, "lr05-a": 0.25, "other": None}


@pytest.fixture
def summary(tmp_path: Path) -> Path:
    path = tmp_path / "results/summary/metrics.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"methods": {name: {"kendall_tau": tau} for name, tau in TAUS.items()}}))
    return path


def test_means_are_over_the_methods_that_match(summary: Path) -> None:
    (one, other) = rows(["lr01-*", "lr05-*"], summary)
    taus = [tau for name, tau in TAUS.items() if name.startswith("lr01") and tau is not None]
    assert one[:2] == ("lr01-*", 3) and one[2:] == pytest.approx((statistics.mean(taus), statistics.stdev(taus)))
    assert other == ("lr05-*", 1, 0.25, None)


def test_what_matches_nothing_or_has_no_tau_is_named(summary: Path) -> None:
    with pytest.raises(UserError, match=r"lr25-\*: no such method in .*metrics\.json; there are: lr01-a, "):
        rows(["lr01-*", "lr25-*"], summary)
    with pytest.raises(UserError, match="other: has no tau"):
        rows(["o*"], summary)


def test_the_command(summary: Path) -> None:
    command = [sys.executable, "-m", "workflow.means", "lr01-*"]
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    folder = summary.parents[2]
    result = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and "| lr01-* | 3 | 0.700 | 0.200 |" in result.stdout
    summary.unlink()
    result = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and "no such file" in result.stderr and "Traceback" not in result.stderr
