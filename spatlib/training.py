"""How to train: settings, and what follows from them for a step or an epoch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .config import SPATConfig
from .errors import ConfigError, integers, numbers, require, require_bool, require_choice

SCHEDULES = ("constant", "onecycle", "piecewise")
PRECISIONS = ("float32", "bfloat16")
AUGMENTS = ("none", "crop", "crop-flip")
CHOICES = {"schedule": SCHEDULES, "precision": PRECISIONS, "augment": AUGMENTS}
LEAST = {"epochs": 1, "batch_size": 1, "eps_warmup": 0, "seed": 0, "validation": 0}
NUMBERS = ("lr", "momentum", "weight_decay", "ema", "checkpoint_minutes")
PADDING = 4  # pixels by which "crop" can shift


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The schedule: SGD with (Nesterov-free) momentum over shuffled batches.

    Args:
        epochs: Passes over the training data.
        batch_size: Examples per step (ignored for data that comes in batches).
        lr: Learning rate (the peak of ``onecycle``).
        momentum: In [0, 1).
        weight_decay: L2 penalty added to the gradient.
        schedule: ``"constant"``, ``"onecycle"`` (linear up over the first 30 %, linear down to
            0) or ``"piecewise"`` (a tenth after 75 % and again after 90 % of the steps).
        eps_warmup: Epochs before the first one at full eps: the n-th attacks with
            n / (eps_warmup + 1) of ``eps`` and ``step_size``, for new weights that a full eps
            holds where they are (the loss stays at log K). Validation is always at full eps.
            Keras traces (and XLA compiles) the step anew in each of these epochs.
        seed: Fixes the initial weights, the order of the data, the starts, the mask's draws
            and the augmentation (and dropout in torch; Keras' dropout layers take seeds of
            their own).
        augment: What is done to training images anew in every epoch: ``"crop"`` (out of the image
            padded by 4 pixels of ``bounds[0]``), ``"crop-flip"`` (and mirrored with probability
            1/2) or ``"none"``.
        validation: Training examples held out of training (for data in arrays): after each epoch
            they measure the network, clean, under PGD-10 and under one step.
        device: Where to train: ``"cpu"``, ``"cuda"``, ``"mps"``, for tf a device of its list such
            as ``"GPU:0"``; default: where the model's parameters are.
        precision: ``"float32"`` or ``"bfloat16"`` (autocast in torch; Keras has a global policy).
        compile: Compile the network for the run (torch.compile, XLA), which takes time at first.
        ema: Decay of the moving average of the weights, e.g. 0.999; 0 switches it off. With it the
            average is what is validated, returned and measured.
        clip_grad_norm: Largest L2 norm of the gradient of all weights; longer ones are shortened.
        patience: Stop after so many epochs without a better robust validation accuracy, those of
            ``eps_warmup`` not counted.
        checkpoint_minutes: Save in a run directory at least so often, and after each epoch (Keras:
            only then).
        baseline: Also train an ordinary network (same architecture, schedule and seed) and
            report both; for a model given by name only.
        progress: Show a progress bar (in a terminal only) and print the final table.

    Raises:
        ConfigError: A value out of its range.
    """

    epochs: int = 20
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "onecycle"
    eps_warmup: int = 0
    seed: int = 0
    augment: str = "none"
    validation: int = 0
    device: str | None = None
    precision: str = "float32"
    compile: bool = False
    ema: float = 0.0
    clip_grad_norm: float | None = None
    patience: int | None = None
    checkpoint_minutes: float = 10.0
    baseline: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        integers(self, LEAST, {"patience": 1})
        numbers(self, NUMBERS, ("clip_grad_norm",))
        for name, choices in CHOICES.items():
            require_choice(name, getattr(self, name), choices)
        for name in ("compile", "baseline", "progress"):
            require_bool(name, getattr(self, name))
        require(self.lr > 0, "lr", "be above 0", self.lr)
        require(0 <= self.momentum < 1, "momentum", "be in [0, 1)", self.momentum)
        require(self.weight_decay >= 0, "weight_decay", "be at least 0", self.weight_decay)
        require(0 <= self.ema < 1, "ema", "be in [0, 1)", self.ema)
        minutes = self.checkpoint_minutes
        require(minutes >= 0, "checkpoint_minutes", "be at least 0", minutes)
        if self.clip_grad_norm is not None:
            require(self.clip_grad_norm > 0, "clip_grad_norm", "be above 0", self.clip_grad_norm)
        if self.eps_warmup >= self.epochs:
            raise ConfigError(
                f"eps_warmup must be below epochs ({self.epochs}), got {self.eps_warmup}: lower it "
                "(a recipe may have set it) or train longer, the last epoch has to be at full eps"
            )
        if self.patience is not None and self.validation == 0:
            raise ConfigError(
                f"patience must be None without validation, got {self.patience}: set validation, "
                "the number of examples to hold out"
            )


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
