"""AutoAttack through ART, with few queries: inside the ball, in both frameworks, by its name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from spatlib import BackendError, ConfigError, Threat
from spatlib import autoattack as art
from spatlib.core.ops import Array, Ops
from spatlib.evaluate import Evaluation

from .landscapes import EPS, measure, model

FEW = {"steps": 5, "restarts": 1, "queries": 20}


def waves(ops: Ops, x: Array, array: Callable[[Any], Array]) -> Array:
    """Four logits of 8 x 8 pixels in either layout."""
    weights = np.random.default_rng(0).normal(size=(8, 8, 4))
    axes = (1, 2, 3)
    pixels = [ops.sum(x * array(_shaped(weights[..., k], x)), axis=axes) for k in range(4)]
    columns = [p[:, None] * array(np.eye(4)[k]) for k, p in enumerate(pixels)]
    return columns[0] + columns[1] + columns[2] + columns[3]


def _shaped(plane: np.ndarray, x: Array) -> np.ndarray:
    return plane[None] if x.shape[1] == 1 else plane[..., None]


@pytest.mark.parametrize("name", ["torch", "tf"])  # ART gets its gradients from these two
def test_it_finds_what_is_there_and_stays_inside(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(art, "attack", partial(art.attack, **FEW))
    rng = np.random.default_rng(1)
    x = rng.uniform(size=(8, 1, 8, 8) if name == "torch" else (8, 8, 8, 1)).astype(np.float32)
    weights = np.random.default_rng(0).normal(size=(64, 4))
    z = x.reshape(8, 64) @ weights
    y = z.argmax(axis=1)
    y[0] = (y[0] + 1) % 4
    report = measure(name, model(name, waves), x, y, ("autoattack", "apgd"), steps=5)
    assert list(report.metrics) == ["clean", "autoattack", "apgd5"]
    assert report.metrics["clean"] == 7 / 8
    # Of a linear network the answer is known, up to the walls of the box.
    assert report.metrics["autoattack"] == report.metrics["apgd5"] < 7 / 8


@pytest.mark.parametrize("loss", [art.cross_entropy, art.logits_ratio])
def test_losses_have_the_gradients_of_their_values(loss: Any) -> None:
    rng = np.random.default_rng(0)
    z, label = 3 * rng.normal(size=(6, 5)), np.eye(5)[rng.integers(5, size=6)]
    value, gradient = loss(z, label)
    for k in range(5):
        step = 1e-6 * np.eye(5)[k]
        slope = (loss(z + step, label)[0] - loss(z - step, label)[0]) / 2e-6
        np.testing.assert_allclose(gradient[:, k], slope, rtol=1e-6, atol=1e-7)
    assert np.array_equal(value > 0, z.argmax(1) != label.argmax(1)) or loss is art.cross_entropy


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "multiprocess", None)
    with pytest.raises(BackendError, match=r"multiprocess.*spatlib\[autoattack\]"):
        art.autoattack(
            lambda x, c: (c, x),
            Threat(eps=EPS),
            np.zeros((1, 1, 8, 8)),
            np.zeros(1, int),
            4,
            channels_first=True,
        )


def test_there_is_none_for_l1() -> None:
    with pytest.raises(ConfigError, match="'autoattack'"):
        Evaluation(Threat(eps=12, norm="L1"), ("autoattack",), 1, 1, 0)
