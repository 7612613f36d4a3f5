"""How to train: settings of the same kind as those of the attack."""

from __future__ import annotations

from dataclasses import dataclass

from .arguments import check_choice, check_flag, check_integer, check_number, make_plain
from .errors import ConfigError

SCHEDULES = ("constant", "onecycle", "piecewise")
PRECISIONS = ("float32", "bfloat16")
AUGMENTS = ("none", "crop", "crop-flip")
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
        examples, test_examples: Use the first so many only, for a quick look; default all.
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
    examples: int | None = None
    test_examples: int | None = None
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
        check_integer("epochs", self.epochs, 1)
        check_integer("batch_size", self.batch_size, 1)
        check_integer("eps_warmup", self.eps_warmup, 0)
        if self.eps_warmup >= self.epochs:
            raise ConfigError(
                "eps_warmup",
                expected=f"less than epochs ({self.epochs})",
                received=self.eps_warmup,
                fix="Lower it (0 is none; a recipe may "
                "have set it) or train longer: the last epoch has to be at full "
                "eps.",
            )
        check_integer("seed", self.seed, 0)
        check_number("lr", self.lr, above=0.0)
        check_number("momentum", self.momentum, least=0.0, below=1.0)
        check_number("weight_decay", self.weight_decay, least=0.0)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("precision", self.precision, PRECISIONS)
        check_number("ema", self.ema, least=0.0, below=1.0)
        check_number("checkpoint_minutes", self.checkpoint_minutes, least=0.0)
        if self.clip_grad_norm is not None:
            check_number("clip_grad_norm", self.clip_grad_norm, above=0.0)
        for name in ("patience", "examples", "test_examples"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), 1)
        check_choice("augment", self.augment, AUGMENTS)
        check_integer("validation", self.validation, 0)
        if self.patience is not None and self.validation == 0:
            raise ConfigError(
                "patience",
                expected="None without validation",
                received=self.patience,
                fix="Set validation: how many examples to hold out.",
            )
        # Plain numbers: NumPy's have no place in JSON.
        for name in (
            "epochs",
            "batch_size",
            "eps_warmup",
            "seed",
            "validation",
            "examples",
            "test_examples",
            "patience",
        ):
            make_plain(self, name, int)
        for name in (
            "lr",
            "momentum",
            "weight_decay",
            "ema",
            "clip_grad_norm",
            "checkpoint_minutes",
        ):
            make_plain(self, name, float)
        check_flag("compile", self.compile)
        check_flag("baseline", self.baseline)
        check_flag("progress", self.progress)
