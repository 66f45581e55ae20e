"""Bring further true accuracies, such as those on other data sets, into one file that the ranking reads.

They are no part of the benchmark's table, so that to ask for them samples, trains, recalibrates and searches nothing
again. docs/benchmarks.md says which files can be read.
"""

from __future__ import annotations

from sumnas.benchmark import further, importers
from workflow.stage import Job, execute
from workflow.stages import FURTHER


def main(job: Job) -> str:
    """Write results/benchmark/further.csv, with a row of headings alone where nothing is asked for."""
    space, path, known = job.space(), job.path(FURTHER), further.Accuracies()
    for name, source in job.params.further.items():
        by_seed = importers.read_telling("build_further", source, space).accuracies
        known[name] = {a: sum(found.values()) / len(found) for a, found in by_seed.items()}
    further.write(path, space, known)
    columns = ", ".join(f"{name} of {len(column)} architectures" for name, column in known.items())
    return f"{columns or 'no further accuracies'} -> {path}"


if __name__ == "__main__":
    execute("build_further", main)
