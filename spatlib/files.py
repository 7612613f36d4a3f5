"""Readers of official and of .npz files: nothing in them is executed, none fills disk or memory."""

import gzip
import math
import struct
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from .engines import load_extra
from .errors import expect, reading

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
COUNTS = (9_912_422, 28_881, 1_648_877, 4_542, 170_052_171, 168_513_733)
SIZES = dict(zip(SHA256, COUNTS, strict=True))  # in bytes
MNIST = tuple(SHA256)[:4]
BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
CIFAR = {  # number of classes, images in each file; the last file is the test part
    "cifar10": (10, {f"cifar-10-batches-bin/{batch}.bin": 10_000 for batch in BATCHES}),
    "cifar100": (100, {"cifar-100-binary/train.bin": 50_000, "cifar-100-binary/test.bin": 10_000}),
}
NPZ = ["x", "y", "x_train", "y_train", "x_test", "y_test"]


def read(name: str, folder: str | None) -> list[Pair]:
    """The training part and, if any, the test part of a named set or a .npz file; channels last."""
    if name not in URLS:
        return _npz(Path(name))
    place = Path(folder or load_extra("pooch", "pooch").os_cache("spatlib"))
    return _mnist(place) if name == "mnist" else _cifar(name, place)


def _download(name: str, path: Path) -> None:
    """Bring an official file there, whole and with the known SHA-256, or not at all."""
    pooch, url, size = load_extra("pooch", "pooch"), URLS[name] + path.name, SIZES[path.stem]
    requests = load_extra("requests", "requests")

    def get(url: str, place: str, _: Any) -> None:  # pooch's own writes as long as bytes come
        response = requests.get(url, stream=True, timeout=30)
        response.raise_for_status()
        Path(place).write_bytes(response.raw.read(size + 1))

    with reading(path, f"try again, or put {url} there by hand"):
        pooch.retrieve(url, f"sha256:{SHA256[path.stem]}", path.name, path.parent, downloader=get)


def _read(path: Path, most: int) -> bytes:
    """The first bytes of a file, unpacked if it is gzip; DataError for pipes and devices."""
    with reading(path):
        expect(path.is_file(), "is missing, or no regular file")
        with path.open("rb") as file:
            packed = file.peek(2)[:2] == b"\x1f\x8b"
            return (gzip.GzipFile(fileobj=file) if packed else file).read(most)


def _npz(path: Path) -> list[Pair]:
    known, pairs = path.is_file() and _read(path, 4) == b"PK\3\4", []
    others = "the data that torchvision, keras.utils or Hugging Face datasets read"
    expect(known, f"{path} is no file of numpy.savez: make one, or pass {others}")
    with reading(path), np.load(path, allow_pickle=False) as file:
        most = max(1 << 30, 100 * path.stat().st_size)  # of some kB can be made as many GB
        whole = sum(member.file_size for member in file.zip.infolist())
        expect(whole <= most, f"must unpack to at most {most:,} bytes, got {whole:,}")
        keys = [key for key in NPZ if key in file.files]
        what = f"must hold x_train, y_train, x_test, y_test or x, y, got {file.files}"
        expect(keys in (NPZ[:2], NPZ[2:4], NPZ[2:]), what)
        for x, y in ((file[x], file[y]) for x, y in zip(keys[::2], keys[1::2], strict=True)):
            x = x[..., None] if x.ndim == 3 else x
            fits = x.ndim != 4 or x.shape[3] in (1, 3)
            expect(fits, f"must hold images (N, H, W) or (N, H, W, 1 or 3), got {x.shape}")
            y = y[:, 0] if y.shape[1:] == (1,) else y
            pairs.append((x, y.astype(np.int64) if y.dtype.kind in "iu" else y))
    return pairs


def _mnist(folder: Path) -> list[Pair]:
    """MNIST (LeCun, Cortes and Burges) in four IDX files, each as it is or with ``.gz``."""
    place = folder if any(folder.glob("*-ubyte*")) else folder / "MNIST" / "raw"  # torchvision's
    files = [p if (p := place / name).exists() else p.with_suffix(".gz") for name in MNIST]
    missing = [path for path in files if not path.exists()]
    # What is downloaded must not be mixed with files of another data set.
    for path in set(files).difference(missing) if missing else ():
        hashed = load_extra("pooch", "pooch").file_hash
        known = path.is_file() and hashed(str(path)) == SHA256[path.stem]
        expect(known, f"{missing[0]} is missing beside {path.name} of other data: add it")
    for path in missing:
        _download("mnist", path)
    pairs = []
    for images, labels in (files[:2], files[2:]):
        x, y = _idx(images, 28, 28)[..., None], _idx(labels).astype(np.int64)
        with reading(labels):
            what = f"must hold {len(x)} labels up to 9, got {len(y)} up to {y.max()}"
            expect(len(x) == len(y) and y.max() <= 9, what)
        pairs.append((x, y))
    return pairs


def _idx(path: Path, *shape: int) -> np.ndarray:
    """Images of this shape or labels, plain or gzip."""
    what = f"must be an IDX file of 1 to 60,000 {'images of 28 x 28' if shape else 'labels'}"
    start, each = 8 + 4 * len(shape), math.prod(shape)
    raw = bytearray(_read(path, start + 60_000 * each + 1))  # an array of bytes is read-only
    count = min(int.from_bytes(raw[4:8], "big"), 60_000)
    head = struct.pack(f">{2 + len(shape)}I", 0x801 + len(shape), count, *shape)
    with reading(path):
        got = f"{len(raw):,} or more bytes that begin with {bytes(raw[:start])!r}"
        expect(raw[:start] == head and 0 < len(raw) - start == count * each, f"{what}, got {got}")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(count, *shape)


def _cifar(name: str, folder: Path) -> list[Pair]:
    """CIFAR (A. Krizhevsky, 2009) in its binary version, from its folder or else its archive."""
    classes, counts = CIFAR[name]
    record = np.dtype([("coarse", "u1", (classes // 100,)), ("y", "u1"), ("x", "u1", (3, 32, 32))])
    sizes = {file: count * record.itemsize for file, count in counts.items()}
    archive, members = folder / f"cifar-{classes}-binary.tar.gz", {}
    place = folder if any((folder / file).exists() for file in sizes) else archive
    if place == archive:
        if not archive.exists():
            python = [str(p) for p in folder.glob(f"cifar-{classes}-*") if "-py" in p.name]
            what = f"has pickles, and pickles can run code: put {archive.name} of {TORONTO} there"
            expect(not python, f"{', '.join(python)} {what}")
            _download(name, archive)
        most = sum(sizes.values()) + (1 << 20)  # with headers and small files
        whole = _read(archive, most)
        with reading(archive), tarfile.open(fileobj=BytesIO(whole), mode="r:") as tar:
            expect(len(whole) < most, f"must unpack to less than {most:,} bytes")
            members = {m.name: memoryview(whole)[m.offset_data :][: m.size] for m in tar}
    parts = []
    for file, size in sizes.items():
        raw = members.get(file, b"") if place == archive else _read(folder / file, size + 1)
        with reading(place / file):
            expect(len(raw) == size, f"must hold {size:,} bytes, got {len(raw):,} or more")
            parts.append(np.frombuffer(raw, record))
            expect(parts[-1]["y"].max() < classes, f"must hold labels below {classes}")
    x, y = (np.concatenate([part[name] for part in parts]) for name in "xy")
    x, y, end = x.transpose(0, 2, 3, 1), y.astype(np.int64), -len(parts[-1])
    return [(x[:end], y[:end]), (x[end:], y[end:])]  # the last file is the test part
