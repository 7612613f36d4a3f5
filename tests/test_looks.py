"""No data pass unseen: every batch is looked at, the model's outputs on one, test data in time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from keras import layers
from torch import nn

import spatlib
import spatlib_tf
from spatlib import DataError, SPATConfig, TrainConfig
from spatlib_tf import SPATModel

from .entry import to_last
from .entry_tf import eagerly
from .test_errors import check

CLASSES, BATCH, CONFIG = 3, 6, SPATConfig(eps=0.1, steps=1)
TRAINING = TrainConfig(epochs=2, batch_size=BATCH, schedule="constant", progress=False)
over_frameworks = pytest.mark.parametrize("framework", ["torch", "tf"])
pytestmark = pytest.mark.usefixtures("one_attack")


def arrays(framework: str = "tf", count: int = 3 * BATCH) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x, y = rng.uniform(size=(count, 2, 3, 3)).astype(np.float32), rng.integers(CLASSES, size=count)
    return (x if framework == "torch" else to_last(x)), y


class Torch(nn.Module):
    """Linear logits, changed by a function; counts its calls."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.inner = nn.Sequential(nn.Flatten(), nn.Linear(18, CLASSES))
        self.change, self.calls = change, list[int]()

    def forward(self, x: torch.Tensor) -> Any:
        self.calls.append(len(x))
        return self.change(self.inner(x))


