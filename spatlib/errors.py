"""The errors, and the checks of settings and batches that raise them."""

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

AnyPath = str | os.PathLike[str]
RULED_OUT = -1e9  # what a logit of -inf, a class ruled out, counts as
SCALE_IT = "scale it, or set bounds to its range (normalisation is the model's first layer)"


class SpatlibError(Exception):
    """Base of every error below; each is one sentence: what was expected, what came, what to do."""


class ConfigError(SpatlibError, ValueError):
    """A setting, or a combination of settings, that has no meaning."""


class DataError(SpatlibError, ValueError):
    """Inputs, labels or model outputs with the wrong shape, dtype or values."""


class BackendError(SpatlibError, ImportError):
    """A backend that is unknown, not installed, or set up for something else."""


class NonFiniteError(DataError):
    """The training loss or a gradient stopped being finite.

    ``result`` is the :class:`spatlib.Result` so far, of the last whole epoch and not evaluated.
    """

    result: Any = None

    def __init__(self, step: int, history: list[dict[str, float]]) -> None:
        what = f"the loss or a weight is not finite at step {step}: lower lr, or look at its data"
        super().__init__(f"{what} (the model has the weights of the last whole epoch)")
        self.history = history


def require(condition: bool, name: str, what: str, value: Any) -> None:
    """Raise ConfigError, "``name`` must ``what``, got ``value``", unless the condition holds."""
    if not condition:
        raise ConfigError(f"{name} must {what}, got {shown(value)}")


def shown(value: Any) -> str:
    """The value as code, on one line and short enough for a sentence."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:80]}…"


def checked(name: str, value: Any, rule: Any) -> Any:
    """The value as Python's own (NumPy's have no place in JSON); ConfigError if it breaks the rule.

    A rule is bool, a tuple of choices, the least integer, or an interval such as ``"[0, 1)"``.
    """
    real = isinstance(value, Real) and not isinstance(value, bool)
    try:
        number = float(value) if real else math.nan
    except OverflowError:  # an integer beyond the floats
        number = math.nan
    kind: Any
    if rule is bool:
        kind, valid, what = bool, isinstance(value, bool), "be True or False"
    elif isinstance(rule, tuple):
        kind, valid = str, isinstance(value, str) and value in rule
        what = f"be one of {', '.join(map(repr, rule))}"
    elif isinstance(rule, int):
        whole = real and isinstance(value, Integral)
        kind, valid = int, whole and value >= rule
        what = f"be an integer of at least {rule}"
    else:
        low, high = map(float, rule[1:-1].split(","))
        ends = {low: rule[0] == "[", high: rule[-1] == "]"}  # never of infinity
        kind, valid = float, low <= number <= high and ends.get(number, True)
        what = f"be a number in {rule}"
    require(valid, name, what, value)
    return kind(value)


def settle(settings: Any, **rules: Any) -> None:
    """Make fields of frozen settings what :func:`checked` returns; None may stay where default."""
    for name, rule in rules.items():
        value = getattr(settings, name)
        if value is not None or getattr(type(settings), name, rule) is not None:
            object.__setattr__(settings, name, checked(name, value, rule))


def require_type(name: str, value: Any, kind: type) -> None:
    """ConfigError unless ``value`` is a ``kind`` of spatlib."""
    if not isinstance(value, kind):
        raise ConfigError(f"{name} must be a spatlib.{kind.__name__}, got {type(value).__name__}")


def expect(condition: bool, message: str) -> None:
    """Raise DataError unless the condition holds."""
    if not condition:
        raise DataError(message)


def warn_of_holes(share: float, where: str = "") -> None:
    """RuntimeWarning unless this share of the steps of attacks, gradients not finite, is 0."""
    if share:
        what = f"the gradient in x was NaN or infinite in {share:.2%} of the attack's steps{where}"
        how = "look for a root, norm or logarithm at 0, or a division by 0, in the model"
        warnings.warn(f"{what}, where NaN counted as 0: {how}", RuntimeWarning, stacklevel=2)


@contextmanager
def reading(path: AnyPath, advice: str = "put the right file there") -> Iterator[None]:
    """Any error inside is a DataError that names the file; what a DataError says is said of it."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{path} {error}: {advice}") from error
    except Exception as error:  # libraries raise almost anything, and some write long texts
        what = str(getattr(error, "strerror", None) or error)  # an OSError would repeat the path
        cause = f"{type(error).__name__}: {what.partition('. ')[0]:.90}"
        raise DataError(f"{path} cannot be read ({cause}): {advice}") from error


