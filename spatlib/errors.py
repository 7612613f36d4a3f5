"""The errors that spatlib raises: one sentence says what was expected, what came, what to do."""

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
