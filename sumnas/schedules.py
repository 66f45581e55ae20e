"""Learning-rate schedules."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "cosine"]


def factor(schedule: Schedule, progress: float) -> float:
    """Return what the initial rate is multiplied by after the share `progress` in [0, 1] of the training.

    `cosine` falls from 1 to 0, `constant` stays (paper tables 5 and 6).
    """
    return 1.0 if schedule == "constant" else 0.5 * (1.0 + math.cos(math.pi * progress))
