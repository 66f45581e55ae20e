"""Several processes that train one supernet: who runs which path, and what they agree on (torch.distributed).

A process is called a rank, as there. All ranks draw the same paths and batches from the same streams, each runs its
share of a step's paths, and one sum over all ranks per step gives every one of them the step of a single process, up to
the order of summation. Ranks may also stand together in groups, each of which shares the images of its paths' batches
(sumnas.sharing).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from sumnas.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
"""A value that every rank gets."""


class RankLost(UserError):
    """Another process of the training is gone, or cannot be reached."""


class Place(NamedTuple):
    """What a launcher tells a process that it started.

    `rank` is its number among the `world` that there are on all machines, `local` that on this machine, both from 0.
    """

    rank: int = 0
    world: int = 1
    local: int = 0


def place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """Return what torchrun, or whatever sets the same variables, says of this process; None where nobody does."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if not all(environment.get(name) for name in names):
        return None
    return Place(*(int(environment[name]) for name in names[:3]))


@dataclass(frozen=True)
class Ranks:
    """The processes of a training, or a group of them, seen from one: its number is `rank`, from 0, of `world` in all.

    `group`: torch's process group, None for that of all.
    """

    rank: int = 0
    world: int = 1
    group: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the one that writes, reports and saves."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there is more than one process."""
        return self.world > 1

    def own(self, count: int, before: int = 0, together: int = 1) -> range:
        """Return which of `count` paths are this rank's, where `before` paths of the same step were dealt out already.

        Paths are dealt out in turn, over all rounds of a step, so that no rank has two more than another. With
        `together` so many consecutive ranks have the same ones: those of a group that `split` gives.
        """
        groups = self.world // together
        return range((self.rank // together - before) % groups, count, groups)

    def split(self, size: int) -> Ranks:
        """Return the group of `size` consecutive ranks that this one is of. All ranks there are call this alike."""
        if size in (1, self.world):
            return self if size == self.world else ALONE
        import torch.distributed as dist

        members, mine = dist.get_process_group_ranks(self.group), None
        with _reached():
            for first in range(0, self.world, size):
                group = dist.new_group(members[first : first + size])
                mine = group if first <= self.rank < first + size else mine
        return Ranks(self.rank % size, size, mine)

    def part(self, count: int) -> slice:
        """Return which of a batch's `count` images are this rank's: consecutive, none has two more than another."""
        return slice(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over the ranks in the place of every tensor, in one all_reduce; all of one type and device.

        Every rank must call it; RankLost, here and below, where one is gone.
        """
        if not self.several:
            return
        import torch
        import torch.distributed as dist

        with torch.no_grad():
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            with _reached():
                dist.all_reduce(flat, group=self.group)
            parts = torch.split(flat, [tensor.numel() for tensor in tensors])
            torch._foreach_copy_(
                list(tensors), [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
            )

    def largest(self, number: int) -> int:
        """Return the largest of the ranks' numbers, on every rank; every rank must call it."""
        if not self.several:
            return number
        import torch
        import torch.distributed as dist

        found = torch.tensor(number)  # on the CPU: no rank has to wait for its accelerator
        with _reached():
            dist.all_reduce(found, dist.ReduceOp.MAX, group=self.group)
        return int(found)

    def from_first(self, value: T) -> T:
        """Return the first rank's value, which can be pickled, on every rank; every rank must call it."""
        if not self.several:
            return value
        import torch
        import torch.distributed as dist

        box = [value if self.first else None]
        with _reached():
            dist.broadcast_object_list(box, group=self.group, group_src=0, device=torch.device("cpu"))
        found: T = box[0]  # type: ignore[assignment]
        return found

    def wait(self) -> None:
        """Wait until every rank is here: every rank must call it."""
        self.largest(0)


ALONE = Ranks()
"""The one process there is, where nothing is shared."""


def dealt(costs: Sequence[float], room: Sequence[int], loads: list[float]) -> list[list[int]]:
    """Deal paths with these costs out, so many to each group as it has room for, that the busiest has little to do.

    `loads` has what each group has so far, and what it has then. The dearest path first goes to the group with the
    least to do; then paths of the busiest group and others change places as long as that helps. All ranks that call it
    alike get the same.
    """
    shares: list[list[int]] = [[] for _ in room]
    for number in sorted(range(len(costs)), key=lambda number: -costs[number]):
        free = [group for group in range(len(room)) if len(shares[group]) < room[group]]
        group = min(free, key=loads.__getitem__)
        shares[group].append(number)
        loads[group] += costs[number]
    while True:
        busiest = max(range(len(room)), key=loads.__getitem__)
        changes = [
            (max(loads[busiest] - costs[i] + costs[j], loads[group] + costs[i] - costs[j]), group, i, j)
            for group in range(len(room))
            for i, j in itertools.product(shares[busiest], shares[group])
            if costs[i] > costs[j]
        ]
        if not changes or min(changes)[0] >= loads[busiest]:
            return [sorted(share) for share in shares]
        _, group, i, j = min(changes)
        for one, gone, come in ((busiest, i, j), (group, j, i)):
            shares[one].remove(gone)
            shares[one].append(come)
            loads[one] += costs[come] - costs[gone]


@contextlib.contextmanager
def joined(at: Place, device: str) -> Iterator[Ranks]:
    """Be one of the processes that a launcher started. Sums go by NCCL where `device` is cuda, all else by gloo.

    UserError where this machine has fewer GPUs than processes: on cuda every process takes the one of its number.
    """
    if at.world == 1:
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    if device == "cuda":
        if at.local >= (count := torch.cuda.device_count()):
            raise UserError(
                f"process {at.local} of this machine finds only {count} GPU{'s' * (count > 1)}: every process needs "
                "one of its own; start fewer, or set run.device: cpu"
            )
        torch.cuda.set_device(at.local)
    with _reached():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", rank=at.rank, world_size=at.world
        )  # fmt: skip
    yield Ranks(at.rank, at.world)
    # Not where something went wrong: it would wait for ranks that are gone.
    dist.destroy_process_group()


@contextlib.contextmanager
def _reached() -> Iterator[None]:
    """Turn torch's errors of a call to the other ranks into one for a person."""
    try:
        yield
    except RuntimeError as error:
        # Of "[file:line] What happened. What else may be": what happened.
        text = re.sub(r"^\[\S*\]\s*", "", " ".join(str(error).split())).partition(". ")[0]
        raise RankLost(
            f"another process of this training is gone or cannot be reached ({text}): run the same command again to go "
            "on from the last checkpoint"
        ) from None
