"""A slow oracle of semantics-preserving adversarial training in float64 NumPy.

It shares no code with the library and takes another way to each result: the engines' common core
could be wrong in the same way everywhere, and only an independent definition can show that.
Projections walk through sorted breakpoints, thresholds are sorted in plain Python, gradients are
written by hand, and everything handles one example at a time.
"""

from .apgd import auto_ascend, auto_attack, checkpoints, targeted_ratio
from .arrays import Array
from .attack import attack, mask_at
from .evaluation import robust
from .losses import outer_loss
from .mask import centred, class_cohort, keep_best, shared_mask, shared_score, used_pixels
from .models import Classifier, SoftmaxLinear, TanhMLP
from .projection import feasible_box, project
from .step import direction, initial, step
from .target import (
    base_target,
    log_softmax,
    objective,
    objective_gradient,
    smoothed_target,
    softmax,
    stalled,
)
from .train import train_step

__all__ = [
    "Array",
    "Classifier",
    "SoftmaxLinear",
    "TanhMLP",
    "attack",
    "auto_ascend",
    "auto_attack",
    "base_target",
    "centred",
    "checkpoints",
    "class_cohort",
    "direction",
    "feasible_box",
    "initial",
    "keep_best",
    "log_softmax",
    "mask_at",
    "objective",
    "objective_gradient",
    "outer_loss",
    "project",
    "robust",
    "shared_mask",
    "shared_score",
    "smoothed_target",
    "softmax",
    "stalled",
    "step",
    "targeted_ratio",
    "train_step",
    "used_pixels",
]
