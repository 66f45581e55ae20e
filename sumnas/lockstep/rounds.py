"""A strictly fair round as one graph: what a space's lockstep form is written with.

Every operator of every layer is on exactly one of the m paths, so it runs once, on that path's slice of the
activations, with the supernet's own weights. Which slice is an index tensor: the same graph serves every draw of paths.
The shared modules run on all paths at once, with one version of their weights per path where these have come apart.

Shapes: N images, m paths, L layers. Activations are [m, N, ...]; those of images are [m, N, C, H, W] that lie in memory
as [m, N, H, W, C], so that every slice is channels_last.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sumnas.spaces.base import Architecture

Operator = Callable[[Tensor], Tensor]
"""What runs on one path's slice: [N, ...] -> [N, ...]."""


def indices(paths: Sequence[Architecture]) -> Tensor:
    """Return [2, L, m] int64 of a strictly fair round: the operator of each path, and the path of each operator."""
    operators = torch.tensor(paths).T
    return torch.stack([operators, operators.argsort(1)])


class Wiring:
    """Which path each operator is on, for some layers that all read one node (`take`) or all add to one (`put`).

    Belongs to the `active` operators of the layers, which are the same in each; the others give zeros and are left
    out. Slices of operators go layer by layer, in the order of `active`. `take` and `put` are each other's adjoint.
    """

    def __init__(self, places: Tensor, layers: Sequence[int], active: Sequence[int]) -> None:
        self.candidates = places.shape[1]
        self.paths = torch.cat([places[layer, operator : operator + 1] for layer in layers for operator in active])

    def take(self, x: Tensor) -> tuple[Tensor, ...]:
        """[m, N, ...] -> for every active operator of every layer the slice of its path, [N, ...] each."""
        taken: tuple[Tensor, ...] = _Take.apply(x, self.paths)
        return taken

    def put(self, parts: Sequence[Tensor]) -> Tensor:
        """Return [m, N, ...]: for every path the sum of what its operators gave.

        `parts` are [N, ...] each, one for every active operator of every layer; ValueError at another number of them.
        """
        if len(parts) != len(self.paths):
            raise ValueError(f"{len(parts)} slices for {len(self.paths)} operators")
        out: Tensor = _Put.apply(self.paths, self.candidates, *parts)
        return out


class FairRound:
    """One strictly fair round, for a space's `Supernet.lockstep`: shared modules by name, choice layers by number.

    `index` is [2, L, m] (see `indices`). `weights` are the shared parameters by their names in the supernet: with
    `versions` [m, ...], one per path, else as they are in the supernet.
    """

    def __init__(
        self, supernet: nn.Module, index: Tensor, weights: Mapping[str, Tensor], versions: bool, candidates: int
    ) -> None:
        self.supernet, self.index, self.weights = supernet, index, weights
        self.versions, self.candidates = versions, candidates

    def first(self, name: str, images: Tensor) -> Tensor:
        """Run the shared module called `name` on what all paths read alike: [N, ...] -> [m, N, ...]."""
        module, own = self._module(name)
        if self.versions:
            return channels_last(torch.func.vmap(function(module, images.device.type), in_dims=(0, None))(own, images))
        out = module(images)
        return channels_last(out[None].expand(self.candidates, *out.shape))

    def shared(self, name: str, x: Tensor) -> Tensor:
        """Run the shared module called `name` on every path: [m, N, ...] -> [m, N, ...]; it normalises per path."""
        module, own = self._module(name)
        return channels_last(
            torch.func.vmap(function(module, x.device.type), in_dims=(0 if self.versions else None, 0))(own, x)
        )

    def wiring(self, layers: Sequence[int], active: Sequence[int] | None = None) -> Wiring:
        """Return the wiring of some layers, for cells whose nodes have several inputs or outputs."""
        return Wiring(self.index[1], layers, range(self.candidates) if active is None else active)

    def chain(self, x: Tensor, layers: Sequence[Sequence[Operator]], first: int = 0) -> Tensor:
        """Run choice layers one after another, the first of them number `first`: [m, N, ...] -> [m, N, ...].

        `layers[l][o]` is operator o. In and out shapes are one per layer, whatever the operator does inside. Between
        two layers the slices go from operators to operators directly.
        """
        slices = self.wiring([first]).take(x)
        for number, operators in enumerate(layers, first):
            given = [operator(slice_) for operator, slice_ in zip(operators, slices, strict=True)]
            if number + 1 == first + len(layers):
                return self.wiring([number]).put(given)
            here, there = self.index[:, number], self.index[:, number + 1]
            # Operator o is on path here[1][o], which the next layer's operator there[0][that path] is on.
            onward, back = there[0].index_select(0, here[1]), here[0].index_select(0, there[1])
            slices = _Exchange.apply(onward, back, *given)
        return x

    def _module(self, name: str) -> tuple[nn.Module, dict[str, Tensor]]:
        module = self.supernet.get_submodule(name)
        return module, {key: self.weights[f"{name}.{key}"] for key, _ in module.named_parameters()}


