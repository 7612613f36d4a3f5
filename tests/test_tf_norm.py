"""BatchNorm in inference mode, as the attack runs it: faster, and otherwise what it was."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from spatlib import SPATConfig
from spatlib_tf import SPATModel, perturb, state
from spatlib_tf.norm import in_one_pass
from spatlib_tf.state import attack_state

SHAPE = (5, 4, 3)
CONFIG = SPATConfig(eps=0.1, steps=2, norm="L2", random_start="none", share="min")
LABELS = tf.range(7) % 3


def settled(**settings: Any) -> Any:
    """With statistics and weights like those of a trained network."""
    layer = layers.BatchNormalization(**settings)
    layer.build((None, *SHAPE))
    rng = np.random.default_rng(1)
    for variable in layer.weights:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return layer


def batch() -> Any:
    return tf.constant(np.random.default_rng(2).uniform(size=(7, *SHAPE)), tf.float32)


def model_of(*parts: Any) -> keras.Sequential:
    keras.utils.set_random_seed(0)
    return keras.Sequential([layers.Input(SHAPE), *parts, layers.Flatten(), layers.Dense(3)])


def value_and_slope(layer: Any, x: Any) -> tuple[Any, Any]:
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
    return y, tape.gradient(y, x, tf.cos(9 * x))


class AskedError(Exception):
    pass


@pytest.fixture
def no_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever calls Keras' own computation in inference mode fails."""
    call = layers.BatchNormalization.call

    def refuse(layer: Any, inputs: Any, training: Any = None, mask: Any = None) -> Any:
        if not training:
            raise AskedError
        return call(layer, inputs, training=training, mask=mask)

    monkeypatch.setattr(layers.BatchNormalization, "call", refuse)


@pytest.mark.parametrize("weights", [True, False])
def test_values_and_gradients_are_those_of_keras(
    weights: bool, request: pytest.FixtureRequest
) -> None:
    layer, x = settled(center=weights, scale=weights), batch()
    expected, slope = value_and_slope(layer, x)
    model = model_of(layer)
    request.getfixturevalue("no_keras")
    with in_one_pass(model):
        found, moved = value_and_slope(layer, x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    np.testing.assert_allclose(moved, slope, rtol=2e-6)
    assert np.abs(slope).max() > 0.5


def test_attacks_are_those_without_it_and_do_without_keras(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one calls them, and in a graph that does not know the size of the batch."""
    layer, x = settled(), batch()
    model = model_of(keras.Sequential([layers.Input(SHAPE), layer]))
    signature = [tf.TensorSpec((None, *SHAPE)), tf.TensorSpec((None,), tf.int32)]
    graph = tf.function(lambda x, y: perturb(model, x, y, CONFIG), input_signature=signature)
    with monkeypatch.context() as patch:
        patch.setattr(state, "in_one_pass", nullcontext)
        expected = perturb(model, x, LABELS, CONFIG)
    request.getfixturevalue("no_keras")
    for found in (perturb(model, x, LABELS, CONFIG), graph(x, LABELS)):
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert np.abs(found - x).max() > 0.02
    assert "call" not in vars(layer)
    with pytest.raises(AskedError):
        model(x)
    with pytest.raises(KeyError), attack_state(model, "eval"):
        raise KeyError
    assert "call" not in vars(layer)


def test_a_step_of_fit_does_without_keras(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SPATModel(model_of(settled()), CONFIG, seed=0)
    model.compile("sgd")
    monkeypatch.setattr(model, "_check_first", lambda *_: None)  # a clean pass
    request.getfixturevalue("no_keras")
    assert np.isfinite(model.fit(batch(), LABELS, verbose=0).history["loss"][0])


class Traced(keras.Model):
    """Keeps what was traced first, as networks with a tf.function of their own do."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = model_of(settled())
        self.traced = tf.function(lambda x: self.inner(x, training=False))

    def call(self, x: Any, training: bool | None = None) -> Any:
        return self.traced(x)


def test_what_the_model_has_traced_inside_follows_its_statistics() -> None:
    model, x = Traced(), batch()
    perturb(model, x, LABELS, CONFIG)
    model.inner.layers[0].moving_mean.assign([3.0, -2.0, 1.0])
    np.testing.assert_allclose(model(x), model.inner(x, training=False), atol=1e-5)


class Own(layers.BatchNormalization):
    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        return 2 * super().call(inputs, training=training, mask=mask)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (Own(), batch()),
        (layers.BatchNormalization(axis=1), batch()),
        (layers.BatchNormalization(dtype="mixed_float16"), batch()),
        (layers.BatchNormalization(dtype="float64"), tf.cast(batch(), tf.float64)),
    ],
    ids=["own call", "channels first", "mixed precision", "float64"],
)
def test_others_stay_as_they_are(layer: Any, x: Any) -> None:
    model = model_of(layer)
    expected = layer(x)
    with in_one_pass(model):
        found = layer(x)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype


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


def test_layers_stay_as_they_are_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = settled()
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [kind])
    with in_one_pass(model_of(layer)):
        assert "call" not in vars(layer)
