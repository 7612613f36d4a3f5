"""Files made to break a reader: only a DataError comes of them, and nothing else happens.

Mutated at random: a few in each run of the tests, many more by ``make fuzz``.
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatlib import DataError
from spatlib.data import load_data

from . import files
from .files import pixels
from .mutations import mutated, outcome
from .running import content
from .test_errors import check
from .test_formats import FIRST, IMAGES, LABELS


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    files.expect_small_cifar(monkeypatch)


@pytest.mark.parametrize("long_name", [False, True])
def test_no_more_is_unpacked_than_the_formats_hold(long_name: bool, tmp_path: Path) -> None:
    zeros = 100 * gzip.compress(bytes(10_000_000))  # a gigabyte
    path = files.write_mnist(tmp_path) / LABELS
    path.write_bytes(gzip.compress(files.mnist_files()[LABELS.removesuffix(".gz")]) + zeros)
    first = tarfile.TarInfo(FIRST)
    first.size = 10**9
    first.type = tarfile.GNUTYPE_LONGNAME if long_name else tarfile.REGTYPE
    packed = tmp_path / "cifar-10-binary.tar.gz"
    packed.write_bytes(gzip.compress(first.tobuf(tarfile.GNU_FORMAT)) + zeros)
    largest = 60_000 * 28 * 28  # of the four files of MNIST
    for name, place in (("mnist", path), ("cifar10", packed)):
        tracemalloc.start()
        try:
            check(DataError, str(place), lambda name=name: load_data(name, tmp_path))
            assert tracemalloc.get_traced_memory()[1] < 1.2 * largest
        finally:
            tracemalloc.stop()


READ: dict[str, tuple[str, Callable[[Path], Any]]] = {
    IMAGES: ("mnist", files.write_mnist),
    FIRST: ("cifar10", lambda folder: files.write_cifar(folder, 10)),
    "cifar-100-binary.tar.gz": ("cifar100", lambda folder: files.write_archive(folder, 100)),
    "set.npz": ("", lambda folder: np.savez(folder / "set.npz", x=pixels(2, 4, 4), y=[0, 1])),
}


@pytest.mark.parametrize("file", READ)
def test_a_pipe_is_not_waited_for(file: str, tmp_path: Path) -> None:
    name, write = READ[file]
    write(tmp_path)
    (tmp_path / file).unlink()
    os.mkfifo(tmp_path / file)
    check(DataError, file, lambda: load_data(name or tmp_path / file, tmp_path))


def test_no_hash_of_a_pipe_is_waited_for(tmp_path: Path) -> None:
    for path in files.write_mnist(tmp_path).iterdir():
        path.unlink()
        if path.name != LABELS:  # which is missing beside files that are not the official ones
            os.mkfifo(path)
    check(DataError, LABELS, lambda: load_data("mnist", tmp_path))


def tar_of(raw: bytes) -> bytes:
    """The archive with the sums of its headers put right, so that the rest of them is read."""
    blocks = [bytearray(raw[k : k + 512]) for k in range(0, len(raw), 512)]
    for block in blocks:
        if block[257:262] == b"ustar" and len(block) == 512:
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
    return gzip.compress(b"".join(blocks), 1)


def npz_of(raw: bytes) -> bytes:
    """A .npz file with this array as x, and labels."""
    buffer = io.BytesIO()
    np.savez(buffer, y=np.arange(2))
    with zipfile.ZipFile(buffer, "a") as file:
        file.writestr("x.npy", raw)
    return buffer.getvalue()


def npy() -> bytes:
    np.save(buffer := io.BytesIO(), pixels(2, 4, 4))
    return buffer.getvalue()


MNIST = files.mnist_files()[IMAGES.removesuffix(".gz")]
TEN, HUNDRED = (files.archive(files.cifar_files(classes), 1) for classes in (10, 100))
# The name of the data and of the file, what is mutated, and what makes a file of it.
TARGETS: dict[str, tuple[str, str, bytes, Callable[[bytes], bytes]]] = {
    "IDX": ("mnist", IMAGES.removesuffix(".gz"), MNIST, bytes),
    "IDX in gzip": ("mnist", IMAGES, MNIST, lambda raw: gzip.compress(raw, 1)),
    "gzip": ("mnist", IMAGES, gzip.compress(MNIST), bytes),
    "CIFAR": ("cifar10", FIRST, files.cifar_files(10)[FIRST], bytes),
    "tar": ("cifar10", "cifar-10-binary.tar.gz", gzip.decompress(TEN), tar_of),
    "tar.gz": ("cifar100", "cifar-100-binary.tar.gz", HUNDRED, bytes),
    "npy": ("", "set.npz", npy(), npz_of),
    "npz": ("", "set.npz", npz_of(npy()), bytes),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for each target, with the other files that it needs."""
    root = tmp_path_factory.mktemp("targets")
    for target, (name, file, _, _) in TARGETS.items():
        (root / target).mkdir()
        if name == "mnist":
            files.write_mnist(root / target, zipped=file.endswith(".gz"))
        elif target == "CIFAR":
            files.write_cifar(root / target, 10)
    return root


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=5 * settings.default.max_examples)
@given(data=st.data())
def test_a_mutated_file_is_read_or_refused_by_its_name(
    target: str, data: st.DataObject, places: Path
) -> None:
    (name, file, raw, made), place = TARGETS[target], places / target
    (place / file).write_bytes(made(data.draw(mutated(raw))))
    before = content(place)
    found, problem = outcome(DataError, lambda: load_data(name or place / file, place))
    if problem is None:
        x, y = found.train
        assert len(x) == len(y) > 0
        assert not x.dtype.hasobject
    else:
        assert str(place) in problem
    assert content(place) == before
