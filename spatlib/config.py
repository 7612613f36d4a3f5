"""Threat model, mask and method: frozen, checked once (a value out of its range: ConfigError)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .errors import checked, require, settle

SCORES = ("min", "mean", "rms", "neutral", "random")


@dataclass(frozen=True, kw_only=True)
class Threat:
    """What an attack may do: perturb each input by at most eps, inside the input range.

    Args:
        eps: Radius, in the units of the inputs. For images in [0, 1] often 8/255, 0.5 in L2.
        norm: ``"Linf"``, ``"L2"`` or ``"L1"``.
        bounds: Lowest and highest input value.
    """

    eps: float
    norm: str = "Linf"
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        settle(self, eps="(0, inf)", norm=("Linf", "L2", "L1"))
        valid = isinstance(self.bounds, tuple | list) and len(self.bounds) == 2
        require(valid, "bounds", "be a pair (lower, upper), the range of the inputs", self.bounds)
        lower, upper = (checked("bounds", value, "(-inf, inf)") for value in self.bounds)
        require(lower < upper, "bounds", "have lower < upper", self.bounds)
        object.__setattr__(self, "bounds", (lower, upper))
        what = f"be at most the input range, {upper - lower:g} (try {self.eps:g}/255 or set bounds)"
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
        channel_axis: Axis of the inputs with the channels of a pixel, from 1; None is 1 in PyTorch
            and the last in Keras. Inputs (N, D) have no channels.
    """

    score: str = "min"
    keep: float = 0.5
    floor: float = 0.5
    classes: int | None = None
    probes: int = 2
    channel_axis: int | None = None

    def __post_init__(self) -> None:
        optional = ("classes", "channel_axis")
        settle(self, optional, score=SCORES, keep="(0, 1]", floor="[0, 1]", probes=1)
        settle(self, optional, classes=2, channel_axis=1)
        what = "be None for score='rms', which covers all classes at once (set probes instead)"
        require(self.score != "rms" or self.classes is None, "classes", what, self.classes)


@dataclass(frozen=True, kw_only=True)
class SPATConfig(Threat):
    """A threat model and the training attack on it, by default what did best in docs/evidence.md.

    Args:
        steps: Number of ascent steps.
        step_size: Length of one, in the units of the inputs; None is 2.5 eps / steps.
        random_start: ``"uniform"`` in the ball, ``"gaussian"`` (0.001 N(0, 1)) or ``"none"`` (with
            ``trades`` only if smoothed without guard: else its gradient is rounding noise).
        attack_mode: While attacking, ``"eval"`` or ``"train"`` (dropout, batch statistics; the
            running ones stay as they were).
        loss: Outer loss and ascent target: ``"pgd"`` (arXiv:1706.06083), ``"trades"``
            (arXiv:1901.08573) or ``"mart"`` (Wang et al., ICLR 2020).
        beta: Weight of the KL term of ``trades`` and ``mart``.
        smoothing: a in [0, 1) of the ascent target q = (1 - a) b + a / K (docs/method.md, our
            reading of arXiv:2009.10978); 0 is plain PGD-AT, TRADES or MART.
        guard: Shrink ``smoothing`` per example where it would pull the example back.
        mask: The shared-pixel mask, or None.
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
        settle(self, ("step_size",), steps=1, step_size="(0, inf)", beta="[0, inf)")
        settle(self, random_start=("uniform", "gaussian", "none"), attack_mode=("eval", "train"))
        settle(self, loss=("pgd", "trades", "mart"), smoothing="[0, 1)", guard=bool)
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

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SPATConfig:
        """The config that ``dataclasses.asdict`` was taken of, also after JSON."""
        return cls(**values | {"mask": Mask(**values["mask"]) if values["mask"] else None})


def plain_pgd(threat: Threat, steps: int) -> SPATConfig:
    """PGD of the threat model, as evaluations use it: full eps, hard labels, no mask."""
    kept = {name: getattr(threat, name) for name in ("eps", "norm", "bounds")}
    return SPATConfig(**kept, steps=steps, smoothing=0)
