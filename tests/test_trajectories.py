"""Twenty training steps, and their masks, agree with the oracle in all kinds of configuration."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

import reference
from spatlib import Mask, SPATConfig

from .engines import ENGINES
from .entry import CHANNELS, CLASSES, HEIGHT, SIZE, WIDTH, initial_weights
from .record import agree, at_most, saw_dtypes

pytestmark = pytest.mark.verifies
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
# TensorFlow traces each for a second: the rest of them in `make verify` alone.
NAMES = [*ENGINES] if settings.default.max_examples >= 500 else ["torch"]


@of_cases(PAIRS)
def test_weights_after_twenty_steps_equal_the_oracle(
    engine: Any, loss: str, norm: str, mask: str, guard: bool
) -> None:
    follow(engine, loss, norm, mask, guard)


@pytest.mark.verifies(*NAMES)
@pytest.mark.parametrize("name", NAMES)
@of_cases(case for case in TRIPLES if case not in PAIRS)
def test_weights_equal_the_oracle_in_all_other_combinations(
    name: str, loss: str, norm: str, mask: str, guard: bool
) -> None:
    follow(ENGINES[name], loss, norm, mask, guard)


@pytest.mark.parametrize(
    ("loss", "norm", "mask", "guard"),
    [
        ("pgd", "Linf", "three classes", True),
        ("pgd", "L2", "off", False),
        ("trades", "Linf", "three classes", True),
    ],
)
@pytest.mark.parametrize("rectify", [0.0, 0.75])
def test_weights_with_soft_and_rectified_labels_equal_the_oracle(
    engine: Any, loss: str, norm: str, mask: str, guard: bool, rectify: float
) -> None:
    soft = rectify == 0 or norm == "L2"
    follow(engine, loss, norm, mask, guard, soft=soft, rectify=rectify)


def follow(
    engine: Any,
    loss: str,
    norm: str,
    mask: str,
    guard: bool,
    *,
    soft: bool = False,
    rectify: float = 0.0,
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
    for number in range(STEPS):
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


@pytest.mark.parametrize("keep", [0.25, 0.5, 0.8])
@pytest.mark.parametrize("mask", [name for name in MASKS if name != "off"])
def test_masks_equal_the_oracle(engine: Any, mask: str, keep: float) -> None:
    settings = replace(MASKS[mask], keep=keep)
    config = SPATConfig(eps=0.1, mask=settings)
    ours, oracle = engine(initial_weights()), reference.TanhMLP(*initial_weights())
    kept = set()
    for number in range(10):
        x, y, _ = batch(number)
        offsets, probes, noise = engine.draws(config, COUNT, seed=number)
        mine = ours.shared_mask(x, y, config, seed=number)
        assert mine.shape == (COUNT, HEIGHT * WIDTH)
        saw_dtypes((mine,))
        for n in range(COUNT):
            theirs = reference.mask_at(
                oracle,
                x[n].ravel(),
                int(y[n]),
                channels=CHANNELS,
                score=settings.score,
                keep=keep,
                floor=settings.floor,
                offsets=offsets,
                probes=None if probes is None else probes[:, n],
                noise=None if noise is None else noise[n],
            )
            np.testing.assert_array_equal(mine[n], theirs)
            kept.add(tuple(theirs))
    assert len(kept) > 1  # the masks differ from example to example


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("floor", [0.0, 0.5])
def test_attack_stays_in_the_set_and_off_masked_pixels(
    engine: Any, norm: str, floor: float
) -> None:
    config = SPATConfig(norm=norm, eps=EPS[norm], mask=Mask(floor=floor, keep=0.25))
    ours = engine(initial_weights())
    for number in range(3):  # test_attack draws many more
        x, y, start = batch(number)
        budget = np.where(
            np.random.default_rng(number).uniform(size=(COUNT, 1, HEIGHT, WIDTH)) < 0.5, 1.0, floor
        )
        adversarial = ours.perturb(x, y, start, config, budget)
        d = adversarial - x
        order = {"Linf": np.inf, "L2": 2, "L1": 1}[norm]
        at_most(np.linalg.norm(d.reshape(COUNT, SIZE), order, axis=1), EPS[norm], 1e-14 * EPS[norm])
        at_most(np.abs(d), budget * EPS[norm], 1e-16)
        assert ((adversarial >= 0) & (adversarial <= 1)).all()
        np.testing.assert_array_equal((d == 0) | (budget > 0), True)
        assert np.abs(d).max() > 0.01  # it moved
