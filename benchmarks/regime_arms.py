"""The settings of the runs in :mod:`benchmarks.regimes`: regimes, and arms that they share."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from spatlib import Mask


class Regime(NamedTuple):
    """Images of CIFAR-10, the network, the schedule and the threat."""

    images: int | None  # for training, the first so many; None: all that are not held out
    held: int  # the last training images: they choose the epoch
    measured: int  # the first test images
    pool: int  # the side of the squares whose means are the pixels
    widths: tuple[int, ...]
    blocks: int
    eps: float
    judged: tuple[float, ...]  # eps of the evaluation
    epochs: int
    batch: int
    look: int  # epochs from one look at the held-out images to the next
    ema: float
    augment: str = "none"
    steps: int = 5


REGIMES = {
    "overfit": Regime(
        images=750,
        held=500,
        measured=2000,
        pool=2,
        widths=(16, 32, 64),
        blocks=1,
        eps=8 / 255,
        judged=(8 / 255,),
        epochs=40,
        batch=50,
        look=5,
        ema=0.97,
    ),
    "large-eps": Regime(
        images=4000,
        held=500,
        measured=2000,
        pool=2,
        widths=(16, 32, 64),
        blocks=1,
        eps=16 / 255,
        judged=(8 / 255, 16 / 255),
        epochs=12,
        batch=50,
        look=2,
        ema=0.98,
        augment="crop-flip",
    ),
    "full": Regime(
        images=None,
        held=1000,
        measured=10_000,
        pool=1,
        widths=(32, 64, 128, 256),
        blocks=2,
        eps=8 / 255,
        judged=(8 / 255,),
        epochs=60,
        batch=250,
        look=3,
        ema=0.999,
        augment="crop-flip",
    ),
}


class Arm(NamedTuple):
    """What an arm has of its own."""

    config: Mapping[str, Any] = MappingProxyType({})
    stretch: float = 1.0  # training eps in units of the regime's
    smooth: float = 0.0  # of the labels, uniformly


def masked(score: str, floor: float) -> dict[str, Any]:
    return {"mask": Mask(score=score, keep=0.5, floor=floor)}


ARMS = {  # in the order in which they are run
    "pgd": Arm(),
    "rectified 0.8": Arm({"rectify": 0.8}),
    "eps x 1.25": Arm(stretch=1.25),
    "realloc min x 1.5": Arm(masked("min", 1 / 1.5), 1.5),
    "realloc random x 1.5": Arm(masked("random", 1 / 1.5), 1.5),
    "smooth 0.8": Arm(smooth=0.8),
    "rectified 0.5": Arm({"rectify": 0.5}),
    "eps x 1.5": Arm(stretch=1.5),
    "mask min": Arm(masked("min", 0.5)),
    "mask random": Arm(masked("random", 0.5)),
    "eps x 0.75": Arm(stretch=0.75),
    "smooth 0.5": Arm(smooth=0.5),
}
LATER = {  # of all seeds after those above of all seeds
    "eps x 2": Arm(stretch=2.0),
    "attack smoothed 0.1, guarded": Arm({"smoothing": 0.1}),
    "rectified 0.8, eps x 1.25": Arm({"rectify": 0.8}, 1.25),
    "trades": Arm({"loss": "trades"}),
}
ARMS |= LATER
