"""What changes in the course of a training: the learning rate, and eps at its beginning."""

from __future__ import annotations

from dataclasses import replace

from .config import SPATConfig
from .errors import ConfigError

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


def warmed_up(config: SPATConfig, warmup: int, epoch: int) -> SPATConfig:
    """The attack of ``epoch`` (from 0): smaller during the first ``warmup`` epochs."""
    if epoch >= warmup:
        return config
    part = (epoch + 1) / (warmup + 1)
    return replace(config, eps=part * config.eps, step_size=part * config.step_size)


def check_length(schedule: str, steps: int) -> None:
    """Raise ConfigError if the schedule needs to know the number of steps and it is unknown (0)."""
    if steps == 0 and schedule != "constant":
        raise ConfigError(
            f"schedule must be 'constant' for data of unknown length, got {schedule!r}: "
            "set that, or give the data a __len__"
        )
