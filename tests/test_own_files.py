"""Data of one's own in files: .npz and folders of images; and what is held out of any data."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch
from PIL import Image

from spatlib import BackendError, ConfigError, DataError
from spatlib.data import Dataset, load

from .files import TRAIN, labels, pixels
from .test_errors import X, Y, check
from .test_formats import check_images


def load_last(data: Any, **arguments: Any) -> Dataset:
    return load(data, channels_first=False, **arguments)


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
    data = load(str(path), channels_first=channels_first)
    expected = images.reshape(TRAIN, 6, 5, -1)
    expected = np.moveaxis(expected, 3, 1) if channels_first else expected
    check_images(data.train, expected, NUMBERS)
    check_images(data.test, expected[:5], NUMBERS[:5])


def test_npz_without_a_test_part_and_without_images(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    rows = GREY.reshape(TRAIN, -1) / 250
    for names in (("x", "y"), ("x_train", "y_train")):
        np.savez(path, **dict(zip(names, (rows, NUMBERS), strict=True)))
        data = load(path, channels_first=True)
        check_images(data.train, rows, NUMBERS)
        assert data.test is None


def npz_bytes(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


BAD_NPZ = {
    "other names": (npz_bytes(images=GREY, labels=NUMBERS), "images"),
    "test without train": (npz_bytes(x_test=GREY, y_test=NUMBERS), "x_train"),
    "half a test part": (npz_bytes(x_train=GREY, y_train=NUMBERS, x_test=GREY), "y_test"),
    "channels first": (npz_bytes(x=pixels(4, 3, 8, 8), y=NUMBERS[:4]), "(4, 3, 8, 8)"),
    "objects": (npz_bytes(x=np.array([None] * 4), y=NUMBERS[:4]), "pickle"),
    "cut short": (npz_bytes(x=GREY, y=NUMBERS)[:-30], "BadZipFile"),
    "damaged": (npz_bytes(x=GREY, y=NUMBERS).replace(GREY.tobytes(), bytes(GREY.size)), "CRC"),
    "an array": (GREY.dumps(), "pickle"),
    "text": (b"x,y\n1,2\n", "pickle"),
    "empty": (b"", "No data"),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_npz_of_other_content_is_refused_by_its_name(case: str, tmp_path: Path) -> None:
    raw, word = BAD_NPZ[case]
    path = tmp_path / "set.npz"
    path.write_bytes(raw)
    assert check(DataError, word, lambda: load_last(path)).subject == str(path)


def test_npz_with_fewer_labels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set.npz").write_bytes(npz_bytes(x=GREY, y=NUMBERS[:5]))
    check(DataError, "12 inputs", lambda: load_last(tmp_path / "set.npz"))


def save(folder: Path, name: str, image: np.ndarray) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def image_folder(folder: Path, images: np.ndarray) -> None:
    """Images 0 and 1 are of class a, 2 of class b, 3 of class c."""
    for i, name in enumerate(("b/z.png", "a/9.PNG", "c/x.bmp", "a/10.png")):
        save(folder, name, images[[2, 1, 3, 0][i]])
    (folder / "notes.txt").write_text("no class")
    (folder / "a" / "notes.txt").write_text("no image")
    (folder / ".cache").mkdir()


@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize("images", [GREY, COLOUR], ids=["grey", "colour"])
def test_image_folders(images: np.ndarray, channels_first: bool, tmp_path: Path) -> None:
    image_folder(tmp_path, images)
    data = load(str(tmp_path), channels_first=channels_first)
    expected = images[:4].reshape(4, 6, 5, -1)
    expected = np.moveaxis(expected, 3, 1) if channels_first else expected
    check_images(data.train, expected, np.array([0, 0, 1, 2]))
    assert data.test is None


def test_image_folders_with_a_test_part(tmp_path: Path) -> None:
    for part, first in (("train", 0), ("val", 4)):
        image_folder(tmp_path / part, COLOUR[first:])
    y = np.array([0, 0, 1, 2])
    check_images(load_last(tmp_path).train, COLOUR[:4], y)
    check_images(load_last(tmp_path).test, COLOUR[4:8], y)
    image_folder(tmp_path / "test", COLOUR[8:])
    check_images(load_last(tmp_path).test, COLOUR[8:], y)


def test_an_image_that_differs_is_refused_by_its_name(tmp_path: Path) -> None:
    image_folder(tmp_path, COLOUR)
    wrong = tmp_path / "b" / "first.png"
    for image, word in (
        (COLOUR[0, :5], "(5, 5, 3)"),
        (GREY[0], "(6, 5, 1)"),
        (np.dstack([COLOUR[0], GREY[0]]), "RGBA"),
    ):
        save(tmp_path, "b/first.png", image)
        assert check(DataError, word, lambda: load_last(tmp_path)).subject == str(wrong)
    whole = save(tmp_path, "b/first.png", COLOUR[0]).read_bytes()
    for content, word in (
        (b"<!DOCTYPE html>", "UnidentifiedImageError"),
        (b"", "Unidentified"),
        (whole[: len(whole) // 2], "Error"),
    ):
        wrong.write_bytes(content)
        assert check(DataError, word, lambda: load_last(tmp_path)).subject == str(wrong)


def test_folders_without_images_or_with_other_classes_are_refused(tmp_path: Path) -> None:
    check(DataError, str(tmp_path), lambda: load_last(tmp_path))
    image_folder(tmp_path / "train", COLOUR)
    save(tmp_path / "test", "a/0.png", COLOUR[0])
    check(DataError, str(tmp_path / "test"), lambda: load_last(tmp_path))
    for name in ("a/0.png", "b/0.png", "c/0.png"):
        save(tmp_path / "test", name, GREY[0])
    check(DataError, str(tmp_path / "test" / "a"), lambda: load_last(tmp_path))


def test_without_pillow_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    image_folder(tmp_path, COLOUR)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    check(BackendError, "spatlib[data]", lambda: load_last(tmp_path))


@pytest.mark.parametrize("name", ["mnsit", "no/such/file.npz", "x" * 9999, "a\0b", ""])
def test_neither_a_name_nor_a_path(name: str) -> None:
    found = check(DataError, "'cifar100'", lambda: load_last(name))
    assert "'digits', 'mnist', 'cifar10'" in str(found)


def test_a_data_dir_that_is_no_path() -> None:
    check(ConfigError, "data_dir", lambda: load_last("mnist", data_dir=3))


FORMS = {
    "numpy": (np.asarray, np.asarray),
    "torch": (torch.tensor, torch.Tensor.numpy),
    "tensorflow": (tf.constant, lambda tensor: tensor.numpy()),
}


@pytest.mark.parametrize("form", FORMS)
def test_examples_are_held_out_by_the_seed(form: str) -> None:
    there, back = FORMS[form]
    count = 40
    rows = there(np.arange(2.0 * count).reshape(count, 2))
    numbers = there(np.arange(count))
    chosen = []
    for seed in (0, 0, 1):
        data = load_last(((rows, numbers), (rows, numbers)), validation=15, seed=seed)
        (x, y), (x_held, y_held) = (
            tuple(map(back, part)) for part in (data.train, data.validation)
        )
        assert len(x_held) == len(y_held) == 15
        assert sorted([*y, *y_held]) == list(range(count)), "each once, in one of the two"
        assert np.array_equal(x[:, 0], 2 * y), "inputs and labels together"
        assert np.array_equal(x_held[:, 0], 2 * y_held)
        assert len(data.test[0]) == count
        chosen.append(set(y_held.tolist()))
    assert chosen[0] == chosen[1] != chosen[2]
    assert chosen[0] not in (set(range(15)), set(range(25, 40))), "from everywhere"


def test_named_data_can_be_held_out_and_are_not_without_being_asked() -> None:
    assert load_last("digits").validation is None
    data = load_last("digits", validation=347)
    assert [len(part[1]) for part in (data.train, data.validation, data.test)] == [1000, 347, 450]


@pytest.mark.parametrize(
    ("data", "validation", "word"),
    [
        ((X, Y), 4, "fewer than the 4"),
        ((X, Y), -1, ">= 0"),
        ((X, Y), 0.25, "integer"),
        ([(X, Y)], 1, "batches"),
    ],
)
def test_what_cannot_be_held_out_is_refused(data: Any, validation: Any, word: str) -> None:
    check(ConfigError, word, lambda: load_last(data, validation=validation))
