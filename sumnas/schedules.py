"""Learning-rate schedules."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "cosine"]
"""How a learning rate falls over a training; see `factor`."""


def factor(schedule: Schedule, progress: float) -> float:
    """Return what the initial rate is multiplied by after the share `progress` in [0, 1] of the training.

    `cosine` falls from 1 to 0, `constant` stays (paper tables 5 and 6).
    """
    return 1.0 if schedule == "constant" else 0.5 * (1.0 + math.cos(math.pi * progress))


def warmed(schedule: Schedule, epoch: int, epochs: int, warmup: int, start: float) -> float:
    """Return the factor of a whole epoch, counted from 0: a linear rise over `warmup` epochs, then the schedule.

    The rise goes from `start` to 1, which the first epoch after it has; the schedule runs over the rest. torchvision's
    reference training chains LinearLR and CosineAnnealingLR in the same way.
    """
    if epoch < warmup:
        return start + (1.0 - start) * epoch / warmup
    return factor(schedule, (epoch - warmup) / (epochs - warmup))
