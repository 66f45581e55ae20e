"""Which source files make a stage's result: read from the imports, without importing anything.

`python -m workflow.sources` prints them by stage, to be listed in dvc.yaml; a test compares.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

OBSERVERS = frozenset(
    {
        "sumnas/cautions.py",
        "sumnas/chains.py",
        "sumnas/charts.py",
        "sumnas/checkpoint.py",
        "sumnas/cli.py",
        "sumnas/diagnosis.py",
        "sumnas/digested.py",
        "sumnas/drawing.py",
        "sumnas/errors.py",
        "sumnas/estimate.py",
        "sumnas/fronts.py",
        "sumnas/handover/__init__.py",
        "sumnas/handover/bundle.py",
        "sumnas/handover/card.py",
        "sumnas/handover/mobilenet.py",
        "sumnas/handover/nasbench201.py",
        "sumnas/handover/retrained.py",
        "sumnas/machine.py",
        "sumnas/meanings.py",
        "sumnas/params.py",
        "sumnas/plots.py",
        "sumnas/progress.py",
        "sumnas/report.py",
        "sumnas/stopwatch.py",
        "sumnas/tracking/__init__.py",
        "sumnas/tracking/__main__.py",
        "sumnas/tracking/locks.py",
        "sumnas/tracking/log.py",
        "sumnas/tracking/model.py",
        "sumnas/tracking/queue.py",
        "sumnas/tracking/registry.py",
        "sumnas/tracking/send.py",
        "sumnas/tracking/serve.py",
        "sumnas/tracking/store.py",
        "sumnas/tracking/sync.py",
        "sumnas/tracking/tracker.py",
        "sumnas/tracking/usage.py",
        "sumnas/tracking/views.py",
        "sumnas/results.py",
        "sumnas/__init__.py",
        "sumnas/benchmark/__init__.py",
        "sumnas/datasets/__init__.py",
        "sumnas/lockstep/__init__.py",
        "sumnas/methods/__init__.py",
        "sumnas/spaces/__init__.py",
        "workflow/__init__.py",
        "workflow/engine.py",
        "workflow/launch.py",
        "workflow/live.py",
        "workflow/sources.py",
        "workflow/stage.py",
        "workflow/stages.py",
        "workflow/tracked.py",
    }
)
"""Files that watch, check or draw but make no result: an edit here must not throw away days of training."""


@lru_cache
def imports(path: str) -> tuple[str, ...]:
    """Return the project's files that one file imports, directly, anywhere in it."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in _runtime_nodes(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            base = name.replace(".", "/")
            found |= {f for f in (f"{base}.py", f"{base}/__init__.py") if (ROOT / f).is_file()}
    return tuple(sorted(found))


def _runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk all but the bodies of `if TYPE_CHECKING:`, whose imports never run."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        yield from _runtime_nodes(node)


def closure(*paths: str) -> set[str]:
    """Return the files reached by imports from `paths`, themselves included, observers left out."""
    found: set[str] = set()
    waiting = list(paths)
    while waiting:
        path = waiting.pop()
        if path not in found and path not in OBSERVERS:
            found.add(path)
            waiting += imports(path)
    return found


def strategies() -> list[str]:
    """Return the strategies' file names, without their ending."""
    return sorted(p.stem for p in (ROOT / "sumnas/methods").glob("*.py") if p.stem not in {"base", "__init__"})


def of_stage(name: str, space: str | None = None) -> list[str]:
    """Return the source files of a stage's result, without any strategy's own file.

    A stage that needs the space depends on the file of the space in use, and that file's own imports; the training
    of supernets on what any strategy may import. The strategy itself is `describe_method`'s dependency.
    """
    found = closure(f"workflow/{name}.py")
    if "sumnas/spaces/base.py" in found and space is not None:
        found |= closure(f"sumnas/spaces/{space}.py")
    own = {f"sumnas/methods/{s}.py" for s in strategies()}
    if name == "train_supernet":
        found |= closure(*own) - own
    return sorted(found)


if __name__ == "__main__":
    from workflow.stages import STAGES

    for stage in STAGES:
        print(stage, *of_stage(stage, "nasbench201"), sep="\n  ")
