"""Threat model and method: frozen, keyword-only, checked once, every default a working value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from .errors import (
    ConfigError,
    require,
    require_bool,
    require_choice,
    require_integer,
    require_number,
)

NORMS = ("Linf", "L2", "L1")
BASES = ("pgd", "trades", "mart")
SHARES = ("min", "mean", "rms", "neutral")
STARTS = ("uniform", "gaussian", "none")
MODES = ("eval", "train")
DEFAULT_EPS = {"Linf": 8 / 255, "L2": 0.5, "L1": 12.0}


class Bounds(NamedTuple):
    """The range of the inputs, in their own units."""

    lower: float
    upper: float


class _Derived(float):
    """A default computed from other settings; ``dataclasses.replace`` computes it anew."""


class _DerivedName(str):
    """The same for a name."""


def _open(value: Any) -> bool:
    """Whether a setting was left out."""
    return value is None or isinstance(value, _Derived | _DerivedName)


@dataclass(frozen=True, kw_only=True)
class SPATConfig:
    """The threat model and the training-time attack.

    ``eps``, ``step_size`` and the perturbation are in the units of the inputs. The default is the
    SPAT variant that did best on held-out digits (docs/evidence.md), guarded smoothing, no mask;
    ``smoothing=0, share="min"`` is the mask alone, ``share="min"`` both, ``smoothing=0, keep=1``
    the plain base method (Madry's PGD-AT, TRADES, MART).

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
            ``"rms"`` (random probes) or ``"neutral"`` (our readings of the same sentence). Default
            ``"min"``.
        keep: Share of the pixels with the full budget, in (0, 1]; 1 switches the mask off. Default
            0.5 if ``share``, ``floor`` or ``mask_classes`` is given, else 1.
            Settings read from a file count as given: there pass ``keep`` too.
        floor: Budget of the other pixels as a share of eps, in [0, 1]; 1 switches the mask off.
            Default 0.5.
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

    # What is None here is resolved below, and never None after __init__.
    eps: float = None  # type: ignore[assignment]
    step_size: float = None  # type: ignore[assignment]
    steps: int = 10
    norm: str = "Linf"
    bounds: tuple[float, float] = (0.0, 1.0)
    base: str = "pgd"
    beta: float = 6.0
    smoothing: float = 0.1
    guard: bool = True
    share: str = None  # type: ignore[assignment]
    keep: float = None  # type: ignore[assignment]
    floor: float = None  # type: ignore[assignment]
    mask_classes: int | None = None
    probes: int = 2
    random_start: str = "uniform"
    attack_mode: str = "eval"

    def __post_init__(self) -> None:
        masked = self.mask_classes is not None or not (_open(self.share) and _open(self.floor))
        self._default("share", _DerivedName("min"))
        self._default("keep", _Derived(0.5 if masked else 1.0))
        self._default("floor", _Derived(0.5))
        for name, choices in (
            ("norm", NORMS),
            ("base", BASES),
            ("share", SHARES),
            ("random_start", STARTS),
            ("attack_mode", MODES),
        ):
            require_choice(name, getattr(self, name), choices)
        for name, least in (("steps", 1), ("probes", 1), ("mask_classes", 2)):
            if name != "mask_classes" or self.mask_classes is not None:
                self._plain(name, require_integer(name, getattr(self, name), least))
        require_bool("guard", self.guard)
        self._check_bounds()
        self._default("eps", _Derived(DEFAULT_EPS[self.norm]))
        for name in ("eps", "step_size", "beta", "smoothing", "keep", "floor"):
            if not _open(getattr(self, name)):
                self._plain(name, require_number(name, getattr(self, name)))
        require(self.eps > 0, "eps", "be above 0", self.eps)
        self._default("step_size", _Derived(2.5 * self.eps / self.steps))
        require(self.step_size > 0, "step_size", "be above 0", self.step_size)
        require(self.beta >= 0, "beta", "be at least 0", self.beta)
        require(0 <= self.smoothing < 1, "smoothing", "be in [0, 1)", self.smoothing)
        require(0 < self.keep <= 1, "keep", "be in (0, 1]", self.keep)
        require(0 <= self.floor <= 1, "floor", "be in [0, 1]", self.floor)
        self._check_combinations()

    def _default(self, name: str, value: Any) -> None:
        if _open(getattr(self, name)):
            self._plain(name, value)

    def _plain(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_bounds(self) -> None:
        pair = self.bounds
        valid = isinstance(pair, tuple | list) and len(pair) == 2
        require(valid, "bounds", "be a pair (lower, upper), the range of the inputs", pair)
        lower, upper = (require_number("bounds", value) for value in pair)
        require(lower < upper, "bounds", "have lower < upper", pair)
        self._plain("bounds", Bounds(lower, upper))

    def _check_combinations(self) -> None:
        width = self.bounds.upper - self.bounds.lower  # type: ignore[attr-defined]
        if self.share == "rms" and self.mask_classes is not None:
            raise ConfigError(
                "mask_classes is not for share='rms', whose probes cover all classes: set probes"
            )
        if self.norm == "Linf" and self.eps > width:
            raise ConfigError(
                f"eps must be at most the input range, {width:g}, got {self.eps:g}: write "
                f"{self.eps:g}/255 if you mean that, or set bounds to the range of your inputs"
            )
        stuck = self.smoothing == 0 or self.guard
        if self.base == "trades" and self.random_start == "none" and stuck:
            raise ConfigError(
                "random_start must be 'uniform' or 'gaussian' for base='trades', got 'none': at "
                "x' = x its gradient is rounding noise (smoothing without guard has another)"
            )

    def evaluation(self, steps: int) -> SPATConfig:
        """The evaluation attack of this threat model: full eps, hard labels, no mask."""
        return SPATConfig(
            eps=self.eps, norm=self.norm, bounds=self.bounds, steps=steps, smoothing=0, keep=1
        )

    @property
    def masked(self) -> bool:
        """Whether the shared-pixel mask differs from all ones."""
        return self.keep < 1 and self.floor < 1
