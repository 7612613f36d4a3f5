"""Learning rate schedules, as factors of the peak."""

from __future__ import annotations

WARM_UP = 0.3  # share of the steps over which onecycle rises
DROPS = (0.75, 0.9)  # shares of the steps after which piecewise falls to a tenth


def lr_factor(schedule: str, step: int, steps: int) -> float:
    """The learning rate of ``step`` (from 0) of ``steps``, as a share of ``TrainConfig.lr``."""
    if schedule == "onecycle":
        progress = (step + 1) / (steps + 1)
        return min(progress / WARM_UP, (1 - progress) / (1 - WARM_UP))
    if schedule == "piecewise":
        return 0.1 ** sum(step >= drop * steps for drop in DROPS)
    return 1.0
