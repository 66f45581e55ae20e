"""Copy the summary of a finished run to docs/results/<preset>/ and put its table into README.md: `make readme`.

Every figure in the README comes from here; a test compares the README with the committed files.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sumnas import files
from sumnas.machine import cpu_model
from workflow.stage import PARAMS
from workflow.stages import SUMMARY, SUMMARY_FIGURE, SUMMARY_TABLE, TABLE

README, RESULTS = Path("README.md"), Path("docs/results")
PACKAGES = ("torch", "numpy", "scipy", "dvc", "snakemake")


def block(folder: Path) -> str:
    """Return the text between the README's markers, from committed files alone."""
    facts = files.read_json(folder / "run.json")
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return (
        f"{(folder / 'table.md').read_text(encoding='utf-8')}\n"
        f"Time of all stages {facts['seconds'] / 60:.1f} min, largest memory of one {facts['peak_memory_mb']} MB "
        f"({facts['cpu']}, {facts['threads']} thread per stage; Python {facts['python']}, {versions}). "
        f"Files: [{folder}]({folder}); made by `make repro && make readme`.\n"
    )


def replaced(text: str, name: str, content: str) -> str:
    """Return README's text with the block between `<!-- results: name -->` and `<!-- end -->` replaced."""
    start, end = f"<!-- results: {name} -->\n", "<!-- end -->"
    head, found, rest = text.partition(start)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{README}: no block between {start.strip()} and {end}")
    return head + start + content + end + tail


def facts() -> dict[str, Any]:
    """Return what the run files say of the whole pipeline: time, memory, versions, threads."""
    runs = [json.loads(path.read_text()) for path in Path().glob("results/**/*run.json")]
    runs += [json.loads(path.read_text()) for path in Path().glob("data/prepared/run.json")]
    from sumnas import params

    return {
        "seconds": round(sum(run["seconds"] for run in runs), 1),
        "peak_memory_mb": max(run["peak_memory_mb"] for run in runs),
        "stages": len(runs),
        "cpu": cpu_model(),
        "threads": params.load(PARAMS).run.threads,
        "python": runs[0]["python"],
        "versions": {name: version(name) for name in PACKAGES},
    }


def main() -> int:
    """Copy, and write the README."""
    parser = argparse.ArgumentParser(prog="python -m workflow.readme", description=__doc__)
    parser.add_argument("name", nargs="?", default="quick", help="the preset that was run")
    name: str = parser.parse_args().name
    folder = RESULTS / name
    if Path("presets", f"{name}.yaml").read_bytes() != PARAMS.read_bytes():
        print(f"{PARAMS} is not presets/{name}.yaml: these results are of other settings", file=sys.stderr)
        return 1
    for path in (SUMMARY, SUMMARY_TABLE, SUMMARY_FIGURE, TABLE):
        source = Path(path)
        target = folder / ("benchmark.csv" if path == TABLE else source.name)
        files.write_text(target, source.read_text(encoding="utf-8"))
    files.write_json(folder / "run.json", facts())
    files.write_text(README, replaced(README.read_text(encoding="utf-8"), name, block(folder)))
    print(f"{README} and {folder} hold this run")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
