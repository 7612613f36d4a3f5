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
from spatlib.data import Dataset, load

from . import files
from .files import TEST, TRAIN, labels, pixels
from .test_errors import check


def load_last(name: str, folder: Path) -> Dataset:
    return load(name, channels_first=False, data_dir=folder)


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
    data = load("mnist", channels_first=channels_first, data_dir=str(tmp_path))
    axis = 1 if channels_first else 3
    check_images(data.train, np.expand_dims(pixels(TRAIN, 28, 28), axis), labels(TRAIN, 10))
    check_images(data.test, np.expand_dims(pixels(TEST, 28, 28), axis), labels(TEST, 10))
    assert data.validation is None


def write_archive(folder: Path, classes: int, form: str) -> None:
    name, raw = files.archive(classes, form)
    (folder / name).write_bytes(raw)


@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize("write", [files.write_cifar, write_archive])
@pytest.mark.parametrize("form", ["bin", "py"])
@pytest.mark.parametrize("classes", [10, 100])
def test_cifar_is_read_as_written(
    classes: int, form: str, write: Any, channels_first: bool, tmp_path: Path
) -> None:
    write(tmp_path, classes, form)
    data = load(f"cifar{classes}", channels_first=channels_first, data_dir=tmp_path)
    x, y = pixels(TRAIN + TEST, 3, 32, 32), labels(TRAIN + TEST, classes)
    x = x if channels_first else np.moveaxis(x, 1, 3)
    check_images(data.train, x[:TRAIN], y[:TRAIN])
    check_images(data.test, x[TRAIN:], y[TRAIN:])


def test_pickles_of_python_3_are_read(tmp_path: Path) -> None:
    files.write_cifar(tmp_path, 10, "py")
    x, y = files.cifar_parts(10)["test_batch"]
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(
        files.pickled(x, y, 10, old=False)
    )
    check_images(load_last("cifar10", tmp_path).test, np.moveaxis(x, 1, 3), y)


HTML = b"<!DOCTYPE html><html><title>404 Not Found</title></html>"
M = "{}-idx{}-ubyte.gz".format
IMAGES, LABELS = M("train-images", 3), M("train-labels", 1)
TEST_IMAGES, TEST_LABELS = M("t10k-images", 3), M("t10k-labels", 1)
RAW = {f"{name}.gz": raw for name, raw in files.mnist_files().items()}

BAD_MNIST: dict[str, tuple[str, bytes | None, str]] = {
    "missing": (TEST_LABELS, None, "no such file"),
    "an error page": (IMAGES, HTML, "DOCTYPE"),
    "an error page, zipped": (IMAGES, gzip.compress(HTML), "DOCTYPE"),
    "gz cut short": (IMAGES, gzip.compress(RAW[IMAGES])[:-9], "EOFError"),
    "gz damaged": (IMAGES, gzip.compress(RAW[IMAGES])[:10] + b"\xff" * 200, "error"),
    "cut short": (IMAGES, RAW[IMAGES][:-1], "9,407"),
    "too long": (TEST_LABELS, RAW[TEST_LABELS] + b"\0", "6"),
    "a header cut short": (IMAGES, RAW[IMAGES][:7], "0 bytes"),
    "empty": (LABELS, b"", "IDX"),
    "no examples": (LABELS, files.idx(labels(0, 10)), "0 bytes"),
    "images for labels": (LABELS, RAW[IMAGES], "1 axes"),
    "labels for images": (TEST_IMAGES, RAW[TEST_LABELS], "3 axes"),
    "train for test": (TEST_LABELS, RAW[LABELS], "5 images"),
    "letters": (LABELS, files.idx(np.arange(TRAIN)), "labels from 0 to 11"),
    "shorts": (LABELS, RAW[LABELS].replace(b"\x08", b"\x0b", 1), "bytes"),
}


@pytest.mark.parametrize("case", BAD_MNIST)
def test_mnist_of_other_content_is_refused_by_its_name(case: str, tmp_path: Path) -> None:
    name, raw, word = BAD_MNIST[case]
    path = files.write_mnist(tmp_path) / name
    path.unlink() if raw is None else path.write_bytes(raw)
    found = check(DataError, word, lambda: load_last("mnist", tmp_path))
    assert found.subject == str(path)


