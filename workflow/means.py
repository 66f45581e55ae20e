"""Mean Kendall tau over groups of methods, such as those of one product of learning rates (table 7 of the paper).

    python -m workflow.means 'lr01-*-cosine-constant' 'lr05-*-cosine-constant' 'lr25-*-cosine-constant'

Each pattern names the methods of one group; their taus, each a mean over its seeds, come from the summary.
"""

from __future__ import annotations

import argparse
import fnmatch
from pathlib import Path

import numpy as np

from sumnas import files
from sumnas.errors import UserError
from sumnas.shown import number
from workflow.stage import reporting
from workflow.stages import SUMMARY


def rows(patterns: list[str], path: Path = Path(SUMMARY)) -> list[tuple[str, int, float, float | None]]:
    """Return (pattern, methods, mean tau, standard deviation); UserError where none matches or one lacks a tau."""
    methods = files.read_json(path)["methods"]
    found = []
    for pattern in patterns:
        names = fnmatch.filter(methods, pattern)
        if not names:
            raise UserError(f"{pattern}: no such method in {path}; there are: {', '.join(methods)}")
        taus = [methods[name]["kendall_tau"] for name in names]
        if None in taus:
            raise UserError(f"{names[taus.index(None)]}: has no tau ({path} says why)")
        found.append((pattern, len(taus), float(np.mean(taus)), float(np.std(taus, ddof=1)) if len(taus) > 1 else None))
    return found


def main() -> None:
    """Print one line of a table per pattern."""
    parser = argparse.ArgumentParser(
        prog="python -m workflow.means", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("patterns", nargs="+", metavar="PATTERN", help="such as 'lr01-*-cosine-constant'")
    with reporting("means"):
        print("| methods | count | mean tau | std |\n| --- | --- | --- | --- |")
        for pattern, count, mean, std in rows(parser.parse_args().patterns):
            print(f"| {pattern} | {count} | {number(mean)} | {number(std)} |")


if __name__ == "__main__":
    main()
