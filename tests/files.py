"""Small files of the official formats, written byte by byte as their authors describe them."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

TRAIN, TEST = 12, 5


def pixels(count: int, *shape: int) -> np.ndarray:
    """Images of which no two pixels of a neighbourhood are equal."""
    return (np.arange(count * int(np.prod(shape))) * 37 % 251).astype(np.uint8).reshape(-1, *shape)


def labels(count: int, classes: int) -> np.ndarray:
    return (np.arange(count) * 7 + 3) % classes


def idx(values: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + bytes(
        values.astype(np.uint8).tobytes()
    )


def mnist_files() -> dict[str, bytes]:
    return {
        "train-images-idx3-ubyte": idx(pixels(TRAIN, 28, 28)),
        "train-labels-idx1-ubyte": idx(labels(TRAIN, 10)),
        "t10k-images-idx3-ubyte": idx(pixels(TEST, 28, 28)),
        "t10k-labels-idx1-ubyte": idx(labels(TEST, 10)),
    }


def write_mnist(folder: Path, *, zipped: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in mnist_files().items():
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(raw))
        else:
            (folder / name).write_bytes(raw)
    return folder


def cifar_parts(classes: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By file of the Python version: images (N, 3, 32, 32) and labels."""
    x, y = pixels(TRAIN + TEST, 3, 32, 32), labels(TRAIN + TEST, classes)
    if classes == 100:
        return {"train": (x[:TRAIN], y[:TRAIN]), "test": (x[TRAIN:], y[TRAIN:])}
    cuts = [0, 2, 3, 6, 8, TRAIN]
    batches = {
        f"data_batch_{i + 1}": (x[cuts[i] : cuts[i + 1]], y[cuts[i] : cuts[i + 1]])
        for i in range(5)
    }
    return {**batches, "test_batch": (x[TRAIN:], y[TRAIN:])}


def binary(x: np.ndarray, y: np.ndarray, classes: int) -> bytes:
    """Records of (coarse label,) label, red, green and blue plane."""
    coarse = [] if classes == 10 else [19]
    return b"".join(
        bytes([*coarse, int(label)]) + image.tobytes() for image, label in zip(x, y, strict=True)
    )


def pickled(x: np.ndarray, y: np.ndarray, classes: int, *, old: bool = True) -> bytes:
    """What Python 2 (or, not old, Python 3) would have written."""
    key = b"labels" if classes == 10 else b"fine_labels"
    batch: dict[Any, Any] = {b"data": x.reshape(len(x), -1), key: y.tolist(), b"filenames": [b"a"]}
    raw = pickle.dumps(batch, protocol=2 if old else 4)
    return raw.replace(b"numpy._core", b"numpy.core") if old else raw


def cifar_files(classes: int, form: str) -> dict[str, bytes]:
    """By path in the archive; ``form`` is "bin" or "py"."""
    parts = cifar_parts(classes).items()
    if form == "py":
        folder = "cifar-10-batches-py" if classes == 10 else "cifar-100-python"
        return {f"{folder}/{name}": pickled(*part, classes) for name, part in parts}
    folder = "cifar-10-batches-bin" if classes == 10 else "cifar-100-binary"
    return {f"{folder}/{name}.bin": binary(*part, classes) for name, part in parts}


def write_cifar(folder: Path, classes: int, form: str) -> Path:
    for name, raw in cifar_files(classes, form).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    return folder


def archive(classes: int, form: str) -> tuple[str, bytes]:
    """Name and bytes of the ``.tar.gz``."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=0) as tar:
        for name, raw in {"readme.html": b"<p>", **cifar_files(classes, form)}.items():
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    return f"cifar-{classes}-{'binary' if form == 'bin' else 'python'}.tar.gz", buffer.getvalue()
