"""What train and evaluate take for data, and how they refuse what they cannot use."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch
from torch import nn

import spatlib
from spatlib import (
    BackendError,
    ConfigError,
    DataError,
    Mask,
    SPATConfig,
    SpatlibError,
    Threat,
    TrainConfig,
)
from spatlib.data import as_array, as_dataset, load_data

from .test_errors import CLASSES, X, Y, check, network

CONFIG = SPATConfig(eps=8 / 255)
QUICK = TrainConfig(epochs=1, batch_size=4, schedule="constant", progress=False)
ARRAYS = (X.numpy(), Y.numpy())


def train(model: Any = None, data: Any = ARRAYS, **arguments: Any) -> Any:
    return spatlib.train(model, data, **{"config": CONFIG, "training": QUICK} | arguments)


def evaluate(model: Any = None, data: Any = ARRAYS, **arguments: Any) -> Any:
    return spatlib.evaluate(model, data, **{"threat": CONFIG} | arguments)


class UsedUp:
    """Batches that can be gone through once, in the guise of a collection."""

    def __init__(self) -> None:
        self.batches = iter([(X, Y)])

    def __iter__(self) -> Iterator[Any]:
        return (batch for batch in self.batches)


class Endless:
    """Batches again and again, how many nobody knows."""

    def __iter__(self) -> Iterator[Any]:
        return iter([(X, Y)])


x, y = ARRAYS
BAD_DATA: dict[str, tuple[Callable[[], Any], str]] = {
    "unknown name": (lambda: "letters", "'digits'"),
    "a number": (lambda: 3, "int"),
    "an iterator": (lambda: iter([(X, Y)]), "not its iterator), got list_iterator"),
    "a generator": (lambda: ((X, Y) for _ in range(3)), "not its iterator), got generator"),
    "no examples": (lambda: (x[:0], y[:0]), "at least one"),
    "no batches": (lambda: [], "at least one batch"),
    "no arrays": (lambda: (), "data"),
    "test data out of bounds": (lambda: (ARRAYS, (2 * x, y)), "bounds"),
    "three arrays": (lambda: (x, y, y), "data"),
    "an empty batch": (lambda: [(X, Y), (X[:0], Y[:0]), (X, Y)], "at least one"),
    "inputs without labels": (lambda: [X, X, X], "(x, y)"),
    "two inputs without labels": (lambda: [X, X], "(x, y)"),
    "triples": (lambda: [(X, Y, Y)], "weights, the third part of data, must be floats"),
    "dicts": (lambda: [{"x": X}], "hold pairs (x, y), got dict"),
    "parts by name": (lambda: {"train": (X, Y)}, "hold pairs (x, y), got str"),
    "dicts the other way round": (lambda: [{"y": Y, "x": X}], "x must "),
    "strings": (lambda: [("ab", "c")], "array"),
    "nested lists": (lambda: (x.tolist(), y.tolist()), "(x, y)"),
    "a list of labels": (lambda: (x, y.tolist()), "got (ndarray, list)"),
    "object arrays": (lambda: (np.array([None] * 4), y), "array"),
    "fewer labels": (lambda: (x, y[:3]), "and (3,)"),
    "a single label": (lambda: (x, y[0]), "and ()"),
    "fewer test labels": (lambda: (ARRAYS, (x, y[:3])), "and (3,)"),
    "integers": (lambda: ((255 * x).astype(np.int16), y), "255"),
    "inputs out of bounds": (lambda: (2 * x, y), "bounds"),
    "nan": (lambda: (x * np.nan, y), "finite"),
    "labels from 1": (lambda: (x, y + 1), "got 1 to 3"),
    "labels below 0": (lambda: (x, y - 1), "got -1 to 1"),
    "float labels": (lambda: (x, y.astype(np.float32)), "float32"),
}


@pytest.mark.parametrize("function", [train, evaluate])
@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_are_refused(case: str, function: Callable[..., Any]) -> None:
    make, word = BAD_DATA[case]
    check(DataError, word, lambda: function(network(), make()))


BAD_CALLS: dict[str, tuple[type[SpatlibError], Callable[[], Any], str]] = {
    "batches used up": (
        DataError,
        lambda: train(network(), UsedUp()),
        "data must yield at least one batch",
    ),
    "schedule of unknown length": (
        ConfigError,
        lambda: train(network(), Endless(), training=TrainConfig()),
        "'constant'",
    ),
    "no model for own data": (ConfigError, lambda: train(None), "model"),
    "no model to evaluate": (ConfigError, lambda: evaluate(None), "model"),
    "a name for a model": (ConfigError, lambda: train("resnet"), "model"),
    "a name for a model to evaluate": (ConfigError, lambda: evaluate("resnet"), "model"),
    "nothing to train": (
        ConfigError,
        lambda: train(network().requires_grad_(False)),
        "requires_grad",
    ),
    "settings swapped": (ConfigError, lambda: train(network(), config=TrainConfig()), "SPATConfig"),
    "schedule swapped": (
        ConfigError,
        lambda: train(network(), training=CONFIG),
        "TrainConfig",
    ),
    "settings as a dict": (ConfigError, lambda: train(network(), config={"eps": 0.1}), "got {"),
    "no settings": (ConfigError, lambda: train(network(), config=None), "config must be given"),
    "what an attack may do, not how": (
        ConfigError,
        lambda: train(network(), config=Threat(eps=0.1)),
        "SPATConfig",
    ),
    "settings for evaluate": (
        ConfigError,
        lambda: evaluate(network(), threat=TrainConfig()),
        "Threat, got TrainConfig",
    ),
    "no threat": (ConfigError, lambda: evaluate(network(), threat=None), "threat must be given"),
    "no restarts": (ConfigError, lambda: evaluate(network(), restarts=0), "restarts"),
    "half a restart": (ConfigError, lambda: evaluate(network(), restarts=1.5), "restarts"),
    "no batch size": (ConfigError, lambda: evaluate(network(), batch_size=0), "batch_size"),
    "a seed of letters": (ConfigError, lambda: evaluate(network(), seed="a"), "seed"),
    "unknown backend": (BackendError, lambda: train(network(), backend="jax"), "'torch'"),
    "a model of no backend": (ConfigError, lambda: evaluate(lambda x: x), "torch.nn.Module"),
    "a second network of one's own": (
        ConfigError,
        lambda: train(network(), training=replace(QUICK, baseline=True)),
        "baseline must be False",
    ),
    "one logit": (DataError, lambda: train(nn.Sequential(nn.Flatten(), nn.Linear(4, 1))), "K >= 2"),
    "too many classes": (
        DataError,
        lambda: train(network(), config=replace(CONFIG, mask=Mask(classes=CLASSES + 1))),
        "classes",
    ),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls_are_refused(case: str) -> None:
    error, act, word = BAD_CALLS[case]
    check(error, word, act)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_list_is_a_list_of_batches_however_long(count: int) -> None:
    result = train(network(), [(X, Y)] * count)
    assert result.measured_on == "training"
    assert result.report.count == count * len(X)


def test_an_unknown_length_is_fine_for_a_constant_rate() -> None:
    assert train(network(), Endless()).report.count == len(X)


def test_refused_data_leave_the_model_as_it_was() -> None:
    model = network().train()
    model[1].eval()
    before = [p.tolist() for p in model.parameters()]
    check(DataError, "3", lambda: train(model, (X, torch.full_like(Y, 3))))
    assert [p.tolist() for p in model.parameters()] == before
    assert [m.training for m in model.modules()] == [True, True, False]


@pytest.mark.parametrize("channels_first", [True, False])
def test_digits_are_images_in_the_layout_asked_for(channels_first: bool) -> None:
    digits = as_dataset(load_data("digits"), channels_first=channels_first)
    image = (1, 8, 8) if channels_first else (8, 8, 1)
    (x, y), (x_test, y_test) = digits.train, digits.test
    assert (x.shape, y.shape) == ((1347, *image), (1347,))
    assert (x_test.shape, y_test.shape) == ((450, *image), (450,))
    assert x.dtype == x_test.dtype == np.float32
    assert (x.min(), x.max()) == (0, 1)
    assert y.dtype.kind == "i"
    assert (np.bincount(np.concatenate([y, y_test])) > 170).all()
    assert set(y) == set(y_test) == set(range(10))


def test_the_digits_need_nothing_of_the_readers_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "spatlib.files", None)
    monkeypatch.delattr(spatlib, "files", raising=False)
    assert len(as_dataset("digits", channels_first=True).train[1]) == 1347
    with pytest.raises(ImportError):
        load_data("mnist", tmp_path)


@pytest.mark.parametrize(
    "make",
    [
        np.asarray,
        list,
        torch.tensor,
        lambda values: torch.tensor(values, requires_grad=True),
        tf.constant,
        tf.Variable,
    ],
    ids=range(6),
)
def test_values_become_an_array_from_wherever_they_are(make: Callable[[Any], Any]) -> None:
    values = [0.5, 1.5, -2.0]
    found = as_array(make(values))
    assert type(found) is np.ndarray
    assert found.tolist() == values
