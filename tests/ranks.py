"""One of four processes that train together: `python -m tests.ranks <folder>`, for test_distributed.py.

The four are one group for trainings on four ranks, and two pairs for trainings on two, both of which do the same. In
some two ranks share every batch: the pairs, or two groups of the four.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import BaseModel

from sumnas import distributed, training
from sumnas.augmentation import Augmentation
from sumnas.checkpoint import Interrupted, Work
from sumnas.distributed import ALONE, Ranks
from sumnas.errors import UserError
from sumnas.methods import fairnas, sumnas
from tests.trainings import IMAGES, SEED, Stop, Widened, network, prepared, settings, stop_at

WORLD = 4
BLOCKS: dict[str, BaseModel] = {
    "fairnas": fairnas.Settings(strategy="fairnas", momentum=0.5),
    "fairnas, task batching": fairnas.Settings(strategy="fairnas", momentum=0.9, rounds=2, round_reduction="sum"),
    "sumnas, one step": sumnas.Settings(strategy="sumnas", adaptation_steps=1, inner_learning_rate=0.05),
    "sumnas": sumnas.Settings(
        strategy="sumnas", adaptation_steps=2, inner_learning_rate=0.05, inner_weight_decay=1e-3, outer_momentum=0.5,
        outer_learning_rate=0.7, clip_norm=1.0, path_reduction="mean",
    ),
    "sumnas, task batching": sumnas.Settings(
        strategy="sumnas", adaptation_steps=2, inner_learning_rate=0.05, rounds=2, outer_momentum=0.9, batches="reuse",
    ),
    "sumnas, too fast": sumnas.Settings(strategy="sumnas", adaptation_steps=2, inner_learning_rate=1e200),
}  # fmt: skip
RESUMED = "sumnas"
STOP = (0, 3)
"""Epoch and step after which a training is stopped, to go on in another number of processes."""
SPLIT_STOP = (1, 1)


SPLIT = ("fairnas", "sumnas")
"""What is trained on shared batches, too: of seven images, so that one has three of them and the other four."""
UNEVEN = {"batch_size": 7, "augmentation": Augmentation(flip=True, crop_padding=1, random_erasing=0.5), "images": 22}
UNEVEN_STEPS = 6
LOST = 4
"""The step after which the last rank is gone."""


def trained(
    name: str, ranks: Ranks = ALONE, state: dict[str, Any] | None = None, stop: tuple[int, int] | None = None,
    end: Callable[[int], None] | None = None, images: int = IMAGES, **changes: Any,
) -> dict[str, Any]:  # fmt: skip
    """Train in float64, from `state` on where given; return what came of it, with a digest of each step's weights."""
    supernet = network().double()
    given = settings(**changes)
    method, batches, heldout = training.assemble(supernet, prepared(images), given, BLOCKS[name], SEED, ranks)
    progress = training.Progress() if state is None else training.restore(method, copy.deepcopy(state))
    digests: list[str] = []

    def on_step(now: training.Progress) -> None:
        digest = hashlib.sha256()
        for parameter in supernet.parameters():
            digest.update(parameter.detach().numpy().tobytes())
        digests.append(digest.hexdigest())
        if stop:
            stop_at(*stop)(now)
        if end:
            end(len(digests))

    found: dict[str, Any] = {"digests": digests, "error": ""}
    try:
        training.train(method, Widened(batches), heldout, 2, progress=progress, on_step=on_step)  # type: ignore[arg-type]
    except UserError as error:
        found["error"] = str(error)
    except Stop:
        found["state"] = training.capture(method, progress)
    found["history"] = progress.history
    found["weights"] = {key: value.clone() for key, value in supernet.state_dict().items()}
    return found


