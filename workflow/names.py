"""Looks at the names in params.yaml before DVC does: it puts them into shell lines, and deletes outputs called so.

Every stage checks the whole of params.yaml itself, but of the shard `0; rm x` the shell would have run the second half,
and of the method `../../x` DVC would have deleted a file of that name. Snakemake constrains its wildcards instead.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

PARAMS = Path("params.yaml")
WORD = re.compile(r"[A-Za-z0-9_-]+")
"""What a shell reads as one word that means itself, and a file system as a name."""


def strange(blocks: Any) -> Iterator[str]:
    """Give the places of names that are no such word, or of what is no list or block of names at all."""
    run, methods = (blocks.get(name) if isinstance(blocks, dict) else None for name in ("run", "methods"))
    for key in ("methods", "seeds", "shards"):
        names = run.get(key) if isinstance(run, dict) else None
        if not isinstance(names, list) or not all(WORD.fullmatch(str(name)) for name in names):
            yield f"run.{key}"
    if not isinstance(methods, dict) or not all(WORD.fullmatch(str(name)) for name in methods):
        yield "methods"


def main() -> int:
    """Return the exit code: 1 keeps DVC from every stage that is called after a run, method or shard."""
    try:
        places = list(strange(yaml.safe_load(PARAMS.read_text(encoding="utf-8"))))
    except (OSError, ValueError, yaml.YAMLError):
        print(f"{PARAMS}: cannot be read; run `make check`", file=sys.stderr)
        return 1
    for place in places:
        print(
            f"{PARAMS}: {place}: a name is made of letters, digits, '-' and '_' here; run `make check`", file=sys.stderr
        )
    return 1 if places else 0


if __name__ == "__main__":
    raise SystemExit(main())
