"""All settings: frozen, checked once (ConfigError), and what follows from them for each step."""

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from .errors import checked, require, settle

PADDING = 4  # pixels by which "crop" can shift
STANDARD = "standard"  # ordinary training; also the subdirectory of a run with that baseline
METHODS = {"pgd": "PGD-AT", "trades": "TRADES", "mart": "MART"}  # by loss, without what SPAT adds


@dataclass(frozen=True, kw_only=True)
class Threat:
    """What an attack may do: perturb each input by at most eps, inside the input range.

    Args:
        eps: Radius, in the units of the inputs. For images in [0, 1] often 8/255, 0.5 in L2.
        norm: ``"Linf"``, ``"L2"`` or ``"L1"``.
        bounds: Lowest and highest input value.
        check_logits: Refuse a model whose outputs on its first batch look like probabilities.
    """

    eps: float
    norm: Literal["Linf", "L2", "L1"] = "Linf"
    bounds: tuple[float, float] = (0.0, 1.0)
    check_logits: bool = True

    def __post_init__(self) -> None:
        settle(self, eps="(0, inf)")
        valid = isinstance(self.bounds, tuple | list) and len(self.bounds) == 2
        require(valid, "bounds", "be a pair (lower, upper), the range of the inputs", self.bounds)
        lower, upper = (checked("bounds", value, "(-inf, inf)") for value in self.bounds)
        require(lower < upper, "bounds", "have lower < upper", self.bounds)
        object.__setattr__(self, "bounds", (lower, upper))
        what = f"be at most the input range, {upper - lower:g} (try {self.eps:g}/255 or set bounds)"
        checked("the width of bounds", upper - lower, "(0, inf)")
        require(self.norm != "Linf" or self.eps <= upper - lower, "eps", what, self.eps)


@dataclass(frozen=True, kw_only=True)
class Mask:
    """The shared-pixel mask: which pixels have the full budget (docs/method.md, our reading).

    Args:
        score: How shared a pixel is: ``"min"`` or ``"mean"`` over the classes, ``"rms"`` (random
            probes), ``"neutral"`` (claimed by no class) or ``"random"`` (noise, the control).
        keep: Share of the pixels with the full budget, in (0, 1]; 1 switches the mask off.
        floor: Budget of the others as a share of eps, in [0, 1]; 1 switches the mask off.
        classes: How many to compare (2..K, the label's included); None is all. Not for ``rms``.
        probes: Number of random-sign backward passes of ``rms``.
        channel_axis: Axis of a pixel's channels, from 1, of inputs with 3 axes or more; None is 1
            in PyTorch and the last in Keras.
    """

    score: Literal["min", "mean", "rms", "neutral", "random"] = "min"
    keep: float = 0.5
    floor: float = 0.5
    classes: int | None = None
    probes: int = 2
    channel_axis: int | None = None

    def __post_init__(self) -> None:
        settle(self, keep="(0, 1]", floor="[0, 1]", classes=2, probes=1, channel_axis=1)
        what = "be None for score='rms', which covers all classes at once (set probes instead)"
        require(self.score != "rms" or self.classes is None, "classes", what, self.classes)


