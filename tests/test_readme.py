"""The README's numbers are those of the committed result files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from workflow.readme import block, replaced

ROOT = Path(__file__).resolve().parents[1]


def test_the_results_are_those_of_the_committed_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "README.md").read_text()
    assert replaced(text, "quick", block(Path("docs/results/quick"))) == text
    summary = json.loads((ROOT / "docs/results/quick/metrics.json").read_text())
    for name, method in summary["methods"].items():
        assert f"| {name} | {method['kendall_tau']:.3f} |" in text
