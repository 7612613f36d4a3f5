"""One batch on its way in: checked, clipped; and logits checked on their way out."""

import math
from typing import Any

import keras
import tensorflow as tf

from spatlib import errors
from spatlib.config import Threat
from spatlib.errors import ConfigError, DataError, expect, require

from . import ops

Tensor = Any


def prepare(
    x: Any, y: Any, threat: Threat, validate: bool, name: str = "x"
) -> tuple[Tensor, Tensor]:
    """The batch as tensors, with x clipped to the bounds; y is (N,) or one-hot (N, K).

    Shapes and dtypes are always checked, values if ``validate`` and not inside a tf.function.
    Errors call x by the name.
    """
    x, y = as_tensor(name, x), as_tensor("y", y)
    if len(y.shape) == 2 and y.shape[1] == 1:  # keras.datasets stores labels as a column
        y = y[:, 0]
    errors.check_batch(x, tf.argmax(y, axis=1) if len(y.shape) == 2 else y, name)
    if validate and tf.executing_eagerly():
        errors.check_range(ops.extremes(x), threat.bounds, name)
    return ops.clip(x, *threat.bounds), tf.cast(y, tf.int64) if y.dtype.is_integer else y


def given(name: str, value: Any, x: Tensor, validate: bool) -> Tensor | None:
    """A "start" or "mask" in the dtype of x, checked likewise; None stays None."""
    if value is None:
        return None
    value = tf.cast(as_tensor(name, value), x.dtype)
    errors.check_same_shape(name, value, x)
    bounds, advice = errors.GIVEN[name]
    if validate and tf.executing_eagerly():
        errors.check_range(ops.extremes(value), bounds, name, advice)
    return ops.clip(value, *bounds)


def as_tensor(name: str, value: Any) -> Tensor:
    """The value as a tensor; DataError if it holds no numbers."""
    try:
        tensor = tf.convert_to_tensor(value)
    except (TypeError, ValueError) as error:
        kind, advice = type(value).__name__, "convert it, e.g. by numpy.asarray"
        what = f"{name} must be an array or tensor of numbers, got {kind} ({error}): {advice}"
        raise DataError(what) from error
    kind, numbers = tensor.dtype.name, tensor.dtype.is_floating or tensor.dtype.is_integer
    expect(numbers, f"{name} must be an array or tensor of numbers, got {kind}")
    return tensor


def check_model(model: Any) -> None:
    """ConfigError unless it is a Keras model."""
    if not isinstance(model, keras.Model):
        kind = type(model).__name__
        raise ConfigError(f"model must be a keras.Model that returns logits, got {kind}")


def check_device(device: str | None) -> None:
    """ConfigError unless it is None or a device of this machine."""
    names = [found.name.removeprefix("/device:") for found in tf.config.list_logical_devices()]
    name = str(device).upper().removeprefix("/").removeprefix("DEVICE:")
    valid = device is None or name in names
    require(valid, "device", f"be one of {', '.join(map(repr, names))}", device)


def logits_of(model: keras.Model, x: Tensor, *, training: bool = False) -> Tensor:
    """The model's logits (N, K), in float32 at least, checked for shape; -inf becomes -1e9."""
    check_model(model)
    logits = model(x, training=training)
    kind = type(logits).__name__
    expect(tf.is_tensor(logits), f"model must return a tensor of logits, got {kind}: wrap it")
    errors.check_logits(logits.shape, x.shape[0])
    logits = tf.cast(logits, tf.float32) if logits.dtype.size < 4 else logits
    return tf.maximum(logits, errors.RULED_OUT)


def one_hot(y: Tensor, logits: Tensor) -> Tensor:
    """The labels as (N, K) in the dtype of the logits, NaN for one that names no class.

    NaN makes the loss NaN: such a label must not pass for a zero loss.
    """
    classes = int(logits.shape[1])
    if len(y.shape) == 2:
        _check_width(y, classes)
        return tf.cast(y, logits.dtype)
    known, rows = (y >= 0) & (y < classes), tf.one_hot(y, classes, dtype=logits.dtype)
    return tf.where(known[:, None], rows, tf.constant(math.nan, logits.dtype))


def check_label_values(y: Tensor, classes: int) -> None:
    """DataError unless all labels name a class; in a tf.function look at the shape only."""
    if len(y.shape) == 2:
        _check_width(y, classes)
    if not tf.executing_eagerly():
        return
    if len(y.shape) == 1:
        errors.check_labels(ops.extremes(y), classes)
        return
    ones = tf.reduce_sum(tf.cast(y == 1, tf.int64), axis=1)
    expect(
        bool(tf.reduce_all(ones == 1) & tf.reduce_all((y == 0) | (y == 1))),
        "y must be one-hot rows, a single 1 and zeros, got other values: pass hard labels, as a "
        "mixture of classes has none to defend",
    )


def _check_width(y: Tensor, classes: int) -> None:
    shape = tuple(y.shape)
    right = shape[1] == classes
    expect(right, f"y must be one-hot for the model's {classes} classes, got shape {shape}")
