"""The TensorFlow engine is the PyTorch engine's twin: the same masks, attacks, losses and API."""

from __future__ import annotations

from functools import cache
from typing import Any

import keras
import numpy as np
import pytest
import torch
from keras import layers
from torch import nn

import spatlib
import spatlib_tf
import spatlib_torch
from spatlib import Mask, SPATConfig, Threat, load_data
from spatlib.engines import engine_of
from spatlib_tf import engine

from .entry import to_last
from .test_evaluation import IGNORED
from .test_imports import run
from .test_tf_model import arrays, functional, network, spat, subclassed

CLASSES, CHANNELS, SIZE, FILTERS = 4, 2, 6, 5
EPS = {"Linf": 0.1, "L2": 0.5, "L1": 2.0}


@cache
def twins() -> tuple[nn.Module, keras.Model]:
    """One small CNN in float64, (N, C, H, W) in PyTorch and (N, H, W, C) in Keras."""
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(FILTERS, CHANNELS, 3, 3)), rng.normal(size=FILTERS)
    matrix = rng.normal(size=(CLASSES, FILTERS, SIZE // 2, SIZE // 2))
    convolution = nn.Conv2d(CHANNELS, FILTERS, 3, padding=1)
    dense = nn.Linear(FILTERS * (SIZE // 2) ** 2, CLASSES, bias=False)
    with torch.no_grad():
        theirs = nn.Sequential(convolution, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), dense)
        theirs.double()
        convolution.weight.copy_(torch.as_tensor(kernel))
        convolution.bias.copy_(torch.as_tensor(bias))
        dense.weight.copy_(torch.as_tensor(matrix.reshape(CLASSES, -1)))
    ours = keras.Sequential(
        [
            layers.Input((SIZE, SIZE, CHANNELS), dtype="float64"),
            layers.Conv2D(FILTERS, 3, padding="same", activation="relu", dtype="float64"),
            layers.MaxPooling2D(2, dtype="float64"),
            layers.Flatten(dtype="float64"),
            layers.Dense(CLASSES, use_bias=False, dtype="float64"),
        ]
    )
    ours.set_weights(
        [kernel.transpose(2, 3, 1, 0), bias, matrix.transpose(2, 3, 1, 0).reshape(-1, CLASSES)]
    )
    return theirs, ours


def batch(count: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x (N, C, H, W), y (N,) and a start."""
    rng = np.random.default_rng(1)
    shape = (count, CHANNELS, SIZE, SIZE)
    return rng.uniform(size=shape), rng.integers(CLASSES, size=count), rng.normal(size=shape)


@pytest.mark.parametrize("keep", [0.2, 0.5])
@pytest.mark.parametrize("score", ["min", "mean", "neutral"])
def test_masks_are_equal(score: str, keep: float) -> None:
    (theirs, ours), (x, y, _) = twins(), batch()
    config = SPATConfig(eps=0.1, mask=Mask(score=score, keep=keep, floor=0.25))
    expected = spatlib_torch.shared_mask(theirs, torch.as_tensor(x), torch.as_tensor(y), config)
    mask = spatlib_tf.shared_mask(ours, to_last(x), y, config).numpy()
    assert mask.shape == (len(x), SIZE, SIZE, 1)
    np.testing.assert_array_equal(mask, to_last(expected.numpy()))
    assert set(np.unique(mask)) == {0.25, 1}


@pytest.mark.parametrize("norm", EPS)
@pytest.mark.parametrize("loss", ["pgd", "trades", "mart"])
def test_perturbations_and_losses_are_equal(loss: str, norm: str) -> None:
    (theirs, ours), (x, y, start) = twins(), batch()
    config = SPATConfig(loss=loss, norm=norm, eps=EPS[norm], steps=3, smoothing=0.3, mask=Mask())
    arguments = (theirs, torch.as_tensor(x), torch.as_tensor(y), config)
    found = spatlib_torch.perturb(*arguments, start=torch.as_tensor(start))
    value = spatlib_torch.spat_loss(*arguments, x_adv=found).item()
    expected = found.numpy()

    own = (ours, to_last(x), y, config)
    adversarial = spatlib_tf.perturb(*own, start=to_last(start))
    own_value = spatlib_tf.spat_loss(*own, x_adv=adversarial)
    np.testing.assert_allclose(adversarial, to_last(expected), rtol=0, atol=1e-9)
    assert np.abs(expected - x).max() > 0.05
    assert float(own_value) == pytest.approx(value, rel=1e-9)


@cache
def report(seed: int = 0, restarts: int = 1, eps: float = 0.1, **settings: Any) -> Any:
    return spatlib.evaluate(
        rugged(),
        labelled(),
        SPATConfig(eps=eps, **settings),
        seed=seed,
        restarts=restarts,
        batch_size=32,
    )


@cache
def rugged() -> keras.Model:
    """A network on digits for which the start decides much."""
    large = [keras.initializers.RandomNormal(stddev=3.0, seed=seed) for seed in range(2)]
    return keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Flatten(),
            layers.Dense(40, "tanh", kernel_initializer=large[0]),
            layers.Dense(10, kernel_initializer=large[1]),
        ]
    )


@cache
def labelled() -> tuple[np.ndarray, np.ndarray]:
    """Digits with the labels that the network gives them, but for every tenth."""
    x = load_data("digits", limit=60).train[0]
    y = rugged()(x).numpy().argmax(axis=1)
    y[::10] = (y[::10] + 1) % 10
    return x, y


def test_restarts_are_paired_and_no_robust_accuracy_exceeds_the_clean_one() -> None:
    one, six = report(eps=0.03), report(restarts=6, eps=0.03)
    for name in ("pgd20", "margin20"):
        assert six.metrics[name] <= one.metrics[name] <= one.metrics["clean"] == 0.9
    assert min(six.metrics.values()) < min(one.metrics.values()) < 0.9
    assert one.count == 60


@pytest.mark.parametrize("settings", IGNORED[::3], ids=str)
def test_settings_of_the_training_attack_play_no_part(settings: dict[str, Any]) -> None:
    assert report(eps=0.02, **settings).metrics == report(eps=0.02).metrics


@pytest.mark.parametrize("make", [functional, subclassed, spat])
def test_evaluate_finds_the_engine_by_the_model(make: Any) -> None:
    results = []
    for model in (network(), make()):
        assert engine_of(model) is engine
        threat = Threat(eps=0.1)
        results.append(spatlib.evaluate(model, arrays(), threat, attacks="pgd", steps=2).metrics)
    assert results[1] == results[0]
    assert 0 < results[0]["pgd2"] < 1


def test_torch_may_be_imported_after_tensorflow() -> None:  # conftest imports it before
    code = """
import spatlib_tf, torch
import numpy as np, spatlib, spatlib_torch, keras
config, x = spatlib.SPATConfig(eps=0.1, random_start="none"), np.float32([[0.5, 0.5]])
ours = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
ours.set_weights([np.eye(2), np.zeros(2)])
theirs = torch.nn.Linear(2, 2)
theirs.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
print(np.abs(spatlib_tf.perturb(ours, x, np.array([0]), config).numpy() - spatlib_torch.perturb(
    theirs, torch.as_tensor(x), torch.tensor([0]), config).numpy()).max() < 1e-6)
"""
    assert run(code).splitlines()[-1] == "True"
