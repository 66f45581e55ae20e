"""A function of tensors that runs as one captured graph on a GPU, and as it is elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Function = Callable[..., list[Tensor]]
"""What can be captured: tensors in, tensors out."""
Signature = tuple[tuple[torch.Size, torch.dtype], ...]
"""Shape and type of every input, which a graph is bound to."""

WARM_UPS = 3
"""Calls before a capture: libraries choose their algorithms and allocate in the first ones."""
FAR = 0.05
"""How far a graph's results may be from the function's, as a share of them: rounding is far less, a fault far more."""


class CaptureError(RuntimeError):
    """A graph cannot be captured, or gives something else than its function."""


class Captured:
    """`function(*tensors)` with tensors of the same shapes in every call; ValueError at another shape.

    On a GPU the first call captures it as a CUDA graph, or `prepare` does so before; later calls copy their inputs and
    replay it: then the results are overwritten by the next call. The function must not wait for the host nor branch on
    values, must leave the tensors that it changes as they were (it is also called to warm up), and may read only
    tensors that stay where they are. `captures` counts the graphs made: one, or something is wrong.
    """

    def __init__(self, function: Function, device: torch.device) -> None:
        self.function, self.device = function, device
        self.graphs = device.type == "cuda"
        self.captures = 0
        self._signature: Signature | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Return the function's results for these inputs, which may lie on the host."""
        self._check_shape(inputs)
        if not self.graphs:
            return self.function(*(x.to(self.device) for x in inputs))
        if self._graph is None:
            self.prepare(*inputs)
        for static, x in zip(self._inputs, inputs, strict=True):
            static.copy_(x, non_blocking=True)
        assert self._graph is not None
        self._graph.replay()
        return self._outputs

    def prepare(self, *inputs: Tensor) -> None:
        """Make the graph, on a GPU, and replay it once; CaptureError where it does not give what the function gives."""
        self._check_shape(inputs)
        if not self.graphs:
            return
        expected = self._capture(inputs)
        assert self._graph is not None
        self._graph.replay()
        # The first result is losses, beside which all others may be small.
        apart = (slice(None, 1), slice(1, None))
        if (far := max(distance(self._outputs[part], expected[part]) for part in apart)) > FAR:
            raise CaptureError(f"the captured graph's results are off by {far:.0%}")

    def _check_shape(self, inputs: Sequence[Tensor]) -> None:
        signature = tuple((x.shape, x.dtype) for x in inputs)
        if self._signature is None:
            self._signature = signature
        elif signature != self._signature:
            raise ValueError(f"a graph of constant shape got {signature}, and before {self._signature}")

    def _capture(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Make the graph; return what the function itself gave for these inputs."""
        expected: list[Tensor] = []
        self._inputs = [torch.empty_like(x, device=self.device).copy_(x) for x in inputs]
        side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self.device))
        try:
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    expected = self.function(*self._inputs)
        finally:  # also where it fails: who puts the weights back must not do so before the last of this has run
            torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # A capture that fails may leave its own stream the current one.
        with torch.cuda.stream(torch.cuda.current_stream(self.device)):
            first: Exception | None = None  # the end of a broken capture fails, too, and says less
            try:
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    try:
                        self._outputs = self.function(*self._inputs)
                    except Exception as error:
                        first = error
                        raise
            except RuntimeError as error:
                raise CaptureError(str(first or error)) from error
        self._graph = graph
        self.captures += 1
        return expected


def distance(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest norm of a tensor's difference over its own norm; 0 of none, or where one is not finite.

    A tensor of less than a hundredth of all together counts as that: its gradient may be nothing but rounding.
    """
    if not expected:
        return 0.0
    with torch.no_grad():
        gaps = torch.stack([(a - b).double().norm() for a, b in zip(found, expected, strict=True)])
        sizes = torch.stack([b.double().norm() for b in expected])
        if not bool(sizes.isfinite().all()):
            return 0.0  # a training that goes wrong is told elsewhere
        far = gaps / sizes.clamp(min=max(float(sizes.norm()) / 100, torch.finfo(torch.float64).tiny))
        return float(torch.nan_to_num(far, nan=math.inf).max())
