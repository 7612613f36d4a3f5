"""Files of the official formats are read as written; anything else is refused by its name."""

from __future__ import annotations

import gzip
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spatlib import DataError
from spatlib.data import Dataset, as_dataset, load_data
from spatlib.files import CIFAR

from . import files
from .files import TEST, TRAIN, labels, pixels
from .test_errors import check

PUBLISHED = {name: (classes, dict(counts)) for name, (classes, counts) in CIFAR.items()}


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    files.expect_small_cifar(monkeypatch)


def load_as(name: Any, channels_first: bool, *folder: Any) -> Dataset:
    return as_dataset(load_data(name, *folder), channels_first=channels_first)


def check_images(pair: Any, x: np.ndarray, y: np.ndarray) -> None:
    """The pair is x and y to the bit, and can be written to (torch insists on it)."""
    ours, numbers = pair
    assert (ours.dtype, numbers.dtype) == (x.dtype, np.int64)
    assert np.array_equal(ours, x)
    assert np.array_equal(numbers, y)
    assert ours.flags.writeable
    assert ours.flags.c_contiguous


MNIST_LAYOUTS: dict[str, Callable[[Path], Any]] = {
    "gz": files.write_mnist,
    "plain": lambda folder: files.write_mnist(folder, zipped=False),
    "torchvision": lambda folder: files.write_mnist(folder / "MNIST" / "raw", zipped=False),
    "torchvision gz": lambda folder: files.write_mnist(folder / "MNIST" / "raw"),
}


@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize("layout", MNIST_LAYOUTS)
def test_mnist_is_read_as_written(layout: str, channels_first: bool, tmp_path: Path) -> None:
    MNIST_LAYOUTS[layout](tmp_path)
    data = load_as("mnist", channels_first, str(tmp_path))
    axis = 1 if channels_first else 3
    check_images(data.train, np.expand_dims(pixels(TRAIN, 28, 28), axis), labels(TRAIN, 10))
    check_images(data.test, np.expand_dims(pixels(TEST, 28, 28), axis), labels(TEST, 10))
    assert data.validation is None


@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize("write", [files.write_cifar, files.write_archive])
@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_is_read_as_written(
    classes: int, write: Any, channels_first: bool, tmp_path: Path
) -> None:
    write(tmp_path, classes)
    before = sorted(tmp_path.rglob("*"))
    data = load_as(f"cifar{classes}", channels_first, tmp_path)
    x, y = pixels(TRAIN + TEST, 3, 32, 32), labels(TRAIN + TEST, classes)
    x = x if channels_first else np.moveaxis(x, 1, 3)
    check_images(data.train, x[:TRAIN], y[:TRAIN])
    check_images(data.test, x[TRAIN:], y[TRAIN:])
    assert sorted(tmp_path.rglob("*")) == before, "nothing is unpacked"


def test_cifar_is_expected_in_the_published_sizes() -> None:
    for _, counts in PUBLISHED.values():
        *train, test = counts.values()
        assert (sum(train), test) == (50_000, 10_000)
    assert len(PUBLISHED["cifar10"][1]) == 6


@pytest.mark.parametrize("write", [files.write_mnist, lambda folder: files.write_cifar(folder, 10)])
def test_no_layout_is_copied_that_lies_so_in_memory(write: Any, tmp_path: Path) -> None:
    write(tmp_path)
    data = load_data("mnist" if write is files.write_mnist else "cifar10", tmp_path)
    ours = as_dataset(data, channels_first=True)
    again = as_dataset(ours, channels_first=True)
    for pair, part, same in zip(*((d.train, d.test) for d in (data, ours, again)), strict=True):
        assert all(map(np.shares_memory, pair, part))
        assert all(a is b for a, b in zip(part, same, strict=True))


HTML = b"<!DOCTYPE html><html><title>404 Not Found</title></html>"
M = "{}-idx{}-ubyte.gz".format
IMAGES, LABELS = M("train-images", 3), M("train-labels", 1)
TEST_IMAGES, TEST_LABELS = M("t10k-images", 3), M("t10k-labels", 1)
RAW = {f"{name}.gz": raw for name, raw in files.mnist_files().items()}

BAD_MNIST: dict[str, tuple[str, bytes, str]] = {
    "an error page": (IMAGES, HTML, "DOCTYPE"),
    "an error page, zipped": (IMAGES, gzip.compress(HTML), "DOCTYPE"),
    "gz cut short": (IMAGES, gzip.compress(RAW[IMAGES])[:-9], "EOFError"),
    "gz damaged": (IMAGES, gzip.compress(RAW[IMAGES])[:10] + b"\xff" * 200, "error"),
    "gz with another sum": (LABELS, gzip.compress(RAW[LABELS])[:-8] + bytes(8), "CRC"),
    "cut short": (IMAGES, RAW[IMAGES][:-1], "9,423"),
    "too long": (TEST_LABELS, RAW[TEST_LABELS] + b"\0", "14 or more"),
    "a header cut short": (
        IMAGES,
        RAW[IMAGES][:7],
        "7 or more bytes that begin with b'\\x00\\x00\\x08\\x03",
    ),
    "empty": (LABELS, b"", "IDX"),
    "no examples": (LABELS, files.idx(labels(0, 10)), "1 to 60,000 labels"),
    "too many examples": (LABELS, files.idx(labels(60_001, 10)), "1 to 60,000 labels"),
    "other images": (IMAGES, files.idx(pixels(TRAIN, 32, 28)), "28 x 28"),
    "images for labels": (LABELS, RAW[IMAGES], "labels"),
    "labels for images": (TEST_IMAGES, RAW[TEST_LABELS], "images"),
    "train for test": (TEST_LABELS, RAW[LABELS], "5 labels"),
    "letters": (LABELS, files.idx(np.arange(TRAIN)), "12 labels up to 9, got 12 up to 11"),
    "shorts": (LABELS, RAW[LABELS].replace(b"\x08", b"\x0b", 1), "IDX"),
}


