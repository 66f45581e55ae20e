"""Captured graphs without a GPU: what a CUDA graph does to its inputs and outputs, computed on the CPU."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sumnas.lockstep.capture import Captured


class ReplayedGraph:
    """Stands for a CUDA graph on a CPU: replaying fills the captured outputs anew from the captured inputs."""

    captured: Captured

    def replay(self) -> None:
        of = self.captured
        for static, value in zip(of._outputs, of.function(*of._inputs), strict=True):
            static.copy_(value)


def without_gpu(monkeypatch: pytest.MonkeyPatch) -> list[ReplayedGraph]:
    """Let capturing work without a GPU; the graphs made, in their order."""
    made: list[ReplayedGraph] = []

    def graph() -> ReplayedGraph:
        made.append(ReplayedGraph())
        return made[-1]

    def begin(self: Captured, inputs: Any) -> list[torch.Tensor]:
        expected = capture(self, inputs)
        made[-1].captured = self
        return expected

    capture = Captured._capture
    monkeypatch.setattr(Captured, "_capture", begin)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "stream", lambda *_: contextlib.nullcontext())
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: SimpleNamespace(wait_stream=lambda _: None))
    return made
