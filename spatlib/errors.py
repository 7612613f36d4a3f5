"""The errors, and the checks of settings and batches that raise them."""

import math
import os
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from numbers import Integral, Real
from typing import Any, Literal, get_args, get_origin

AnyPath = str | os.PathLike[str]
ROUNDING = 1e-6  # share of the input range by which inputs may leave it
TINY = 2.0**-126  # smaller numbers of float32 are 0 on many devices
RULED_OUT = -1e9  # what a logit of -inf, a class ruled out, counts as
LEAVE = "leave such examples out"
SCALE_IT = "scale it, or set bounds to its range (normalisation is the model's first layer)"


class SpatlibError(Exception):
    """Base of every error below; each is one sentence: what was expected, what came, what to do."""


class ConfigError(SpatlibError, ValueError):
    """A setting, or a combination of settings, that has no meaning."""


class DataError(SpatlibError, ValueError):
    """Inputs, labels or model outputs with the wrong shape, dtype or values."""


class BackendError(SpatlibError, ImportError):
    """A backend that is unknown, not installed, or set up for something else."""


class PeerError(BackendError):
    """Another process of the training has raised an error, and says why."""


class NonFiniteError(DataError):
    """The training loss or a gradient stopped being finite."""

    result: Any = None  # the spatlib.Result so far, of the last whole epoch and not evaluated

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


def differences(asked: Any, saved: Any, free: Any = (), above: str = "") -> Iterator[str]:
    """Each setting that is not the same, with both values; but for those that are free."""
    for key in saved | asked:
        now, before, name = asked.get(key), saved.get(key), above + key
        if isinstance(now, dict) and isinstance(before, dict):
            yield from differences(now, before, free, f"{name}.")
        elif now != before and name not in free:  # None on top: it is the user's own
            new, old = (shown(v) if v is not None or above else "your own" for v in (now, before))
            yield f"{name} = {new} instead of {old}"


def checked(name: str, value: Any, rule: Any) -> Any:
    """The value as Python's own (NumPy's have no place in JSON); ConfigError if it breaks the rule.

    A rule is bool, a tuple of choices, the least integer, or an interval such as ``"[0, 1)"``.
    """
    real, number, held = isinstance(value, Real) and not isinstance(value, bool), math.nan, math.nan
    if rule is bool:
        require(isinstance(value, bool), name, "be True or False", value)
        return value
    if isinstance(rule, tuple):
        known = isinstance(value, str) and value in rule
        require(known, name, f"be one of {', '.join(map(repr, rule))}", value)
        return str(value)
    if isinstance(rule, int):
        whole = real and isinstance(value, Integral) and rule <= int(value) < 2**63
        require(whole, name, f"be an integer in [{rule}, 2**63)", value)
        return int(value)
    with suppress(OverflowError):  # of a number beyond the floats, or beyond those of 32 bits
        number = float(value) if real else number
        (held,) = struct.unpack("f", struct.pack("f", number))
    low, high = map(float, rule[1:-1].split(","))
    ends = {low: rule[0] == "[", high: rule[-1] == "]"}  # never of infinity
    fits = [low <= v <= high and ends.get(v, True) for v in (number, held)]
    fits[1] &= number == 0 or abs(held) >= TINY
    require(all(fits), name, f"be a number in {rule}{' that float32 holds' * fits[0]}", value)
    return number


def settle(settings: Any, **rules: Any) -> None:
    """Make fields of frozen settings what :func:`checked` returns; None may stay where default.

    Booleans and choices (Literal) need no rule.
    """
    for each in fields(settings):
        if each.type is bool or get_origin(each.type) is Literal:
            rules[each.name] = get_args(each.type) or bool
    for name, rule in rules.items():
        value = getattr(settings, name)
        if value is not None or getattr(type(settings), name, rule) is not None:
            object.__setattr__(settings, name, checked(name, value, rule))


def expect(condition: bool, message: str) -> None:
    """Raise DataError unless the condition holds."""
    if not condition:
        raise DataError(message)


def warn_of_holes(share: float, of: str = "the attack's steps") -> None:
    """RuntimeWarning unless this share of them, gradients (or logits) not finite, is 0."""
    if share:
        what = f"logits or gradients are not finite at {share:.2%} of {of}, where attacks are weak"
        how = "look for a root, norm or logarithm at 0, or a division by 0, in the model"
        warnings.warn(f"{what}: {how}", RuntimeWarning, stacklevel=2)


@contextmanager
def reading(path: AnyPath, advice: str = "put the right file there") -> Iterator[None]:
    """Any error inside is a DataError that names the file; what a DataError says is said of it."""
    try:
        yield
    except Exception as error:  # libraries raise almost anything, and some write long texts
        what = error if isinstance(error, DataError) else f"cannot be read ({cause(error)})"
        raise DataError(f"{path} {what}: {advice}") from error


@contextmanager
def asking(name: str, what: str) -> Iterator[None]:
    """Any error of a user's function inside is a ConfigError, "``name`` must ``what``, got" it."""
    try:
        yield
    except SpatlibError:
        raise
    except Exception as error:  # a user's own function may raise anything
        file = f" ({found})" if (found := getattr(error, "filename", None)) else ""
        raise ConfigError(f"{name} must {what}, got {cause(error)}{file}") from error


