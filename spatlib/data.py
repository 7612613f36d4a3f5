"""Data for training: named sets, a .npz file, arrays, or anything that yields batches."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from importlib import resources
from operator import length_hint
from typing import Any

import numpy as np

from .errors import AnyPath, check_weights, checked, expect, only, require

PARTS, ROWS = ("train", "test", "validation"), 1002  # of a data set; of x in a fingerprint
NAMES = ("digits", "mnist", "cifar10", "cifar100")
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Training data, and test and validation data if there are any.

    Each is (x, y) or an iterable of batches; x is in the threat's bounds, or uint8 scaled to them.
    A third part are weights of the examples, floats (N,): of their losses in training.
    """

    train: Any
    test: Any = None
    validation: Any = None
    source: dict[str, Any] | None = None  # the arguments of load_data that load it again
    channels_last: bool = False  # arrays x (N, H, W, C) get the layout of the engine, else have it

    @property
    def measured(self) -> Any:
        """What accuracies are reported of: the test data, else the training data."""
        return self.train if self.test is None else self.test

    @property
    def class_names(self) -> Sequence[str]:
        """Those of CIFAR-10, or that the measured data or the data set in them have, else ()."""
        parts = [self.measured]
        while (inner := getattr(parts[-1], "dataset", None)) is not None and len(parts) < 9:
            parts.append(inner)  # a loader of a subset of a data set, and so on
        named = [getattr(p, name, ()) for p in parts for name in ("classes", "class_names")]
        known = CIFAR10 if self.source and self.source["name"] == "cifar10" else ()
        return next((names for names in named if isinstance(names, list | tuple) and names), known)


def load_data(name: AnyPath, dir: AnyPath | None = None, *, limit: int | None = None) -> Dataset:
    """Load a named data set or a ``.npz`` file: images (N, H, W, C), integer labels (N,).

    Args:
        name: ``"digits"`` (float32 in [0, 1]), ``"mnist"``, ``"cifar10"``, ``"cifar100"`` with its
            fine labels (uint8, 0..255), or the path of a file of arrays x_train, y_train and
            perhaps x_test, y_test, or x and y: images (N, H, W) or (N, H, W, 1 or 3), other x as
            they are, labels (N,) or (N, 1).
        dir: Where the official files are (docs/data.md); what is missing is downloaded to it and
            checked by SHA-256. Default: the user's cache directory.
        limit: Take the first so many examples of each part; default all.

    DataError for another name or kind of file, or a failed download; BackendError without pooch.
    """
    limit = None if limit is None else checked("limit", limit, 1)
    require(isinstance(dir, str | os.PathLike | None), "dir", "be a path or None", dir)
    known = isinstance(name, str | os.PathLike) and (name in NAMES or os.path.exists(name))
    expect(known, f"data must be one of {NAMES} or the path of a .npz file, got {name!r:.200}")
    name = str(name) if name in NAMES else os.path.abspath(name)
    folder = None if dir is None else os.path.abspath(dir)
    if name == "digits":
        pairs = digits()
    else:
        from . import files  # not needed by a training on the digits

        pairs = files.read(name, folder)
    for pair in pairs:
        _check(name, pair)
    train, *test = ((x[:limit], y[:limit]) for x, y in pairs)
    source = {"name": name, "dir": folder, "limit": limit}
    return Dataset(train=train, test=test[0] if test else None, source=source, channels_last=True)


def digits() -> list[tuple[np.ndarray, np.ndarray]]:
    """1,797 grey 8 x 8 scans of handwritten digits, in [0, 1]; the last 450 are for testing.

    E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, 1998 (CC BY 4.0), the test part, in an order shuffled once.
    """
    with (resources.files(__package__) / "digits.npz").open("rb") as file, np.load(file) as arrays:
        x, y = arrays["x"][..., None], arrays["y"].astype(np.int64)
    x = (x / 16).astype(np.float32)  # stored as counts of dark cells out of 4 x 4
    return [(x[:-450], y[:-450]), (x[-450:], y[-450:])]


def as_dataset(data: Any, channels_first: bool, validation: int = 0, seed: int = 0) -> Dataset:
    """What :func:`spatlib.train` takes for data, checked, in the engine's layout, some held out."""
    checked("validation", validation, 0)
    if isinstance(data, str | os.PathLike):
        data = load_data(data)
    elif not isinstance(data, Dataset):
        two = is_pair(data) and len(data) == 2 and not any(hasattr(x, "ndim") for x in data)
        data = Dataset(train=data[0], test=data[1]) if two else Dataset(train=data)
    parts: dict[str, Any] = {name: getattr(data, name) for name in PARTS}
    for name, part in parts.items():
        if part is not None or name == "train":
            _check("data" if name == "train" else f"{name} data", part)
        if data.channels_last and is_pair(part) and len(part[0].shape) == 4:
            x = as_array(part[0])
            x = np.ascontiguousarray(x.transpose(0, 3, 1, 2) if channels_first else x)
            parts[name] = x, *part[1:]  # x is copied only if it does not lie so in memory
    if validation > 0:
        train, free = parts["train"], parts["validation"] is None
        count = len(train[1]) if is_pair(train) else length(train) if is_map(train) else None
        most = count - 1 if count and free else 0
        how = "for batches: pass spatlib.Dataset(train=..., validation=...)"
        what = f"be at most {most} (0 beside a validation part, and {how})"
        require(validation <= most, "validation", what, validation)
        held = np.zeros(most + 1, dtype=bool)  # a mask: all frameworks' arrays can be indexed by it
        held[np.random.default_rng(seed).permutation(most + 1)[:validation]] = True
        for name, chosen in {"train": ~held, "validation": held}.items():
            if is_pair(train):
                x, *others = train
                parts[name] = Rows(by_rows(x), chosen), *(by_rows(own)[chosen] for own in others)
            else:
                parts[name] = Rows(train, chosen)
    last: bool = data.channels_last and not channels_first
    return Dataset(**parts, source=data.source, channels_last=last)