def check_batch(x: Any, y: Any, name: str = "x") -> None:
    """DataError unless x is a batch of floats (N, ...) and y integer labels (N,), as tensors."""
    x_dtype, y_dtype = (str(getattr(t.dtype, "name", t.dtype)) for t in (x, y))
    shape, labels = tuple(x.shape), tuple(y.shape)
    floats, one_each = "float" in x_dtype, same(labels, shape[:1])
    expect(floats, f"{name} must hold floats, got {x_dtype}: scale it to bounds, as in x / 255")
    expect(len(shape) > 1, f"x must be a batch (N, ...), got shape {shape}: add the batch axis")
    expect(0 not in shape, f"x must hold at least one example, got shape {shape}: skip it")
    expect("int" in y_dtype, f"y must hold class indices, got {y_dtype}: cast it to integers")
    expect(one_each, f"y must hold one class index per example, {shape[:1]}, got shape {labels}")


def same(shape: Sequence[int | None], other: Sequence[int | None]) -> bool:
    """Whether two shapes are equal; a length that is not known yet, None, fits all others."""
    pairs = zip(shape, other, strict=False)
    return len(shape) == len(other) and all(a == b or None in (a, b) for a, b in pairs)


def check_images(shape: Sequence[int | None]) -> None:
    """ConfigError unless the batch that is to be augmented holds images."""
    what = "be 'none' for inputs that are no images of four axes (grey ones have them too)"
    require(len(shape) == 4, "augment", what, tuple(shape))


def check_range(
    extremes: Sequence[float], bounds: tuple[float, float], name: str = "x", fix: str = SCALE_IT
) -> None:
    """DataError unless the lowest and highest value are finite and in bounds, up to rounding."""
    (low, high), (lower, upper) = extremes, bounds
    slack = 1e-6 * (upper - lower)
    inside = lower - slack <= low and high <= upper + slack  # never with NaN
    what = f"{name} must hold finite values in [{lower:g}, {upper:g}], got {low:g} to {high:g}"
    expect(inside and -math.inf < low and high < math.inf, f"{what}: {fix}")


def check_labels(extremes: Sequence[float], classes: int) -> None:
    """DataError unless the lowest and highest label are in 0..classes - 1."""
    (first, last), most = map(int, extremes), f"{classes - 1} ({classes} outputs of the model)"
    known = first >= 0 and last < classes
    expect(known, f"y must hold labels from 0 to {most}, got {first} to {last}: count from 0")


def check_logits(logits: Any, is_tensor: bool, batch: int | None) -> None:
    """DataError unless the model's output is a tensor (N, K) with K >= 2."""
    expect(is_tensor, f"model must return a tensor of logits, got {type(logits).__name__}: wrap it")
    shape = logits.shape
    if not (len(shape) == 2 and same(shape[:1], (batch,)) and (shape[1] or 0) > 1):
        # Only here: a text made of a length would have a compiler take it for a constant.
        what = f"logits of shape ({batch or 'N'}, K) with K >= 2, got {tuple(shape)}"
        how = "return one per class and example, two for two classes"
        raise DataError(f"model must return {what}: {how}")


def check_same_shape(name: str, value: Any, x: Any) -> None:
    """DataError unless the tensor broadcasts to the shape of x without growing it."""
    shape, expected = tuple(value.shape), tuple(x.shape)
    known = [b if a == 1 else a for a, b in zip(shape, expected, strict=False)]
    fits = len(shape) == len(expected) and same(known, expected)
    expect(fits, f"{name} must have the shape of x, {expected}, or broadcast to it, got {shape}")
