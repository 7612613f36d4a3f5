"""Which points decide about robustness, and that the two attacks are two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from torch import nn

import spatlib
from spatlib import SPATConfig, Threat
from spatlib_tf import SPATModel

EPS, COUNT = 0.1, 8


class Landscape(keras.layers.Layer):
    """Two logits of one pixel, with a correct label 0 exactly where ``holds`` says.

    The gradient leads uphill everywhere, to x + eps.
    """

    def __init__(self, holds: Callable[[Any], Any]) -> None:
        super().__init__()
        self.holds = holds

    def call(self, x: Any) -> Any:
        score = tf.where(self.holds(x), 2.0, -2.0) - 1e-3 * x
        return tf.concat([score, tf.zeros_like(score)], axis=1)


def at_input(x: Any) -> Any:
    return tf.abs(x - 0.5) < 1e-6


def at_end(x: Any) -> Any:
    return x > 0.5 + 0.999 * EPS


@pytest.mark.parametrize(
    ("holds", "clean", "robust"),
    [
        (lambda x: x < 2, 1, 1),
        (lambda x: ~at_input(x), 0, 0),
        (lambda x: ~at_end(x), 1, 0),
        (lambda x: at_input(x) | at_end(x), 1, 0),
    ],
    ids=["correct everywhere", "wrong clean", "wrong at the end", "wrong at the start"],
)
def test_tensorflow_asks_the_clean_input_the_start_and_the_end(
    holds: Callable[[Any], Any], clean: int, robust: int
) -> None:
    model = keras.Sequential([keras.Input((1,)), Landscape(holds)])
    x, y = np.full((COUNT, 1), 0.5, np.float32), np.zeros(COUNT, np.int64)
    report = spatlib.evaluate(model, (x, y), Threat(eps=EPS))
    under_attack = dict.fromkeys(("pgd20", "margin20", "worst"), robust)
    assert report.metrics == {"clean": clean} | under_attack
    validated = SPATModel(model, SPATConfig(eps=EPS))
    validated.compile()
    assert validated.evaluate(x, y, verbose=0, return_dict=True)["adv_accuracy"] == robust


def test_tensorflow_wants_every_restart_survived() -> None:
    """The label fails in a slot that takes an eighth of the ball, between the input and the end."""
    model = keras.Sequential(
        [keras.Input((1,)), Landscape(lambda x: tf.abs(x - 0.5 - EPS / 2) > EPS / 8)]
    )
    x, y = np.full((400, 1), 0.5, np.float32), np.zeros(400, np.int64)

    def robust(seed: int = 0, restarts: int = 1) -> float:
        settings = {"attacks": ("pgd",), "seed": seed, "restarts": restarts}
        return spatlib.evaluate(model, (x, y), Threat(eps=EPS), **settings).metrics["pgd20"]

    alone = [robust(r) for r in range(3)]
    assert alone == pytest.approx([7 / 8] * 3, abs=0.07)
    assert robust(restarts=3) == pytest.approx((7 / 8) ** 3, abs=0.07)


def rivals(x: Any, where: Any) -> tuple[Any, list[Any]]:
    """A label that holds but at x + eps, one strong rival falling with x and ten that rise.

    Cross-entropy adds the rivals up and leads to x + eps, the margin looks at the strongest.
    """
    return where(at_end(x), -10.0 + 0 * x, 0 * x), [-1 - 0.5 * x, *[-2 + 0.5 * x] * 10]


class TorchRivals(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        label, others = rivals(x, torch.where)
        return torch.cat([label, *others], dim=1)


class KerasRivals(keras.layers.Layer):
    def call(self, x: Any) -> Any:
        label, others = rivals(x, tf.where)
        return tf.concat([label, *others], axis=1)


@pytest.mark.parametrize("framework", ["torch", "tf"])
def test_the_margin_attack_follows_the_strongest_rival_alone(framework: str) -> None:
    model: Any = TorchRivals()
    if framework == "tf":
        model = keras.Sequential([keras.Input((1,)), KerasRivals()])
    x, y = np.full((COUNT, 1), 0.5, np.float32), np.zeros(COUNT, np.int64)
    report = spatlib.evaluate(model, (x, y), Threat(eps=EPS))
    assert report.metrics == {"clean": 1, "pgd20": 0, "margin20": 1, "worst": 0}
