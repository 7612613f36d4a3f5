"""What one training step moves in the base, and what it leaves alone; what a seed decides."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import spatlib
import spatlib_tf
from spatlib import ConfigError, Mask, SPATConfig
from spatlib_tf import SPATModel

from .entry_tf import eagerly
from .test_tf_model import (
    CLASSES,
    COUNT,
    CROSS_ENTROPY,
    SHAPE,
    arrays,
    fit,
    network,
    same,
    spat,
)

over_losses = pytest.mark.parametrize("loss", ["pgd", "trades", "mart"])
over_modes = pytest.mark.parametrize("mode", ["eval", "train"])


def normed(*middle: keras.Layer) -> keras.Sequential:
    """With BatchNorm, whose statistics are not those of new layers, and dropout."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            layers.Input(SHAPE),
            layers.Flatten(),
            layers.Dense(8),
            layers.BatchNormalization(),
            *middle,
            layers.Dropout(0.5, seed=1),
            layers.Dense(CLASSES),
        ]
    )
    model(arrays(9)[0], training=True)
    return model


def state(model: keras.Model) -> list[np.ndarray]:
    """All variables, the states of dropout's generators among them."""
    return [v.numpy() for v in model.variables]


def equal(first: list[np.ndarray], second: list[np.ndarray], rtol: float = 0.0) -> bool:
    return all(np.allclose(a, b, rtol=rtol, atol=0) for a, b in zip(first, second, strict=True))


@over_modes
@pytest.mark.parametrize(("loss", "passes"), [("pgd", 1), ("trades", 2), ("mart", 2)])
def test_statistics_move_as_in_the_outer_passes_alone(loss: str, passes: int, mode: str) -> None:
    config = SPATConfig(loss=loss, eps=0.1, steps=2, attack_mode=mode, mask=Mask())
    x, y = arrays()
    model, expected = spat(normed(), config), normed()
    x_adv = spatlib_tf.perturb(expected, x, y, config, generator=keras.random.SeedGenerator(0))
    assert np.abs(x_adv - x).max() > 0.05
    for inputs in (x_adv,) if passes == 1 else (x, x_adv):  # clean first
        expected(inputs, training=True)
    with eagerly(loss != "mart"):
        model.train_on_batch(x, y)
    ours, theirs = ([v.numpy() for v in m.non_trainable_variables] for m in (model.base, expected))
    assert equal(ours, theirs, 1e-5)
    assert not equal(ours[:2], [v.numpy() for v in normed().non_trainable_variables[:2]], 1e-3)


def evaluate(model: keras.Model, x: Any, y: Any, config: SPATConfig) -> Any:
    return spatlib.evaluate(model, (x, y), config, steps=2)


ATTACKS: dict[str, Callable[..., Any]] = {
    "perturb": spatlib_tf.perturb,
    "shared_mask": spatlib_tf.shared_mask,
    "evaluate": evaluate,
}


@over_modes
@over_losses
@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_leave_every_variable_as_it_was(attack: str, loss: str, mode: str) -> None:
    model, config = normed(), SPATConfig(loss=loss, eps=0.1, steps=2, attack_mode=mode, mask=Mask())
    before = state(model)
    with eagerly(loss != "pgd"):
        ATTACKS[attack](model, *arrays(), config)
    assert equal(state(model), before)


def test_validation_and_prediction_leave_every_variable_as_it_was() -> None:
    model = spat(normed())
    before = state(model.base)
    model.evaluate(*arrays(), verbose=0)
    model.predict(arrays()[0], verbose=0)
    assert equal(state(model.base), before)


def test_validation_changes_no_training() -> None:
    ours, expected = spat(), spat()
    fit(ours, validation_data=arrays(1))
    fit(expected)
    assert same(ours, expected)


def test_validation_loss_counts_the_penalties_of_clean_inputs() -> None:
    (x, y), config = arrays(), SPATConfig(eps=0.5, steps=2, mask=Mask())
    ours, expected = (
        spat(network(activity_regularizer="l2"), config),
        network(activity_regularizer="l2"),
    )
    expected.compile(loss=CROSS_ENTROPY)
    loss = ours.test_on_batch(x, y, return_dict=True)["loss"]
    assert loss == pytest.approx(expected.test_on_batch(x, y), rel=1e-6)


class Failing(layers.Layer):
    """The identity, until the given call."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.calls = at, 0

    def call(self, inputs: Any) -> Any:
        self.calls += 1
        if self.calls == self.at:
            raise KeyError("boom")
        return inputs


@pytest.mark.parametrize("call", [1, 2, 3])
def test_variables_come_back_after_an_exception_in_train_mode(call: int) -> None:
    failing = Failing(math.inf)
    model, config = normed(failing), SPATConfig(eps=0.1, steps=3, attack_mode="train", mask=Mask())
    before = state(model)
    failing.at = failing.calls + call  # behind a BatchNorm layer that has run by then
    with pytest.raises(KeyError, match="boom"):
        spatlib_tf.perturb(model, *arrays(), config)
    assert equal(state(model), before)


def test_train_mode_attacks_with_batch_statistics_and_dropout() -> None:
    model, (x, y) = normed(), arrays()

    def attack(mode: str, count: int) -> np.ndarray:
        config = SPATConfig(eps=0.1, steps=2, attack_mode=mode, random_start="none")
        return spatlib_tf.perturb(model, x[:count], y[:count], config).numpy()[:4]

    assert np.array_equal(attack("eval", COUNT), attack("eval", 4))
    assert not np.array_equal(attack("train", COUNT), attack("train", 4))


def test_an_unbuilt_base_cannot_be_attacked_in_train_mode() -> None:
    unbuilt = keras.Sequential([layers.Flatten(), layers.Dense(CLASSES)])
    with pytest.raises(ConfigError, match=r"attack_mode must .* called on a batch, got .train."):
        spatlib_tf.perturb(unbuilt, *arrays(), SPATConfig(eps=0.1, attack_mode="train"))


def test_frozen_layers_stay_and_the_others_move() -> None:
    base = normed()
    base.layers[1].trainable = base.layers[2].trainable = False  # Dense and BatchNorm
    before = state(base)
    fit(spat(base, optimizer=keras.optimizers.SGD(0.1, momentum=0.9)))
    after = dict(
        zip((v.path for v in base.variables), zip(before, state(base), strict=True), strict=True)
    )
    frozen = [v.path for layer in base.layers[1:3] for v in layer.variables]
    moved = [v.path for v in base.layers[-1].variables]
    assert len(frozen) == 6
    assert all(np.array_equal(*after[path]) for path in frozen)
    assert not any(np.array_equal(*after[path]) for path in moved)


@pytest.mark.parametrize(
    "mask", [Mask(score="rms"), Mask(classes=2), Mask(score="random")], ids=str
)
def test_the_seed_decides_the_run_bit_for_bit(mask: Mask) -> None:
    def run(seed: int) -> tuple[SPATModel, list[Any]]:
        tf.random.uniform(())  # the global generator is somewhere else each time
        model = spat(config=SPATConfig(eps=0.1, steps=1, mask=mask), seed=seed)
        steps = (model.train_on_batch, model.train_on_batch, model.test_on_batch)
        return model, [step(*arrays()) for step in steps]

    with eagerly(mask.score != "rms"):
        (first, logs), (again, repeated), (other, _) = run(0), run(0), run(1)
    assert same(first, again)
    assert logs == repeated
    assert not same(first, other)
