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
from sumnas.machine import cpu_model, spent
from workflow.stage import PARAMS
from workflow.stages import STAGES, SUMMARY, SUMMARY_FIGURE, SUMMARY_TABLE, TABLE

README, RESULTS, SPEEDS = Path("README.md"), Path("docs/results"), Path("benchmarks/results")
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


def speed(folder: Path) -> str:
    """Return the table of measured speeds, from the committed files of benchmarks/."""
    step, nni, shared = (files.read_json(folder / f"{name}.json") for name in ("meta_step", "against_nni", "ranks-cpu"))
    share = shared["bars"][0]["at_least"]  # of what the split of the paths allows
    lines = ["| measured | size | ratio | 95 % interval | target |", "|" + " --- |" * 5]
    for row in step["settings"]:
        what, found = f"outer step, k={row['k']}, over bare passes", (row["ratio"], row["interval_95"])
        lines.append(_speed_row(what, _cells(row, row["batch_size"]), found, 3, "at most", step["target"]))
    for row in nni["settings"]:
        what, over = f"SPOS images/s, over NNI {nni['versions']['nni']}", row["processor_time"]["over_lightning"]
        found = over["ratio"], over["interval_95"]
        lines.append(_speed_row(what, _cells(row, row["batch_size"]), found, 2, "at least", nni["target"]))
    for row in shared["rows"]:
        space, found = row["space"], (row["times_as_fast"], row["interval_95"])
        what, edge = f"step in {shared['world']} processes, k={row['k']}, over one", space["image_size"]
        size = (
            _cells(space, row["batch_size"])
            if "cells" in space
            else f"MobileNet {edge}×{edge}, batch {row['batch_size']}"
        )
        lines.append(_speed_row(what, size, found, 2, "at least", round(share * row["bound"], 2)))
    return "\n".join(lines) + (
        f"\n\nOne thread of {step['cpu']}; in {shared['world']} processes one thread each of {shared['device']}, and "
        f"at least {share:g} of what the number of paths allows is aimed at. torch {step['torch']}. {_lockstep(folder)}"
        f"Files, with what differs between the sides: [{folder}]({folder}).\n"
    )


def _cells(size: dict[str, Any], batch: int) -> str:
    edge = size["image_size"]
    return f"C={size['channels']} N={size['cells']} {edge}×{edge}, batch {batch}"


def _speed_row(what: str, size: str, found: tuple[float, list[float]], digits: int, at: str, target: float) -> str:
    ratio, (low, high) = found
    met, sure = (ratio <= target, high <= target) if at == "at most" else (ratio >= target, low >= target)
    verdict = "missed" if not met else "met" if sure else "met, not by the whole interval"
    return (
        f"| {what} | {size} | {ratio:.{digits}f} | [{low:.{digits}f}, {high:.{digits}f}] | {at} {target:g}: {verdict} |"
    )


def _lockstep(folder: Path) -> str:
    """Say how fast the lockstep engine is where it was measured: it is made for a GPU, and aimed at one."""
    told, aim = [], 0.0
    for path in sorted(folder.glob("lockstep-*.json")):
        found = files.read_json(path)
        times = [
            row["than_sequential"]["lockstep"]["times_as_fast"] for row in found["rows"] if row["batch_size"] == 64
        ]
        aim = found["bars"][0]["at_least"]
        told.append(f"{min(times):.2f} to {max(times):.2f} times on {found['device']}")
    missing = "" if (folder / "lockstep-cuda.json").exists() else "; not yet measured on a GPU"
    return (
        f"All paths at once (`engine: lockstep`) are to be at least {aim:g} times as fast as one by one at batch 64 on "
        f"one H100: {', '.join(told)}{missing}. "
    )


def facts() -> dict[str, Any]:
    """Return what the run files say of the whole pipeline: time, memory, versions, threads."""
    runs = [json.loads(path.read_text()) for path in Path().glob("results/**/*run.json")]
    runs += [json.loads(path.read_text()) for path in Path().glob("data/prepared/run.json")]
    from sumnas import params

    stages = {
        name: [run for run in runs if run["stage"] == name] for name in STAGES if any(r["stage"] == name for r in runs)
    }
    return {
        "seconds": round(sum(map(spent, runs)), 1),
        "peak_memory_mb": max(run["peak_memory_mb"] for run in runs),
        "stages": len(runs),
        "by_stage": {
            name: {
                "jobs": len(of),
                "seconds": round(sum(map(spent, of)), 1),
                "peak_memory_mb": max(run["peak_memory_mb"] for run in of),
            }
            for name, of in stages.items()
        },
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
    text = replaced(README.read_text(encoding="utf-8"), name, block(folder))
    files.write_text(README, replaced(text, "speed", speed(SPEEDS)))
    print(f"{README} and {folder} hold this run")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
