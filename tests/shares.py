"""One of two processes that retrain together: `python -m tests.shares <folder>`, for test_retrain_shared.py."""

from __future__ import annotations

import copy
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from sumnas import checkpoint, distributed
from sumnas.augmentation import Augmentation
from sumnas.checkpoint import Work
from sumnas.distributed import ALONE, Ranks
from sumnas.errors import UserError
from sumnas.recipe import Recipe
from sumnas.retraining import train_network
from sumnas.spaces import nasbench201
from sumnas.spaces.base import Architecture
from sumnas.sync_batchnorm import synchronised
from tests.chains import space as chain
from tests.interrupted import Stop
from tests.trainings import prepared

WORLD = 2
SEED = 5
SIMPLE: dict[str, Any] = {"epochs": 2, "batch_size": 9, "learning_rate": 0.02, "augmentation": Augmentation()}
RECIPES: dict[str, Recipe] = {
    "plain": Recipe(**SIMPLE),
    # 37 images: a last batch of one, of which the first rank has nothing.
    "everything": Recipe(**SIMPLE | {
        "epochs": 3, "learning_rate": 0.05, "warmup_epochs": 1, "label_smoothing": 0.1, "ema_decay": 0.8,
        "ema_every": 2, "dropout": 0.3, "norm_weight_decay": 0.0, "last_batch": "keep",
        "augmentation": Augmentation(flip=True, crop_padding=1, random_erasing=0.5),
    }),
    "too fast": Recipe(**SIMPLE | {"learning_rate": 1e200}),
}  # fmt: skip
STEPS = {"plain": 4, "everything": 5}
STOP = 7
"""Steps after which a training is stopped, to go on in another number of processes."""


class Widened:
    """A space whose networks compute in float64."""

    def __init__(self, space: Any) -> None:
        self.space, self.encode = space, space.encode

    def network(self, architecture: Architecture) -> nn.Module:
        network: nn.Module = self.space.network(architecture).double()
        network.register_forward_pre_hook(lambda _module, inputs: (inputs[0].double(),))
        return network


def places(name: str) -> tuple[Any, Architecture, int]:
    """Return the space of a training, its architecture, and how many images there are."""
    if name == "everything":
        return chain(), (0, 4, 2, 5), 37
    settings = nasbench201.Settings(
        name="nasbench201", channels=2, cells=1, image_size=4, image_channels=2, classes=3
    )  # fmt: skip
    return nasbench201.build(settings), (1, 2, 0, 4, 1, 3), 44


def trained(
    name: str, ranks: Ranks = ALONE, state: dict[str, Any] | None = None, stop: int = 0
) -> dict[str, Any]:  # fmt: skip
    """Retrain in float64, from `state` on where given; return what came of it, or of the first `stop` steps."""
    space, architecture, images = places(name)
    found: dict[str, Any] = {"losses": [], "error": "", "steps": 0}

    def on_step(capture: Callable[[], dict[str, Any]]) -> None:
        found["steps"] += 1
        if found["steps"] == stop:
            found["state"] = copy.deepcopy(capture())
            raise Stop

    try:
        network, scores = train_network(
            Widened(space), architecture, prepared(images), RECIPES[name], SEED,  # type: ignore[arg-type]
            lambda _epoch, loss: found["losses"].append(loss), copy.deepcopy(state), on_step, ranks,
        )  # fmt: skip
    except UserError as error:
        found["error"] = str(error)
    except Stop:
        pass
    else:
        found["weights"] = {key: value.clone() for key, value in network.state_dict().items()}
        found["scores"] = {split: tuple(score) for split, score in scores.items()}
        found["own forwards"] = sum("forward" in module.__dict__ for module in network.modules())
    return found


def counted(ranks: Ranks, sizes: list[int]) -> dict[str, Any]:
    """Retrain, and put how many numbers every all_reduce has summed into `sizes`."""
    before = dist.all_reduce

    def counting(tensor: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        sizes.append(tensor.numel())
        return before(tensor, *arguments, **named)

    dist.all_reduce = counting  # type: ignore[assignment]
    found = trained("plain", ranks)
    dist.all_reduce = before
    return found


NORMS = {
    "float64": (torch.float64, 5, True), "without weights": (torch.float64, 5, False),
    "empty": (torch.float64, 1, True),
    "float32": (torch.float32, 7, True), "bfloat16": (torch.bfloat16, 7, True),
}  # fmt: skip
"""Type, images over all ranks, weights or none."""


def normalised(name: str, ranks: Ranks = ALONE) -> dict[str, torch.Tensor]:
    """Run a normalisation layer forward and backward on this rank's part of a batch far from zero."""
    dtype, count, affine = NORMS[name]
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(2, count, 3, 2, 5, generator=generator, dtype=torch.float64)
    images, weights = (10 + 3 * drawn[0]).to(dtype), drawn[1].to(dtype)
    layer = nn.BatchNorm2d(3, affine=affine).to(torch.float64 if dtype == torch.float64 else torch.float32)
    for number, parameter in enumerate(layer.parameters()):
        nn.init.uniform_(parameter, 1, 2 + number, generator=generator)
    own = images[ranks.part(count)].clone().contiguous(memory_format=torch.channels_last).requires_grad_()
    with synchronised(layer, ranks):
        out = layer(own)
        (out * weights[ranks.part(count)]).sum().backward()
    with synchronised(layer.eval(), ranks):  # no call to the others: each for itself
        fixed = layer(own)
    state = {key: value.clone() for key, value in layer.state_dict().items()}
    gradients = {f"{key}.grad": value.grad for key, value in layer.named_parameters() if value.grad is not None}
    assert own.grad is not None
    return {"out": out.detach(), "grad": own.grad, "fixed": fixed.detach(), **state, **gradients}


def waited(ranks: Ranks, folder: Path) -> float:
    """Return how long the two wait for a lock that is held for half a second, in spite of it being asked for often."""
    import filelock

    checkpoint.TOGETHER = 0.02
    lock = filelock.FileLock(folder / "checkpoints/stage/digest/lock", thread_local=False)
    if not ranks.first:
        Path(lock.lock_file).parent.mkdir(parents=True)
        lock.acquire()
    ranks.wait()
    begun = time.monotonic()
    if not ranks.first:
        threading.Timer(0.5, lock.release).start()
    with Work("stage", "digest", wait=True, ranks=ranks):
        return time.monotonic() - begun


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    place = distributed.place()
    assert place is not None and place.world == WORLD
    with distributed.joined(place, "cpu") as ranks:
        sizes: list[int] = []
        found: dict[str, Any] = {"plain": counted(ranks, sizes), "sizes": sizes}
        found |= {name: trained(name, ranks) for name in RECIPES if name != "plain"}
        found["norms"] = {name: normalised(name, ranks) for name in NORMS}
        found["waited"] = waited(ranks, folder)
        found["begun"] = trained("everything", ranks, stop=STOP)
        found["from 1 to 2"] = trained("everything", ranks, torch.load(folder / "alone.pt", weights_only=True))
        ranks.wait()
        if not ranks.first:
            torch.save(found, folder / f"{ranks.rank}.pt")
            os.kill(os.getpid(), signal.SIGKILL)
        found["lost"] = trained("everything", ranks)["error"]
        torch.save(found, folder / f"{ranks.rank}.pt")
        os._exit(0)  # nobody is there to leave the group with


if __name__ == "__main__":
    main(Path(sys.argv[1]))
