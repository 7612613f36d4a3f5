"""What a timing of one training step in PyTorch is of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from spatlib import Mask, SPATConfig

MASKS: dict[str, dict[str, Any]] = {
    "off": {"smoothing": 0.0},  # the plain base method
    "default": {},
    "min": {"mask": Mask()},
    "classes4": {"mask": Mask(classes=4)},
    "rms": {"mask": Mask(score="rms", probes=2)},
    "rectified": {"smoothing": 0.0, "rectify": 0.5},  # and averaged weights; of PyTorch alone
}
SIZES = {"Linf": (8 / 255, 2 / 255), "L2": (0.5, 0.125)}  # eps, step size
MLPS = {"mlp": 1024, "mlp_1ms": 256}  # width of the two hidden layers; 1 ms: of its forward pass
Arm = Callable[[], object]


class Setting(NamedTuple):
    """What is measured; inputs are 3 x 32 x 32 (or 32 x 32 x 3), uniform noise."""

    model: str = "small"
    loss: str = "pgd"
    norm: str = "Linf"
    mask: Sequence[str] = tuple(MASKS)[:-1]
    classes: int = 10
    batch: int = 64
    steps: int = 10
    device: str = "cpu"
    precision: str = "float32"
    compiled: bool = False

    def config(self, mask: str) -> SPATConfig:
        eps, step_size = SIZES[self.norm]
        settings = {"steps": self.steps, "step_size": step_size, **MASKS[mask]}
        return SPATConfig(eps=eps, norm=self.norm, loss=self.loss, **settings)
