"""Checks of single arguments: a ConfigError that says what would have been accepted."""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real
from typing import Any

from .errors import ConfigError


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Raise ConfigError unless ``value`` is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(
            name,
            expected=f"one of {', '.join(map(repr, choices))}",
            received=repr(value),
            fix="Choose one of these names.",
        )


def check_flag(name: str, value: Any) -> None:
    """Raise ConfigError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise ConfigError(name, expected="True or False", received=repr(value), fix="Pass a bool.")


def check_integer(name: str, value: Any, least: int) -> None:
    """Raise ConfigError unless ``value`` is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ConfigError(
            name,
            expected=f"an integer >= {least}",
            received=repr(value),
            fix="Pass a whole number in that range.",
        )


def check_number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> None:
    """Raise ConfigError unless ``value`` is a finite real number within the given limits."""
    limits = ((">", above), (">=", least), ("<", below), ("<=", most))
    expected = " and ".join(f"{sign} {limit:g}" for sign, limit in limits if limit is not None)
    valid = isinstance(value, Real) and not isinstance(value, bool)
    try:
        valid = valid and math.isfinite(value)
    except OverflowError:  # an integer beyond the floats
        valid = False
    if not valid or not (
        (above is None or value > above)
        and (least is None or value >= least)
        and (below is None or value < below)
        and (most is None or value <= most)
    ):
        raise ConfigError(
            name,
            expected=f"a finite number {expected}".rstrip(),
            received=repr(value),
            fix="Pass a number in that range.",
        )


def check_type(name: str, value: Any, kind: type) -> None:
    """Raise ConfigError unless ``value`` is None or settings of this kind."""
    if value is not None and not isinstance(value, kind):
        raise ConfigError(
            name,
            expected=f"a {kind.__name__}",
            received=type(value).__name__,
            fix=f"Pass spatlib.{kind.__name__}(...).",
        )


def make_plain(settings: object, name: str, kind: type) -> None:
    """Make a checked number one of Python's own."""
    value = getattr(settings, name)
    if value is not None:
        object.__setattr__(settings, name, kind(value))
