"""Augmentation and pixels of uint8 on their way through training and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import spatlib_torch.loop
from spatlib import ConfigError, SPATConfig, TrainConfig, evaluate, train
from spatlib.engines import load_engine
from spatlib.monitor import Monitor

from .test_augment import CHANNELS, HEIGHT, LOWER, WIDTH, batch, versions
from .test_errors import check

COUNT, BATCH, EPOCHS = 24, 8, 2
UPPER = 1.0
PIXELS = (255 * batch(COUNT)).astype(np.uint8)
IMAGES = (LOWER + (UPPER - LOWER) * (PIXELS / np.float32(255))).astype(np.float32)
NUMBERS = np.arange(COUNT) % 3
METHOD = SPATConfig(eps=1e-5, steps=1, bounds=(LOWER, UPPER), smoothing=0)
QUICK = TrainConfig(epochs=EPOCHS, batch_size=BATCH, lr=0.01, schedule="constant", progress=False)


class TorchSpy(nn.Module):
    """A linear network that notes its inputs, as (N, H, W, C)."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.inner = nn.Linear(HEIGHT * WIDTH * CHANNELS, 3)
        self.seen: dict[bool, list[np.ndarray]] = {True: [], False: []}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen[self.training].append(x.detach().permute(0, 2, 3, 1).numpy().copy())
        logits: torch.Tensor = self.inner(x.flatten(1))
        return logits


class TFSpy(keras.Model):
    """Likewise."""

    def __init__(self) -> None:
        super().__init__()
        self.supports_jit = False
        self.flatten = keras.layers.Flatten()
        self.inner = keras.layers.Dense(3, kernel_initializer=keras.initializers.GlorotUniform(0))
        self.inner.build((None, HEIGHT * WIDTH * CHANNELS))
        self.seen: dict[bool, list[np.ndarray]] = {True: [], False: []}

    def call(self, x: Any, training: bool = False) -> Any:
        tf.py_function(lambda value: self.seen[training].append(value.numpy()), [x], [])
        return self.inner(self.flatten(x))


class Batches(keras.utils.PyDataset):
    def __init__(self, x: np.ndarray, workers: int = 1) -> None:
        super().__init__(workers=workers)
        self.x, self.begun, self.ended = x, 0, 0

    def __len__(self) -> int:
        return COUNT // BATCH

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        part = slice(index * BATCH, (index + 1) * BATCH)
        return self.x[part], NUMBERS[part]

    def on_epoch_begin(self) -> None:
        self.begun += 1

    def on_epoch_end(self) -> None:
        self.ended += 1


def loader(x: np.ndarray) -> DataLoader[Any]:
    tensor = torch.tensor(x.transpose(0, 3, 1, 2).copy())
    return DataLoader(TensorDataset(tensor, torch.tensor(NUMBERS)), batch_size=BATCH)


