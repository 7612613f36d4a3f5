"""Labels that follow what averaged weights read: nothing flows into them, bad input is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from keras import layers
from torch import nn

import spatlib
import spatlib_tf
import spatlib_torch
from spatlib import ConfigError, SPATConfig, TrainConfig
from spatlib.monitor import Monitor

from . import looping, test_tf_model

CONFIG = SPATConfig(eps=0.1, steps=1, random_start="none", rectify=0.75)
CLASSES, COUNT = 3, 5
RNG = np.random.default_rng(0)
X, Y = RNG.uniform(size=(COUNT, 4)).astype("float32"), RNG.integers(CLASSES, size=COUNT)


def of_torch(classes: int = CLASSES) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, classes))


def of_keras(classes: int = CLASSES) -> keras.Model:
    hidden = [layers.Dense(6), layers.BatchNormalization(), layers.Dropout(0.5)]
    return keras.Sequential([layers.Input((4,)), *hidden, layers.Dense(classes)])


def by_torch(model: Any, average: Any, config: SPATConfig, y: Any = Y) -> Any:
    own = model, torch.as_tensor(X), torch.as_tensor(y), config
    return spatlib_torch.spat_loss(*own, x_adv=torch.as_tensor(X), average=average)


def by_keras(model: Any, average: Any, config: SPATConfig, y: Any = Y) -> Any:
    return spatlib_tf.spat_loss(model, X, y, config, x_adv=X, average=average)


def number(loss: Any) -> float:
    return float(loss.detach() if isinstance(loss, torch.Tensor) else loss)


WAYS: dict[str, Any] = {"torch": (of_torch, by_torch), "tf": (of_keras, by_keras)}
everywhere = pytest.mark.parametrize("framework", WAYS)


def test_no_gradient_flows_into_the_averaged_network_and_its_state_stays() -> None:
    model, average = of_torch().eval(), of_torch().train()
    before = {name: value.clone() for name, value in average.state_dict().items()}
    by_torch(model, average, CONFIG).backward()
    assert all(p.grad is None and p.requires_grad for p in average.parameters())
    assert all(p.grad is not None for p in model.parameters())
    assert all(module.training for module in average.modules())
    torch.testing.assert_close(average.state_dict(), before, rtol=0, atol=0)


def test_no_gradient_flows_into_keras_averaged_network_and_its_state_stays() -> None:
    model, average = of_keras(), of_keras()
    before = average.get_weights()
    with tf.GradientTape() as tape:
        loss = by_keras(model, average, CONFIG)
    mine, its = tape.gradient(loss, [model.trainable_weights, average.trainable_weights])
    assert all(g is None for g in its)
    assert all(g is not None for g in mine)
    for value, was in zip(average.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, was)


@pytest.mark.parametrize("loss", ["pgd", "trades"])
@everywhere
def test_the_average_reads_in_inference_mode(framework: str, loss: str) -> None:
    """With another average of other statistics the loss is that of the label it should give."""
    build, call = WAYS[framework]
    model, average, config = build(), build(), replace(CONFIG, loss=loss, guard=False)
    if framework == "torch":
        model.eval()  # without dropout, so that the loss is the same twice
        z = average.eval()(torch.as_tensor(X)).detach().numpy()
        average.train()
    else:
        model.layers[2].rate = 0.0
        z = average(X, training=False).numpy()
    p = np.exp(z - z.max(axis=1, keepdims=True))
    label = 0.25 * np.eye(CLASSES)[Y] + 0.75 * p / p.sum(axis=1, keepdims=True)
    expected = number(call(model, None, replace(config, rectify=0), label.astype("float32")))
    assert number(call(model, average, config)) == pytest.approx(expected, rel=1e-5)


@everywhere
def test_without_rectify_no_bit_changes_and_the_average_is_not_called(framework: str) -> None:
    build, call = WAYS[framework]
    model, plain = build(), replace(CONFIG, rectify=0.0)
    if framework == "torch":
        model.eval()
    else:
        model.layers[2].rate = 0.0
    assert number(call(model, object(), plain)) == number(call(model, None, plain))


@everywhere
def test_an_average_that_is_none_is_refused_in_a_sentence(framework: str) -> None:
    build, call = WAYS[framework]
    wrong = {
        r"average \(for rectify\) must be a .* that returns logits, got None": None,
        r"average \(for rectify\) must be a .* that returns logits, got 3": 3,
        "average must return 3 logits, as the model does .*, got 4": build(4),
    }
    for message, average in wrong.items():
        with pytest.raises(ConfigError, match=message):
            call(build(), average, CONFIG)


def test_an_average_on_another_device_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"average must be on the device of x, cpu \(move it"):
        by_torch(of_torch(), of_torch().to("meta"), CONFIG)


def test_training_needs_averaged_weights() -> None:
    data, plan = (X, Y), TrainConfig(epochs=1, progress=False)
    with pytest.raises(ConfigError, match=r"ema must be above 0, such as 0\.999, for rectify"):
        spatlib.train(of_torch(), data, config=CONFIG, training=plan)
    model = spatlib_tf.SPATModel(of_keras(), CONFIG)
    model.compile("sgd")
    with pytest.raises(ConfigError, match="optimizer must have use_ema=True for rectify"):
        model.fit(X, Y, verbose=0)


def test_a_keras_model_is_trained_with_an_optimizer_that_averages() -> None:
    x, y = test_tf_model.arrays()
    model = test_tf_model.spat(config=replace(CONFIG, rectify=0.5))
    model.compile(keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9))
    losses = model.fit(x, y, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


@everywhere
def test_an_ordinary_training_beside_it_has_the_label_alone(framework: str) -> None:
    engine = spatlib.engines.load_engine(framework)
    build, _ = WAYS[framework]
    plan, found = looping.training(epochs=1, ema=0.5), []
    for rectify in (0.0, 0.75):
        torch.manual_seed(0)
        keras.utils.set_random_seed(0)
        config, monitor = replace(CONFIG, rectify=rectify), Monitor(plan, ordinary=True)
        found.append(engine.fit(build(), (X, Y), config, monitor)[0]["loss"])
    assert found[0] == found[1]
