"""Readers of the official files of data sets, and of .npz files; channels come last.

Nothing in a file is executed, and nothing is unpacked onto the disk.
"""

from __future__ import annotations

import gzip
import math
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from .engines import load_extra
from .errors import DataError, SpatlibError

Pair = tuple[np.ndarray, np.ndarray]

TORONTO = "https://www.cs.toronto.edu/~kriz/"
MNIST_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"  # its first home is closed
URLS = {"mnist": MNIST_URL, "cifar10": TORONTO, "cifar100": TORONTO}
SHA256 = {  # of these names with .gz, as TensorFlow Datasets publishes them too
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    "cifar-10-binary.tar": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    "cifar-100-binary.tar": "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
}
MNIST = tuple(SHA256)[:4]
BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
CIFAR = {  # number of classes, images in each file; the last file is the test part
    "cifar10": (10, {f"cifar-10-batches-bin/{batch}.bin": 10_000 for batch in BATCHES}),
    "cifar100": (100, {"cifar-100-binary/train.bin": 50_000, "cifar-100-binary/test.bin": 10_000}),
}
PIXELS = 3 * 32 * 32  # of CIFAR: channel, row, column


def check_pair(where: str, x: Any, y: Any) -> None:
    """DataError unless there is at least one example, and a label of each."""
    shapes = tuple(x.shape), tuple(y.shape)
    if not shapes[0] or shapes[0][0] == 0 or shapes[1][:1] != shapes[0][:1]:
        got = f"x of shape {shapes[0]} and y of shape {shapes[1]}"
        raise DataError(f"{where} must hold at least one example, a label of each, got {got}")


def _bad(path: Path, expected: str, received: Any) -> DataError:
    return DataError(f"{path} must be {expected}, got {received}: put the right file there")


@contextmanager
def _reading(path: Path, expected: str) -> Iterator[None]:
    """Whatever a damaged or foreign file makes its reader raise becomes a DataError."""
    try:
        yield
    except SpatlibError:
        raise
    except Exception as error:  # readers of damaged files raise almost anything
        cause = getattr(error, "strerror", None) or error  # an OSError would repeat the path
        raise _bad(path, expected, f"{type(error).__name__}: {cause}") from error


def _download(name: str, path: Path) -> None:
    """Bring an official file there, whole and with the known SHA-256, or not at all."""
    pooch, url = load_extra("pooch"), URLS[name] + path.name
    try:
        pooch.retrieve(url, f"sha256:{SHA256[path.stem]}", path.name, path.parent)
    except (OSError, ValueError) as error:  # requests' errors are OSErrors
        cause, advice = str(error)[:90], "try again, or put it there by hand"
        raise DataError(f"{path} was not downloaded from {url} ({cause}): {advice}") from error


def digits() -> list[Pair]:
    """1,797 grey 8 x 8 scans of handwritten digits, in [0, 1]; the last 450 are for testing.

    E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, 1998 (CC BY 4.0), the test part, in an order shuffled once.
    """
    with (resources.files(__package__) / "digits.npz").open("rb") as file, np.load(file) as arrays:
        x, y = arrays["x"][..., None], arrays["y"].astype(np.int64)
    x = (x / 16).astype(np.float32)  # stored as counts of dark cells out of 4 x 4
    return [(x[:-450], y[:-450]), (x[-450:], y[-450:])]


def npz(path: Path) -> list[Pair]:
    """The arrays of a file as :func:`spatlib.load_data` describes them."""
    if path.is_dir():
        raise DataError(
            f"{path} is a directory: load images by torchvision, keras.utils or Hugging Face "
            "datasets, and pass their data set"
        )
    keys = ["x", "y", "x_train", "y_train", "x_test", "y_test"]
    with _reading(path, "a .npz file of numbers"), np.load(path, allow_pickle=False) as file:
        found = [key for key in keys if key in file.files]
        if found not in (keys[:2], keys[2:4], keys[2:]):
            raise _bad(path, "a file of x_train, y_train, x_test, y_test, or x, y", file.files)
        arrays = [file[key] for key in found]
    pairs = []
    for x, y in zip(arrays[::2], arrays[1::2], strict=True):
        x = x[..., None] if x.ndim == 3 else x
        if x.ndim == 4 and x.shape[3] not in (1, 3):
            raise _bad(path, "of images (N, H, W) or (N, H, W, 1 or 3)", f"x of shape {x.shape}")
        y = y[:, 0] if y.shape[1:] == (1,) else y
        pairs.append((x, y.astype(np.int64) if y.dtype.kind in "iu" else y))
        check_pair(str(path), *pairs[-1])
    return pairs


