"""Write params.yaml from a preset: `make preset NAME=quick`. Unsaved edits are not overwritten."""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path

from sumnas import files
from workflow.stage import PARAMS

PRESETS = Path("presets")


def main() -> int:
    """Copy the preset; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m workflow.preset", description=__doc__)
    parser.add_argument("name", nargs="?", help="a file of presets/, without its ending")
    parser.add_argument("--force", action="store_true", help="overwrite edits of params.yaml (make: FORCE=1)")
    arguments = parser.parse_args()
    presets = {path.stem: path for path in sorted(PRESETS.glob("*.yaml"))}
    if arguments.name not in presets:
        near = difflib.get_close_matches(arguments.name or "", presets, n=1)
        hint = f"did you mean NAME={near[0]}?" if near else f"there are: NAME={', NAME='.join(presets)}"
        print(f"no preset {arguments.name!r} in {PRESETS}/; {hint}", file=sys.stderr)
        return 1
    edited = PARAMS.exists() and PARAMS.read_bytes() not in [path.read_bytes() for path in presets.values()]
    if edited and not arguments.force:
        print(
            f"{PARAMS} differs from every preset; save your edits (cp {PARAMS} {PRESETS}/mine.yaml), or overwrite "
            f"them with: make preset NAME={arguments.name} FORCE=1",
            file=sys.stderr,
        )
        return 1
    files.write_text(PARAMS, presets[arguments.name].read_text(encoding="utf-8"))
    print(f"{PARAMS} is now {presets[arguments.name]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