def cause(error: Exception) -> str:
    """The kind and the beginning of another library's error, on one line."""
    what = str(getattr(error, "strerror", None) or error)  # an OSError would repeat the path
    return f"{type(error).__name__}: {' '.join(what.partition('. ')[0].split()):.90}"


def only(x: Any, name: str = "x") -> Any:
    """x itself, or the one array in a dict, tuple or list; DataError for several."""
    parts = list(x.values()) if isinstance(x, Mapping) else x
    if not (isinstance(parts, list | tuple) and parts and hasattr(parts[0], "shape")):
        return x
    expect(len(parts) == 1, f"{name} must be one array, got {len(parts)}: wrap the model")
    return parts[0]


def check_batch(x: Any, y: Any, name: str = "x") -> None:
    """DataError unless x is a batch of floats (N, ...) and y (N,) integers or (N, K) numbers."""
    x_dtype, y_dtype = (str(getattr(t.dtype, "name", t.dtype)) for t in (x, y))
    shape, labels = tuple(x.shape), tuple(y.shape)
    expect("float" in x_dtype, f"{name} must hold floats, got {x_dtype}: scale it, as in x / 255")
    expect(len(shape) > 1, f"x must be a batch (N, ...), got shape {shape}: add the batch axis")
    expect(0 not in shape, f"x must hold at least one example, got shape {shape}: skip it")
    known = "int" in y_dtype or ("float" in y_dtype and len(labels) == 2)
    expect(known, f"y must hold class indices, got {y_dtype}: cast it to integers")
    what = f"y must hold one class index per example, {shape[:1]}, or one row of probabilities"
    fits = len(labels) in (1, 2) and same(labels[:1], shape[:1])
    expect(fits, f"{what}, got shape {labels}: pass those of x, in batches")


def check_weights(weights: Any, x: Any, values: bool = False) -> None:
    """DataError unless the weights are floats (N,); with ``values`` finite and not negative."""
    kind, shape = str(getattr(weights.dtype, "name", weights.dtype)), tuple(weights.shape)
    what = f"weights, the third part of data, must be floats of shape {tuple(x.shape[:1])}"
    fits = "float" in kind and same(shape, x.shape[:1])
    expect(fits, f"{what}, got {kind} of shape {shape}: leave out what are none")
    if values:
        check_range((weights.min(), weights.max()), (0.0, math.inf), "weights", LEAVE)


def same(shape: Sequence[int | None], other: Sequence[int | None]) -> bool:
    """Whether two shapes are equal; a length that is not known yet, None, fits all others."""
    pairs = zip(shape, other, strict=False)
    return len(shape) == len(other) and all(a == b or None in (a, b) for a, b in pairs)


def check_images(shape: Sequence[int | None]) -> None:
    """ConfigError unless the batch that is to be augmented holds images."""
    require(len(shape) == 4, "augment", "be 'none' for inputs without four axes", tuple(shape))


def check_range(
    extremes: Sequence[float], bounds: tuple[float, float], name: str = "x", fix: str = SCALE_IT
) -> None:
    """DataError unless the lowest and highest value are finite and in bounds, up to rounding."""
    (low, high), (lower, upper) = map(float, extremes), bounds
    slack = ROUNDING * (upper - lower) if upper < math.inf else 0.0
    inside = lower - slack <= low and high <= upper + slack  # never with NaN
    what = f"{name} must hold finite values in [{lower:g}, {upper:g}], got {low:g} to {high:g}"
    expect(inside and -math.inf < low and high < math.inf, f"{what}: {fix}")


def logits_in(outputs: Any, is_tensor: Callable[[Any], bool], batch: int | None) -> Any:
    """Of a model's outputs the logits by name, as transformers return them, else the only one.

    DataError unless they are a tensor (N, K) with K >= 2.
    """
    found = outputs.get("logits") if isinstance(outputs, Mapping) else None
    found = getattr(outputs, "logits", outputs) if found is None else found
    logits = found[0] if isinstance(found, tuple | list) and len(found) == 1 else found
    what, kind = "a tensor, or an object or dict with one as logits", type(logits).__name__
    expect(is_tensor(logits), f"model must return {what}, got {kind}: wrap it in a model that does")
    shape = logits.shape
    if not (len(shape) == 2 and same(shape[:1], (batch,)) and (shape[1] or 0) > 1):
        # Only here: a text made of a length would have a compiler take it for a constant.
        what = f"logits of shape ({batch or 'N'}, K) with K >= 2, got {tuple(shape)}"
        raise DataError(f"model must return {what}: [-z / 2, z / 2] for one logit z")
    return logits


def classes_of(outputs: Any, check: bool) -> int:
    """The number of classes of outputs (N, K); with ``check`` DataError for probabilities."""
    low, high, sums = outputs.min(), outputs.max(), outputs.sum(axis=1)
    # Rows of sum 1 (softmax), or some above 1/2 (sigmoid; a new network's few logits are smaller).
    found = low >= 0 and high <= 1 and (low < high > 0.5 or abs(sums - 1).max() < 0.01)
    how = "remove its softmax or sigmoid, or state check_logits=False if they are logits"
    expect(not (check and found), f"model must return logits, got probabilities in [0, 1]: {how}")
    return int(outputs.shape[1])
