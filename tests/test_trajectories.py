"""Twenty training steps, and their masks, agree with the oracle in all kinds of configuration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

import reference
from spatlib import Mask, SPATConfig

from .engines import ENGINES
from .entry import CHANNELS, HEIGHT, SIZE, WIDTH, initial_weights
from .following import COUNT, EPS, MASKS, PAIRS, TRIPLES, batch, follow, of_cases
from .record import at_most, saw_dtypes

pytestmark = pytest.mark.verifies
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
    config = SPATConfig(norm=norm, eps=EPS[norm], steps=4, mask=Mask(floor=floor, keep=0.25))
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
