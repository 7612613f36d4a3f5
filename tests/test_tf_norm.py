"""BatchNorm in inference mode, as the attack runs it: faster, and otherwise what it was."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from spatlib import SPATConfig
from spatlib_tf import perturb
from spatlib_tf.norm import in_one_pass
from spatlib_tf.state import attack_state

SHAPE = (5, 4, 3)


def settled(**settings: Any) -> layers.BatchNormalization:
    """With statistics and weights like those of a trained network."""
    layer = layers.BatchNormalization(**settings)
    layer.build((None, *SHAPE))
    rng = np.random.default_rng(1)
    for variable in layer.weights:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return layer


def batch(*shape: int) -> Any:
    return tf.constant(np.random.default_rng(2).normal(size=shape or (7, *SHAPE)), tf.float32)


def model_of(*parts: Any) -> keras.Sequential:
    keras.utils.set_random_seed(0)
    return keras.Sequential([layers.Input(SHAPE), *parts, layers.Flatten(), layers.Dense(3)])


def value_and_slope(layer: Any, x: Any) -> tuple[Any, Any]:
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
    return y, tape.gradient(y, x, tf.cos(x))


class AskedError(Exception):
    pass


@pytest.fixture
def no_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever calls Keras' own computation fails."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AskedError

    monkeypatch.setattr(layers.BatchNormalization, "call", refuse)


@pytest.mark.parametrize("weights", [True, False])
def test_values_and_gradients_are_those_of_keras(
    weights: bool, request: pytest.FixtureRequest
) -> None:
    layer, x = settled(center=weights, scale=weights), batch()
    expected, slope = value_and_slope(layer, x)
    request.getfixturevalue("no_keras")
    with in_one_pass(model_of(layer)):
        found, moved = value_and_slope(layer, x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    np.testing.assert_allclose(moved, slope, rtol=2e-6)
    assert np.abs(slope).max() > 0.5


def test_an_attack_does_without_keras_and_puts_the_layer_back(
    request: pytest.FixtureRequest,
) -> None:
    layer = settled()
    model = model_of(keras.Sequential([layers.Input(SHAPE), layer]))
    request.getfixturevalue("no_keras")
    x = tf.sigmoid(batch())
    moved = perturb(model, x, tf.range(7) % 3, SPATConfig(eps=0.1, steps=2))
    assert np.any(moved != x)
    assert "call" not in vars(layer)
    with pytest.raises(AskedError):
        model(x)
    with pytest.raises(KeyError), attack_state(model, "eval"):
        raise KeyError
    assert "call" not in vars(layer)


class Own(layers.BatchNormalization):
    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        return 2 * super().call(inputs, training=training, mask=mask)


@pytest.mark.parametrize(
    ("layer", "x"),
    [(Own(), batch()), (layers.BatchNormalization(axis=1), batch()),
     (layers.BatchNormalization(dtype="float64"), tf.cast(batch(), tf.float64))],
    ids=["own call", "channels first", "float64"],
)  # fmt: skip
def test_others_stay_as_they_are(layer: Any, x: Any) -> None:
    model = model_of(layer)
    expected = layer(x)
    with in_one_pass(model):
        found = layer(x)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == x.dtype


def test_statistics_of_the_batch_are_taken_where_they_are_asked_for() -> None:
    layer, x = settled(), batch()
    model = model_of(layer)
    expected = settled()(x, training=True)
    with in_one_pass(model):
        found = layer(x, training=True)
    np.testing.assert_array_equal(found, expected)
    with attack_state(model, "train"):
        assert "call" not in vars(layer)


def test_layers_that_replicas_share_stay_as_they_are() -> None:
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        layer = settled()
        model = model_of(layer)
        with in_one_pass(model):
            assert "call" not in vars(layer)
    with in_one_pass(model):
        assert "call" in vars(layer)
