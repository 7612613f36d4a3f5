"""One batch on its way in: checked, clipped; and logits checked on their way out."""

from __future__ import annotations

import math
from typing import Any

import keras
import tensorflow as tf

from spatlib import errors as checks
from spatlib.config import Threat
from spatlib.errors import ConfigError, DataError, require

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
    one_hot = len(y.shape) == 2
    if y.dtype.is_integer:
        y = tf.cast(y, tf.int64)
    labels_shape = y.shape[:1] if one_hot else y.shape
    known = [b if a is None else a for a, b in zip(labels_shape, x.shape, strict=False)]
    labels = known, y.dtype.name, one_hot or y.dtype.is_integer
    checks.check_batch(x.shape, x.dtype.name, x.dtype.is_floating, *labels, name)
    if validate and tf.executing_eagerly():
        checks.check_range(_lowest(x), -_lowest(-x), threat.bounds, name)
    return ops.clip(x, *threat.bounds), y


def as_tensor(name: str, value: Any) -> Tensor:
    """The value as a tensor; DataError if it holds no numbers."""
    try:
        tensor = tf.convert_to_tensor(value)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{name} must be an array or tensor of numbers, got {type(value).__name__} ({error}): "
            "convert it, e.g. with numpy.asarray"
        ) from error
    if not (tensor.dtype.is_floating or tensor.dtype.is_integer):
        raise DataError(f"{name} must be an array or tensor of numbers, got {tensor.dtype.name}")
    return tensor


def check_model(model: Any) -> None:
    """Raise ConfigError unless it is a Keras model."""
    if not isinstance(model, keras.Model):
        kind = type(model).__name__
        raise ConfigError(f"model must be a keras.Model that returns logits, got {kind}")


def check_device(device: str | None) -> None:
    """Raise ConfigError unless it is None or a device of this machine."""
    names = [found.name.removeprefix("/device:") for found in tf.config.list_logical_devices()]
    name = str(device).upper().removeprefix("/").removeprefix("DEVICE:")
    valid = device is None or name in names
    require(valid, "device", f"be one of {', '.join(map(repr, names))}", device)


def check_gradient(gradient: Tensor | None, x: Tensor) -> Tensor:
    """The gradient with the static shape of x; DataError if there is none."""
    if gradient is None:
        raise DataError(
            "model must return logits that TensorFlow can differentiate by its input: remove "
            "stop_gradient or numpy from its call"
        )
    return tf.ensure_shape(gradient, x.shape)  # some layers' gradients forget it in a graph


def logits_of(model: keras.Model, x: Tensor, *, training: bool = False) -> Tensor:
    """The model's logits (N, K), in float32 at least, checked for shape; -inf becomes -1e9."""
    check_model(model)
    logits = model(x, training=training)
    if not tf.is_tensor(logits):
        raise DataError(
            f"model must return a tensor of logits, got {type(logits).__name__}: wrap it in a "
            "model that returns its logits only"
        )
    checks.check_logits(logits.shape, x.shape[0])
    logits = tf.cast(logits, tf.float32) if logits.dtype.size < 4 else logits
    return tf.maximum(logits, checks.RULED_OUT)


def one_hot(y: Tensor, logits: Tensor) -> Tensor:
    """The labels as (N, K) in the dtype of the logits."""
    check_label_width(y, logits.shape[1])
    if len(y.shape) == 1:
        # A label that names no class makes the loss NaN: it must not pass for a zero loss.
        known = (y >= 0) & (y < logits.shape[1])
        rows = tf.one_hot(y, logits.shape[1], dtype=logits.dtype)
        return tf.where(known[:, None], rows, tf.constant(math.nan, logits.dtype))
    return tf.cast(y, logits.dtype)


def check_label_width(y: Tensor, classes: int) -> None:
    """Raise DataError unless one-hot labels have a column per class."""
    if len(y.shape) == 2 and y.shape[1] != classes:
        shape = tuple(y.shape)
        raise DataError(f"y must be one-hot for the model's {classes} classes, got shape {shape}")


def check_label_values(y: Tensor, classes: int) -> None:
    """Raise DataError unless all labels name a class; in a tf.function look at the shape only."""
    check_label_width(y, classes)
    if not tf.executing_eagerly():
        return
    if len(y.shape) == 1:
        checks.check_labels(int(tf.reduce_min(y)), int(tf.reduce_max(y)), classes)
        return
    ones = tf.reduce_sum(tf.cast(y == 1, tf.int64), axis=1)
    if not bool(tf.reduce_all(ones == 1) & tf.reduce_all((y == 0) | (y == 1))):
        raise DataError(
            "y must be one-hot rows, a single 1 and zeros, got other values: pass hard labels, as "
            "a mixture of classes has none to defend"
        )


def check_start(start: Any, x: Tensor, validate: bool) -> Tensor:
    """The start in the dtype of x; DataError unless it broadcasts to x and holds numbers."""
    start = tf.cast(as_tensor("start", start), x.dtype)
    checks.check_same_shape("start", start.shape, x.shape)
    eager = validate and tf.executing_eagerly()
    if eager and not bool(tf.reduce_all(tf.math.is_finite(start))):
        raise DataError("start must be finite, got NaN or infinity: look at where it comes from")
    return start


def check_budget(mask: Any, x: Tensor, validate: bool) -> Tensor:
    """The mask in the dtype of x; DataError unless it broadcasts to x and holds shares of eps."""
    mask = tf.cast(as_tensor("mask", mask), x.dtype)
    checks.check_same_shape("mask", mask.shape, x.shape)
    inside = (mask >= 0) & (mask <= 1)
    if validate and tf.executing_eagerly() and not bool(tf.reduce_all(inside)):
        raise DataError("mask must be in [0, 1], each pixel's share of eps, got others or NaN")
    return mask


def _lowest(x: Tensor) -> float:
    # TensorFlow's minimum may ignore a NaN.
    return float("nan") if bool(tf.reduce_any(tf.math.is_nan(x))) else float(tf.reduce_min(x))