def worked(ranks: Ranks, at_first: Path) -> dict[str, Any]:
    """A signal to one rank ends all after the same step; the first has saved, and all load what it did."""
    seen: dict[str, Any] = {"due": [], "stopped": None}
    with Work("stage", "digest", ranks=ranks) as work:
        assert work.load() is None
        for step in range(20):
            if (step, ranks.rank) == (3, 2):
                os.kill(os.getpid(), signal.SIGUSR1)
            work.look()
            seen["due"].append(work.due())
            if work.due():
                work.save({"step": step, "rank": ranks.rank})
            try:
                work.stop_if_asked()
            except Interrupted as stop:
                seen["stopped"] = (step, stop.number)
                break
    with Work("stage", "digest", ranks=ranks) as work:
        seen["loaded"] = work.load()
        seen["there"] = at_first.exists()
        ranks.wait()
        work.clear()
    seen["other"] = ""
    try:
        with Work("stage", "other" if ranks.rank == 1 else "digest", ranks=ranks):
            pass
    except UserError as error:
        seen["other"] = str(error)
    return seen


@contextlib.contextmanager
def counted() -> Iterator[list[int]]:
    """Note how many numbers every all_reduce sums."""
    sizes: list[int] = []
    before = dist.all_reduce

    def counting(tensor: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        sizes.append(tensor.numel())
        return before(tensor, *arguments, **named)

    dist.all_reduce = counting  # type: ignore[assignment]
    yield sizes
    dist.all_reduce = before


def shared(ranks: Ranks, pair: Ranks, folder: Path) -> dict[str, Any]:
    """Train with two ranks to a batch, in one group and in two, and go on with either in other numbers."""
    found: dict[str, Any] = {}
    for name in SPLIT:
        with counted() as found["sizes, split"]:  # those of the last one
            found[f"{name} on 4, split"] = trained(name, ranks, split_batch=2, **UNEVEN)
        found[f"{name} on 2, split"] = trained(name, pair, split_batch=2, **UNEVEN)
    begun = trained(RESUMED, ranks, stop=SPLIT_STOP, split_batch=2, **UNEVEN)
    found["begun, split"] = begun
    found["from 2 x 2 to 2"] = trained(RESUMED, pair, ranks.from_first(begun["state"]), **UNEVEN)
    alone = torch.load(folder / "alone, uneven.pt", weights_only=True)
    found["from 1 to 1 x 4"] = trained(RESUMED, ranks, alone, split_batch=4, **UNEVEN)
    return found


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    place = distributed.place()
    assert place is not None and place.world == WORLD
    with distributed.joined(place, "cpu") as ranks:
        pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
        pair = Ranks(ranks.rank % 2, 2, pairs[ranks.rank // 2])
        found: dict[str, Any] = {"ranks": (ranks.rank, ranks.world)}
        for name in BLOCKS:
            found[f"{name} on 4"] = trained(name, ranks)
            found[f"{name} on 2"] = trained(name, pair)
        begun = trained(RESUMED, pair, stop=STOP)
        found["begun"] = begun
        found["from 2 to 4"] = trained(RESUMED, ranks, ranks.from_first(begun["state"]))
        found["from 1 to 2"] = trained(RESUMED, pair, torch.load(folder / "alone.pt", weights_only=True))
        found["work"] = worked(ranks, folder / "checkpoints/stage/digest/checkpoint.pt")
        with counted() as found["sizes"]:
            trained(RESUMED, ranks)
        every = Ranks(ranks.rank, ranks.world, dist.new_group(list(range(WORLD))))
        found |= shared(every, pair, folder)

        def end(step: int) -> None:
            if (step, ranks.rank) == (LOST, WORLD - 1):
                torch.save(found, folder / f"{ranks.rank}.pt")
                os.kill(os.getpid(), signal.SIGKILL)

        found["lost, split"] = trained(RESUMED, every, end=end, split_batch=2)
        found["lost"] = trained(RESUMED, ranks)["error"]
        torch.save(found, folder / f"{ranks.rank}.pt")
        os._exit(0)  # nobody is there to leave the group with


if __name__ == "__main__":
    main(Path(sys.argv[1]))