def mnist(folder: Path) -> list[Pair]:
    """MNIST (LeCun, Cortes and Burges) in four IDX files, each as it is or with ``.gz``."""
    place = folder if any(folder.glob("*-ubyte*")) else folder / "MNIST" / "raw"  # torchvision's
    plain = [place / name for name in MNIST]
    files = [path if path.exists() else path.with_suffix(".gz") for path in plain]
    missing = [path for path in files if not path.exists()]
    for path in set(files).difference(missing) if missing else ():
        # What is downloaded must not be mixed with files of another data set.
        if load_extra("pooch").file_hash(str(path)) != SHA256.get(path.stem):
            raise _bad(missing[0], f"there beside {path.name}, which is not MNIST's", "no file")
    for path in missing:
        _download("mnist", path)
    pairs = [(_idx(files[i], 3)[..., None], _idx(files[i + 1], 1)) for i in (0, 2)]
    for path, (x, y) in zip(files[1::2], pairs, strict=True):
        if len(x) != len(y) or y.max() > 9:
            raise _bad(path, f"{len(x)} labels from 0 to 9", f"{len(y)} labels up to {y.max()}")
    return [(x, y.astype(np.int64)) for x, y in pairs]


def _idx(path: Path, axes: int) -> np.ndarray:
    """Bytes of a file, plain or gzip, of which no more is unpacked than its header announces."""
    expected = f"an IDX file of 1 to 60,000 {'labels' if axes == 1 else 'images of 28 x 28'}"
    with _reading(path, expected), path.open("rb") as file:
        zipped = file.peek(2)[:2] == b"\x1f\x8b"
        with gzip.open(file) if zipped else file as stream:
            head = stream.read(4 + 4 * axes)
            kind, *shape = np.frombuffer(head.ljust(4 + 4 * axes, b"\0"), ">u4").tolist()
            if kind != 0x800 + axes or not 0 < shape[0] <= 60_000 or shape[1:] != [28] * (axes - 1):
                raise _bad(path, expected, f"one that begins with {head!r}")
            raw = bytearray(stream.read(math.prod(shape) + 1))  # bytes cannot be written to
    if len(raw) != math.prod(shape):
        raise _bad(path, f"{math.prod(shape):,} bytes after its header", f"{len(raw):,} or more")
    return np.frombuffer(raw, np.uint8).reshape(shape)


def cifar(name: str, folder: Path) -> list[Pair]:
    """CIFAR (A. Krizhevsky, 2009) in its binary version, from its folder or else its archive."""
    classes, counts = CIFAR[name]
    width = PIXELS + (1 if classes == 10 else 2)  # CIFAR-100: the coarse label, then the fine one
    sizes = {file: count * width for file, count in counts.items()}
    if any((folder / file).exists() for file in sizes):
        parts = {}
        for file, size in sizes.items():
            with _reading(folder / file, f"{size:,} bytes"):
                parts[folder / file] = np.fromfile(folder / file, np.uint8, size + 1)
    else:
        archive = folder / f"cifar-{classes}-binary.tar.gz"
        python = [path for path in folder.glob(f"cifar-{classes}-*") if "-py" in path.name]
        if not archive.exists() and python:
            reason, advice = "whose pickles can run code", f"put {archive.name} of {TORONTO} there"
            raise DataError(f"{python[0]} is the Python version, {reason}: {advice}")
        if not archive.exists():
            _download(name, archive)
        parts = _members(archive, sizes)
    for (path, part), size in zip(parts.items(), sizes.values(), strict=True):
        top = part[width - PIXELS - 1 :: width].max(initial=0)
        if part.size != size or top >= classes:
            expected = f"{size:,} bytes with labels below {classes}"
            raise _bad(path, expected, f"{part.size:,} bytes with labels up to {top}")
    x = np.concatenate([part.reshape(-1, width)[:, -PIXELS:] for part in parts.values()])
    y = np.concatenate([part[width - PIXELS - 1 :: width] for part in parts.values()])
    x, y = x.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), y.astype(np.int64)
    end = -(size // width)  # the last file is the test part
    return [(x[:end], y[:end]), (x[end:], y[end:])]


def _members(archive: Path, sizes: dict[str, int]) -> dict[Path, np.ndarray]:
    """Content of the members of these names, one byte above their sizes at most."""
    found = {archive / name: np.empty(0, np.uint8) for name in sizes}
    with _reading(archive, "a .tar.gz archive"), gzip.open(archive) as stream:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                if member.name in sizes and (file := tar.extractfile(member)):
                    raw = file.read(sizes[member.name] + 1)
                    found[archive / member.name] = np.frombuffer(raw, np.uint8)
        while stream.read(1 << 20):  # to the end, where gzip checks its sum
            pass
    return found
