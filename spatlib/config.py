"""Threat model, mask and method: frozen, keyword-only, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .errors import (
    ConfigError,
    integers,
    numbers,
    require,
    require_bool,
    require_choice,
    require_number,
)

NORMS = ("Linf", "L2", "L1")
LOSSES = ("pgd", "trades", "mart")
SCORES = ("min", "mean", "rms", "neutral", "random")
STARTS = ("uniform", "gaussian", "none")
MODES = ("eval", "train")


@dataclass(frozen=True, kw_only=True)
class Threat:
    """What an attack may do: perturb each input by at most eps, inside the input range.

    Args:
        eps: Radius, in the units of the inputs. A common choice for images in [0, 1] is 8/255 in
            Linf and 0.5 in L2.
        norm: ``"Linf"``, ``"L2"`` or ``"L1"``.
        bounds: Lowest and highest input value.

    Raises:
        ConfigError: A value out of its range.
    """

    eps: float
    norm: str = "Linf"
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        require_choice("norm", self.norm, NORMS)
        numbers(self, ("eps",))
        require(self.eps > 0, "eps", "be above 0", self.eps)
        pair: Any = self.bounds
        valid = isinstance(pair, tuple | list) and len(pair) == 2
        require(valid, "bounds", "be a pair (lower, upper), the range of the inputs", pair)
        lower, upper = (require_number("bounds", value) for value in pair)
        require(lower < upper, "bounds", "have lower < upper", pair)
        object.__setattr__(self, "bounds", (lower, upper))
        if self.norm == "Linf" and self.eps > upper - lower:
            raise ConfigError(
                f"eps must be at most the input range, {upper - lower:g}, got {self.eps:g}: write "
                f"{self.eps:g}/255 if you mean that, or set bounds to the range of your inputs"
            )


@dataclass(frozen=True, kw_only=True)
class Mask:
    """The shared-pixel mask: which pixels have the full budget (docs/method.md, our reading).

    Args:
        score: Of a pixel's being shared among the classes: ``"min"``, ``"mean"``, ``"rms"``
            (random probes), ``"neutral"`` (pixels that no class claims) or ``"random"`` (noise,
            the control of all others).
        keep: Share of the pixels with the full budget, in (0, 1]; 1 switches the mask off.
        floor: Budget of the other pixels as a share of eps, in [0, 1]; 1 switches the mask off.
        classes: Compare the label's class and others, this many in all (2..K); None is all K.
            Not for ``rms``.
        probes: Number of random-sign backward passes of ``rms``.
        channel_axis: Axis of the inputs that the channels of a pixel are on, from 1; None is 1 in
            PyTorch and the last in Keras. Inputs (N, D) have no channels.

    Raises:
        ConfigError: A value out of its range, or ``classes`` with ``rms``.
    """

    score: str = "min"
    keep: float = 0.5
    floor: float = 0.5
    classes: int | None = None
    probes: int = 2
    channel_axis: int | None = None

    def __post_init__(self) -> None:
        require_choice("score", self.score, SCORES)
        integers(self, {"probes": 1}, {"classes": 2, "channel_axis": 1})
        numbers(self, ("keep", "floor"))
        require(0 < self.keep <= 1, "keep", "be in (0, 1]", self.keep)
        require(0 <= self.floor <= 1, "floor", "be in [0, 1]", self.floor)
        if self.score == "rms" and self.classes is not None:
            raise ConfigError(
                "classes must be None for score='rms', whose probes cover all classes at once: "
                "set probes instead"
            )


@dataclass(frozen=True, kw_only=True)
class SPATConfig(Threat):
    """A threat model and the training attack on it.

    The defaults are the variant that did best on held-out digits (docs/evidence.md): guarded
    smoothing, no mask. ``smoothing=0`` is the plain base method (Madry's PGD-AT, TRADES, MART).

    Args:
        steps: Number of ascent steps.
        step_size: Length of one, in the units of the inputs; None is 2.5 eps / steps.
        random_start: ``"uniform"`` in the ball, ``"gaussian"`` (0.001 N(0, 1)) or ``"none"``.
        attack_mode: Mode of BatchNorm and dropout while attacking: ``"eval"`` or ``"train"``
            (batch statistics; the running ones stay as they were).
        loss: Outer loss and ascent target: ``"pgd"`` (arXiv:1706.06083), ``"trades"``
            (arXiv:1901.08573) or ``"mart"`` (ICLR 2020, "Improving adversarial robustness
            requires revisiting misclassified examples").
        beta: Weight of the KL term of ``trades`` and ``mart``.
        smoothing: a in [0, 1): the ascent target is q = (1 - a) b + a / K (our reading of
            arXiv:2009.10978, see docs/method.md).
        guard: Shrink ``smoothing`` per example where it would pull the example back.
        mask: The shared-pixel mask, or None.

    Raises:
        ConfigError: A value out of its range, or the dead point of TRADES (no random start with
            no smoothing or with the guard, where the gradient is rounding noise).
    """

    steps: int = 10
    step_size: float | None = None
    random_start: str = "uniform"
    attack_mode: str = "eval"
    loss: str = "pgd"
    beta: float = 6.0
    smoothing: float = 0.1
    guard: bool = True
    mask: Mask | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        integers(self, {"steps": 1})
        numbers(self, ("beta", "smoothing"), ("step_size",))
        require(self.alpha > 0, "step_size", "be above 0", self.step_size)
        require_choice("random_start", self.random_start, STARTS)
        require_choice("attack_mode", self.attack_mode, MODES)
        require_choice("loss", self.loss, LOSSES)
        require(self.beta >= 0, "beta", "be at least 0", self.beta)
        require(0 <= self.smoothing < 1, "smoothing", "be in [0, 1)", self.smoothing)
        require_bool("guard", self.guard)
        known = self.mask is None or isinstance(self.mask, Mask)
        require(known, "mask", "be a spatlib.Mask or None", self.mask)
        stuck = self.smoothing == 0 or self.guard
        if self.loss == "trades" and self.random_start == "none" and stuck:
            raise ConfigError(
                "random_start must be 'uniform' or 'gaussian' for loss='trades', got 'none': at "
                "x' = x its gradient is rounding noise (smoothing without guard has another)"
            )

    @property
    def alpha(self) -> float:
        """The step size in force."""
        return 2.5 * self.eps / self.steps if self.step_size is None else self.step_size

    @property
    def masked(self) -> bool:
        """Whether a mask differs from all ones."""
        return self.mask is not None and self.mask.keep < 1 and self.mask.floor < 1

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SPATConfig:
        """The config that ``dataclasses.asdict`` was taken of, also after JSON."""
        mask = values["mask"]
        return cls(**values | {"mask": None if mask is None else Mask(**mask)})


def plain_pgd(threat: Threat, steps: int) -> SPATConfig:
    """PGD of the threat model, as evaluations use it: full eps, hard labels, no mask."""
    return SPATConfig(
        eps=threat.eps, norm=threat.norm, bounds=threat.bounds, steps=steps, smoothing=0
    )
