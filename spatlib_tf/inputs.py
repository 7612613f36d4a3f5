"""One batch on its way in: checked, clipped; and logits checked on their way out."""

from typing import Any

import keras
import tensorflow as tf

from spatlib import errors
from spatlib.config import Threat
from spatlib.errors import DataError, expect, require

from . import ops
from .ops import Tensor


def prepare(
    x: Any, y: Any, threat: Threat, validate: bool, name: str = "x"
) -> tuple[Tensor, Tensor]:
    """The batch as tensors, with x clipped to the bounds; y is (N,) or one-hot (N, K).

    Shapes and dtypes are always checked, values if ``validate`` (not inside a tf.function). Errors
    call x by the name.
    """
    x, y = as_tensor(name, x), as_tensor("y", y)
    if len(y.shape) == 2 and y.shape[1] == 1:  # keras.datasets stores labels as a column
        y = y[:, 0]
    errors.check_batch(x, tf.argmax(y, axis=1) if len(y.shape) == 2 else y, name)
    if validate:
        errors.check_range(ops.extremes(x), threat.bounds, name)
    return ops.clip(x, *threat.bounds), tf.cast(y, tf.int64) if y.dtype.is_integer else y


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
    require(isinstance(model, keras.Model), "model", "be a keras.Model that returns logits", model)


def check_device(device: str | None) -> None:
    """ConfigError unless it is None or a device of this machine."""
    names = [found.name.removeprefix("/device:") for found in tf.config.list_logical_devices()]
    name = str(device).upper().removeprefix("/").removeprefix("DEVICE:")
    valid = device is None or name in names
    require(valid, "device", f"be one of {', '.join(map(repr, names))}", device)


def logits_of(model: keras.Model, x: Tensor, *, training: bool = False) -> Tensor:
    """The model's logits (N, K), in float32 at least, checked for shape; -inf becomes -1e9."""
    logits = model(x, training=training)
    errors.check_logits(logits, tf.is_tensor(logits), x.shape[0])
    logits = tf.cast(logits, tf.float32) if logits.dtype.size < 4 else logits
    return tf.maximum(logits, errors.RULED_OUT)


def one_hot(y: Tensor, logits: Tensor) -> Tensor:
    """(N, K) in the dtype of the logits, NaN (so that the loss is) where y names no class."""
    classes = int(logits.shape[1])
    if len(y.shape) == 2:
        what = f"y must be one-hot for the model's {classes} classes, got shape {tuple(y.shape)}"
        expect(y.shape[1] == classes, what)
        return tf.cast(y, logits.dtype)
    rows = tf.one_hot(y, classes, dtype=logits.dtype)
    return rows / tf.reduce_sum(rows, axis=1, keepdims=True)  # 0 / 0 is NaN


def check_label_values(y: Tensor, classes: int) -> None:
    """DataError unless all labels name a class: not inside a tf.function."""
    if len(y.shape) == 1:
        errors.check_labels(ops.extremes(y), classes)
        return
    hard = tf.one_hot(tf.argmax(y, axis=1), classes)
    what = "y must be one-hot rows, a single 1 and zeros: pass hard labels, not mixtures of classes"
    expect(bool(tf.reduce_all(one_hot(y, hard) == hard)), what)
