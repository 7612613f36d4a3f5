"""The settings: frozen, keyword-only, checked once, every default a working value."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, NamedTuple

from .errors import ConfigError

NORMS = ("Linf", "L2", "L1")
BASES = ("pgd", "trades", "mart")
SHARES = ("min", "mean", "rms", "neutral")
STARTS = ("uniform", "gaussian", "none")
MODES = ("eval", "train")
SCHEDULES = ("constant", "onecycle", "piecewise")
DEFAULT_EPS = {"Linf": 8 / 255, "L2": 0.5, "L1": 12.0}


class Bounds(NamedTuple):
    """The range of the inputs, in their own units."""

    lower: float
    upper: float


class _Derived(float):
    """A default computed from other settings; ``dataclasses.replace`` computes it anew."""


@dataclass(frozen=True, kw_only=True)
class SPATConfig:
    """The threat model and the training-time attack.

    ``eps``, ``step_size`` and the perturbation are in the units of the inputs. The default is a
    SPAT variant; ``smoothing=0, keep=1`` is the plain base method (Madry's PGD-AT, TRADES, MART).

    Args:
        eps: Radius of the perturbation. Default by norm: Linf 8/255, L2 0.5, L1 12.
        step_size: Length of one ascent step. Default 2.5 eps / steps.
        steps: Number of ascent steps.
        norm: ``"Linf"``, ``"L2"`` or ``"L1"``.
        bounds: Lowest and highest input value.
        base: Outer loss and ascent target: ``"pgd"`` (arXiv:1706.06083), ``"trades"``
            (arXiv:1901.08573) or ``"mart"`` (ICLR 2020, "Improving adversarial robustness
            requires revisiting misclassified examples").
        beta: Weight of the KL term of ``trades`` and ``mart``.
        smoothing: a in [0, 1): the ascent target is q = (1 - a) b + a / K (our reading of
            arXiv:2009.10978, see docs/method.md).
        guard: Shrink ``smoothing`` per example where it would pull the example back.
        share: Score of a pixel's being shared among the classes: ``"min"``, ``"mean"``,
            ``"rms"`` (random probes) or ``"neutral"`` (our readings of the same sentence).
        keep: Share of the pixels with the full budget, in (0, 1]; 1 switches the mask off.
        floor: Budget of the other pixels as a share of eps, in [0, 1]; 1 switches the mask off.
        mask_classes: Compare the label's class and others, this many in all (2..K); default all
            K. Not for ``rms``.
        probes: Number of random-sign backward passes of ``share="rms"``.
        random_start: ``"uniform"`` in the ball, ``"gaussian"`` (0.001 N(0, 1)) or ``"none"``.
        attack_mode: Mode of BatchNorm and dropout while attacking: ``"eval"`` or ``"train"``
            (batch statistics; the running ones stay as they were).

    Raises:
        ConfigError: A value out of its range, or the dead point of TRADES (no random start with
            no smoothing or with the guard, where the gradient is rounding noise).
    """

    eps: float = None  # type: ignore[assignment]  # resolved below: never None after __init__
    step_size: float = None  # type: ignore[assignment]  # likewise
    steps: int = 10
    norm: str = "Linf"
    bounds: tuple[float, float] = (0.0, 1.0)
    base: str = "pgd"
    beta: float = 6.0
    smoothing: float = 0.1
    guard: bool = True
    share: str = "min"
    keep: float = 0.5
    floor: float = 0.5
    mask_classes: int | None = None
    probes: int = 2
    random_start: str = "uniform"
    attack_mode: str = "eval"

    def __post_init__(self) -> None:
        for name, choices in (("norm", NORMS), ("base", BASES), ("share", SHARES),
                              ("random_start", STARTS), ("attack_mode", MODES)):  # fmt: skip
            check_choice(name, getattr(self, name), choices)
        check_integer("steps", self.steps, 1)
        check_integer("probes", self.probes, 1)
        if self.mask_classes is not None:
            check_integer("mask_classes", self.mask_classes, 2)
        check_flag("guard", self.guard)
        self._check_bounds()
        if self.eps is None or isinstance(self.eps, _Derived):
            object.__setattr__(self, "eps", _Derived(DEFAULT_EPS[self.norm]))
        check_number("eps", self.eps, above=0.0)
        if self.step_size is None or isinstance(self.step_size, _Derived):
            object.__setattr__(self, "step_size", _Derived(2.5 * self.eps / self.steps))
        check_number("step_size", self.step_size, above=0.0)
        check_number("beta", self.beta, least=0.0)
        check_number("smoothing", self.smoothing, least=0.0, below=1.0)
        check_number("keep", self.keep, above=0.0, most=1.0)
        check_number("floor", self.floor, least=0.0, most=1.0)
        for name in ("beta", "smoothing", "keep", "floor"):
            object.__setattr__(self, name, float(getattr(self, name)))
        for name in ("eps", "step_size"):
            if not isinstance(getattr(self, name), _Derived):
                object.__setattr__(self, name, float(getattr(self, name)))
        self._check_combinations()

    def _check_bounds(self) -> None:
        pair = self.bounds
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ConfigError("bounds", expected="a pair (lower, upper)", received=repr(pair),
                              fix="Use the range of your inputs, e.g. (0, 1).")  # fmt: skip
        for value in pair:
            check_number("bounds", value)
        if not pair[0] < pair[1]:
            raise ConfigError("bounds", expected="lower < upper", received=repr(tuple(pair)),
                              fix="Use the range of your inputs, e.g. (0, 1).")  # fmt: skip
        object.__setattr__(self, "bounds", Bounds(float(pair[0]), float(pair[1])))

    def _check_combinations(self) -> None:
        lower, upper = self.bounds
        if self.share == "rms" and self.mask_classes is not None:
            raise ConfigError("mask_classes", expected="None for share='rms'",
                              received=self.mask_classes, fix="Random probes cover all classes "
                              "at once: set probes instead.")  # fmt: skip
        if self.norm == "Linf" and self.eps > upper - lower:
            raise ConfigError("eps", expected=f"a Linf eps of at most the input range "
                              f"{upper - lower:g}", received=f"{self.eps:g}",
                              fix=f"{self.eps:g} or {self.eps:g}/255? eps is in the units of the "
                              "inputs; set bounds if theirs are not [0, 1].")  # fmt: skip
        if (self.base == "trades" and self.random_start == "none"
                and (self.smoothing == 0 or self.guard)):  # fmt: skip
            raise ConfigError("random_start", expected="a random start for base='trades'",
                              received="'none'", fix="At x' = x the KL gradient is zero up to "
                              "rounding, so the attack could not leave x: use 'uniform' or "
                              "'gaussian' (or smoothing > 0 without guard).")  # fmt: skip

    def evaluation(self, steps: int) -> SPATConfig:
        """The evaluation attack of this threat model: full eps, hard labels, no mask."""
        return SPATConfig(eps=self.eps, norm=self.norm, bounds=self.bounds, steps=steps,
                          smoothing=0, keep=1)  # fmt: skip

    @property
    def masked(self) -> bool:
        """Whether the shared-pixel mask differs from all ones."""
        return self.keep < 1 and self.floor < 1


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
        seed: Fixes the initial weights, the order of the data, the starts and the mask's draws
            (and dropout in torch; Keras' dropout layers take seeds of their own).
        device: Where to train, e.g. ``"cuda"``; default: where the model's parameters are.
        baseline: Also train an ordinary network (same architecture, schedule and seed) and
            report both; for a recipe's own model only.
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
    seed: int = 0
    device: str | None = None
    baseline: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        check_integer("epochs", self.epochs, 1)
        check_integer("batch_size", self.batch_size, 1)
        check_integer("seed", self.seed, 0)
        check_number("lr", self.lr, above=0.0)
        check_number("momentum", self.momentum, least=0.0, below=1.0)
        check_number("weight_decay", self.weight_decay, least=0.0)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_flag("baseline", self.baseline)
        check_flag("progress", self.progress)


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Raise ConfigError unless ``value`` is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(name, expected=f"one of {', '.join(map(repr, choices))}",
                          received=repr(value), fix="Choose one of these names.")  # fmt: skip


def check_flag(name: str, value: Any) -> None:
    """Raise ConfigError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise ConfigError(name, expected="True or False", received=repr(value),
                          fix="Pass a bool.")  # fmt: skip


def check_integer(name: str, value: Any, least: int) -> None:
    """Raise ConfigError unless ``value`` is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ConfigError(name, expected=f"an integer >= {least}", received=repr(value),
                          fix="Pass a whole number in that range.")  # fmt: skip


def check_number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> None:
    """Raise ConfigError unless ``value`` is a finite real number within the given limits."""
    limits = ((">", above), (">=", least), ("<", below), ("<=", most))
    expected = " and ".join(f"{sign} {limit:g}" for sign, limit in limits if limit is not None)
    valid = isinstance(value, Real) and not isinstance(value, bool)
    try:
        valid = valid and math.isfinite(value)
    except OverflowError:  # an integer beyond the floats
        valid = False
    if not valid or not (
        (above is None or value > above)
        and (least is None or value >= least)
        and (below is None or value < below)
        and (most is None or value <= most)
    ):
        raise ConfigError(name, expected=f"a finite number {expected}".rstrip(),
                          received=repr(value), fix="Pass a number in that range.")  # fmt: skip


def check_type(name: str, value: Any, kind: type) -> None:
    """Raise ConfigError unless ``value`` is None or settings of this kind."""
    if value is not None and not isinstance(value, kind):
        raise ConfigError(name, expected=f"a {kind.__name__}", received=type(value).__name__,
                          fix=f"Pass spatlib.{kind.__name__}(...).")  # fmt: skip