class Endless:
    """Batches, how many nobody knows."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x

    def __iter__(self) -> Iterator[Any]:
        return iter(loader(self.x))


FORMS: dict[str, tuple[str, Callable[[np.ndarray], Any]]] = {
    "torch arrays": ("torch", lambda x: (x.transpose(0, 3, 1, 2), NUMBERS)),
    "torch loader": ("torch", loader),
    "torch unknown length": ("torch", Endless),
    "tf arrays": ("tf", lambda x: (x, NUMBERS)),
    "tf list": ("tf", lambda x: list(map(Batches(x).__getitem__, range(COUNT // BATCH)))),
    "tf.data": ("tf", lambda x: tf.data.Dataset.from_tensor_slices((x, NUMBERS)).batch(BATCH)),
    "tf PyDataset": ("tf", Batches),
    "tf threads": ("tf", lambda x: Batches(x, workers=3)),
}


def fitted(form: str, x: np.ndarray, ordinary: bool = False, **settings: Any) -> np.ndarray:
    """The inputs of training (epochs, N, H, W, C), adversarial unless it is ordinary."""
    backend, data = FORMS[form]
    model = TorchSpy() if backend == "torch" else TFSpy()
    training = replace(QUICK, **settings)
    load_engine(backend).fit(model, data(x), METHOD, Monitor(training, ordinary=ordinary))
    seen = np.concatenate(model.seen[True])
    return seen.reshape(EPOCHS, COUNT, HEIGHT, WIDTH, CHANNELS)


ORDINARY = ("tf list", "tf.data", "tf PyDataset")  # without the attack, slow for Keras to trace


def inputs(form: str, x: np.ndarray, **settings: Any) -> np.ndarray:
    """The inputs of training (epochs, N, H, W, C), perturbed or not."""
    return fitted(form, x, ordinary=form in ORDINARY, **settings)


@cache
def known() -> tuple[np.ndarray, list[tuple[int, Any]]]:
    """All versions of all images, and of each the number of the image and the shift."""
    table = [
        (raw, (number, shift))
        for number, image in enumerate(IMAGES)
        for raw, shift in versions(image).items()
    ]
    arrays = np.frombuffer(b"".join(raw for raw, _ in table), np.float32)
    return arrays.reshape(-1, HEIGHT, WIDTH, CHANNELS), [origin for _, origin in table]


def origin(one: np.ndarray) -> tuple[int, Any]:
    """Which image it is, and how it was moved; up to the perturbation."""
    arrays, origins = known()
    distances = np.abs(arrays - one).max(axis=(1, 2, 3))
    assert distances.min() < 2 * METHOD.eps
    return origins[int(distances.argmin())]


@pytest.mark.parametrize("form", FORMS)
def test_training_images_are_moved_anew_in_each_epoch(form: str) -> None:
    first, again, other = (inputs(form, PIXELS, augment="crop-flip", seed=s) for s in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other, atol=1e-3)
    epochs = [[origin(one) for one in epoch] for epoch in first]
    for epoch in epochs:
        numbers = [number for number, _ in epoch]
        assert sorted(numbers) == list(range(COUNT))
        if "arrays" not in form:
            assert numbers == list(range(COUNT)), "each stays with its label"
        assert len({shift for _, shift in epoch}) > 12
    assert dict(epochs[0]) != dict(epochs[1])


@pytest.mark.parametrize("form", FORMS)
def test_pixels_are_trained_on_as_the_floats_they_stand_for(form: str) -> None:
    floats, pixels = inputs(form, IMAGES), inputs(form, PIXELS)
    assert np.array_equal(floats, pixels)
    assert {origin(one)[1] for one in floats[0]} == {(0, 0, False)}, "nothing else is done to them"


@pytest.mark.parametrize("form", ["torch arrays", "torch loader", "tf arrays", "tf.data"])
def test_pixels_are_evaluated_as_the_floats_they_stand_for(form: str) -> None:
    backend, data = FORMS[form]
    model = TorchSpy() if backend == "torch" else TFSpy()
    floats, pixels = (evaluate(model, data(x), METHOD).metrics for x in (IMAGES, PIXELS))
    assert floats == pixels
    # One evaluation after the other, in each the two attacks in any order.
    first, second = np.split(np.concatenate(model.seen[False]), 2)
    assert sorted(one.tobytes() for one in first) == sorted(one.tobytes() for one in second)


@pytest.mark.parametrize("form", ["torch arrays", "tf arrays"])
def test_after_augmented_training_images_are_measured_as_they_are(form: str) -> None:
    backend, data = FORMS[form]
    model = TorchSpy() if backend == "torch" else TFSpy()
    training = replace(QUICK, augment="crop", epochs=1)
    metrics = train(model, data(PIXELS), backend=backend, config=METHOD, training=training).metrics
    before = len(model.seen[False])
    assert evaluate(model, data(PIXELS), METHOD).metrics == metrics
    seen = np.concatenate(model.seen[False][before:])
    assert all((seen == image).all(axis=(1, 2, 3)).any() for image in IMAGES)


def test_starts_do_not_depend_on_augmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    def draws_only(x: torch.Tensor, *arguments: Any) -> torch.Tensor:
        torch.rand(100, generator=arguments[-1].generator)
        return x

    plain = fitted("torch arrays", IMAGES)
    monkeypatch.setattr(spatlib_torch.loop, "augment", draws_only)
    assert np.array_equal(fitted("torch arrays", IMAGES), plain)


def test_a_pydataset_still_learns_of_its_epochs() -> None:
    data = Batches(IMAGES)
    load_engine("tf").fit(TFSpy(), data, METHOD, Monitor(QUICK))
    assert data.begun == EPOCHS
    assert data.ended >= EPOCHS  # Keras calls it once more, before the first


ROWS = IMAGES.reshape(COUNT, -1)
NO_IMAGES: dict[str, Callable[[], Any]] = {
    "torch arrays": lambda: (nn.Linear(60, 3), (ROWS, NUMBERS)),
    "torch batches": lambda: (nn.Linear(60, 3), [(torch.tensor(ROWS), torch.tensor(NUMBERS))]),
    "tf arrays": lambda: (keras.Sequential([keras.layers.Dense(3)]), (ROWS, NUMBERS)),
    "tf batches": lambda: (keras.Sequential([keras.layers.Dense(3)]), [(ROWS, NUMBERS)]),
}


@pytest.mark.parametrize("case", NO_IMAGES)
def test_only_images_can_be_augmented(case: str) -> None:
    model, data = NO_IMAGES[case]()
    training = replace(QUICK, augment="crop")
    check(
        ConfigError,
        "augment must be 'none'",
        lambda: train(model, data, backend=case.split()[0], config=METHOD, training=training),
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"augment": "flip"},
        {"augment": None},
        {"validation": -1},
        {"validation": 0.1},
        {"validation": True},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    check(ConfigError, f"{next(iter(settings))} must be", lambda: TrainConfig(**settings))
