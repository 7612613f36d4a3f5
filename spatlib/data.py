"""Data for training: named sets, arrays, or anything that yields batches."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from .errors import DataError

DIGITS_MAX = 16  # the scans are stored as counts of dark cells out of 4 x 4


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Training data, and test data if there is any; each (x, y) or an iterable of batches."""

    train: Any
    test: Any = None


def load(data: Any, *, channels_first: bool) -> Dataset:
    """Make a data set of what the user gave.

    Args:
        data: A name (``"digits"``), ``(x, y)``, ``((x, y), (x_test, y_test))`` of arrays or
            tensors, an iterable of batches (x, y) that can be gone through again and again, or a
            pair of such iterables, for training and testing.
        channels_first: Layout of named data sets, (N, C, H, W) or (N, H, W, C).

    Raises:
        DataError: An unknown name, no data, or x and y of different length.
    """
    if isinstance(data, str):
        if data != "digits":
            raise DataError("data", expected="the name 'digits', arrays or batches",
                            received=repr(data), fix="Pass your data as (x, y).")  # fmt: skip
        return _digits(channels_first)
    if isinstance(data, tuple):  # a list is a list of batches, however long
        if len(data) != 2:
            raise DataError("data", expected="(x, y) or ((x, y), (x_test, y_test))",
                            received=f"a tuple of {len(data)}",
                            fix="Pass a pair, or batches as a list.")  # fmt: skip
        if all(isinstance(part, tuple | list) and len(part) == 2 for part in data):
            train, test = (_checked_pair(*part) for part in data)
            return Dataset(train=train, test=test)
        if not any(hasattr(part, "shape") or isinstance(part, list) for part in data):
            return Dataset(train=_checked_batches(data[0]), test=_checked_batches(data[1]))
        return Dataset(train=_checked_pair(*data))
    return Dataset(train=_checked_batches(data))


def is_pair(data: Any) -> bool:
    """Whether data is (x, y) in arrays, rather than an iterable of batches."""
    return isinstance(data, tuple)


def length(batches: Any) -> int | None:
    """The number of batches, where the data knows it."""
    try:
        return len(batches)
    except TypeError:  # no __len__, or one that says so (an IterableDataset's loader)
        return None


def _checked_batches(data: Any) -> Any:
    if not hasattr(data, "__iter__"):
        raise DataError("data", expected="a name, (x, y), ((x, y), (x_test, y_test)) or an "
                        "iterable of batches", received=type(data).__name__,
                        fix="Wrap it in one of these.")  # fmt: skip
    if hasattr(data, "__next__"):
        raise DataError("data", expected="batches that can be gone through once per epoch",
                        received="an iterator that is used up after one",
                        fix="Pass the list or the loader itself, not its iterator.")  # fmt: skip
    return data


def _checked_pair(x: Any, y: Any) -> tuple[Any, Any]:
    for name, part in (("x", x), ("y", y)):
        if not hasattr(part, "shape"):
            raise DataError(name, expected="an array or tensor", received=type(part).__name__,
                            fix="Convert it, e.g. with numpy.asarray.")  # fmt: skip
    if len(x.shape) == 0 or len(x) == 0:
        raise DataError("data", expected="at least one example", received="none",
                        fix="Check how the data was selected.")  # fmt: skip
    if len(y.shape) == 0 or len(x) != len(y):
        raise DataError("data", expected="as many labels as inputs",
                        received=f"{len(x)} inputs, labels of shape {tuple(y.shape)}",
                        fix="Select inputs and labels together.")  # fmt: skip
    return x, y


def _digits(channels_first: bool) -> Dataset:
    """1,797 grey 8 x 8 scans of handwritten digits, in [0, 1]; the last 450 are for testing.

    E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, 1998 (CC BY 4.0), the test part, in an order shuffled once.
    """
    with (
        resources.files(__package__).joinpath("digits.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as arrays,
    ):
        x, y = arrays["x"], arrays["y"].astype(np.int64)
    scaled = (x / DIGITS_MAX).astype(np.float32)
    images = scaled[:, None] if channels_first else scaled[..., None]
    return Dataset(train=(images[:-450], y[:-450]), test=(images[-450:], y[-450:]))