class Intruder:
    """Would make a directory when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def with_batch(**changes: Any) -> bytes:
    x, y = files.cifar_parts(10)["data_batch_2"]
    batch = {b"data": x.reshape(1, -1), b"labels": y.tolist()}
    return pickle.dumps(batch | {name.encode(): value for name, value in changes.items()}, 4)


ROW = np.zeros((1, 3072), np.uint8)
BAD_CIFAR: dict[str, tuple[str, str, bytes | None, str]] = {
    "missing": ("bin", "data_batch_2.bin", None, "FileNotFoundError"),
    "cut short": ("bin", "data_batch_2.bin", bytes(3072), "3073"),
    "CIFAR-100 for CIFAR-10": ("bin", "test_batch.bin", bytes(3074 * 5), "3073"),
    "empty": ("bin", "data_batch_2.bin", b"", "0 bytes"),
    "an error page": ("bin", "data_batch_2.bin", HTML, "3073"),
    "a label too large": ("bin", "data_batch_2.bin", b"\x0a" + bytes(3072), "10 to 10"),
    "pickle missing": ("py", "data_batch_2", None, "FileNotFoundError"),
    "pickle cut short": ("py", "data_batch_2", with_batch()[:-40], "pickle"),
    "no pickle": ("py", "data_batch_2", HTML, "Unpickling"),
    "pickle empty": ("py", "data_batch_2", b"", "EOFError"),
    "a list": ("py", "data_batch_2", pickle.dumps([1, 2], 2), "dict"),
    "no data": ("py", "data_batch_2", pickle.dumps({b"labels": [1]}, 2), "data"),
    "other labels": ("py", "data_batch_2", with_batch(labels=[0, 1]), "(2,)"),
    "no labels": ("py", "data_batch_2", with_batch(labels=np.zeros(0, int), data=ROW[:0]), "(0,)"),
    "labels of letters": ("py", "data_batch_2", with_batch(labels=["a"]), "U1"),
    "labels below 0": ("py", "data_batch_2", with_batch(labels=[-1]), "-1"),
    "floats": ("py", "data_batch_2", with_batch(data=ROW / 255), "f8"),
    "half an image": ("py", "data_batch_2", with_batch(data=ROW[:, ::2]), "1536"),
    "lists for arrays": ("py", "data_batch_2", with_batch(data=ROW.tolist()), "list"),
}


@pytest.mark.parametrize("case", BAD_CIFAR)
def test_cifar_of_other_content_is_refused_by_its_name(case: str, tmp_path: Path) -> None:
    form, name, raw, word = BAD_CIFAR[case]
    files.write_cifar(tmp_path, 10, form)
    path = tmp_path / f"cifar-10-batches-{form}" / name
    path.unlink() if raw is None else path.write_bytes(raw)
    found = check(DataError, word, lambda: load_last("cifar10", tmp_path))
    assert found.subject == str(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_cannot_call_anything(protocol: int, tmp_path: Path) -> None:
    made = tmp_path / "made"
    raw = pickle.dumps({b"data": Intruder(made), b"labels": [1]}, protocol)
    files.write_cifar(tmp_path, 10, "py")
    path = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    path.write_bytes(raw)
    found = check(DataError, f"{os.mkdir.__module__}.mkdir", lambda: load_last("cifar10", tmp_path))
    assert found.subject == str(path)
    assert not made.exists()
    pickle.loads(raw)
    assert made.exists(), "the intruder would have come through pickle itself"


def test_an_archive_is_refused_by_its_name(tmp_path: Path) -> None:
    name, raw = files.archive(10, "bin")
    path = tmp_path / name
    half, other = raw[: len(raw) // 2], files.archive(100, "bin")[1]
    for content, word in (
        (HTML, "not a gzip file"),
        (half, "Error"),
        (b"", "empty"),
        (other, "data_batch_1.bin"),
    ):
        path.write_bytes(content)
        found = check(DataError, word, lambda: load_last("cifar10", tmp_path))
        assert found.subject == str(path)
    assert sorted(tmp_path.iterdir()) == [path], "nothing is unpacked"


class Pointer:
    """Unpickles as an array of objects at an address that the file names."""

    def __reduce__(self) -> Any:
        return np.ndarray, ((1,), np.dtype("O"), b"A" * 8)


class State:
    """An array of bytes whose type is then said to be object."""

    def __reduce__(self) -> Any:
        raw = np.frombuffer(b"A" * 8, np.uint8)
        state = (1, (1,), np.dtype("O"), False, b"A" * 8)
        return raw.__reduce__()[0], raw.__reduce__()[1], state


@pytest.mark.parametrize("intruder", [Pointer, State])
def test_a_pickle_cannot_name_an_address(intruder: Any, tmp_path: Path) -> None:
    raw = pickle.dumps({b"data": intruder(), b"labels": [1]}, 2)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    path.parent.mkdir()
    path.write_bytes(raw)
    with pytest.raises(DataError, match="data_batch_1"):
        load("cifar10", channels_first=False, data_dir=tmp_path)