def channels_last(x: Tensor) -> Tensor:
    """[m, N, C, H, W] as it should lie in memory; anything else as it is."""
    return x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3) if x.dim() == 5 else x


def function(module: nn.Module, device: str) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    """Return the module as a function of its weights or buffers and its input, for vmap."""
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

    def call(own: dict[str, Tensor], x: Tensor) -> Tensor:
        with _UnderVmap(dtype):
            out: Tensor = torch.func.functional_call(module, own, (x,))
        return out

    return call


class _UnderVmap(TorchFunctionMode):
    """Does what torch itself leaves out under vmap.

    Autocast does not see convolutions and linear layers there: with a `dtype` they get their inputs in it. And cuDNN's
    batch normalisation asks how its input lies in memory, which vmap cannot tell of a channels_last one: on a GPU it
    gets a contiguous one.
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.conv2d, F.linear) and self.dtype is not None:
            args = [a.to(self.dtype) if isinstance(a, Tensor) else a for a in args]
        elif func is F.batch_norm and args[0].is_cuda:
            args = [args[0].contiguous(), *args[1:]]
        return func(*args, **(kwargs or {}))


def _rows(x: Tensor) -> Tensor:
    """[..., N, C, H, W] -> [..., N, H, W, C], in memory's order; anything else as it is."""
    return x.movedim(-3, -1) if x.dim() > 3 else x


def _unrows(x: Tensor) -> Tensor:
    return x.movedim(-1, -3) if x.dim() > 3 else x


def _wide(parts: Sequence[Tensor]) -> torch.dtype:
    """Return a type that holds all: under autocast some operators give bfloat16, others what they got."""
    return functools.reduce(torch.promote_types, (part.dtype for part in parts))


def _gather(x: Tensor, index: Tensor) -> tuple[Tensor, ...]:
    """[m, N, ...] -> the slices picked."""
    return _unrows(_rows(x).index_select(0, index)).unbind()


def _add_up(parts: Sequence[Tensor], index: Tensor, count: int) -> Tensor:
    """Return [count, N, ...]: the sum of the parts sent to each. One by one, so that the order is always the same."""
    first, dtype = _rows(parts[0]), _wide(parts)
    total = first.new_zeros(count, *first.shape, dtype=dtype)
    for number, part in enumerate(parts):
        total.index_add_(0, index[number : number + 1], _rows(part)[None].to(dtype))
    return _unrows(total)


def _send(parts: Sequence[Tensor], index: Tensor) -> tuple[Tensor, ...]:
    """Return the parts in another order: number i becomes number index[i]."""
    first, dtype = _rows(parts[0]), _wide(parts)
    moved = first.new_empty(len(parts), *first.shape, dtype=dtype)
    for number, part in enumerate(parts):
        moved.index_copy_(0, index[number : number + 1], _rows(part)[None].to(dtype))
    return _unrows(moved).unbind()


class _Take(torch.autograd.Function):
    """Gather; the gradient is added up slice by slice, without a whole [m, N, ...] for each."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, paths: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(paths)
        ctx.count = len(x)
        return _gather(x, paths)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return _add_up(gradients, ctx.saved_tensors[0], ctx.count), None


class _Put(torch.autograd.Function):
    """The adjoint of `_Take`."""

    @staticmethod
    def forward(ctx: Any, paths: Tensor, count: int, *parts: Tensor) -> Tensor:
        ctx.save_for_backward(paths)
        return _add_up(parts, paths, count)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *_gather(gradients[0], ctx.saved_tensors[0])


class _Exchange(torch.autograd.Function):
    """Slices from one layer's operators to the next layer's."""

    @staticmethod
    def forward(ctx: Any, onward: Tensor, back: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(back)
        return _send(parts, onward)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *_send(gradients, ctx.saved_tensors[0])
