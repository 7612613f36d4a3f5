"""What follows from the number of a step or an epoch: the rate, eps, the seeds of random draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

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
    size = None if config.step_size is None else part * config.step_size
    return replace(config, eps=part * config.eps, step_size=size)


def check_length(schedule: str, steps: int) -> None:
    """Raise ConfigError if the schedule needs to know the number of steps and it is unknown (0)."""
    if steps == 0 and schedule != "constant":
        raise ConfigError(
            f"schedule must be 'constant' for data of unknown length, got {schedule!r}: "
            "set that, or give the data a __len__"
        )


def fold(seed: int, *numbers: int) -> int:
    """A seed in 0..2**63 - 1 for one purpose: a hash of ``seed`` and e.g. epoch, step, purpose.

    Every random draw of PyTorch's loop has such a seed, so no state of a generator has to be saved.
    """
    words = np.random.SeedSequence((seed, *numbers)).generate_state(1, np.uint64)
    return int(words[0]) >> 1