@dataclass(frozen=True, kw_only=True)
class SPATConfig(Threat):
    """A threat model and the training attack on it; docs/evidence.md says why the defaults.

    Args:
        steps: Number of ascent steps.
        step_size: Length of one, in the units of the inputs; None is 2.5 eps / steps.
        random_start: ``"uniform"`` in the ball, ``"gaussian"`` (0.001 N(0, 1)) or ``"none"`` (with
            ``trades`` only if smoothed without guard: else its gradient is rounding noise).
        attack_mode: ``"eval"``, or ``"train"``: dropout, batch statistics, no running update.
        loss: Outer loss and ascent target: ``"pgd"`` (arXiv:1706.06083), ``"trades"``
            (arXiv:1901.08573) or ``"mart"`` (Wang et al., ICLR 2020).
        beta: Weight of the KL term of ``trades`` and ``mart``.
        smoothing: a in [0, 1) of the ascent target q = (1 - a) b + a / K (docs/method.md, our
            reading of arXiv:2009.10978); 0 is plain PGD-AT, TRADES or MART.
        guard: Shrink ``smoothing`` per example where it would pull the example back.
        mask: The shared-pixel mask; without it every pixel has the full budget.
        rectify: r in [0, 1) of the label (1 - r) y + r softmax(z) of the outer loss, z the logits
            of averaged weights (docs/method.md, ours; ``pgd`` and ``trades``); 0: the label alone.
    """

    steps: int = 10
    step_size: float | None = None
    random_start: Literal["uniform", "gaussian", "none"] = "uniform"
    attack_mode: Literal["eval", "train"] = "eval"
    loss: Literal["pgd", "trades", "mart"] = "pgd"
    beta: float = 6.0
    smoothing: float = 0.1
    guard: bool = True
    mask: Mask | None = None
    rectify: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, steps=1, step_size="(0, inf)", beta="[0, inf)", smoothing="[0, 1)")
        settle(self, rectify="[0, 1)")
        checked("step_size", self.alpha, "(0, inf)")  # that of 2.5 eps / steps too
        what = "be 0 for mart, which needs hard labels (use pgd or trades)"
        require(self.rectify == 0 or self.loss != "mart", "rectify", what, self.rectify)
        require(isinstance(self.mask, Mask | None), "mask", "be a spatlib.Mask or None", self.mask)
        if self.loss == "trades" and (self.smoothing == 0 or self.guard):
            what = "be 'uniform' or 'gaussian' for trades (at x its gradient is rounding noise)"
            require(self.random_start != "none", "random_start", what, self.random_start)

    @property
    def alpha(self) -> float:
        """The step size in force."""
        return 2.5 * self.eps / self.steps if self.step_size is None else self.step_size

    @property
    def masked(self) -> bool:
        """Whether a mask differs from all ones."""
        return self.mask is not None and self.mask.keep < 1 and self.mask.floor < 1

    @property
    def method(self) -> str:
        """What it is called in print: PGD-AT, TRADES or MART unless it is smoothed or masked."""
        return "SPAT" if self.smoothing or self.masked else METHODS[self.loss]

    @property
    def baselines(self) -> "dict[str, SPATConfig]":
        """By name, what it is compared with: ordinary training, and the method without SPAT."""
        plain = replace(self, smoothing=0.0, mask=None)
        return {STANDARD: self} | ({plain.method: plain} if self.method == "SPAT" else {})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "SPATConfig":
        """The config that ``dataclasses.asdict`` was taken of, also after JSON."""
        return cls(**values | {"mask": Mask(**values["mask"]) if values["mask"] else None})


