"""Labels: class indices (N,), or rows (N, K) of probabilities, one-hot or soft (MART: one-hot)."""

import math
from collections.abc import Sequence
from typing import Any

from ..errors import expect
from .ops import Array, Ops, divisor

SUM_ROUNDING = 4e-3  # by which a row may miss a sum of 1: bfloat16 rounds by as much


def limits(y: Array, classes: int) -> tuple[float, float]:
    """What :func:`mass` has to be in; DataError for rows without a column per class."""
    if len(y.shape) == 1:
        return 0, classes - 1
    what = f"y must hold class indices (N,) or rows (N, {classes}), one column per output"
    expect(y.shape[1] == classes, f"{what} of the model, got shape {tuple(y.shape)}: pass such")
    return 1 - SUM_ROUNDING, 1 + SUM_ROUNDING


def mass(ops: Ops, y: Array, loss: str) -> Array:
    """What :func:`limits` bound (N,): class indices as they are; the sum of a row (N, K).

    For ``mart`` it is divided by the number of positive entries; a negative entry is in its place.
    """
    if len(y.shape) == 1:
        return y
    # Not -max(-y): of y in float64, as Keras feeds it, TensorFlow's optimizer makes that of x.
    lowest, total = -ops.max(ops.abs(y) - y, axis=1) / 2, ops.sum(y, axis=1)
    if loss == "mart":
        total = total / divisor(ops, ops.sum(ops.cast(y > 0, like=y), axis=1))
    return ops.where(lowest < 0, lowest, total)


def check(extremes: Sequence[float], limits: tuple[float, float]) -> None:
    """DataError unless the extremes of :func:`mass` are in its :func:`limits`."""
    (first, last), (low, high) = map(float, extremes), map(float, limits)
    what, how = f"labels from 0 to {high:g} ({high + 1:g} outputs of the model)", "count from 0"
    if low:
        what = "rows that sum to 1, none with a negative value, one-hot for loss='mart'"
        how = "divide each by its sum, for 'mart' pass class indices"
    inside = low <= first and last <= high  # never with NaN
    expect(inside, f"y must hold {what}, got {first:g} to {last:g}: {how}")


def check_values(ops: Any, y: Array, classes: int, loss: str) -> None:
    """DataError unless all labels are some for this loss; reads them on the host."""
    check(ops.extremes(mass(ops, y, loss)), limits(y, classes))


def rows(ops: Any, y: Array, logits: Array) -> Array:
    """Labels (N, K) in the dtype of the logits; zeros where an index names no class."""
    if len(y.shape) == 1:
        return ops.one_hot(y, logits)
    limits(y, int(logits.shape[1]))
    return ops.cast(y, like=logits)


def sound(ops: Ops, label: Array, loss: str) -> Array:
    """The labels (N, K) with NaN, so that the loss is NaN, in rows that are none for this loss."""
    off = ops.abs(mass(ops, label, loss) - 1)
    return ops.where(off[:, None] <= SUM_ROUNDING, label, math.nan)


def hard(ops: Any, y: Array) -> Array:
    """The classes (N,): of rows the largest entry's."""
    return y if len(y.shape) == 1 else ops.argmax(y)