class Keras(keras.Model):
    """The same; counts its eager calls."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        super().__init__()
        keras.utils.set_random_seed(0)
        inner = [layers.Input((3, 3, 2)), layers.Flatten(), layers.Dense(CLASSES)]
        self.inner, self.change, self.calls = keras.Sequential(inner), change, list[int]()

    def call(self, x: Any, training: bool | None = None) -> Any:
        if tf.executing_eagerly():
            self.calls.append(len(x))
        return self.change(self.inner(x))


def network(framework: str, change: Callable[[Any], Any] = lambda z: z) -> Any:
    return Torch(change) if framework == "torch" else Keras(change)


def train(framework: str, model: Any, data: Any, config: SPATConfig = CONFIG) -> spatlib.Result:
    return spatlib.train(model, data, backend=framework, config=config, training=TRAINING)


def spat(base: Any = None, config: SPATConfig = CONFIG) -> SPATModel:
    model = SPATModel(base or network("tf"), config, seed=0, evaluation_steps=1)
    model.compile("sgd")
    return model


def weights(model: Any) -> list[Any]:
    if isinstance(model, nn.Module):
        return [p.tolist() for p in model.parameters()]
    return [w.tolist() for w in model.get_weights()]


# What is done to a batch x, y; and what the error says of it.
SPOILT: dict[str, tuple[Callable[..., Any], str]] = {
    "far": (lambda x, y: (x + 4 * (x == x.max()), y), r"x must .* \[0, 1\], got 0\.\d+ to 4"),
    "nan": (lambda x, y: (np.where(x == x.max(), np.nan, x), y), "x must .* got nan to nan"),
    "label": (lambda x, y: (x, 0 * y + CLASSES), r"y must .* 0 to 2 .* got 3 to 3"),
    "negative": (lambda x, y: (x, 0 * y - 100), "y must .* got -100 to -100"),
}


def spoilt(kind: str, at: int, framework: str = "tf") -> list[Any]:
    """Three batches, of which one is not as it should be."""
    x, y = arrays(framework)
    parts = [(x[i : i + BATCH], y[i : i + BATCH]) for i in range(0, len(x), BATCH)]
    parts[at - 1] = SPOILT[kind][0](*parts[at - 1])
    return parts


class Later:
    """Good batches, bad ones from the last epoch on, whose number ``passes`` is."""

    def __init__(self, kind: str, framework: str, passes: int) -> None:
        self.kind, self.framework, self.left = kind, framework, passes

    def __iter__(self) -> Iterator[Any]:
        self.left -= 1
        good = spoilt("far", 0 if self.left < 0 else 3, self.framework)
        good[2] = arrays(self.framework, BATCH)
        return iter(spoilt(self.kind, 2, self.framework) if self.left < 1 else good)


@over_frameworks
@pytest.mark.parametrize("kind", SPOILT)
def test_a_bad_batch_of_a_later_epoch_stops_the_training(framework: str, kind: str) -> None:
    passes = {"torch": 2, "tf": 4}[framework]  # tf looks twice before the two epochs
    model, expected = network(framework), network(framework)
    with pytest.raises(DataError, match=f"batch 2: {SPOILT[kind][1]}") as caught:
        train(framework, model, Later(kind, framework, passes))
    assert type(caught.value) is DataError
    one_epoch = TrainConfig(epochs=1, schedule="constant", progress=False)
    good = Later(kind, framework, 99)
    spatlib.train(expected, good, backend=framework, config=CONFIG, training=one_epoch)
    assert weights(model) == weights(expected)


def generator(parts: list[Any]) -> Iterator[Any]:
    yield from parts


class Pairs(keras.utils.PyDataset):
    def __init__(self, parts: list[Any]) -> None:
        super().__init__()
        self.parts = parts

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> Any:
        return self.parts[index]


SOURCES: dict[str, Callable[[list[Any]], dict[str, Any]]] = {
    "generator": lambda parts: {"x": generator(parts)},
    "PyDataset": lambda parts: {"x": Pairs(parts)},
    "tf.data": lambda parts: {
        "x": tf.data.Dataset.from_tensor_slices(
            tuple(np.concatenate(each) for each in zip(*parts, strict=True))
        ).batch(BATCH)
    },
    "arrays": lambda parts: {
        "batch_size": BATCH,
        **{k: np.concatenate(v) for k, v in zip("xy", zip(*parts, strict=True), strict=True)},
    },
}


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize("source", SOURCES)
def test_keras_own_loops_refuse_a_bad_batch(source: str, at: int) -> None:
    kind = list(SPOILT)[list(SOURCES).index(source)]
    words, model = SPOILT[kind][1], spat()
    before = weights(model)
    where = "^" if at == 1 else "^batch 3: "
    with pytest.raises(DataError, match=where + words), eagerly(at == 1):
        model.evaluate(**SOURCES[source](spoilt(kind, at)), verbose=0)
    with pytest.raises(DataError, match=where + words), eagerly(at == 1):
        model.fit(**SOURCES[source](spoilt(kind, at)), shuffle=False, verbose=0)
    assert at > 1 or weights(model) == before
    with pytest.raises(DataError, match="^batch 1: " + words), eagerly(at == 1):
        model.train_on_batch(*spoilt(kind, at)[at - 1])
    with pytest.raises(DataError, match="^batch 1: " + words), eagerly(at == 1):
        model.test_on_batch(*spoilt(kind, at)[at - 1])


def test_keras_validation_data_are_looked_at_before_the_training() -> None:
    model, (x, y) = spat(), arrays()
    before = weights(model)
    for held in ((2 * x, y), tf.data.Dataset.from_tensor_slices((x, y + 9)).batch(4)):
        with pytest.raises(DataError, match=r"^[xy] must"):
            model.fit(x, y, validation_data=held, verbose=0)
        with pytest.raises(DataError, match=r"^[xy] must"):
            model.fit(x, y, BATCH, 1, 0, None, 0.0, held)
    assert weights(model) == before


def test_a_look_takes_nothing_from_a_generator() -> None:
    ours, expected = spat(), spat()
    parts = spoilt("far", 0)
    parts[2] = arrays(count=BATCH)
    again = generator(2 * parts)
    ours.fit(again, steps_per_epoch=3, epochs=2, verbose=0, validation_data=generator(parts))
    expected.fit(**SOURCES["arrays"](parts), shuffle=False, epochs=2, verbose=0)
    assert weights(ours) == weights(expected)
    assert next(again, None) is None


@pytest.mark.parametrize("row", ["zeros", "two", "a large one", "mixed", "negative"])
def test_rows_that_are_no_labels_have_no_finite_loss(row: str) -> None:
    rows = {"zeros": (0, 0, 0), "two": (1, 1, 0), "a large one": (0, 2, 0)}
    rows |= {"mixed": (0.5, 0.5, 0), "negative": (-1, 1, 1)}
    (x, y), model = arrays(), spat()
    model.config = config = replace(CONFIG, loss="mart" if row == "mixed" else "pgd")
    labels = np.eye(CLASSES, dtype=np.float32)[y]
    assert np.isfinite(spatlib_tf.spat_loss(model.base, x, labels, config, validate=False))
    labels[-1] = rows[row]
    assert np.isnan(spatlib_tf.spat_loss(model.base, x, labels, config, validate=False))
    words = r"batch 1: y must hold rows that sum to 1, .* got .* to"
    for call in (model.train_on_batch, model.test_on_batch):
        with pytest.raises(DataError, match=words), eagerly(row != "zeros"):
            call(x, labels)


@over_frameworks
def test_test_data_are_checked_before_the_training(framework: str) -> None:
    (x, y), model = arrays(framework), network(framework)
    before = weights(model)
    for test, word in (((2 * x, y), "bounds"), ((x, y + 1), "got 1 to 3"), ([(x, y - 1)], "-1")):
        check(DataError, word, lambda test=test: train(framework, model, ((x, y), test)))
    with pytest.raises((RuntimeError, ValueError)):  # the model's own error
        train(framework, model, ((x, y), (x[:, :1], y)))
    assert weights(model) == before


def own(name: str) -> Callable[[Any], Any]:
    return lambda z: getattr(torch if isinstance(z, torch.Tensor) else keras.ops, name)(z, -1)


PROBABILITIES: dict[str, Callable[[Any], Any]] = {
    "softmax": own("softmax"),
    "sigmoid": lambda z: 1 / (1 + (torch if isinstance(z, torch.Tensor) else tf).exp(-z)),
    "softmax of new weights": lambda z: own("softmax")(0 * z),
}


@over_frameworks
@pytest.mark.parametrize("kind", PROBABILITIES)
def test_probabilities_are_no_logits_unless_they_are_meant(framework: str, kind: str) -> None:
    data, meant = arrays(framework), SPATConfig(eps=0.1, steps=1, check_logits=False)
    model = network(framework, PROBABILITIES[kind])
    calls = [lambda c: train(framework, model, data, c)]
    calls.append(lambda c: spatlib.evaluate(model, data, c, attacks=("pgd",), steps=1))
    if framework == "tf":
        calls += [lambda c: spat(model, c).fit(*data, verbose=0)]
        calls += [lambda c: spat(model, c).evaluate(generator([data]), verbose=0)]
        tensors = torch.utils.data.TensorDataset(*map(torch.as_tensor, data))
        loader = torch.utils.data.DataLoader(tensors, BATCH)
        calls += [lambda c: spat(model, c).fit(loader, verbose=0)]
    for call in calls:
        before = weights(model)
        check(DataError, "check_logits=False", lambda call=call: call(CONFIG))
        assert weights(model) == before
    x = arrays(framework)[0]
    check(DataError, "check_logits=False", lambda: spatlib.audit(model, x, x, data[1]))
    assert spatlib.audit(model, x, x, data[1], check_logits=False).count == len(x)
    with eagerly(kind != "softmax"):
        for call in calls:
            call(meant)


LOGITS: dict[str, Callable[[Any], Any]] = {
    "log_softmax": own("log_softmax"),
    "a gate": lambda z: z * PROBABILITIES["sigmoid"](z),
    "small and positive": lambda z: 0.3 + 0.01 * z,
    "all zero": lambda z: 0 * z,
}


@over_frameworks
@pytest.mark.parametrize("kind", LOGITS)
def test_logits_of_any_kind_are_fine(framework: str, kind: str) -> None:
    model, data = network(framework, LOGITS[kind]), arrays(framework)
    assert spatlib.evaluate(model, data, CONFIG, attacks=("pgd",), steps=1).count == len(data[1])
