"""Data of one's own: .npz files, data sets made by hand, and what is held out of any data."""

from __future__ import annotations

import io
import json
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch
from torch.utils.data import DataLoader, TensorDataset

from spatlib import ConfigError, DataError
from spatlib.data import Dataset, as_dataset, load_data

from .files import TRAIN, labels, pixels
from .test_errors import X, Y, check
from .test_formats import check_images, load_as


def made_last(data: Any, **arguments: Any) -> Dataset:
    return as_dataset(data, channels_first=False, **arguments)


GREY, COLOUR = pixels(TRAIN, 6, 5), pixels(TRAIN, 6, 5, 3)
NUMBERS = labels(TRAIN, 3)


@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize("images", [GREY, GREY[..., None], COLOUR, GREY / 250], ids=range(4))
def test_npz_as_keras_has_it(images: np.ndarray, channels_first: bool, tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(
        path,
        x_train=images,
        y_train=NUMBERS.astype(np.uint8)[:, None],
        x_test=images[:5],
        y_test=NUMBERS[:5],
        names=["a", "b", "c"],
    )
    data = load_as(str(path), channels_first)
    expected = images.reshape(TRAIN, 6, 5, -1)
    expected = np.moveaxis(expected, 3, 1) if channels_first else expected
    check_images(data.train, expected, NUMBERS)
    check_images(data.test, expected[:5], NUMBERS[:5])


def test_npz_without_a_test_part_and_without_images(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    rows = GREY.reshape(TRAIN, -1) / 250
    for names in (("x", "y"), ("x_train", "y_train")):
        np.savez(path, **dict(zip(names, (rows, NUMBERS), strict=True)))
        data = as_dataset(path, channels_first=True)
        check_images(data.train, rows, NUMBERS)
        assert data.test is None


def npz_bytes(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def header(shape: tuple[int, ...]) -> bytes:
    """The beginning of an array of bytes."""
    buffer = io.BytesIO()
    facts = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, facts)
    return buffer.getvalue()


def npz_of(name: str, raw: bytes, announced: int = 0) -> bytes:
    """With labels, and an array that is these bytes, or as many as the file announces."""
    buffer = io.BytesIO(npz_bytes(y=NUMBERS))
    with zipfile.ZipFile(buffer, "a") as file:
        file.writestr(f"{name}.npy", raw)
        file.getinfo(f"{name}.npy").file_size = announced or len(raw)
    return buffer.getvalue()


BAD_NPZ = {
    "other names": (npz_bytes(images=GREY, labels=NUMBERS), "images"),
    "test without train": (npz_bytes(x_test=GREY, y_test=NUMBERS), "x_train"),
    "half a test part": (npz_bytes(x_train=GREY, y_train=NUMBERS, x_test=GREY), "y_test"),
    "channels first": (npz_bytes(x=pixels(4, 3, 8, 8), y=NUMBERS[:4]), "(4, 3, 8, 8)"),
    "objects": (npz_bytes(x=np.array([None] * 4), y=NUMBERS[:4]), "pickle"),
    "cut short": (npz_bytes(x=GREY, y=NUMBERS)[:-30], "BadZipFile"),
    "a shape beyond its end": (npz_of("x", header((10**7, 28, 28))), "EOF"),
    "a shape beyond all memory": (npz_of("x", header((10**12, 28, 28))), "MemoryError"),
    "more than a hundredfold": (npz_of("x", header((4,)), announced=2**31), "1,073,741,824 bytes"),
    "damaged": (npz_bytes(x=GREY, y=NUMBERS).replace(GREY.tobytes(), bytes(GREY.size)), "CRC"),
    "an array": (GREY.dumps(), "numpy.savez"),
    "text": (b"x,y\n1,2\n", "numpy.savez"),
    "empty": (b"", "numpy.savez"),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_npz_of_other_content_is_refused_by_its_name(case: str, tmp_path: Path) -> None:
    raw, word = BAD_NPZ[case]
    path = tmp_path / "set.npz"
    path.write_bytes(raw)
    assert str(path) in str(check(DataError, word, lambda: load_data(path)))


def test_npz_with_fewer_labels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    path.write_bytes(npz_bytes(x=GREY, y=NUMBERS[:5]))
    found = check(DataError, "(5,)", lambda: load_data(path))
    assert str(path) in str(found)


@pytest.mark.parametrize("load", [load_data, made_last])
def test_a_directory_is_refused_with_who_can_read_images(
    load: Callable[[Any], Dataset], tmp_path: Path
) -> None:
    found = check(DataError, str(tmp_path), lambda: load(tmp_path))
    for library in ("torchvision", "keras.utils", "Hugging Face datasets"):
        assert library in str(found)


@pytest.mark.parametrize("load", [load_data, made_last])
@pytest.mark.parametrize("name", ["mnsit", "no/such/file.npz", "x" * 9999, "a\0b", ""])
def test_neither_a_name_nor_a_path(name: str, load: Callable[[Any], Dataset]) -> None:
    found = check(DataError, "'cifar100'", lambda: load(name))
    assert "'digits', 'mnist', 'cifar10'" in str(found)


def test_arguments_of_other_kinds() -> None:
    check(ConfigError, "dir must be a path", lambda: load_data("mnist", 3))  # type: ignore[arg-type]
    check(DataError, "'digits'", lambda: load_data(3))  # type: ignore[arg-type]
    for limit in (0, -1, 2.5, True, "3"):
        check(ConfigError, "limit must", lambda limit=limit: load_data("digits", limit=limit))


def test_a_limit_takes_the_first_examples_of_each_part() -> None:
    whole, part, more = (load_data("digits", limit=limit) for limit in (None, 500, 10**6))
    for all_of_it, some, all_again in zip(
        *((d.train, d.test) for d in (whole, part, more)), strict=True
    ):
        for a, b, c in zip(all_of_it, some, all_again, strict=True):
            assert np.array_equal(b, a[:500])
            assert np.array_equal(c, a)
    assert (len(part.train[1]), len(part.test[1])) == (500, 450)


def test_a_source_in_json_loads_the_same_again_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "set.npz").write_bytes(npz_bytes(x=COLOUR, y=NUMBERS))
    monkeypatch.chdir(tmp_path / "here")
    for arguments in (("set.npz", None, 5), (Path("set.npz"), "data", None), ("digits", None, 7)):
        name, folder, limit = arguments
        monkeypatch.chdir(tmp_path / "here")
        data = load_data(name, folder, limit=limit)
        source = json.loads(json.dumps(data.source))
        assert as_dataset(data, channels_first=True, validation=2).source == source
        monkeypatch.chdir(tmp_path)
        again = load_data(**source)
        assert again.source == source
        for a, b in zip(data.train, again.train, strict=True):
            assert np.array_equal(a, b)
    assert made_last((COLOUR, NUMBERS)).source is None


@pytest.mark.parametrize("channels_first", [True, False])
def test_only_what_has_its_channels_last_is_turned(channels_first: bool) -> None:
    pair = COLOUR, NUMBERS
    own = as_dataset(Dataset(train=pair, validation=pair), channels_first=channels_first)
    assert own.train[0] is own.validation[0] is COLOUR
    last = Dataset(
        train=pair, test=pair, validation=(torch.tensor(COLOUR), NUMBERS), channels_last=True
    )
    turned = as_dataset(last, channels_first=channels_first)
    for x, _ in (turned.train, turned.test, turned.validation):
        assert np.array_equal(x, np.moveaxis(COLOUR, 3, 1) if channels_first else COLOUR)
    again = as_dataset(turned, channels_first=channels_first)
    assert again.train[0] is turned.train[0]


LOADER = DataLoader(TensorDataset(X, Y), batch_size=2)
PAIR, BATCHES = (X, Y), [(X, Y), (X, Y)]


@pytest.mark.parametrize("train", [PAIR, BATCHES, LOADER], ids=["arrays", "list", "loader"])
@pytest.mark.parametrize("test", [PAIR, BATCHES, LOADER], ids=["arrays", "list", "loader"])
def test_training_and_test_data_come_in_any_pair(train: Any, test: Any) -> None:
    for data in ((train, test), Dataset(train=train, test=test)):
        made = made_last(data)
        for part, given in ((made.train, train), (made.test, test), (made.measured, test)):
            assert part is given
        assert made.validation is None
    alone = made_last(Dataset(train=train))
    assert alone.measured is alone.train is train


BAD_PARTS: dict[str, tuple[Any, str]] = {
    "no training data": (Dataset(train=None), "NoneType"),
    "fewer test labels": (Dataset(train=PAIR, test=(X, Y[:3])), "test data must"),
    "validation data used up": (Dataset(train=PAIR, validation=iter([])), "validation data must"),
    "three arrays": (Dataset(train=(X, Y, Y)), "weights, the third part of data"),
    "a test name": ((PAIR, ("test", Y)), "test data must be (x, y) or (x, y, weights), arrays"),
}


@pytest.mark.parametrize("case", BAD_PARTS)
def test_a_part_that_is_no_data_is_named(case: str) -> None:
    data, word = BAD_PARTS[case]
    check(DataError, word, lambda: made_last(data))


FORMS: dict[str, Any] = {"numpy": np.asarray, "torch": torch.tensor, "tensorflow": tf.constant}


@pytest.mark.parametrize("form", FORMS)
def test_examples_are_held_out_by_the_seed(form: str) -> None:
    there, count = FORMS[form], 40
    rows = there(np.arange(2.0 * count).reshape(count, 2))
    numbers = there(np.arange(count))
    chosen = []
    for seed in (0, 0, 1):
        data = made_last(((rows, numbers), (rows, numbers)), validation=15, seed=seed)
        (x, y), (x_held, y_held) = (
            tuple(np.asarray(rows[:]) for rows in part) for part in (data.train, data.validation)
        )
        assert len(x_held) == len(y_held) == 15
        assert sorted([*y, *y_held]) == list(range(count)), "each once, in one of the two"
        assert np.array_equal(x[:, 0], 2 * y), "inputs and labels together"
        assert np.array_equal(x_held[:, 0], 2 * y_held)
        assert len(data.test[0]) == count
        chosen.append(set(y_held.tolist()))
    assert chosen[0] == chosen[1] != chosen[2]
    assert chosen[0] not in (set(range(15)), set(range(25, 40))), "from everywhere"


def test_rows_are_held_out_of_an_array_without_a_copy_of_it() -> None:
    x, y = np.zeros((2**8, 2**14), np.float32), np.arange(2**8)  # 16 MiB
    tracemalloc.start()
    data = made_last((x, y), validation=20)
    assert data.train[0][:3].shape == (3, 2**14)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_named_data_can_be_held_out_and_are_not_without_being_asked() -> None:
    assert made_last("digits").validation is None
    data = made_last("digits", validation=347)
    assert [len(part[1]) for part in (data.train, data.validation, data.test)] == [1000, 347, 450]


@pytest.mark.parametrize(
    ("data", "validation", "word"),
    [
        ((X, Y), 4, "at most 3"),
        ((X, Y), -1, "an integer in [0"),
        ((X, Y), 0.25, "integer"),
        ([(X, Y)], 1, "batches"),
        (Dataset(train=PAIR, validation=PAIR), 1, "validation part"),
    ],
)
def test_what_cannot_be_held_out_is_refused(data: Any, validation: Any, word: str) -> None:
    check(ConfigError, word, lambda: made_last(data, validation=validation))
