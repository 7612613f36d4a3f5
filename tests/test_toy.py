"""A backend of another package: one entry point, and `spatlib.train` finds it."""

from __future__ import annotations

import numpy as np
import pytest

import spatlib
from spatlib import BackendError, SPATConfig, TrainConfig
from spatlib.backends import load_engine

CONFIG = SPATConfig(eps=0.1, steps=5)
TRAINING = TrainConfig(epochs=20, lr=0.5, progress=False)


def test_an_entry_point_is_enough_to_be_found() -> None:
    assert load_engine("toy").__name__ == "spatlib_toy.engine"
    with pytest.raises(BackendError, match="'toy'"):
        load_engine("toyish")


def test_the_toy_trains_evaluates_and_gains_robustness() -> None:
    result = spatlib.train(backend="toy", config=CONFIG, training=TRAINING)
    assert len(result.history) == 20
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    engine = load_engine("toy")
    ordinary = engine.build_model("linear", 0, shape=(1, 8, 8), classes=10, mean=None, std=None)
    digits = spatlib.data.load("digits", channels_first=True)
    engine.fit(ordinary, digits.train, CONFIG, TRAINING, "standard", ordinary=True)
    standard = engine.evaluate(ordinary, digits.test, CONFIG).metrics
    assert min(standard["clean"], result.metrics["clean"]) > 0.9
    assert result.metrics["pgd20"] > standard["pgd20"] + 0.02
    again = spatlib.evaluate(result.model, backend="toy", config=CONFIG)
    np.testing.assert_equal(again.metrics, result.metrics)
