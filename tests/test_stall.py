"""The share of stalled example-steps that the engines report is the oracle's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import reference
from spatlib import SPATConfig

from .entry import CHANNELS, HEIGHT, WIDTH, initial_weights
from .test_trajectories import COUNT, batch


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_share_of_stalled_steps_is_the_oracles(engine: Any, smoothing: float) -> None:
    config = SPATConfig(eps=0.1, steps=4, smoothing=smoothing, keep=1)
    subject, oracle = engine(initial_weights()), reference.TanhMLP(*initial_weights())
    names = ("base", "eps", "step_size", "steps", "norm", "bounds", "smoothing", "guard")
    settings = {name: getattr(config, name) for name in names}
    rates = []
    for number in range(5):
        x, y, start = batch(number)
        y = oracle_labels(oracle, x)
        start = 0.1 * start
        stalls = [
            reference.attack(
                oracle,
                x[n].ravel(),
                int(y[n]),
                mask=np.ones(HEIGHT * WIDTH),
                channels=CHANNELS,
                start=start[n].ravel(),
                **settings,
            )[1]
            for n in range(COUNT)
        ]
        rates.append(subject.stall_rate(x, y, start, config))
        assert rates[-1] == pytest.approx(np.mean(stalls))
    assert len(set(rates)) > 1 or smoothing == 0


def oracle_labels(oracle: Any, x: np.ndarray) -> np.ndarray:
    """The most likely classes: of those some are beyond the smoothed weight."""
    return np.array([int(np.argmax(oracle.logits(example.ravel()))) for example in x])
