"""The errors, and the checks of settings and batches that raise them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from numbers import Integral, Real
from typing import Any

LONGEST = 80  # characters of a value that an error quotes


class SpatlibError(Exception):
    """Base of every error below."""


class ConfigError(SpatlibError, ValueError):
    """A setting, or a combination of settings, that has no meaning."""


class DataError(SpatlibError, ValueError):
    """Inputs, labels or model outputs with the wrong shape, dtype or values."""


class BackendError(SpatlibError, ImportError):
    """A backend that is unknown, not installed, or set up for something else."""


class NonFiniteError(DataError):
    """The training loss or a gradient stopped being finite.

    Attributes:
        result: The :class:`spatlib.Result` so far, not evaluated; ``result.model`` holds the
            weights of the last whole epoch.
        history: Its epochs.
    """

    result: Any = None
    history: list[dict[str, float]] = []  # noqa: RUF012  # replaced, never changed

    @classmethod
    def at(cls, step: int, history: list[dict[str, float]]) -> NonFiniteError:
        """The error of a training that went wrong at ``step``."""
        error = cls(
            f"the loss or a weight is not finite at step {step}: the model holds the weights "
            "of the last whole epoch; lower lr, or look at the data of that step"
        )
        error.history = history
        return error


def require(condition: bool, name: str, what: str, value: Any) -> None:
    """Raise ConfigError, "``name`` must ``what``, got ``value``", unless the condition holds."""
    if not condition:
        raise ConfigError(f"{name} must {what}, got {shown(value)}")


def shown(value: Any) -> str:
    """The value as code, on one line and short enough for a sentence."""
    text = " ".join(repr(value).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def require_number(name: str, value: Any) -> float:
    """``value`` as a float; ConfigError unless it is a finite real number (no bool)."""
    valid = isinstance(value, Real) and not isinstance(value, bool)
    try:
        valid = valid and math.isfinite(value)
    except OverflowError:  # an integer beyond the floats
        valid = False
    require(valid, name, "be a finite number", value)
    return float(value)


def require_integer(name: str, value: Any, least: int) -> int:
    """``value`` as an int; ConfigError unless it is an integer of at least ``least``."""
    valid = isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least
    require(valid, name, f"be an integer of at least {least}", value)
    return int(value)


def require_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """ConfigError unless ``value`` is one of ``choices``."""
    valid = isinstance(value, str) and value in choices
    require(valid, name, f"be one of {', '.join(map(repr, choices))}", value)


def require_bool(name: str, value: Any) -> None:
    """ConfigError unless ``value`` is True or False."""
    require(isinstance(value, bool), name, "be True or False", value)


def require_type(name: str, value: Any, kind: type) -> None:
    """ConfigError unless ``value`` is a ``kind``."""
    if not isinstance(value, kind):
        raise ConfigError(f"{name} must be a spatlib.{kind.__name__}, got {type(value).__name__}")


def integers(settings: Any, least: dict[str, int], optional: dict[str, int] | None = None) -> None:
    """Make fields plain ints (NumPy's have no place in JSON), each of at least so much.

    Those of ``optional`` may be None.
    """
    for name, lowest in (least | (optional or {})).items():
        value = getattr(settings, name)
        if value is not None or name in least:
            object.__setattr__(settings, name, require_integer(name, value, lowest))


def numbers(settings: Any, names: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Make fields plain floats; those of ``optional`` may be None."""
    for name in (*names, *optional):
        value = getattr(settings, name)
        if value is not None or name in names:
            object.__setattr__(settings, name, require_number(name, value))


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
