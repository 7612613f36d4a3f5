"""Checks of one batch, shared by the engines: facts about arrays in, a DataError out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .errors import ConfigError, DataError

RULED_OUT = -1e9  # what a logit of -inf, a class ruled out, counts as
ROUNDING = 1e-6  # share of the input range by which rounding may carry an input outside


def check_batch(
    x_shape: Sequence[int],
    x_dtype: Any,
    x_is_float: bool,
    y_shape: Sequence[int],
    y_dtype: Any,
    y_is_integer: bool,
    name: str = "x",
) -> None:
    """Raise DataError unless x is a float batch (N, ...) and y integer labels (N,)."""
    x_shape, y_shape = tuple(x_shape), tuple(y_shape)
    if not x_is_float:
        raise DataError(
            f"{name} must hold floats, got {x_dtype}: scale it to bounds, as in x / 255"
        )
    if len(x_shape) < 2:
        raise DataError(f"x must be a batch (N, ...), got shape {x_shape}: add the batch axis")
    if 0 in x_shape:
        raise DataError(
            f"x must hold at least one example, got shape {x_shape}: skip empty batches"
        )
    if not y_is_integer:
        raise DataError(f"y must hold class indices, got {y_dtype}: cast it to an integer dtype")
    if y_shape != x_shape[:1]:
        raise DataError(
            f"y must hold one class index per example, shape {x_shape[:1]}, got shape {y_shape}"
        )


def check_images(shape: Sequence[int | None]) -> None:
    """Raise ConfigError unless the batch that is to be augmented holds images."""
    if len(shape) != 4:
        raise ConfigError(
            "augment must be 'none' for inputs that are no images, got a batch of shape "
            f"{tuple(shape)}: images have four axes, grey ones too"
        )


def check_range(x_min: float, x_max: float, bounds: tuple[float, float], name: str = "x") -> None:
    """Raise DataError unless the inputs are finite and inside ``bounds``, up to rounding."""
    lower, upper = bounds
    slack = ROUNDING * (upper - lower)
    if not (lower - slack <= x_min and x_max <= upper + slack):  # also catches NaN
        raise DataError(
            f"{name} must hold finite values in [{lower:g}, {upper:g}], got {x_min:g} to "
            f"{x_max:g}: scale it, or set bounds to its range (normalisation is the model's first "
            "layer)"
        )


def check_labels(y_min: int, y_max: int, classes: int) -> None:
    """Raise DataError unless all labels are in 0..classes - 1."""
    if y_min < 0 or y_max >= classes:
        raise DataError(
            f"y must hold labels from 0 to {classes - 1}, as the model has {classes} outputs, "
            f"got {y_min} to {y_max}: number the classes from 0"
        )


def check_logits(shape: Sequence[int | None], batch: int | None) -> None:
    """Raise DataError unless the model's output is (N, K) with K >= 2."""
    wrong_batch = batch is not None and len(shape) > 0 and shape[0] not in (None, batch)
    if len(shape) != 2 or wrong_batch or shape[1] is None or shape[1] < 2:
        raise DataError(
            f"model must return logits of shape ({batch or 'N'}, K) with K >= 2, got "
            f"{tuple(shape)}: return one logit per class and example, two for two classes"
        )


def check_same_shape(
    name: str, shape: Sequence[int | None], expected: Sequence[int | None]
) -> None:
    """Raise DataError unless ``shape`` broadcasts to ``expected`` without growing it.

    A length that is not known yet, None, fits all others.
    """
    pairs = zip(shape, expected, strict=False)
    if len(shape) != len(expected) or any(a not in (1, b) and None not in (a, b) for a, b in pairs):
        raise DataError(
            f"{name} must broadcast to the shape of x, {tuple(expected)}, got {tuple(shape)}: "
            "give it that shape (a mask may have one channel)"
        )


def check_mask_classes(count: int, classes: int) -> None:
    """Raise DataError if the mask is to compare more classes than the model has."""
    if count > classes:
        raise DataError(
            f"classes of the mask must be at most the model's {classes}, got {count}: lower it, or "
            "use None for all"
        )
