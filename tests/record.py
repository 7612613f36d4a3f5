"""What a run saw, for the verification table: examples, dtypes and the largest deviation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import wraps
from typing import Any

import numpy as np


@dataclass
class Seen:
    """What one test saw; ``deviation`` is None where all its comparisons were exact."""

    examples: int = 0
    dtypes: set[str] = field(default_factory=set)
    deviation: float | None = None
    ulps: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"dtypes": sorted(self.dtypes)}


_seen = Seen()


def begin() -> Seen:
    """Start the record of the next test."""
    global _seen
    _seen = Seen()
    return _seen


def counted(test: Callable[..., Any]) -> Callable[..., Any]:
    """The body of a Hypothesis test, counting the examples that it finished with."""

    @wraps(test)
    def body(*args: Any, **kwargs: Any) -> Any:
        result = test(*args, **kwargs)
        _seen.examples += 1
        return result

    return body


def saw_dtypes(values: Iterable[Any]) -> None:
    """Note the floating dtypes among the values."""
    _seen.dtypes |= {
        v.dtype.name for v in values if isinstance(v, np.ndarray) and v.dtype.kind == "f"
    }


def saw(*names: str) -> None:
    """Note the dtypes of what never becomes a NumPy array, by their names."""
    _seen.dtypes |= set(names)


def at_most(actual: Any, limit: Any, slack: Any = 0.0, *, like: Any = None, scale: Any = 0) -> None:
    """Fail unless actual <= limit + slack everywhere; note the largest excess over limit."""
    like = actual if like is None else like
    agree(np.maximum(actual, limit), limit, atol=slack, like=like, scale=scale)


def agree(
    actual: Any,
    expected: Any,
    *,
    rtol: Any = 0.0,
    atol: Any = 0.0,
    like: Any = None,
    scale: Any = 0,
) -> None:
    """Fail unless |actual - expected| <= atol + rtol |expected| everywhere; note the largest."""
    wide, exact, error = note(actual, expected, like, scale)
    limit = np.broadcast_to(
        atol + rtol * np.where(np.isfinite(exact), np.abs(exact), 0), exact.shape
    )
    excess = ~(error <= limit)  # NaN exceeds
    if excess.any():
        worst = np.unravel_index(np.argmax(np.where(excess, error - limit, -np.inf)), error.shape)
        raise AssertionError(
            f"{excess.sum()} of {error.size} entries differ; at {tuple(map(int, worst))}: "
            f"{wide[worst]!r}, expected {exact[worst]!r} within {limit[worst]:.3g}"
        )


def note(
    actual: Any, expected: Any, like: Any = None, scale: Any = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Note the largest |actual - expected|; return both in float64, and the difference.

    An ulp is one of the largest expected entry, or of ``scale`` where the computation passes
    through larger numbers, in the dtype of ``like`` (default ``actual``).
    """
    typed = np.asarray(actual if like is None else like)
    saw_dtypes((typed,))
    wide, exact = np.broadcast_arrays(np.asarray(actual, float), np.asarray(expected, float))
    same = wide == exact  # infinities too
    error = np.abs(np.where(same, 0.0, wide) - np.where(same, 0.0, exact))
    top = np.abs(exact[np.isfinite(exact)]).max(initial=np.max(scale)) or 1.0
    dtype = typed.dtype if typed.dtype.kind == "f" else np.dtype(np.float64)
    largest = float(error.max(initial=0.0))
    _seen.deviation = max(_seen.deviation or 0.0, largest)
    _seen.ulps = max(_seen.ulps, largest / float(np.spacing(dtype.type(top))))
    return wide, exact, error
