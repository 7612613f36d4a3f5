"""The core's primitives in TensorFlow; see :mod:`spatlib.core.ops`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import tensorflow as tf

from spatlib.core.ops import example_size

Tensor = Any

CHANNEL_AXIS = -1

abs, sign, sqrt, exp, log = tf.abs, tf.sign, tf.sqrt, tf.exp, tf.math.log
minimum, maximum, sum, max = tf.minimum, tf.maximum, tf.reduce_sum, tf.reduce_max
log_softmax, logsumexp = tf.nn.log_softmax, partial(tf.reduce_logsumexp, axis=-1)
detach = tf.stop_gradient


def clip(x: Tensor, lower: Tensor | float, upper: Tensor | float) -> Tensor:
    return tf.minimum(tf.maximum(x, lower), upper)


def where(condition: Tensor, x: Any, y: Any) -> Tensor:
    # In a graph, a number that comes first would set float32.
    dtype = (y if isinstance(x, float) else x).dtype
    return tf.where(condition, tf.convert_to_tensor(x, dtype), tf.convert_to_tensor(y, dtype))


def cast(x: Tensor, like: Tensor) -> Tensor:
    return tf.cast(x, like.dtype)


def argmax_one_hot(x: Tensor) -> Tensor:
    return tf.one_hot(tf.argmax(x, axis=-1), x.shape[-1], dtype=x.dtype)


def kth_largest(x: Tensor, k: int) -> Tensor:
    kth = tf.math.top_k(tf.reshape(x, (-1, example_size(x))), k).values[:, -1]
    return tf.reshape(kth, (-1, *(1,) * (len(x.shape) - 1)))


def repeat(
    body: Callable[..., Any], times: int, state: Any, done: Any = None
) -> tuple[Tensor, ...]:
    # done is not read: on a GPU the loop would wait for it in every round.
    if not tf.executing_eagerly():  # as a graph loop, since XLA compiles unrolled steps for minutes
        return tuple(tf.while_loop(lambda *_: True, body, state, maximum_iterations=times))
    for _ in range(times):
        state = body(*state)
    return state  # type: ignore[no-any-return]


def mantissa_bits(x: Tensor) -> int:
    return {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}[x.dtype.name]


def extremes(x: Tensor) -> tuple[float, float]:
    """The lowest and the highest value, read on the host: NaN if there is one."""
    # NumPy's, as TensorFlow's may ignore a NaN; it knows no bfloat16.
    values = (tf.cast(x, tf.float32) if x.dtype.size < 4 else x).numpy()
    return float(values.min()), float(values.max())
