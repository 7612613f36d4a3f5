"""What a Keras layer assigns when it is called comes back from an attack, in both modes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import spatlib
import spatlib_tf
from spatlib import Mask, SPATConfig, TrainConfig
from spatlib.monitor import Monitor
from spatlib_tf import SPATModel, engine

from .test_tf_loop import BATCH, COUNT, QUICK, STEPS, arrays, fit, network

CONFIG = SPATConfig(eps=0.1, steps=2, mask=Mask())


class Observer(layers.Layer):
    """Counts its calls and follows its inputs, in inference mode too."""

    def build(self, input_shape: Any) -> None:
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.largest = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, inputs: Any) -> Any:
        self.calls.assign_add(1.0)
        self.largest.assign(tf.maximum(self.largest.value, tf.reduce_max(tf.abs(inputs))))
        return inputs + 0 * self.calls


def observed() -> keras.Sequential:
    model = network(Observer())
    model(arrays()[0], training=True)
    return model


def state(model: keras.Model) -> list[Any]:
    return [variable.numpy().tolist() for variable in model.variables]


def meddle(model: keras.Model, x: Any, y: Any) -> Any:
    model(x, training=True)
    return x


CALLS: dict[str, Callable[..., Any]] = {
    "perturb": spatlib_tf.perturb,
    "shared_mask": spatlib_tf.shared_mask,
    "evaluate": lambda model, x, y, config: spatlib.evaluate(model, (x, y), config, steps=2),
    "callable": lambda model, x, y, config: spatlib.evaluate(model, (x, y), config, attacks=meddle),
    "logits": lambda model, x, y, config: engine.logits(model, x),
    "vjp": lambda model, x, y, config: engine.vjp(model, x),
}


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("call", CALLS)
def test_every_variable_comes_back(call: str, mode: str) -> None:
    model, (x, y) = observed(), arrays()
    before = state(model)
    CALLS[call](model, x[:BATCH], y[:BATCH], replace(CONFIG, attack_mode=mode))
    assert state(model) == before
    model(x)
    assert state(model) != before


@pytest.mark.parametrize("way", ["fit", "evaluate"])
def test_variables_move_in_the_outer_pass_alone(way: str) -> None:
    base, (x, y) = observed(), arrays()
    calls, model = base.layers[-1].calls, SPATModel(base, CONFIG, seed=0, evaluation_steps=2)
    model.compile("sgd")
    model.evaluate(x[:1], y[:1], verbose=0)
    before = float(calls)
    getattr(model, way)(x, y, batch_size=BATCH, verbose=0)
    assert float(calls) == before + STEPS  # the look at the first batch leaves no trace


def test_another_config_holds_from_the_next_step_on() -> None:
    (x, y), strong = arrays(), SPATConfig(eps=1.0, steps=2)

    def model(config: SPATConfig) -> SPATModel:
        found = SPATModel(network(), config, seed=0, evaluation_steps=2)
        found.compile(keras.optimizers.SGD(0.0))
        return found

    def measured(found: SPATModel) -> tuple[float, float]:
        trained = found.fit(x, y, batch_size=COUNT, verbose=0).history["adv_accuracy"][0]
        return trained, found.evaluate(x, y, batch_size=COUNT, verbose=0, return_dict=True)

    changed = model(CONFIG)
    weak = measured(changed)
    changed.config = strong
    for variable, value in zip(changed.variables, model(CONFIG).variables, strict=True):
        variable.assign(value)
    found = measured(changed)
    assert found == measured(model(strong)) != weak
    with pytest.raises(spatlib.ConfigError, match=r"config must be a spatlib\.SPATConfig"):
        changed.config = None


def test_another_number_of_steps_is_traced_anew() -> None:
    (x, y), traced = arrays(), list[None]()
    look = layers.Lambda(lambda z: [traced.append(None), z][1])
    model = SPATModel(network(look), CONFIG, seed=0, evaluation_steps=2)
    model.compile("sgd")
    counts = []
    for steps in (None, None, 3):
        if steps is not None:
            model.evaluation_steps = steps
        before = len(traced)
        model.evaluate(x, y, batch_size=COUNT, verbose=0)
        counts.append(len(traced) - before)
    assert counts[0] == counts[2] > counts[1]


@pytest.fixture
def half() -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy(before)


@pytest.mark.usefixtures("half")
def test_statistics_survive_a_step_that_loss_scaling_skips() -> None:
    (x, y), config = arrays(), SPATConfig(eps=0.1, steps=1, bounds=(-1e6, 1e6))
    model = SPATModel(network(), config, seed=0, evaluation_steps=1)
    model.compile(keras.optimizers.SGD(0.01))
    model.fit(x, y, verbose=0)
    before = model.base.get_weights()
    bad = model.fit(np.full_like(x, 1e5), y, verbose=0)  # beyond float16
    assert not np.isfinite(bad.history["loss"][0])
    assert all(map(np.array_equal, model.base.get_weights(), before))
    assert np.isfinite(model.evaluate(x, y, verbose=0)).all()
    model.fit(x, y, verbose=0)
    assert not all(map(np.array_equal, model.base.get_weights(), before))


def test_an_interrupted_validation_leaves_the_weights_of_the_training() -> None:
    model, plain = network(), network()

    def validate(_: Any) -> dict[str, float]:
        raise KeyboardInterrupt

    fit(plain)
    training = TrainConfig(**QUICK | {"ema": 0.9})
    with pytest.raises(KeyboardInterrupt):
        engine.fit(model, arrays(), SPATConfig(eps=0.1, steps=1), Monitor(training, validate))
    assert all(map(np.array_equal, model.get_weights(), plain.get_weights()))


def shuffled() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(arrays()).shuffle(COUNT, seed=0).batch(BATCH)


def test_a_run_on_data_with_an_order_of_their_own_says_so(tmp_path: Path) -> None:
    fit(network(), shuffled(), run_dir=tmp_path / "run")
    with pytest.warns(RuntimeWarning, match="passes through its data differ"):
        fit(network(), shuffled(), run_dir=tmp_path / "run", epochs=2)


def test_looks_move_nothing() -> None:
    model, (x, y) = observed(), arrays()
    before = state(model)
    engine.check(model, (x, y), CONFIG, TrainConfig())
    assert state(model) == before
    counts = []
    for metrics in (None, ["sparse_categorical_accuracy"]):
        own = observed()
        wrapped = SPATModel(own, CONFIG, seed=0)
        wrapped.compile("sgd", metrics=metrics)
        wrapped.fit(x[:BATCH], y[:BATCH], batch_size=BATCH, verbose=0)
        counts.append(
            [v.numpy() for v in own.non_trainable_variables if v.path.endswith("variable")]
        )
    assert counts[0] == counts[1]


def test_bounds_are_those_of_the_settings_in_force() -> None:
    x, y = arrays()
    model = SPATModel(network(), SPATConfig(eps=10, steps=1, bounds=(0, 255)), seed=0)
    model.compile("sgd")
    large = np.concatenate([x[:BATCH], 200 * x[:BATCH]]), np.concatenate([y[:BATCH], y[:BATCH]])
    how = {"batch_size": BATCH, "verbose": 0, "shuffle": False}
    model.fit(*large, **how)
    model.config = CONFIG
    with pytest.raises(spatlib.DataError, match="batch 2: x must hold finite values in"):
        model.fit(*large, **how)
    with pytest.raises(spatlib.ConfigError, match=r"evaluation_steps must be an integer"):
        model.evaluation_steps = 0
