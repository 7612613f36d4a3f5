"""AutoAttack through ART, with few queries: inside the ball, in both frameworks, by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import spatlib
from spatlib import BackendError, ConfigError, Threat
from spatlib import autoattack as art
from spatlib.core.ops import Array, Ops
from spatlib.evaluate import Evaluation

from .landscapes import EPS, measure, model

FEW = {"STEPS": 5, "RESTARTS": 1, "QUERIES": 20}


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
    for name_of, number in FEW.items():
        monkeypatch.setattr(art, name_of, number)
    rng = np.random.default_rng(1)
    x = rng.uniform(size=(8, 1, 8, 8) if name == "torch" else (8, 8, 8, 1)).astype(np.float32)
    weights = np.random.default_rng(0).normal(size=(64, 4))
    z = x.reshape(8, 64) @ weights
    y = z.argmax(axis=1)
    y[0] = (y[0] + 1) % 4
    report = measure(name, model(name, waves), x, y, ("autoattack", "apgd"), steps=5)
    assert list(report.metrics) == ["clean", "autoattack", "apgd5", "worst"]
    assert report.metrics["clean"] == 7 / 8
    # Of a linear network the answer is known, up to the walls of the box.
    assert report.metrics["autoattack"] == report.metrics["apgd5"] < 7 / 8


def trapped(ops: Ops, x: Array, array: Callable[[Any], Array]) -> Array:
    """The same logits, whose gradient in one pixel is NaN: 0 times that of log at 0."""
    pixel = x[:, :, :1, :1]
    log = ops.log(pixel * ops.cast(pixel > 2, like=x))
    return waves(ops, x, array) + ops.sum(ops.where(pixel > 2, log, 0.0), axis=(1, 2, 3))[:, None]


def test_gradients_that_are_not_numbers_do_not_stop_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name_of, number in FEW.items():
        monkeypatch.setattr(art, name_of, number)
    x = np.random.default_rng(1).uniform(size=(8, 1, 8, 8)).astype(np.float32)
    y = (x.reshape(8, 64) @ np.random.default_rng(0).normal(size=(64, 4))).argmax(axis=1)
    whole, broken = (
        measure("torch", model("torch", logits), x, y, ("autoattack",)).metrics
        for logits in (waves, trapped)
    )
    assert broken == whole
    assert whole["autoattack"] < whole["clean"] == 1


@pytest.mark.parametrize("name", ["torch", "tf"])
def test_its_draws_follow_from_the_seed_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name_of, number in FEW.items():
        monkeypatch.setattr(art, name_of, number)
    shape = (8, 1, 8, 8) if name == "torch" else (8, 8, 8, 1)
    x = np.random.default_rng(1).uniform(size=shape).astype(np.float32)
    network = model(name, lambda ops, x, array: waves(ops, ops.abs(x - 0.5), array))
    weights = np.random.default_rng(0).normal(size=(64, 4))
    y, found = (np.abs(x - 0.5).reshape(8, 64) @ weights).argmax(axis=1), []
    for mine, seed in ((0, 0), (1, 0), (0, 1)):
        np.random.seed(mine)  # noqa: NPY002
        how: dict[str, Any] = {"attacks": "autoattack", "seed": seed, "keep": True}
        report = spatlib.evaluate(network, (x, y), Threat(eps=EPS), **how)
        found.append(report.x_adv["autoattack"])
        assert np.random.random() == np.random.RandomState(mine).random()  # noqa: NPY002
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()


def test_the_logits_ratio_has_the_gradient_of_its_values() -> None:
    rng = np.random.default_rng(0)
    z, label = 3 * rng.normal(size=(6, 5)), np.eye(5)[rng.integers(5, size=6)]
    value, gradient = art.logits_ratio(z, label)
    for k in range(5):
        step = 1e-6 * np.eye(5)[k]
        slope = (art.logits_ratio(z + step, label)[0] - art.logits_ratio(z - step, label)[0]) / 2e-6
        np.testing.assert_allclose(gradient[:, k], slope, rtol=1e-6, atol=1e-7)
    assert np.array_equal(value > 0, z.argmax(1) != label.argmax(1))
    order = np.sort(z, axis=1)
    rival = np.where(label > 0, -np.inf, z).max(axis=1)
    expected = (rival - (z * label).sum(axis=1)) / (order[:, -1] - order[:, -3])
    np.testing.assert_allclose(value, expected)


def test_cross_entropy_orders_as_its_values_and_has_the_direction_of_its_gradient() -> None:
    rng = np.random.default_rng(0)
    z, label = 3 * rng.normal(size=(40, 5)), np.eye(5)[rng.integers(5, size=40)]
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    value, gradient = art.cross_entropy(z, label)
    assert np.array_equal(np.argsort(value), np.argsort(-np.log((p * label).sum(axis=1))))
    lengths = np.linalg.norm(p - label, axis=1) * np.linalg.norm(gradient, axis=1)
    np.testing.assert_allclose((gradient * (p - label)).sum(axis=1), lengths)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "multiprocess", None)
    with pytest.raises(BackendError, match="run pip install multiprocess"):
        art.attack(Threat(eps=EPS), 0, model("torch", waves), np.zeros((1, 1, 8, 8)), [0])


def test_there_is_none_for_l1() -> None:
    with pytest.raises(ConfigError, match="'autoattack'"):
        Evaluation(Threat(eps=12, norm="L1"), ("autoattack",), 1, 1, 0)