@pytest.mark.parametrize("case", BAD_MNIST)
def test_mnist_of_other_content_is_refused_by_its_name(case: str, tmp_path: Path) -> None:
    name, raw, word = BAD_MNIST[case]
    path = files.write_mnist(tmp_path) / name
    path.write_bytes(raw)
    found = check(DataError, word, lambda: load_data("mnist", tmp_path))
    assert str(path) in str(found)


FIRST, LAST = (f"cifar-10-batches-bin/{name}.bin" for name in ("data_batch_2", "test_batch"))
BAD_CIFAR: dict[str, tuple[str, bytes, str]] = {
    "cut short": (FIRST, bytes(3072), "3,072"),
    "an image more": (FIRST, bytes(2 * 3073), "must hold 3,073 bytes"),
    "an image less": (LAST, bytes(4 * 3073), "12,292 or more"),
    "CIFAR-100 for CIFAR-10": (LAST, bytes(3074 * 5), "15,365"),
    "empty": (FIRST, b"", "3,073 bytes, got 0"),
    "an error page": (FIRST, HTML, "3,073"),
    "a label too large": (FIRST, b"\x0a" + bytes(3072), "labels below 10"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("case", BAD_CIFAR)
def test_cifar_of_other_content_is_refused_by_its_name(
    case: str, packed: bool, tmp_path: Path
) -> None:
    name, raw, word = BAD_CIFAR[case]
    path = tmp_path / name
    if packed:
        path = tmp_path / "cifar-10-binary.tar.gz" / name
        path.parents[1].write_bytes(files.archive({**files.cifar_files(10), name: raw}))
    else:
        files.write_cifar(tmp_path, 10)
        path.write_bytes(raw)
    found = check(DataError, word, lambda: load_data("cifar10", tmp_path))
    assert str(path) in str(found)


def test_a_missing_file_of_cifar_is_named(tmp_path: Path) -> None:
    files.write_cifar(tmp_path, 10)
    (tmp_path / FIRST).unlink()
    check(DataError, str(tmp_path / FIRST), lambda: load_data("cifar10", tmp_path))


def test_an_archive_is_refused_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "cifar-10-binary.tar.gz"
    raw = files.archive(files.cifar_files(10))
    other = files.archive(files.cifar_files(100))
    for content, word in (
        (HTML, "ReadError"),
        (raw[: len(raw) // 2], "Error"),
        (raw[:-8] + bytes(8), "CRC"),
        (b"", "empty"),
        (other, "data_batch_1.bin"),
    ):
        path.write_bytes(content)
        found = check(DataError, word, lambda: load_data("cifar10", tmp_path))
        assert str(path) in str(found)


class Intruder:
    """Would make a directory when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("packed", [False, True])
def test_the_python_version_of_cifar_is_refused_and_not_unpickled(
    classes: int, packed: bool, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    raw = pickle.dumps({b"data": Intruder(made), b"labels": [1], b"fine_labels": [1]}, 2)
    folder = tmp_path / ("cifar-10-batches-py" if classes == 10 else "cifar-100-python")
    path = tmp_path / f"cifar-{classes}-python.tar.gz" if packed else folder
    if packed:
        path.write_bytes(
            files.archive({f"{folder.name}/{name}": raw for name in ("train", "test")})
        )
    else:
        folder.mkdir()
        (folder / "data_batch_1").write_bytes(raw)
    found = check(DataError, str(path), lambda: load_data(f"cifar{classes}", tmp_path))
    assert f"cifar-{classes}-binary.tar.gz" in str(found)
    assert "pickles can run code" in str(found)
    assert not made.exists()
    pickle.loads(raw)
    assert made.exists(), "the intruder would have come through pickle itself"


@pytest.mark.parametrize("classes", [10, 100])
def test_the_python_version_of_the_other_cifar_or_beside_the_binary_one_is_passed_over(
    classes: int, tmp_path: Path
) -> None:
    files.write_archive(tmp_path, classes)
    for name in ("cifar-10-batches-py", "cifar-100-python"):
        (tmp_path / name).mkdir()
    assert len(load_data(f"cifar{classes}", tmp_path).train[1]) == TRAIN


def test_an_npz_file_is_not_unpickled(tmp_path: Path) -> None:
    made, path = tmp_path / "made", tmp_path / "set.npz"
    np.savez(path, x=np.array([Intruder(made)] * 4), y=np.arange(4))
    found = check(DataError, "pickle", lambda: load_data(path))
    assert str(path) in str(found)
    assert not made.exists()
    with np.load(path, allow_pickle=True) as file:
        file["x"]
    assert made.exists(), "the intruder would have come through pickle itself"
