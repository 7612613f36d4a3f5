"""Checks of one batch, shared by the engines: facts about arrays in, a DataError out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .errors import ConfigError, DataError

ROUNDING = 1e-6  # as a share of the input range: what arithmetic on the way in may add


def check_batch(
    x_shape: Sequence[int],
    x_dtype: Any,
    x_is_float: bool,
    y_shape: Sequence[int],
    y_dtype: Any,
    y_is_integer: bool,
) -> None:
    """Raise DataError unless x is a float batch (N, ...) and y integer labels (N,)."""
    if not x_is_float:
        raise DataError(
            "x",
            expected="a floating dtype",
            received=x_dtype,
            fix="Scale the inputs to bounds first, e.g. x / 255.",
        )
    if len(x_shape) < 2:
        raise DataError(
            "x",
            expected="a batch (N, ...)",
            received=f"shape {tuple(x_shape)}",
            fix="Add the batch axis.",
        )
    if 0 in tuple(x_shape):
        raise DataError(
            "x",
            expected="at least one example",
            received=f"shape {tuple(x_shape)}",
            fix="Skip empty batches.",
        )
    if not y_is_integer:
        raise DataError(
            "y",
            expected="integer class labels",
            received=y_dtype,
            fix="Cast the labels to an integer dtype.",
        )
    if tuple(y_shape) != (x_shape[0],):
        raise DataError(
            "y",
            expected=f"one label per example, shape ({x_shape[0]},)",
            received=f"shape {tuple(y_shape)}",
            fix="Pass class indices, as many as inputs.",
        )


def check_images(shape: Sequence[int | None]) -> None:
    """Raise ConfigError unless the batch that is to be augmented holds images."""
    if len(shape) != 4:
        raise ConfigError(
            "augment",
            expected="'none' for inputs that are no images",
            received=f"a batch of shape {tuple(shape)}",
            fix="Images have four axes, grey ones too.",
        )


def check_range(x_min: float, x_max: float, bounds: tuple[float, float]) -> None:
    """Raise DataError unless the inputs are numbers inside ``bounds``, up to rounding."""
    slack = ROUNDING * (bounds[1] - bounds[0])
    if not (bounds[0] - slack <= x_min and x_max <= bounds[1] + slack):  # also catches NaN
        raise DataError(
            "x",
            expected=f"finite values in [{bounds[0]:g}, {bounds[1]:g}]",
            received=f"values from {x_min:g} to {x_max:g}",
            fix="Scale the inputs, or set SPATConfig.bounds to their range; "
            "normalisation belongs in the model's first layer.",
        )


def check_labels(y_min: int, y_max: int, classes: int) -> None:
    """Raise DataError unless all labels are in 0..classes - 1."""
    if y_min < 0 or y_max >= classes:
        raise DataError(
            "y",
            expected=f"labels from 0 to {classes - 1}",
            received=f"labels from {y_min} to {y_max}",
            fix="Number the classes from 0; the model's outputs set how many there are.",
        )


def check_logits(shape: Sequence[int | None], batch: int | None) -> None:
    """Raise DataError unless the model's output is (N, K) with K >= 2."""
    wrong_batch = batch is not None and len(shape) > 0 and shape[0] not in (None, batch)
    if len(shape) != 2 or wrong_batch or shape[1] is None or shape[1] < 2:
        raise DataError(
            "model",
            expected=f"logits of shape ({batch or 'N'}, K) with K >= 2",
            received=f"output of shape {tuple(shape)}",
            fix="Return one logit per class and example; for two classes return two logits.",
        )


def check_same_shape(name: str, shape: Sequence[int], expected: Sequence[int]) -> None:
    """Raise DataError unless ``shape`` broadcasts to ``expected`` without growing it."""
    pairs = zip(shape, expected, strict=False)
    if len(shape) != len(expected) or any(a not in (1, b) for a, b in pairs):
        raise DataError(
            name,
            expected=f"a shape that broadcasts to {tuple(expected)}",
            received=f"shape {tuple(shape)}",
            fix="Give it the shape of x (a mask: with one channel).",
        )


def check_mask_classes(mask_classes: int | None, classes: int) -> None:
    """Raise DataError if the mask is to compare more classes than the model has."""
    if mask_classes is not None and mask_classes > classes:
        raise DataError(
            "mask_classes",
            expected=f"at most the model's {classes} classes",
            received=mask_classes,
            fix="Lower it, or use None for all.",
        )
