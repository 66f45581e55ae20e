"""Work that stops at a chosen moment: a training after a step, a sender at a change of the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch


class Stop(Exception):
    """The training was stopped."""


def stopping(after: int, path: Path) -> Callable[[Callable[[], dict[str, Any]]], None]:
    """Return an `on_step` of train_network that saves what there is after so many steps, and raises Stop."""
    steps = 0

    def on_step(capture: Callable[[], dict[str, Any]]) -> None:
        nonlocal steps
        steps += 1
        if steps == after:
            torch.save(capture(), path)
            raise Stop

    return on_step


def let_die(client: Any, writes: Iterable[str], points: int, *, done: bool) -> Callable[[], bool]:
    """Let a client raise ConnectionError at each of the `writes` after the first `points`; `done`: just after it.

    Returns whether it has come to that.
    """
    left = points
    for name in writes:
        original = getattr(client, name)

        def call(*args: Any, original: Callable[..., Any] = original, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0 and done:
                original(*args, **kwargs)
            if left < 0:
                raise ConnectionError
            return original(*args, **kwargs)

        setattr(client, name, call)
    return lambda: left < 0
