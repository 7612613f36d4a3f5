"""The arms of the TensorFlow benchmark that are ours: steps of ``SPATModel.fit``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from spatlib import SPATConfig
from spatlib_tf import SPATModel
from spatlib_tf.models import preact_resnet

BATCH = {"small": 64, "resnet18": 16, "mlp": 64}
SHAPE = (32, 32, 3)
Data = tuple[np.ndarray, np.ndarray]


def network(name: str, classes: int = 10) -> keras.Model:
    """``"small"`` (16-32-64 channels), ``"resnet18"`` (PreActResNet-18) or ``"mlp"``."""
    keras.utils.set_random_seed(0)
    if name == "small":
        return preact_resnet(SHAPE, classes, widths=(16, 32, 64), stem=16)
    if name == "resnet18":
        return preact_resnet(SHAPE, classes)
    hidden = [keras.layers.Dense(512, activation="relu") for _ in range(2)]
    layers = [keras.layers.Input(SHAPE), keras.layers.Flatten(), *hidden]
    return keras.Sequential([*layers, keras.layers.Dense(classes)])


def data(count: int, classes: int = 10) -> Data:
    """Noise; the cost does not depend on what is seen."""
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(count, *SHAPE)).astype(np.float32)
    return x, rng.integers(classes, size=count)


def stream(name: str, classes: int, same_size: bool) -> Iterator[Any]:
    """Batches for ever; their size is known to the graph, or open as in Keras' own datasets."""
    one = tf.data.Dataset.from_tensor_slices(data(BATCH[name], classes))
    return iter(one.batch(BATCH[name], drop_remainder=same_size).repeat().prefetch(2))


def sgd() -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(0.01, momentum=0.9)


def step(
    name: str, config: SPATConfig, classes: int = 10, steps: int = 1, xla: bool = False
) -> Callable[[], float]:
    """What ``SPATModel.fit`` does in each step: its training function, all logs read after it."""
    model = SPATModel(network(name, classes), config, seed=0)
    model.compile(sgd(), jit_compile=xla)
    model.make_train_function()
    batches = stream(name, classes, same_size=False)

    def run() -> float:
        for _ in range(steps):
            logs = {key: float(value) for key, value in model.train_function(batches).items()}
        return logs["loss"]

    return run


def fit(name: str, config: SPATConfig) -> Callable[[], Any]:
    """A whole call of ``SPATModel.fit`` on one batch, with what it does once."""
    model = SPATModel(network(name), config, seed=0)
    model.compile(sgd(), jit_compile=False)
    return lambda: model.fit(*data(BATCH[name]), batch_size=BATCH[name], verbose=0)


def keras_fit(name: str) -> Callable[[], Any]:
    """Keras' own ``fit`` on the same batch, without an attack."""
    model = network(name)
    entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(sgd(), loss=entropy, jit_compile=False)
    return lambda: model.fit(*data(BATCH[name]), batch_size=BATCH[name], verbose=0)
