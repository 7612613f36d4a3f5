"""Small files of the official formats, written byte by byte as their authors describe them."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

from spatlib import files

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


FOLDERS = {10: "cifar-10-batches-bin", 100: "cifar-100-binary"}


def cifar_parts(classes: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By path in the archive: images (N, 3, 32, 32) and labels."""
    x, y = pixels(TRAIN + TEST, 3, 32, 32), labels(TRAIN + TEST, classes)
    cuts = [0, 2, 3, 6, 8, TRAIN] if classes == 10 else [0, TRAIN]
    names = [f"data_batch_{i}" for i in range(1, 6)] if classes == 10 else ["train"]
    parts = {
        f"{FOLDERS[classes]}/{name}.bin": (x[begin:end], y[begin:end])
        for name, begin, end in zip(names, cuts[:-1], cuts[1:], strict=True)
    }
    test = "test_batch" if classes == 10 else "test"
    return {**parts, f"{FOLDERS[classes]}/{test}.bin": (x[TRAIN:], y[TRAIN:])}


def expect_small_cifar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let spatlib expect as many images in each file as there are here."""
    for classes in FOLDERS:
        counts = {name: len(y) for name, (_, y) in cifar_parts(classes).items()}
        monkeypatch.setitem(files.CIFAR, f"cifar{classes}", (classes, counts))


def cifar_files(classes: int) -> dict[str, bytes]:
    """Records of (coarse label,) label, red, green and blue plane."""
    coarse = [] if classes == 10 else [19]
    return {
        name: b"".join(
            bytes([*coarse, int(label)]) + image.tobytes()
            for image, label in zip(x, y, strict=True)
        )
        for name, (x, y) in cifar_parts(classes).items()
    }


def write_cifar(folder: Path, classes: int) -> None:
    for name, raw in cifar_files(classes).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)


def archive(files: dict[str, bytes], level: int = 0) -> bytes:
    """A ``.tar.gz``."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=level) as tar:
        for name, raw in {"readme.html": b"<p>", **files}.items():
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            tar.addfile(member, io.BytesIO(raw))
    return buffer.getvalue()


def write_archive(folder: Path, classes: int) -> None:
    (folder / f"cifar-{classes}-binary.tar.gz").write_bytes(archive(cifar_files(classes)))
