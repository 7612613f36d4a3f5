"""Readers of files: MNIST as published, .npz, folders of images; channels come last."""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .backends import load_extra
from .download import fetch, is_official
from .errors import DataError, SpatlibError

Pair = tuple[np.ndarray, np.ndarray]

GZIP_MAGIC = b"\x1f\x8b"
IDX_BYTES = 8  # IDX's code for unsigned bytes
MNIST = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
NPZ_KEYS = (("x_train", "y_train", "x_test", "y_test"), ("x_train", "y_train"), ("x", "y"))
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")


def mnist(folder: Path) -> tuple[Pair, Pair]:
    """(x, y) to train and to test of MNIST (LeCun, Cortes and Burges): its IDX files, or ``.gz``.

    They are in ``folder`` or, as torchvision has them, in ``MNIST/raw`` there. x is uint8
    (N, H, W, 1), y int64 (N,) in 0..9.

    Raises:
        DataError: A file is missing, damaged or not what its name says, or the download failed.
    """
    places = [
        [_plain_or_gz(place / name) for name in MNIST]
        for place in (folder / "MNIST" / "raw", folder)
    ]
    files = max(places, key=lambda files: sum(path.exists() for path in files))
    missing = [path for path in files if not path.exists()]
    if missing:
        # What would be downloaded must not be mixed with files from elsewhere.
        if not all(is_official("mnist", path) for path in files if path.exists()):
            raise bad(missing[0], "all four files of MNIST in one folder", "no such file")
        fetch("mnist", missing[0].parent)
    return _idx_pair(*files[:2]), _idx_pair(*files[2:])


def npz(path: Path) -> tuple[Pair, Pair | None]:
    """Arrays x_train, y_train, x_test, y_test, or x and y, of any numeric dtype.

    Images are (N, H, W) or (N, H, W, C) with C = 1 or 3, labels (N,) or (N, 1), as keras.datasets
    has them; x of other shapes stays as it is.

    Raises:
        DataError: No such arrays, images in another layout, or a file of another kind.
    """
    with reading(path, "a .npz file of numbers"), np.load(path, allow_pickle=False) as file:
        known = {name for names in NPZ_KEYS for name in names}.intersection(file.files)
        keys = next((keys for keys in NPZ_KEYS if set(keys) == known), None)
        if keys is None:
            raise bad(
                path, "arrays x_train, y_train, x_test, y_test, or x and y", f"arrays {file.files}"
            )
        arrays = [file[key] for key in keys]
    pairs = [_with_channels(path, *arrays[i : i + 2]) for i in range(0, len(arrays), 2)]
    return pairs[0], pairs[1] if len(pairs) > 1 else None


def images(folder: Path) -> tuple[Pair, Pair | None]:
    """``train/<class>/*.png`` with ``test`` or else ``val`` likewise, or ``<class>/*.png``.

    The classes are the names of the folders, sorted. PNG, JPEG and BMP files, all grey or all RGB
    and of one size; they are held in memory.

    Raises:
        DataError: No images, one that differs from the first or cannot be read, or other classes.
        BackendError: Pillow is not installed.
    """
    train = folder / "train"
    if not train.is_dir():
        return _images_in(folder, _classes(folder)), None
    classes = _classes(train)
    x, y = _images_in(train, classes)
    test = next((place for place in (folder / "test", folder / "val") if place.is_dir()), None)
    if test is None:
        return (x, y), None
    if _classes(test) != classes:
        raise bad(test, f"the classes {classes} of {train}", f"{_classes(test)}")
    return (x, y), _images_in(test, classes, like=x.shape[1:])


def bad(path: Path, expected: str, received: str) -> DataError:
    """The error that names this file."""
    return DataError(
        str(path), expected=expected, received=received, fix="Put the right file there."
    )


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Whatever a damaged or foreign file makes its reader raise becomes a DataError."""
    try:
        yield
    except SpatlibError:
        raise
    except Exception as error:  # readers of damaged files raise almost anything
        raise bad(path, expected, f"{type(error).__name__}: {error}") from error


def read(path: Path) -> bytes:
    """What is in the file, unpacked if it is gzip; DataError if it cannot be read."""
    with reading(path, "a file"):
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw.startswith(GZIP_MAGIC) else raw


def _plain_or_gz(path: Path) -> Path:
    return path if path.exists() else path.with_name(f"{path.name}.gz")


def _idx(path: Path, axes: int) -> np.ndarray:
    raw = read(path)
    if raw[:4] != bytes([0, 0, IDX_BYTES, axes]):
        raise bad(
            path, f"an IDX file of bytes with {axes} axes", f"one that begins with {raw[:16]!r}"
        )
    shape = np.frombuffer(raw[4 : 4 + 4 * axes].ljust(4 * axes, b"\0"), ">u4").tolist()
    values = np.frombuffer(raw[4 + 4 * axes :], np.uint8)
    if len(values) != math.prod(shape) or 0 in shape:
        raise bad(path, f"{math.prod(shape):,} bytes of shape {tuple(shape)}", f"{len(values):,}")
    return values.reshape(shape).copy()  # what lies in bytes cannot be written to


def _idx_pair(images: Path, labels: Path) -> Pair:
    x, y = _idx(images, 3)[..., None], _idx(labels, 1)
    if len(x) != len(y):
        raise bad(labels, f"labels of the {len(x):,} images in {images.name}", f"{len(y):,}")
    return x, checked_labels(labels, y, 10)


def checked_labels(path: Path, y: np.ndarray, classes: int) -> np.ndarray:
    """The labels as int64; DataError unless all name a class."""
    if y.min() < 0 or y.max() >= classes:
        raise bad(path, f"labels from 0 to {classes - 1}", f"labels from {y.min()} to {y.max()}")
    return y.astype(np.int64)


def _with_channels(path: Path, x: np.ndarray, y: np.ndarray) -> Pair:
    x = x[..., None] if x.ndim == 3 else x
    if x.ndim == 4 and x.shape[-1] not in (1, 3):
        raise bad(path, "images (N, H, W) or (N, H, W, C) with C = 1 or 3", f"shape {x.shape}")
    y = y[:, 0] if y.shape[1:] == (1,) else y
    return x, y.astype(np.int64) if y.dtype.kind in "iu" else y


def _classes(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images_in(folder: Path, classes: list[str], like: tuple[int, ...] | None = None) -> Pair:
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in SUFFIXES
    ]
    if not files:
        raise bad(folder, f"folders of {', '.join(SUFFIXES)} files, one per class", "none")
    x = []
    for path, _ in files:
        x.append(_pixels(path))
        like = like or x[0].shape
        if x[-1].shape != like:
            raise bad(path, f"an image like the first, {like}", f"one of {x[-1].shape}")
    return np.stack(x), np.array([label for _, label in files], dtype=np.int64)


def _pixels(path: Path) -> np.ndarray:
    """(H, W, C) of one image."""
    pil = load_extra("PIL.Image")
    with reading(path, "an image"), pil.open(path) as image:
        if image.mode not in ("L", "RGB"):
            raise bad(path, "an image in grey ('L') or 'RGB'", repr(image.mode))
        pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels
