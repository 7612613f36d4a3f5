"""How to train: settings, and what follows from them for a step or an epoch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .config import SPATConfig
from .errors import require, settle

AUGMENTS = ("none", "crop", "crop-flip")
PADDING = 4  # pixels by which "crop" can shift
WARM_UP = 0.3  # share of the steps over which onecycle rises
DROPS = (0.75, 0.9)  # shares of the steps after which piecewise falls to a tenth


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The schedule: SGD over shuffled batches. A value out of its range is a ConfigError.

    Args:
        epochs: Passes over the training data.
        batch_size: Examples per step (ignored for data that comes in batches).
        lr: Learning rate (the peak of ``onecycle``).
        momentum: In [0, 1), not Nesterov's.
        weight_decay: L2 penalty added to the gradient.
        schedule: ``"constant"``, ``"onecycle"`` (linear up over the first 30 %, linear down to 0)
            or ``"piecewise"`` (a tenth after 75 % and again after 90 % of the steps).
        eps_warmup: Epochs before the first at full eps, for new weights that it would hold where
            they are (the loss stays at log K): the n-th attacks with n / (eps_warmup + 1) of
            ``eps`` and ``step_size`` (Keras traces the step anew). Validation has the full eps.
        seed: Fixes initial weights, order of the data, starts, the mask's draws, augmentation and
            in torch dropout (Keras' layers have seeds of their own).
        augment: Anew in every epoch, ``"crop"`` images (out of them padded by 4 pixels of
            ``bounds[0]``), ``"crop-flip"`` (and mirror with probability 1/2) or ``"none"``.
        validation: Training examples held out (of arrays) to measure the network after each epoch:
            clean, under PGD-10 and under one step.
        device: ``"cpu"``, ``"cuda"``, ``"mps"``, for tf one of its list such as ``"GPU:0"``;
            default: where the model's parameters are.
        precision: ``"float32"`` or ``"bfloat16"`` (autocast in torch; Keras has a global policy).
        compile: Compile the network for the run (torch.compile, XLA), which takes time at first.
        ema: Decay of the moving average of the weights, e.g. 0.999, which is then what is
            validated, returned and measured; 0 switches it off.
        clip_grad_norm: Largest L2 norm of the gradient of all weights; longer ones are shortened.
        patience: Stop after so many epochs at full eps without a better robust validation accuracy.
        checkpoint_minutes: Save in a run directory at least so often, and after each epoch (Keras:
            only then).
        baseline: Also train an ordinary network of the same name, schedule and seed, and report
            both; for a model given by name only.
        progress: Show a progress bar (in a terminal only) and print the final table.
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
        settle(self, epochs=1, batch_size=1, eps_warmup=0, seed=0, validation=0)
        settle(self, lr="(0, inf)", momentum="[0, 1)", weight_decay="[0, inf)", ema="[0, 1)")
        settle(self, schedule=("constant", "onecycle", "piecewise"), augment=AUGMENTS)
        settle(self, precision=("float32", "bfloat16"), checkpoint_minutes="[0, inf)")
        settle(self, ("clip_grad_norm", "patience"), clip_grad_norm="(0, inf)", patience=1)
        settle(self, compile=bool, baseline=bool, progress=bool)
        what = f"be below epochs ({self.epochs}) to end at full eps (lower it or train longer)"
        require(self.eps_warmup < self.epochs, "eps_warmup", what, self.eps_warmup)
        what = "be None without validation (set validation, the examples to hold out)"
        require(self.patience is None or self.validation > 0, "patience", what, self.patience)


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
    """ConfigError if the schedule needs the number of steps and that is unknown, 0."""
    what = "be 'constant' for data of unknown length (or give the data a __len__)"
    require(steps > 0 or schedule == "constant", "schedule", what, schedule)


def fold(seed: int, *numbers: int) -> int:
    """A seed in 0..2**63 - 1, a hash of ``seed`` and e.g. epoch, step and purpose of a draw."""
    return int(np.random.SeedSequence((seed, *numbers)).generate_state(1, np.uint64)[0]) >> 1
