"""Keras' entry of ENGINES."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import keras
import numpy as np
import tensorflow as tf

import spatlib
import spatlib_tf
from spatlib import SPATConfig
from spatlib_tf import attack as tf_attack
from spatlib_tf import engine as tf_engine
from spatlib_tf import ops as tf_ops
from spatlib_tf.attack import attacked

from .entry import CHANNELS, CLASSES, HEIGHT, HIDDEN, WIDTH, Entry, mask_draws, to_last


class TFNetwork(keras.Model):
    """What a function of tensors says, as a Keras model, and how often it was asked to."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function, self.calls = function, 0

    def call(self, x: Any) -> Any:
        self.calls += 1
        return self.function(x)


@contextmanager
def eagerly(on: bool = True) -> Iterator[None]:
    """No graphs, where they are not the subject: tracing one takes a second."""
    tf.config.run_functions_eagerly(on)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


@cache
def first_seed(seed: int) -> Any:
    """What a new generator of this seed gives a call."""
    return tf_attack.next_seed(keras.random.SeedGenerator(seed))


class TFEngine(Entry):
    """Trained by spat_loss and keras.optimizers.SGD, on (N, H, W, C)."""

    module = tf_engine

    def __init__(
        self,
        weights: list[np.ndarray],
        lr: float = 0.1,
        momentum: float = 0.9,
        precision: str = "float64",
    ) -> None:
        layers = keras.layers
        policy = f"mixed_{precision}" if precision in ("bfloat16", "float16") else precision
        side = math.isqrt(len(weights[0]) // CHANNELS)  # of a square image
        self.model = keras.Sequential(
            [
                layers.Input((side, side, CHANNELS), dtype=policy.removeprefix("mixed_")),
                layers.Permute((3, 1, 2), dtype=policy),
                layers.Flatten(dtype=policy),
                layers.Dense(HIDDEN, activation="tanh", dtype=policy),
                layers.Dense(CLASSES, dtype=policy),
            ],
        )
        self.model.set_weights(weights)
        self.average = keras.models.clone_model(self.model)
        self.optimizer = keras.optimizers.SGD(lr, momentum=momentum)
        self.optimizer.build(self.model.trainable_weights)
        self.generator = keras.random.SeedGenerator(0)

    def weights(self) -> list[np.ndarray]:
        return self.model.get_weights()

    def train_step(
        self,
        x: np.ndarray,
        y: np.ndarray,
        start: np.ndarray,
        config: SPATConfig,
        seed: int,
        average: list[np.ndarray] | None = None,
    ) -> float:
        self.generator.state.assign([seed, 0])
        if average is not None:
            self.average.set_weights(average)
        batch = tf.constant(to_last(x)), tf.constant(y), tf.constant(to_last(start))
        return float(self.graph_step(*batch, config))

    @tf.function  # one trace per configuration: eager L1 projections are slow
    def graph_step(self, x: Any, y: Any, start: Any, config: SPATConfig) -> Any:
        own = self.model, x, y, config
        x_adv = spatlib_tf.perturb(*own, start=start, generator=self.generator)
        with tf.GradientTape() as tape:
            loss = spatlib_tf.spat_loss(*own, x_adv=x_adv, average=self.average)
        weights = self.model.trainable_weights
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        return loss

    def shared_mask(
        self, x: np.ndarray, y: np.ndarray, config: SPATConfig, seed: int
    ) -> np.ndarray:
        generator = keras.random.SeedGenerator(seed)
        mask = spatlib_tf.shared_mask(self.model, to_last(x), y, config, generator=generator)
        return mask.numpy().reshape(len(x), -1)

    def perturb(
        self,
        x: np.ndarray,
        y: np.ndarray,
        start: np.ndarray,
        config: SPATConfig,
        mask: np.ndarray | None = None,
    ) -> np.ndarray:
        adversarial = spatlib_tf.perturb(
            self.model,
            to_last(x),
            y,
            config,
            start=to_last(start),
            mask=None if mask is None else to_last(mask),
        )
        return np.moveaxis(adversarial.numpy(), -1, 1)

    def stall_rate(
        self, x: np.ndarray, y: np.ndarray, start: np.ndarray, config: SPATConfig
    ) -> float:
        batch = tf.constant(to_last(x)), tf.constant(y)
        own = tf.constant(to_last(start)), None
        found = attacked(self.model, *batch, config, own=own)
        return float(tf.reduce_mean(found.stalls))

    def evaluate(
        self,
        x: np.ndarray,
        y: np.ndarray,
        config: SPATConfig,
        restarts: int = 1,
        *,
        attacks: Sequence[str] = ("pgd", "margin"),
        steps: int = 2,
        seen: list[np.ndarray] | None = None,
    ) -> dict[str, float]:
        original = tf_ops.logits_of  # Keras has no hooks

        def look(model: Any, z: Any, *, training: bool = False) -> Any:
            if seen is not None:
                seen.append(np.moveaxis(z.numpy(), -1, 1))
            return original(model, z, training=training)

        data = to_last(x), y
        settings = {"attacks": attacks, "steps": steps, "restarts": restarts}
        with eagerly(), patch("spatlib_tf.ops.logits_of", look):
            return spatlib.evaluate(self.model, data, config, **settings).metrics

    @staticmethod
    def gradients(
        function: Callable[..., Any], label: np.ndarray, *logits: np.ndarray
    ) -> np.ndarray:
        leaves = [tf.constant(z) for z in logits]
        with tf.GradientTape() as tape:
            tape.watch(leaves)
            value = function(tf_ops, tf.constant(label), *leaves)
        zero = tf.UnconnectedGradients.ZERO
        return tf.stack(tape.gradient(value, leaves, unconnected_gradients=zero)).numpy()

    @staticmethod
    def draws(config: SPATConfig, count: int, seed: int) -> tuple[Any, Any, Any]:
        draws = tf_attack.Draws(first_seed(seed))
        label = tf.one_hot([0] * count, CLASSES, dtype=tf.float64)
        pixels = tf.zeros((count, HEIGHT, WIDTH, 1), tf.float64)
        return mask_draws(draws, config.mask, label, pixels)

    network = TFNetwork

    @staticmethod
    def uniform_like(x: Any) -> Any:
        return tf.random.uniform(tf.shape(x), dtype=x.dtype)
