"""Both training loops equal a loop by hand: rates, momentum, decay, order, and the history."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import spatlib_tf
import spatlib_tf.engine
import spatlib_torch
import spatlib_torch.engine
from spatlib import Mask, SPATConfig, TrainConfig
from spatlib.config import lr_factor
from spatlib.monitor import Monitor

from . import test_tf_model, test_training

CONFIG = SPATConfig(eps=0.1, steps=2, random_start="none")
SIZES = (8, 8, 4)  # the history weighs a batch by its size
EMA = 0.75
SETTINGS: dict[str, Any] = {"lr": 0.1, "momentum": 0.75, "weight_decay": 0.0625}


def values(model: Any) -> list[np.ndarray]:
    if isinstance(model, keras.Model):
        return model.get_weights()
    return [value.numpy() for value in model.state_dict().values()]


Attacks = list[SPATConfig]


def by_torch(
    data: list[Any], rates: list[float], attacks: Attacks
) -> tuple[list[np.ndarray], list[float]]:
    model, losses = test_training.network().train(), []
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(EMA))
    optimizer = torch.optim.SGD(model.parameters(), **SETTINGS)
    for (x, y), rate, config in zip(data, rates, attacks, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        own = model, torch.as_tensor(x), torch.as_tensor(y), config
        loss = spatlib_torch.spat_loss(*own, average=average)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update_parameters(model)
        losses.append(loss.item())
    return values(average.module if config.rectify else model), losses


def by_keras(
    data: list[Any], rates: list[float], attacks: Attacks
) -> tuple[list[np.ndarray], list[float]]:
    model, losses = test_tf_model.network(), []
    settings = {name: value for name, value in SETTINGS.items() if name != "lr"}
    optimizer = keras.optimizers.SGD(SETTINGS["lr"], **settings)
    average = keras.models.clone_model(model)
    average.set_weights(model.get_weights())
    for (x, y), rate, config in zip(data, rates, attacks, strict=True):
        optimizer.learning_rate = rate
        with tf.GradientTape() as tape:
            loss = spatlib_tf.spat_loss(model, x, y, config, average=average)
        weights = model.trainable_weights
        optimizer.apply(tape.gradient(loss, weights), weights)
        decay = EMA if losses else 0.0
        for mean, weight in zip(average.weights, model.weights, strict=True):
            part = decay if mean.trainable else 0.0
            mean.assign(part * mean + (1 - part) * weight)
        losses.append(float(loss))
    return values(average if config.rectify else model), losses


LOOPS: dict[str, Any] = {
    "torch": (test_training, spatlib_torch.engine.fit, by_torch),
    "tf": (test_tf_model, spatlib_tf.engine.fit, by_keras),
}


# What eps and step_size of the two epochs are multiplied by: without and with warm-up.
PARTS = {"constant": (1.0, 1.0), "onecycle": (0.5, 1.0)}
CASES = [("constant", "pgd", 0.0), ("onecycle", "pgd", 0.0)]
CASES += [("constant", loss, 0.75) for loss in ("pgd", "trades")]


@pytest.mark.parametrize(("schedule", "loss", "rectify"), CASES)
@pytest.mark.parametrize("framework", LOOPS)
def test_training_is_the_loop_by_hand(
    framework: str, schedule: str, loss: str, rectify: float
) -> None:
    tests, fit, by_hand = LOOPS[framework]
    arrays = (np.split(a, np.cumsum(SIZES)[:-1]) for a in tests.arrays(count=sum(SIZES)))
    data, model = list(zip(*arrays, strict=True)), tests.network()
    rates = [SETTINGS["lr"] * lr_factor(schedule, step, 6) for step in range(6)]
    guard = loss != "trades"  # which without one can begin at x, without a draw
    config = dataclasses.replace(CONFIG, loss=loss, rectify=rectify, guard=guard)
    attacks = [
        dataclasses.replace(config, eps=part * CONFIG.eps, step_size=part * CONFIG.alpha)
        for part in np.repeat(PARTS[schedule], 3).tolist()
    ]
    warmup = int(PARTS[schedule][0] < 1)
    training = TrainConfig(
        epochs=2, schedule=schedule, eps_warmup=warmup, progress=False, **SETTINGS
    )
    training = dataclasses.replace(training, ema=EMA if rectify else 0.0)
    rows = fit(model, data, config, Monitor(training))
    expected, losses = by_hand(data * 2, rates, attacks)
    for ours, theirs in zip(values(model), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    assert [row["epoch"] for row in rows] == [1, 2]
    means = np.average(np.reshape(losses, (2, 3)), axis=1, weights=SIZES)
    assert [row["loss"] for row in rows] == pytest.approx(list(means), rel=1e-4)
    assert [row["lr"] for row in rows] == pytest.approx([rates[2], rates[5]])


def test_metrics_of_a_keras_step_are_those_of_the_clean_inputs_before_it() -> None:
    (x, y), config = test_tf_model.arrays(), SPATConfig(eps=0.5, steps=3, mask=Mask())
    for loss in ("pgd", "trades"):
        model = test_tf_model.spat(
            config=dataclasses.replace(config, loss=loss), metrics=["accuracy"]
        )
        expected = np.mean(model.predict(x, verbose=0).argmax(axis=1) == y)
        logs = model.train_on_batch(x, y, return_dict=True)
        assert logs["accuracy"] == pytest.approx(expected)
        assert logs["adv_accuracy"] < expected
