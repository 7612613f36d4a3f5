"""Results stay within the bounds to the bit, where sums with a bound round beyond it."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import torch
from torch import nn

import spatlib_tf
import spatlib_torch
from spatlib import SPATConfig

LOW, HIGH, SIZE = np.float32(-0.3), np.float32(0.7), 20
MODELS: dict[str, Any] = {
    "torch": lambda: nn.Linear(SIZE, 3),
    "tf": lambda: keras.Sequential([keras.Input((SIZE,)), keras.layers.Dense(3)]),
}


def attacked(framework: str, x: np.ndarray, y: np.ndarray, config: SPATConfig) -> np.ndarray:
    model = MODELS[framework]()
    if framework == "tf":
        return spatlib_tf.perturb(model, x, y, config).numpy()
    return spatlib_torch.perturb(model, torch.as_tensor(x), torch.as_tensor(y), config).numpy()


@pytest.mark.parametrize("framework", MODELS)
def test_results_are_within_the_bounds_to_the_bit(framework: str) -> None:
    x = np.random.default_rng(0).uniform(LOW, HIGH, size=(500, SIZE)).astype(np.float32)
    assert ((x + (HIGH - x) > HIGH) | (x + (LOW - x) < LOW)).any()
    config = SPATConfig(eps=0.9, bounds=(float(LOW), float(HIGH)))
    moved = attacked(framework, x, np.arange(500) % 3, config)
    assert moved.min() == LOW
    assert moved.max() == HIGH
