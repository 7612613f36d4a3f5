"""TensorFlow's primitives: of arrays (:mod:`spatlib.core.ops`) and of batches, in and out."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import tensorflow as tf

from spatlib import errors
from spatlib.config import Threat
from spatlib.core.ops import example_size
from spatlib.errors import DataError, cause, expect, require

Tensor = Any

CHANNEL_AXIS = -1

abs, sign, sqrt, exp, log = tf.abs, tf.sign, tf.sqrt, tf.exp, tf.math.log
minimum, maximum, sum, max = tf.minimum, tf.maximum, tf.reduce_sum, tf.reduce_max
log_softmax, logsumexp = tf.nn.log_softmax, partial(tf.reduce_logsumexp, axis=-1)
clip, detach, take = tf.clip_by_value, tf.stop_gradient, tf.gather
mean, argmax = tf.reduce_mean, partial(tf.argmax, axis=-1)


def where(condition: Tensor, x: Any, y: Any) -> Tensor:
    # In a graph, a number that comes first would set float32.
    dtype = (y if isinstance(x, float) else x).dtype
    return tf.where(condition, tf.convert_to_tensor(x, dtype), tf.convert_to_tensor(y, dtype))


def cast(x: Tensor, like: Tensor) -> Tensor:
    return tf.cast(x, like.dtype)


def widen(x: Tensor) -> Tensor:
    return tf.cast(x, tf.float32) if x.dtype.size < 4 else x


def argmax_one_hot(x: Tensor) -> Tensor:
    return tf.one_hot(tf.argmax(x, axis=-1), x.shape[-1], dtype=x.dtype)


def kth_largest(x: Tensor, k: int) -> Tensor:
    kth = tf.math.top_k(tf.reshape(x, (-1, example_size(x))), k).values[:, -1]
    return tf.reshape(kth, (-1, *(1,) * (len(x.shape) - 1)))


def repeat(
    body: Callable[..., Any], times: int, state: Any, done: Any = None
) -> tuple[Tensor, ...]:
    # done is not read: on a GPU the loop would wait for it in every round.
    once = done is not None and times == 1  # what may be left out
    if not (once or tf.executing_eagerly()):
        # As a graph loop, since XLA compiles unrolled steps for minutes.
        return tuple(tf.while_loop(lambda *_: True, body, state, maximum_iterations=times))
    for _ in range(times):
        state = body(*state)
    return state  # type: ignore[no-any-return]


def mantissa_bits(x: Tensor) -> int:
    return {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}[x.dtype.name]


def extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and the highest value in float64, NaN if there is one."""
    x = tf.cast(x, tf.float64)
    known = tf.reduce_all(x == x)  # TensorFlow's own may pass over a NaN
    return where(known, tf.reduce_min(x), math.nan), where(known, tf.reduce_max(x), math.nan)


def prepare(
    x: Any, y: Any, threat: Threat, validate: bool, name: str = "x"
) -> tuple[Tensor, Tensor]:
    """x clipped to the bounds, y (N,) or (N, K); ``validate`` looks at values (eagerly only)."""
    x, y = as_tensor(name, errors.only(x, name)), as_tensor("y", y)
    if len(y.shape) == 2 and y.shape[1] == 1:  # keras.datasets stores labels as a column
        y = y[:, 0]
    errors.check_batch(x, y, name)
    if validate:
        errors.check_range(extremes(x), threat.bounds, name)
    return clip(x, *threat.bounds), tf.cast(y, tf.int64 if len(y.shape) == 1 else tf.float64)


def as_tensor(name: str, value: Any) -> Tensor:
    """The value as a tensor; DataError if it holds no numbers."""
    what = f"{name} must be an array or tensor of numbers, got"
    try:
        tensor = tf.convert_to_tensor(value)
    except (TypeError, ValueError) as error:
        got = f"{type(value).__name__} ({cause(error)})"
        raise DataError(f"{what} {got}: convert it, e.g. by numpy.asarray") from error
    kind = tensor.dtype
    expect(kind.is_floating or kind.is_integer, f"{what} {kind.name}")
    return tensor


def check_model(model: Any, name: str = "model") -> None:
    """ConfigError unless it is a Keras model."""
    require(isinstance(model, keras.Model), name, "be a keras.Model that returns logits", model)


def check_device(device: str | None) -> None:
    """ConfigError unless it is None or a device of this machine."""
    names = [found.name.removeprefix("/device:") for found in tf.config.list_logical_devices()]
    name = str(device).upper().removeprefix("/").removeprefix("DEVICE:")
    valid = device is None or name in names
    require(valid, "device", f"be one of {', '.join(map(repr, names))}", device)


def logits_of(model: keras.Model, x: Tensor, *, training: bool = False) -> Tensor:
    """The model's logits (N, K), in float32 at least, checked for shape; -inf becomes -1e9."""
    logits = errors.logits_in(model(x, training=training), tf.is_tensor, x.shape[0])
    return tf.maximum(widen(logits), errors.RULED_OUT)


def one_hot(y: Tensor, logits: Tensor) -> Tensor:
    """Of class indices (N,): (N, K) in the dtype of the logits, zeros where y names no class."""
    return tf.one_hot(y, logits.shape[1], dtype=logits.dtype)
