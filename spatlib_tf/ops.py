"""The core's primitives in TensorFlow; see :mod:`spatlib.core.ops`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import tensorflow as tf

from spatlib.core.ops import Axes, example_size

Tensor = Any

CHANNEL_AXIS = -1

abs, sign, sqrt, exp, log = tf.abs, tf.sign, tf.sqrt, tf.exp, tf.math.log
minimum, maximum, log_softmax = tf.minimum, tf.maximum, tf.nn.log_softmax


def clip(x: Tensor, lower: Tensor | float, upper: Tensor | float) -> Tensor:
    return tf.minimum(tf.maximum(x, lower), upper)


def where(condition: Tensor, x: Tensor | float, y: Tensor | float) -> Tensor:
    tensor: Tensor = y if isinstance(x, float) else x
    dtype = tensor.dtype  # in a graph, a number that comes first would set float32
    x, y = tf.convert_to_tensor(x, dtype), tf.convert_to_tensor(y, dtype)
    return tf.where(condition, x, y)


def sum(x: Tensor, axis: Axes, keepdims: bool = False) -> Tensor:
    return tf.reduce_sum(x, axis=axis, keepdims=keepdims)


def max(x: Tensor, axis: Axes, keepdims: bool = False) -> Tensor:
    return tf.reduce_max(x, axis=axis, keepdims=keepdims)


def cast(x: Tensor, like: Tensor) -> Tensor:
    return tf.cast(x, like.dtype)


def logsumexp(x: Tensor) -> Tensor:
    return tf.reduce_logsumexp(x, axis=-1)


def argmax_one_hot(x: Tensor) -> Tensor:
    return tf.one_hot(tf.argmax(x, axis=-1), x.shape[-1], dtype=x.dtype)


def kth_largest(x: Tensor, k: int) -> Tensor:
    flat = tf.reshape(x, (-1, example_size(x)))
    kth = tf.math.top_k(flat, k).values[:, -1]
    return tf.reshape(kth, (-1, *(1,) * (len(x.shape) - 1)))


def repeat(
    body: Callable[..., tuple[Tensor, ...]],
    times: int,
    state: tuple[Tensor, ...],
    done: Callable[..., Tensor] | None = None,
) -> tuple[Tensor, ...]:
    # done is not read: on a GPU the loop would wait for it in every round.
    if not tf.executing_eagerly():  # as a graph loop, since XLA compiles unrolled steps for minutes
        return tuple(tf.while_loop(lambda *_: True, body, state, maximum_iterations=times))
    for _ in range(times):
        state = body(*state)
    return state


def mantissa_bits(x: Tensor) -> int:
    eps = ml_dtypes.finfo(x.dtype.as_numpy_dtype).eps  # type: ignore[no-untyped-call]
    return 1 - round(math.log2(eps))
