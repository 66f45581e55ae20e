"""Check params.yaml without running anything: `make check`."""

from __future__ import annotations

import sys

from sumnas import params
from sumnas.errors import UserError
from workflow.stage import PARAMS
from workflow.stages import NAMED


def main() -> int:
    """Print what is wrong, one line per problem; return the exit code."""
    try:
        loaded = params.load(PARAMS, NAMED)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    runs = len(loaded.run.methods) * len(loaded.run.seeds)
    print(f"{PARAMS}: valid; {runs} runs ({', '.join(loaded.run.methods)}; seeds {loaded.run.seeds})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
