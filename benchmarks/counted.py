"""Bytes and operations of a piece of work, counted; and what the device can do at best, measured.

How they are counted:

- `operations`: two per multiply-add of convolutions and matrix products, forward and backward, and nothing else. (Not
  by `torch.utils.flop_counter`, which counts the weights' gradients of a grouped convolution once per group.)
- `moved_bytes`: what the kernels ask of memory as they are called: every operation's tensors, each that it reads once
  and each that it writes once, views and allocations free. Of gathers and scatters only the slices touched. Caches and
  fused kernels make the real traffic smaller.
- `floor_bytes`: every activation written once and read once, and its gradient too. Activations are the outputs of
  convolutions, normalisations, pools and sums in the stand-alone networks of the paths, which run nothing needless.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "lift_fresh", "resize_"}
"""Operations that move nothing although they are no views."""
ACTIVATIONS = {"convolution", "native_batch_norm", "_batch_norm_with_update", "avg_pool2d", "add", "cudnn_batch_norm"}


def size(tensors: Any) -> int:
    """Return the bytes of all tensors in a nest of them, each storage's part once."""
    found = {
        (t.data_ptr(), t.shape): t.numel() * t.element_size() for t in tree_leaves(tensors) if isinstance(t, Tensor)
    }
    return sum(found.values())


def operations(name: str, args: Any, out: Any) -> int:
    """Return `operations` of one call."""
    if name == "convolution":
        return 2 * out.numel() * args[1][0].numel()
    if name == "convolution_backward":  # a gradient costs what the output does: of input, weight
        return 2 * args[0].numel() * args[2][0].numel() * sum(args[-1][:2])
    if name in ("mm", "bmm"):
        return 2 * out.numel() * args[0].shape[-1]
    if name in ("addmm", "baddbmm"):
        return 2 * out.numel() * args[1].shape[-1]
    return 0


class Traffic(TorchDispatchMode):
    """Adds up `moved_bytes`, `operations`, and the bytes of ACTIVATIONS."""

    def __init__(self) -> None:
        super().__init__()
        self.moved, self.activations, self.operations = 0, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        if name in FREE or func.is_view:
            return out
        self.operations += operations(name, args, out)
        if name == "index_select":
            self.moved += 2 * size(out)
        elif name in ("index_add_", "index_copy_"):
            self.moved += (3 if name == "index_add_" else 2) * size(args[3])
        else:
            self.moved += size([args, kwargs])
            written = [r for r in func._schema.returns if r.alias_info is not None]
            # An operation in place writes what it was given first; `out` is None for lists of tensors.
            self.moved += size(args[0]) if written or out is None else size(out)
        if name in ACTIVATIONS:
            first = out[0] if isinstance(out, (tuple, list)) else out
            self.activations += size(first) if first.dim() == 4 else 0
        return out


def count(work: Callable[[], object]) -> dict[str, int]:
    """Return `moved_bytes` and `operations` of one call."""
    with Traffic() as traffic:
        work()
    return {"moved_bytes": traffic.moved, "operations": traffic.operations}


def floor_bytes(networks: list[nn.Module], images: Tensor) -> int:
    """Return the bytes of one pass of each of the networks, forward and backward, at the least."""
    with Traffic() as traffic, torch.no_grad():
        for network in networks:
            network(images)
    return 4 * traffic.activations


def wait(device: torch.device) -> None:
    """Wait until the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return how long one call takes, to its end on the device."""
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def peaks(device: torch.device, dtype: torch.dtype, *, tiny: bool = False) -> dict[str, float]:
    """Measure the best of several copies (bytes read and written per second) and of matrix products (operations).

    The products of float32 may be of TF32, as a GPU's convolutions are.
    """
    cuda = device.type == "cuda"
    length = 1 << (20 if tiny else 28 if cuda else 25)
    edge = 128 if tiny else 8192 if cuda else 1024
    one = torch.ones(length, device=device)
    other = torch.empty_like(one)
    left, right = (torch.randn(edge, edge, device=device, dtype=dtype) for _ in range(2))
    copies = [seconds(lambda: other.copy_(one), device) for _ in range(10)]
    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, True
    products = [seconds(lambda: left @ right, device) for _ in range(10)]
    torch.backends.cuda.matmul.allow_tf32 = before
    return {"copy_bytes_per_s": 2 * 4 * length / min(copies), "matrix_operations_per_s": 2 * edge**3 / min(products)}
