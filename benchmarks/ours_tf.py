"""The arms of the TensorFlow benchmark that are ours: a few steps of ``SPATModel.fit``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from spatlib import SPATConfig
from spatlib_tf import SPATModel
from spatlib_tf.models import preact_resnet

BATCH, SHAPE, PIXEL_SHAPE = 64, (32, 32, 3), (3072,)
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


def data(steps: int, classes: int = 10) -> Data:
    """``steps`` batches of noise; the cost does not depend on what is seen."""
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(steps * BATCH, *SHAPE)).astype(np.float32)
    return x, rng.integers(classes, size=len(x))


def sgd() -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(0.01, momentum=0.9)


def fit(
    name: str, pair: Data, config: SPATConfig, classes: int = 10, xla: bool = False
) -> Callable[[], Any]:
    """One epoch of ``SPATModel.fit``; the logs that it reads are the end of the work."""
    model = SPATModel(network(name, classes), config, seed=0)
    model.compile(sgd(), jit_compile=xla)
    return lambda: model.fit(*pair, batch_size=BATCH, verbose=0)
