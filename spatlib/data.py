"""Data for training: named sets, arrays, or anything that yields batches."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from . import download, formats
from .arguments import check_integer
from .cifar import cifar
from .errors import ConfigError, DataError

NAMES = ("digits", "mnist", "cifar10", "cifar100")
DIGITS_MAX = 16  # the scans are stored as counts of dark cells out of 4 x 4


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Training data, and test and validation data if there are any.

    Each is (x, y) or an iterable of batches; x is in ``SPATConfig.bounds``, or uint8: 0..255,
    which the engines scale to the bounds.
    """

    train: Any
    test: Any = None
    validation: Any = None

    @property
    def measured(self) -> Any:
        """What accuracies are reported of: the test data, else the training data."""
        return self.train if self.test is None else self.test


def load(
    data: Any,
    *,
    channels_first: bool,
    data_dir: str | os.PathLike[str] | None = None,
    validation: int = 0,
    seed: int = 0,
    examples: int | None = None,
    test_examples: int | None = None,
) -> Dataset:
    """Make a data set of what the user gave.

    Args:
        data: A name (``"digits"``, ``"mnist"``, ``"cifar10"``, ``"cifar100"`` with its fine
            labels), the path of a ``.npz`` file (:func:`spatlib.formats.npz`) or of a folder of
            images (:func:`spatlib.formats.images`), ``(x, y)``, ``((x, y), (x_test, y_test))``
            of arrays or tensors, an iterable of batches (x, y) that can be gone through again and
            again, or a pair of such iterables, for training and testing.
        channels_first: Layout of images by name or path, (N, C, H, W) or (N, H, W, C). All but
            the digits are uint8, 0..255.
        data_dir: Where the official files of named data sets are, as downloaded or unpacked; what
            is not there is downloaded to it. Default: the user's cache directory.
        validation: Training examples to hold out, for data in arrays.
        seed: Chooses them, whatever else is drawn.
        examples, test_examples: Take the first so many, for data in arrays; default all.

    Raises:
        DataError: An unknown name, no data, x and y of different length, a file that is missing,
            damaged or not what its name says, or a download that failed.
        ConfigError: ``validation`` is as large as the training data, or a part of data in batches
            is asked for.
        BackendError: A package to download or to read images is not installed.
    """
    check_integer("validation", validation, 0)
    check_integer("seed", seed, 0)
    dataset = _load(data, channels_first, data_dir)
    dataset = _hold_out(dataset, validation, seed) if validation else dataset
    return replace(
        dataset, train=_first(dataset.train, examples), test=_first(dataset.test, test_examples)
    )


def _load(data: Any, channels_first: bool, data_dir: str | os.PathLike[str] | None) -> Dataset:
    if isinstance(data, str) and data == "digits":
        return _digits(channels_first)
    if isinstance(data, str | os.PathLike):
        pairs = [_laid_out(*pair, channels_first) for pair in _read(data, data_dir) if pair]
        return Dataset(train=pairs[0], test=pairs[1] if len(pairs) > 1 else None)
    if isinstance(data, tuple):  # a list is a list of batches, however long
        if len(data) != 2:
            raise DataError(
                "data",
                expected="(x, y) or ((x, y), (x_test, y_test))",
                received=f"a tuple of {len(data)}",
                fix="Pass a pair, or batches as a list.",
            )
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
        raise DataError(
            "data",
            expected="a name, (x, y), ((x, y), (x_test, y_test)) or an iterable of batches",
            received=type(data).__name__,
            fix="Wrap it in one of these.",
        )
    if hasattr(data, "__next__"):
        raise DataError(
            "data",
            expected="batches that can be gone through once per epoch",
            received="an iterator that is used up after one",
            fix="Pass the list or the loader itself, not its iterator.",
        )
    return data


def _checked_pair(x: Any, y: Any) -> tuple[Any, Any]:
    for name, part in (("x", x), ("y", y)):
        if not hasattr(part, "shape"):
            raise DataError(
                name,
                expected="an array or tensor",
                received=type(part).__name__,
                fix="Convert it, e.g. with numpy.asarray.",
            )
    if len(x.shape) == 0 or len(x) == 0:
        raise DataError(
            "data",
            expected="at least one example",
            received="none",
            fix="Check how the data was selected.",
        )
    if len(y.shape) == 0 or len(x) != len(y):
        raise DataError(
            "data",
            expected="as many labels as inputs",
            received=f"{len(x)} inputs, labels of shape {tuple(y.shape)}",
            fix="Select inputs and labels together.",
        )
    return x, y


def _read(
    data: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None
) -> tuple[formats.Pair, formats.Pair | None]:
    if data in NAMES:
        if not isinstance(data_dir, str | os.PathLike | None):
            raise ConfigError(
                "data_dir",
                expected="a path or None",
                received=repr(data_dir),
                fix="Pass the directory of the official files.",
            )
        folder = download.cache() if data_dir is None else Path(data_dir)
        return formats.mnist(folder) if data == "mnist" else cifar(str(data), folder)
    if not os.path.exists(data):
        raise DataError(
            "data",
            expected=f"{', '.join(map(repr, NAMES))}, or the path of a .npz "
            "file or of a folder of images",
            received=repr(data),
            fix="Choose a name, or pass your data as (x, y).",
        )
    path = Path(data)
    return formats.images(path) if path.is_dir() else formats.npz(path)


def _laid_out(x: np.ndarray, y: np.ndarray, channels_first: bool) -> tuple[Any, Any]:
    if x.ndim == 4 and channels_first:
        x = x.transpose(0, 3, 1, 2)
    return _checked_pair(np.ascontiguousarray(x), y)


def _first(part: Any, count: int | None) -> Any:
    if part is None or count is None:
        return part
    if not is_pair(part):
        raise ConfigError(
            "examples",
            expected="None for data that come in batches",
            received=count,
            fix="Pass arrays, or fewer batches.",
        )
    return tuple(array[:count] for array in part)


def _hold_out(dataset: Dataset, count: int, seed: int) -> Dataset:
    if not is_pair(dataset.train):
        raise ConfigError(
            "validation",
            expected="0 for data that come in batches",
            received=count,
            fix="Pass arrays, or hold out batches yourself.",
        )
    x, y = dataset.train
    if count >= len(x):
        raise ConfigError(
            "validation",
            expected=f"fewer than the {len(x)} training examples",
            received=count,
            fix="Leave some to train on.",
        )
    held = np.zeros(len(x), dtype=bool)  # a mask: arrays of every framework can be indexed by it
    held[np.random.default_rng(seed).permutation(len(x))[:count]] = True
    return replace(dataset, train=(x[~held], y[~held]), validation=(x[held], y[held]))


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
