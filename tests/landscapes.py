"""Models of both frameworks made of one function of their primitives, and how to evaluate them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import torch
from torch import Tensor, nn

from spatlib import Report, SPATConfig
from spatlib.core.ops import Array, Ops
from spatlib_tf import engine as tf_engine
from spatlib_tf import ops as tf_ops
from spatlib_torch import engine as torch_engine
from spatlib_torch import ops as torch_ops

EPS = 0.1
ENGINES = {"torch": torch_engine, "tf": tf_engine}
Landscape = Callable[[Ops, Array, Callable[[Any], Array]], Array]  # ops, x, array -> logits


class TorchLandscape(nn.Module):
    def __init__(self, logits: Landscape) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(torch_ops, x, lambda v: torch.as_tensor(v, dtype=x.dtype))


class TFLandscape(keras.Model):
    def __init__(self, logits: Landscape) -> None:
        super().__init__()
        self.logits, self.calls = logits, 0

    def call(self, x: Any) -> Any:
        self.calls += 1
        return self.logits(tf_ops, x, lambda v: tf.constant(v, x.dtype))


def model(name: str, logits: Landscape) -> Any:
    return {"torch": TorchLandscape, "tf": TFLandscape}[name](logits)


def measure(
    name: str, network: Any, x: Any, y: Any, attacks: Any, norm: str = "Linf", **settings: Any
) -> Report:
    config = SPATConfig(eps=EPS, norm=norm)
    native = torch.as_tensor if name == "torch" else tf.convert_to_tensor
    data = (native(np.float32(x)), native(np.int64(y)))
    return ENGINES[name].evaluate(network, data, config, attacks=attacks, **settings)


@cache
def rugged(name: str) -> Any:
    """A network on 16 pixels with 4 classes, for which the start decides much."""
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=(16, 40)), rng.normal(size=(40, 4))

    def logits(ops: Ops, x: Array, array: Callable[[Any], Array]) -> Array:
        hidden = x @ array(3 * first)
        return (1 - 2 / (1 + ops.exp(2 * hidden))) @ array(second)

    return model(name, logits)


@cache
def points(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and the labels that the network gives them, but for every tenth; never class 3."""
    x = np.random.default_rng(4).uniform(size=(150, 16)).astype(np.float32)
    network = rugged(name)
    z = network(torch.as_tensor(x)) if name == "torch" else network(x)
    y = z.numpy().argmax(axis=1)
    x, y = x[y < 3], y[y < 3]
    y[::10] = (y[::10] + 1) % 3
    return x, y


def noise(network: Any, x: Any, y: Any) -> Any:
    """Half of the ball, and numbers drawn from the framework's own generator."""
    if isinstance(x, Tensor):
        return (x + EPS * (torch.rand_like(x) - 0.5)).clamp(0, 1)
    return tf.clip_by_value(x + EPS * (tf.random.uniform(tf.shape(x)) - 0.5), 0, 1)
