"""Data for training: named sets, a .npz file, arrays, or anything that yields batches."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .engines import load_extra
from .errors import DataError, require, require_integer
from .files import URLS, check_pair, cifar, digits, mnist, npz

AnyPath = str | os.PathLike[str]

NAMES = ("digits", *URLS)


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Training data, and test and validation data if there are any.

    Each is (x, y) or an iterable of batches; x is in the bounds of the threat, or uint8: 0..255,
    which the engines scale to the bounds. ``source`` holds the arguments of :func:`load_data` that
    load it again. With ``channels_last``, as load_data has it, x of four axes is a NumPy array
    (N, H, W, C), which each engine gets in its own layout; otherwise x is in the engine's layout.
    """

    train: Any
    test: Any = None
    validation: Any = None
    source: dict[str, Any] | None = None
    channels_last: bool = False

    @property
    def measured(self) -> Any:
        """What accuracies are reported of: the test data, else the training data."""
        return self.train if self.test is None else self.test


def load_data(name: AnyPath, dir: AnyPath | None = None, *, limit: int | None = None) -> Dataset:
    """Load a named data set or a ``.npz`` file: images (N, H, W, C), integer labels (N,).

    Args:
        name: ``"digits"`` (in this package, float32 in [0, 1]), ``"mnist"``, ``"cifar10"``,
            ``"cifar100"`` with its fine labels (uint8, 0..255), or the path of a file of arrays
            x_train, y_train and perhaps x_test, y_test, or x and y: images (N, H, W) or
            (N, H, W, 1 or 3), other x as they are, labels (N,) or (N, 1).
        dir: Where the official files are: MNIST's (with or without ``.gz``, here or in
            ``MNIST/raw``), the binary version of CIFAR (the ``.tar.gz`` or its folder). What is
            missing is downloaded to it and checked by SHA-256. Default: the user's cache directory.
        limit: Take the first so many examples of each part; default all.

    Raises:
        DataError: An unknown name, a file that is missing, damaged or not what its name says, or a
            download that failed.
        BackendError: pooch, which downloads, is not installed.
    """
    limit = None if limit is None else require_integer("limit", limit, 1)
    require(isinstance(dir, str | os.PathLike | None), "dir", "be a path or None", dir)
    folder = None if dir is None else os.path.abspath(dir)
    if not isinstance(name, str | os.PathLike) or not (name in NAMES or os.path.exists(name)):
        names = ", ".join(map(repr, NAMES))
        raise DataError(f"data must be {names} or the path of a .npz file, got {name!r:.99}")
    if name == "digits":
        pairs = digits()
    elif name in NAMES:
        place = Path(folder or load_extra("pooch").os_cache("spatlib"))
        pairs = mnist(place) if name == "mnist" else cifar(str(name), place)
    else:
        name = os.path.abspath(name)
        pairs = npz(Path(name))
    train, *test = ((x[:limit], y[:limit]) for x, y in pairs)
    source = {"name": name, "dir": folder, "limit": limit}
    return Dataset(train=train, test=test[0] if test else None, source=source, channels_last=True)


def as_dataset(data: Any, *, channels_first: bool, validation: int = 0, seed: int = 0) -> Dataset:
    """Make a data set in the engine's layout of what the user gave.

    Args:
        data: A :class:`Dataset`, a name or path for :func:`load_data`, ``(x, y)`` of arrays or
            tensors, batches (x, y) that can be gone through again and again (a list is a list of
            batches, however long), or a pair of (x, y) or batches: for training, for testing.
        channels_first: The engine's layout of images, (N, C, H, W) or (N, H, W, C).
        validation: Training examples to hold out, for data in arrays.
        seed: Chooses them, whatever else is drawn.

    Raises:
        DataError: Not one of these, no data, x and y of different length, or as for load_data.
        ConfigError: ``validation`` is as large as the training data, or they come in batches.
    """
    require_integer("validation", validation, 0)
    require_integer("seed", seed, 0)
    if isinstance(data, str | os.PathLike):
        data = load_data(data)
    elif isinstance(data, tuple) and len(data) == 2 and not any(hasattr(x, "shape") for x in data):
        data = Dataset(train=data[0], test=data[1])
    elif not isinstance(data, Dataset):
        data = Dataset(train=data)
    parts = {"data": data.train, "test data": data.test, "validation data": data.validation}
    for where, part in parts.items():
        if part is not None or where == "data":
            _check(where, part)
        if data.channels_last and is_pair(part) and len(part[0].shape) == 4:
            x = np.asarray(part[0])
            x = np.ascontiguousarray(x.transpose(0, 3, 1, 2) if channels_first else x)
            parts[where] = x, part[1]  # x is copied only if it does not lie so in memory
    train, test, held = parts.values()
    last = data.channels_last and not channels_first
    dataset = replace(data, train=train, test=test, validation=held, channels_last=last)
    return _hold_out(dataset, validation, seed) if validation else dataset


def is_pair(data: Any) -> bool:
    """Whether data is (x, y) in arrays, rather than an iterable of batches."""
    return isinstance(data, tuple)


def length(batches: Any) -> int | None:
    """The number of batches, where the data knows it."""
    try:
        return len(batches)
    except TypeError:  # no __len__, or one that says so (an IterableDataset's loader)
        return None


def _check(where: str, part: Any) -> None:
    """DataError unless it is (x, y), arrays of equal length, or looks like batches."""
    if is_pair(part):
        kinds = ", ".join(type(array).__name__ for array in part)
        if len(part) != 2 or not all(hasattr(array, "shape") for array in part):
            raise DataError(f"{where} must be (x, y), two arrays or tensors, got ({kinds})")
        check_pair(where, *part)
    elif hasattr(part, "__next__") or not {"__iter__", "__getitem__"}.intersection(dir(part)):
        kinds = "a name, (x, y), ((x, y), (x_test, y_test)) or batches to go through in every epoch"
        got = type(part).__name__
        raise DataError(f"{where} must be {kinds} (a loader, not its iterator), got {got}")


def _hold_out(dataset: Dataset, count: int, seed: int) -> Dataset:
    unused = dataset.validation is None
    require(unused, "validation", "be 0 for data with a validation part", count)
    require(is_pair(dataset.train), "validation", "be 0 for data that come in batches", count)
    x, y = dataset.train
    require(count < len(x), "validation", f"be fewer than the {len(x)} training examples", count)
    held = np.zeros(len(x), dtype=bool)  # a mask: arrays of every framework can be indexed by it
    held[np.random.default_rng(seed).permutation(len(x))[:count]] = True
    return replace(dataset, train=(x[~held], y[~held]), validation=(x[held], y[held]))


def as_array(part: Any) -> np.ndarray:
    """The values as a NumPy array, from whichever device they are on."""
    part = part.detach() if hasattr(part, "detach") else part
    return np.asarray(part.cpu() if hasattr(part, "cpu") else part)