class Rows:
    """Some items of a data set of map style, or rows of an array, copied when they are read."""

    def __init__(self, dataset: Any, chosen: np.ndarray) -> None:
        self.dataset, self.rows = dataset, np.flatnonzero(chosen)
        with suppress(AttributeError, TypeError):  # of a data set: an array has both
            self.shape, self.dtype = (len(self.rows), *dataset.shape[1:]), dataset.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        rows = self.rows[index]
        return self.dataset[rows if rows.ndim else int(rows)]


def by_rows(part: Any) -> Any:
    """It as NumPy's array where an index is no row (pandas, TensorFlow), but nothing in a file."""
    fine = isinstance(part, np.ndarray) or hasattr(part, "detach")  # a tensor of PyTorch
    stored = hasattr(part, "chunks")  # by h5py
    return np.asarray(part) if hasattr(part, "__array__") and not (fine or stored) else part


def _check(where: str, part: Any) -> None:
    """DataError unless it is (x, y), arrays of equal length, or looks like batches."""
    if is_pair(part):
        kinds = ", ".join(type(array).__name__ for array in part)
        arrays = len(part) in (2, 3) and all(hasattr(array, "shape") for array in part)
        what = "(x, y) or (x, y, weights), arrays or tensors"
        expect(arrays, f"{where} must be {what}, got ({kinds})")
        x, y = (tuple(array.shape) for array in part[:2])
        full = x[:1] not in ((), (0,)) and x[:1] == y[:1]
        expect(full, f"{where} must hold one y per x, at least one, got shapes {x} and {y}")
        for weights in map(as_array, part[2:]):
            check_weights(weights, part[0], values=True)
    else:
        again = not hasattr(part, "__next__") and {"__iter__", "__getitem__"} & {*dir(part)}
        what = "(x, y), two of them, a name or batches for each epoch (a loader, not its iterator)"
        expect(bool(again), f"{where} must be {what}, got {type(part).__name__}")


def fingerprint(part: Any) -> dict[str, Any] | None:
    """Length, or of arrays shape, dtype, SHA-256 of all labels and of ROWS of the inputs."""
    if not is_pair(part):
        return None if part is None else {"length": length(part)}
    x, *others = part
    spaced = {int(row) for row in np.linspace(0, len(x) - 1, ROWS)}  # the first and the last too
    rows = np.concatenate([as_array(x[row : row + 1]) for row in sorted(spaced)])
    known = b"".join(as_array(other).tobytes() for other in others)
    labels, values = (sha256(part).hexdigest()[:16] for part in (known, rows.tobytes()))
    return {"shape": [*x.shape], "dtype": str(rows.dtype), "labels": labels, "values": values}


def is_pair(data: Any) -> bool:
    """Whether data is (x, y), or with weights, in arrays, rather than an iterable of batches."""
    return isinstance(data, tuple)


def is_map(data: Any) -> bool:
    """Whether data gives single examples (x, y) by their number, as torch's map-style sets do."""
    kinds = {kind.__name__ for kind in type(data).__mro__}
    batches = isinstance(data, list | Mapping) or kinds & {"IterableDataset", "PyDataset"}
    return not batches and hasattr(data, "__getitem__") and not hasattr(data, "ndim")  # an array's


def length(batches: Any) -> int | None:
    """The number of batches, where the data knows it."""
    count = length_hint(batches, -1)  # a len() that raises TypeError counts as none
    return None if count < 0 else count


def pairs(batches: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """One pass through batches (x, y) or (x, y, weights); DataError for others, or if none come.

    A dict of two, such as ``{"image": x, "label": y}``, is a pair in this order.
    """
    batch, none = None, "data must yield at least one batch in every pass, got none: use a loader"
    for batch in batches:
        pair = [*batch.values()] if isinstance(batch, Mapping) else batch
        parts, kind = isinstance(pair, tuple | list) and len(pair), type(batch).__name__
        what = f"data must hold pairs (x, y), got {kind}: convert it to one, or to (x, y, weights)"
        expect(parts in (2, 3), what)
        yield only(pair[0]), *pair[1:]
    expect(batch is not None, none)


def as_array(part: Any) -> np.ndarray:
    """The values as a NumPy array, from whichever device they are on."""
    host = part.detach().cpu() if hasattr(part, "detach") else part
    return np.asarray(host.float() if str(getattr(host, "dtype", 0)) == "torch.bfloat16" else host)
