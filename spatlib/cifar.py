"""Readers of CIFAR-10 and CIFAR-100 (A. Krizhevsky, 2009) as published.

Nothing in a file is executed, and nothing is unpacked onto the disk.
"""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from .download import fetch
from .formats import Pair, bad, checked_labels, read, reading

PIXELS = 3 * 32 * 32  # channel, row, column


class _Kind:
    """Stands for numpy.dtype, whose own constructor and state could be made to follow pointers."""

    def __init__(self, kind: str, *rest: Any) -> None:
        self.kind = kind

    def __setstate__(self, state: Any) -> None:
        """The byte order and what else a pickle says of an integer type."""


class _Array:
    """Stands for numpy.ndarray: a shape and bytes, never objects."""

    values: np.ndarray

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, raw = state
        dtype = {"u1": "u1", "i8": "<i8"}[kind.kind]
        order: Literal["F", "C"] = "F" if fortran else "C"
        self.values = np.frombuffer(raw, dtype).reshape(shape, order=order).copy()


# All that a pickle of NumPy arrays names, whichever versions wrote it; NumPy itself is not called.
STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Kind,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("_codecs", "encode"): lambda text, _: text.encode("latin1"),
}


class _Version(NamedTuple):
    """One of the forms in which CIFAR is published; ``key`` is for the pickled ones."""

    folder: str
    archive: str
    train: tuple[str, ...]
    test: str
    classes: int
    key: bytes | None = None


VERSIONS = {
    "cifar10": (
        _Version(
            "cifar-10-batches-bin",
            "cifar-10-binary.tar.gz",
            tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
            "test_batch.bin",
            10,
        ),
        _Version(
            "cifar-10-batches-py",
            "cifar-10-python.tar.gz",
            tuple(f"data_batch_{i}" for i in range(1, 6)),
            "test_batch",
            10,
            b"labels",
        ),
    ),
    "cifar100": (
        _Version("cifar-100-binary", "cifar-100-binary.tar.gz", ("train.bin",), "test.bin", 100),
        _Version(
            "cifar-100-python", "cifar-100-python.tar.gz", ("train",), "test", 100, b"fine_labels"
        ),
    ),
}


def cifar(name: str, folder: Path) -> tuple[Pair, Pair]:
    """(x, y) to train and to test of CIFAR-10 or, with its fine labels, CIFAR-100.

    The binary or the Python version is in ``folder``, unpacked or as the ``.tar.gz``; otherwise
    the binary one is downloaded. x is uint8 (N, 32, 32, 3), y int64 (N,).

    Raises:
        DataError: A file is missing, damaged or not what its name says, or the download failed.
    """
    unpacked = next((v for v in VERSIONS[name] if (folder / v.folder).is_dir()), None)
    if unpacked:
        place = folder / unpacked.folder
        return _pairs(unpacked, place, lambda file: read(place / file))
    packed = next((v for v in VERSIONS[name] if (folder / v.archive).exists()), None)
    if packed is None:
        fetch(name, folder)
        packed = VERSIONS[name][0]
    archive = folder / packed.archive
    return _pairs(packed, archive, _members(archive, packed).__getitem__)


def _pairs(version: _Version, place: Path, read: Callable[[str], bytes]) -> tuple[Pair, Pair]:
    def part(file: str) -> Pair:
        rows = _records if version.key is None else _pickled
        x, y = rows(read(file), place / file, version)
        return x, checked_labels(place / file, y, version.classes)

    x, y = zip(*map(part, version.train), strict=True)
    x_test, y_test = part(version.test)
    return (_planes(np.concatenate(x)), np.concatenate(y)), (_planes(x_test), y_test)


def _planes(rows: np.ndarray) -> np.ndarray:
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _records(raw: bytes, path: Path, version: _Version) -> Pair:
    labels = 1 if version.classes == 10 else 2  # CIFAR-100: the coarse label, then the fine one
    if not raw or len(raw) % (labels + PIXELS):
        raise bad(path, f"records of {labels + PIXELS} bytes", f"{len(raw):,} bytes")
    rows = np.frombuffer(raw, np.uint8).reshape(-1, labels + PIXELS)
    return rows[:, labels:].copy(), rows[:, labels - 1]


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STAND_INS:
            raise pickle.UnpicklingError(f"{module}.{name} is refused: it could run code")
        return STAND_INS[module, name]


def _pickled(raw: bytes, path: Path, version: _Version) -> Pair:
    expected = f"a pickled dict with uint8 data (N, {PIXELS}) and N integer {version.key!r}"
    with reading(path, expected):
        batch = _Unpickler(io.BytesIO(raw), encoding="bytes").load()
        labels = batch[version.key]
        x, y = batch[b"data"].values, np.asarray(getattr(labels, "values", labels))
        fitting = (x.dtype, x.shape, y.shape) == (np.uint8, (len(y), PIXELS), (len(y),))
        if not fitting or y.dtype.kind not in "iu" or len(y) == 0:
            raise bad(path, expected, f"{x.dtype} {x.shape} and {y.dtype} {y.shape}")
    return x, y


def _members(archive: Path, version: _Version) -> dict[str, bytes]:
    wanted = {f"{version.folder}/{file}": file for file in (*version.train, version.test)}
    found = {}
    with reading(archive, "a .tar.gz archive"), tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.name in wanted else None
            if stream is not None:
                found[wanted[member.name]] = stream.read()
    for name, file in wanted.items():
        if file not in found:
            raise bad(archive, f"an archive with {name}", "one without it")
    return found
