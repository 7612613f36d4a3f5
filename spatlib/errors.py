"""The errors that spatlib raises: each says what was expected, what came and how to fix it."""

from __future__ import annotations

from typing import Any


class SpatlibError(Exception):
    """Base of every error below.

    Args:
        subject: The argument or object at fault, as the user knows it (``"eps"``).
        expected: What would have been accepted.
        received: What came instead.
        fix: What to do about it.
    """

    def __init__(self, subject: str, *, expected: str, received: Any, fix: str) -> None:
        self.subject, self.expected, self.received, self.fix = subject, expected, received, fix
        super().__init__(f"{subject}: expected {expected}, got {received}. {fix}")


class ConfigError(SpatlibError, ValueError):
    """A setting, or a combination of settings, that has no meaning."""


class DataError(SpatlibError, ValueError):
    """Inputs, labels or model outputs with the wrong shape, dtype or values."""


class BackendError(SpatlibError, ImportError):
    """A backend that is unknown, not installed, or set up for something else."""


class NonFiniteError(DataError):
    """The training loss or a gradient stopped being finite.

    Attributes:
        result: The :class:`spatlib.Result` so far, not evaluated; ``result.model`` holds the last
            good weights.
        history: Its epochs.
    """

    result: Any = None
    history: list[dict[str, float]] = []  # noqa: RUF012  # replaced, never changed

    @classmethod
    def at(cls, step: int, history: list[dict[str, float]]) -> NonFiniteError:
        """The error of a training whose ``step`` was left out."""
        error = cls(
            "loss",
            expected="a finite loss and gradient",
            received=f"NaN or infinity at step {step}",
            fix="The model holds the weights from before that step. "
            "Lower lr, or look at the data of that step.",
        )
        error.history = history
        return error
