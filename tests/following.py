"""Training steps beside the oracle's, and the settings that are gone through."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

import reference
from spatlib import Mask, SPATConfig

from .entry import CHANNELS, CLASSES, HEIGHT, WIDTH, initial_weights
from .record import agree

STEPS, COUNT = 20, 5
LR, MOMENTUM = 0.125, 0.875  # exact in float32, through which Keras passes them
EPS = {"Linf": 0.1, "L2": 0.4, "L1": 1.0}
MASKS = {
    "off": None,
    "min": Mask(),
    "mean": Mask(score="mean", floor=0.0),
    "rms": Mask(score="rms", probes=2),
    "neutral": Mask(score="neutral"),
    "random": Mask(score="random"),
    "three classes": Mask(classes=3),
}


def batch(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x (N, C, H, W) in [0, 1], y (N,), and a start shaped like x."""
    rng = np.random.default_rng(100 + step)
    shape = (COUNT, CHANNELS, HEIGHT, WIDTH)
    return rng.uniform(size=shape), rng.integers(CLASSES, size=COUNT), rng.normal(size=shape)


def oracle_settings(config: SPATConfig) -> dict[str, Any]:
    names = ("loss", "beta", "eps", "steps", "norm", "bounds", "smoothing", "guard")
    settings = {name: getattr(config, name) for name in names} | {"step_size": config.alpha}
    mask = config.mask or Mask(keep=1)
    score = mask.score if config.masked else None
    return settings | {"score": score, "keep": mask.keep, "floor": mask.floor}


LOSSES = ("pgd", "trades", "mart")
of_cases = partial(pytest.mark.parametrize, ("loss", "norm", "mask", "guard"))

# Any two of the four settings meet in every combination.
PAIRS = [
    (loss, [*EPS][(i + k - 1) % 3], mask, (i + k) % 2 == 1)
    for i, loss in enumerate(LOSSES)
    for k, mask in enumerate(MASKS)
]
# Any three: guard alternates along the others.
TRIPLES = [
    (loss, norm, mask, (i + j + k) % 2 == 1)
    for i, loss in enumerate(LOSSES)
    for j, norm in enumerate(EPS)
    for k, mask in enumerate(MASKS)
]


def follow(
    engine: Any,
    loss: str,
    norm: str,
    mask: str,
    guard: bool,
    *,
    soft: bool = False,
    rectify: float = 0.0,
    steps: int = STEPS,
) -> None:
    """Train beside the oracle, step by step."""
    config = SPATConfig(
        loss=loss,
        mask=MASKS[mask],
        norm=norm,
        eps=EPS[norm],
        steps=3,
        guard=guard,
        smoothing=0.3,
        rectify=rectify,
    )
    average = reference.TanhMLP(*initial_weights())
    ours = engine(initial_weights(), LR, MOMENTUM)
    oracle = reference.TanhMLP(*initial_weights())
    velocity = [np.zeros_like(w) for w in oracle.parameters]
    for number in range(steps):
        x, y, start = batch(number)
        y = np.random.default_rng(number).dirichlet(np.ones(CLASSES), size=COUNT) if soft else y
        start = EPS[norm] * start
        offsets, probes, noise = engine.draws(config, COUNT, seed=number)
        expected = reference.train_step(
            oracle,
            velocity,
            x.reshape(COUNT, -1),
            y,
            start.reshape(COUNT, -1),
            lr=LR,
            momentum=MOMENTUM,
            offsets=offsets,
            probes=probes,
            noise=noise,
            channels=CHANNELS,
            rectify=rectify,
            average=average if rectify else None,
            **oracle_settings(config),
        )
        means = [w.copy() for w in average.parameters] if rectify else None
        loss_of_ours = ours.train_step(x, y, start, config, number, means)
        assert loss_of_ours == pytest.approx(expected, 1e-10)
        for mean, weight in zip(average.parameters, oracle.parameters, strict=True):
            mean += 0.25 * (weight - mean)
    for mine, theirs, before in zip(
        ours.weights(), oracle.parameters, initial_weights(), strict=True
    ):
        agree(mine, theirs, rtol=0, atol=1e-10)
        assert np.abs(theirs - before).max() > 1e-3  # the training did something
