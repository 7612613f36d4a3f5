"""BatchNorm in inference mode in one pass over memory, its gradient as the product that it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

Tensor = Any


@contextmanager
def in_one_pass(model: keras.Model) -> Iterator[None]:
    """Let BatchNorm layers in inference mode call TensorFlow's kernel until the end of the block.

    Keras multiplies and adds in two passes, whose gradients are summed back to what was
    broadcast: with this a step of a small network takes a tenth less (docs/performance.md). The
    kernel's own gradient would be slower still. Layers with a ``call`` of their own stay as they
    are, and all of them in a distributed model, whose replicas share layers, not variables.
    """
    alone = tf.distribute.get_strategy().num_replicas_in_sync == 1
    # Keras offers no public way to the layers inside layers.
    found = [layer for layer in model._flatten_layers() if alone and _is_meant(layer)]
    for layer in found:
        vars(layer)["call"] = _inference(layer)
    try:
        yield
    finally:
        for layer in found:
            del vars(layer)["call"]


def _is_meant(layer: keras.Layer) -> bool:
    plain = type(layer) is keras.layers.BatchNormalization and "call" not in vars(layer)
    return plain and layer.built and not getattr(layer, "renorm", False)


def _inference(layer: keras.layers.BatchNormalization) -> Callable[..., Tensor]:
    mean, variance = (tf.identity(v) for v in (layer.moving_mean, layer.moving_variance))
    scale = tf.ones_like(mean) if layer.gamma is None else tf.identity(layer.gamma)
    offset = tf.zeros_like(mean) if layer.beta is None else tf.identity(layer.beta)
    factor = scale * tf.math.rsqrt(variance + layer.epsilon)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def normalised(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        y = tf.raw_ops.FusedBatchNormV3(x=x, scale=scale, offset=offset, mean=mean,
                                        variance=variance, epsilon=layer.epsilon,
                                        is_training=False)[0]  # fmt: skip
        return y, lambda upstream: factor * upstream

    def call(inputs: Tensor, training: bool | None = None, mask: Tensor | None = None) -> Tensor:
        # The kernel takes images in float32, channels last.
        image = len(inputs.shape) == 4 and layer.axis in (-1, 3) and inputs.dtype == tf.float32
        if training or not image:
            return type(layer).call(layer, inputs, training=training, mask=mask)
        return normalised(inputs)

    return call