def plain_pgd(threat: Threat, steps: int) -> SPATConfig:
    """PGD of the threat model, as evaluations use it: full eps, hard labels, no mask."""
    kept = {name: getattr(threat, name) for name in ("eps", "norm", "bounds", "check_logits")}
    return SPATConfig(**kept, steps=steps, smoothing=0)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The schedule: SGD over shuffled batches. A value out of its range is a ConfigError.

    Args:
        epochs: Passes over the training data.
        batch_size: Examples per step (ignored for data that comes in batches).
        lr: Learning rate (the peak of ``onecycle``).
        momentum: In [0, 1), not Nesterov's.
        weight_decay: L2 penalty added to the gradient.
        bias_decay: Decay biases and the weights of normalisations too, all of one axis; False is
            the "no bias decay" of arXiv:1812.01187.
        schedule: ``"constant"``, ``"onecycle"`` (linear up over the first 30 %, linear down to 0),
            ``"cosine"`` (half of one, down to 0) or ``"piecewise"`` (a tenth after 75 % and again
            after 90 % of the steps).
        eps_warmup: Epochs before the first at full eps, which can hold new weights at a loss of
            log K: the n-th has n / (eps_warmup + 1) of ``eps`` and ``step_size``, validation all.
        seed: Fixes initial weights, order, starts, masks, augmentation and, in torch, dropout.
        augment: Anew in every epoch, ``"crop"`` images (out of them padded by 4 pixels of
            ``bounds[0]``), ``"crop-flip"`` (and mirror with probability 1/2) or ``"none"``.
        validation: Training examples held out (not of batches), measured attacked after each epoch.
        num_workers: Processes (in tf threads, for arrays too) that read ahead in map-style training
            data; 0: only this one.
        device: ``"cpu"``, ``"cuda"``, ``"mps"``, for tf ``"GPU:0"``; default: where the model is.
        precision: ``"float32"``, or by autocast in torch (Keras has a global policy) ``"bfloat16"``
            or ``"float16"``, with the loss scaled: steps whose gradient overflows are left out.
            ``"auto"`` (torch): bfloat16 where the device has instructions for it, for networks by
            name alone, as these round neither inputs nor logits; else float32.
        deterministic: Only algorithms that give equal bits, which are slower on CUDA; the whole
            process has them until the training ends (TensorFlow: until the process does).
        compile: Compile the network for the run (torch.compile, XLA), which takes time at first.
        ema: Decay, e.g. 0.999, of an average of the weights to validate and return; 0: none.
        clip_grad_norm: Largest L2 norm of the gradient of all weights; longer ones are shortened.
        patience: Stop after so many epochs at full eps without a better robust validation accuracy.
        checkpoint_minutes: Save a run at least so often (not in Keras), and after each epoch.
        baseline: For a model given by name, first train and report two of that seed: an ordinary
            one, and one by PGD-AT, TRADES or MART, without what SPAT adds.
        progress: Show a progress bar (in a terminal or notebook) and print the final table.
    """

    epochs: int = 20
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    bias_decay: bool = True
    schedule: Literal["constant", "onecycle", "cosine", "piecewise"] = "onecycle"
    eps_warmup: int = 0
    seed: int = 0
    augment: Literal["none", "crop", "crop-flip"] = "none"
    validation: int = 0
    num_workers: int = 0
    device: str | None = None
    precision: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    deterministic: bool = False
    compile: bool = False
    ema: float = 0.0
    clip_grad_norm: float | None = None
    patience: int | None = None
    checkpoint_minutes: float = 10.0
    baseline: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        settle(self, epochs=1, batch_size=1, eps_warmup=0, seed=0, validation=0, num_workers=0)
        settle(self, lr="(0, inf)", momentum="[0, 1)", weight_decay="[0, inf)", ema="[0, 1)")
        settle(self, checkpoint_minutes="[0, inf)", clip_grad_norm="(0, inf)", patience=1)
        what = f"be below epochs ({self.epochs}) to end at full eps (lower it or train longer)"
        require(self.eps_warmup < self.epochs, "eps_warmup", what, self.eps_warmup)
        what = "be None without validation (set validation, the examples to hold out)"
        require(self.patience is None or self.validation > 0, "patience", what, self.patience)


def lr_factor(schedule: str, step: int, steps: int) -> float:
    """The learning rate of ``step`` (from 0) of ``steps``, as a share of ``TrainConfig.lr``."""
    if schedule == "onecycle":
        progress = (step + 1) / (steps + 1)
        return min(progress / 0.3, (1 - progress) / 0.7)
    if schedule == "cosine":
        return (1 + math.cos(math.pi * step / steps)) / 2
    if schedule == "piecewise":
        return 0.1 ** sum(step >= drop * steps for drop in (0.75, 0.9))
    return 1.0


def warmed_up(config: SPATConfig, warmup: int, epoch: int) -> SPATConfig:
    """The attack of ``epoch`` (from 0): smaller during the first ``warmup`` epochs."""
    if epoch >= warmup:
        return config
    part = (epoch + 1) / (warmup + 1)
    size = None if config.step_size is None else part * config.step_size
    return replace(config, eps=part * config.eps, step_size=size)


def fold(seed: int, *numbers: int) -> int:
    """A seed in 0..2**63 - 1, a hash of ``seed`` and e.g. epoch, step and purpose of a draw."""
    return int(np.random.SeedSequence((seed, *numbers)).generate_state(1, np.uint64)[0]) >> 1
