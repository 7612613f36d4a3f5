"""Keras' loop under spatlib.train: NaN ends it, rows are read once, weights come back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, optimizers

import spatlib
from spatlib import ConfigError, NonFiniteError, SPATConfig, TrainConfig
from spatlib.monitor import Monitor
from spatlib.runs import Run
from spatlib_tf import SPATModel, engine

from .test_torch_loaders import Labelled

SHAPE, CLASSES, COUNT, BATCH, STEPS = (6, 6, 1), 3, 36, 8, 5  # the last batch has 4 examples
CONFIG = SPATConfig(eps=0.1, steps=1)
QUICK = {"epochs": 1, "batch_size": BATCH, "lr": 0.05, "schedule": "constant", "progress": False}


def arrays() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.uniform(size=(COUNT, *SHAPE)).astype(np.float32), rng.integers(CLASSES, size=COUNT)


class Batches(keras.utils.PyDataset):
    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = (part[index * BATCH : (index + 1) * BATCH] for part in arrays())
        return x, y


FORMS: dict[str, Callable[[], Any]] = {
    "arrays": arrays,
    "list": lambda: list(Batches()),
    "tf.data": lambda: tf.data.Dataset.from_tensor_slices(arrays()).batch(BATCH),
    "PyDataset": Batches,
}


def network(*end: keras.Layer) -> keras.Sequential:
    """BatchNorm and dropout: statistics and draws that have to come back too."""
    keras.utils.set_random_seed(0)
    hidden = (layers.Dense(8), layers.BatchNormalization(), layers.ReLU())
    dropout = layers.Dropout(0.3, seed=1)
    return keras.Sequential(
        [layers.Input(SHAPE), layers.Flatten(), *hidden, dropout, layers.Dense(CLASSES), *end]
    )


def fit(
    model: keras.Model,
    data: Any = None,
    run_dir: Path | None = None,
    on_epoch: Any = None,
    optimizer: Any = None,
    **settings: Any,
) -> list[dict[str, float]]:
    """The history, without what the clock says; a run that is there goes on."""
    training, run = TrainConfig(**QUICK | settings), None
    if run_dir is not None:
        run = Run(run_dir, resume=run_dir.exists())
        settings = {"backend": "tf", "data": None, "architecture": None, "optimizer": True}
        run.describe(settings | {"config": asdict(CONFIG), "training": asdict(training)})
    monitor = Monitor(training, run=run, on_epoch=on_epoch)
    data = arrays() if data is None else data
    rows = engine.fit(model, data, CONFIG, monitor, optimizer=optimizer)
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def same(first: keras.Model, second: keras.Model) -> bool:
    return all(map(np.array_equal, first.get_weights(), second.get_weights()))


@pytest.mark.parametrize(
    "optimizer",
    [optimizers.SGD, lambda: optimizers.LossScaleOptimizer(optimizers.SGD())],
    ids=["plain", "scaled"],
)
def test_terminate_on_nan_ends_fit(optimizer: Callable[[], Any]) -> None:
    model, weights, seen = SPATModel(network(), CONFIG, seed=0), np.ones(COUNT), []
    weights[BATCH] = math.nan  # in the second of five steps
    model.compile(optimizer())
    look = keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: seen.append(logs))
    stop = keras.callbacks.TerminateOnNaN()
    settings = {"batch_size": BATCH, "epochs": 3, "shuffle": False, "verbose": 0}
    history = model.fit(*arrays(), **settings, sample_weight=weights, callbacks=[stop, look])
    assert [math.isnan(logs["loss"]) for logs in seen] == [False, True]
    assert len(history.epoch) == 1


@pytest.mark.usefixtures("one_attack")
def test_callbacks_see_the_logs_save_and_may_end_the_training(tmp_path: Path) -> None:
    logged: list[dict[str, float]] = []

    class Ends(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logged.append(logs)
            self.model.stop_training = epoch == 1

    how: dict[str, Any] = {"config": CONFIG, "training": TrainConfig(**QUICK | {"epochs": 4})}
    used = [Ends(), keras.callbacks.ModelCheckpoint(tmp_path / "saved.keras")]
    result = spatlib.train(network(), arrays(), backend="tf", callbacks=used, **how)
    assert same(keras.models.load_model(tmp_path / "saved.keras"), result.model)
    assert [row["loss"] for row in result.history] == [logs["loss"] for logs in logged]
    assert len(logged) == 2
    for backend, given in (("torch", [Ends()]), ("tf", [print]), ("tf", Ends())):
        with pytest.raises(ConfigError, match=r"callbacks must be a list of keras\.callbacks"):
            spatlib.train("small_cnn", arrays(), backend=backend, callbacks=given, **how)


class Fails(layers.Layer):
    """The identity, from the given step on with NaN, or with an infinite gradient."""

    def __init__(self, at: int, how: str) -> None:
        super().__init__()
        self.at, self.how = at, how

    def build(self, input_shape: Any) -> None:
        self.passes = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if not training:
            return inputs
        number = self.passes + 1
        self.passes.assign(number)

        @tf.custom_gradient
        def fail(z: Any) -> Any:
            bad = tf.convert_to_tensor(number) >= self.at
            nan, inf = (tf.cast(value, z.dtype) for value in (math.nan, math.inf))
            value = tf.where(bad, nan, z) if self.how == "loss" else tf.identity(z)
            return value, lambda grad: tf.where(bad, inf, grad)

        return fail(inputs)


@pytest.mark.parametrize(
    ("epoch", "at", "how", "ema"),
    [
        (1, 2, "loss", 0.0),
        (1, STEPS, "gradient", 0.5),
        (2, 2, "loss", 0.5),
        (2, STEPS, "gradient", 0.0),
    ],
)
def test_nan_stops_train_with_the_weights_of_the_last_whole_epoch(
    epoch: int, at: int, how: str, ema: float, tmp_path: Path
) -> None:
    model, expected = (network(Fails(n, how)) for n in ((epoch - 1) * STEPS + at, 10**6))
    training = TrainConfig(**QUICK | {"epochs": 4, "ema": ema})
    settings = {"backend": "tf", "config": CONFIG, "training": training, "run_dir": tmp_path}
    with pytest.raises(NonFiniteError, match=f"step {epoch * STEPS}") as stopped:
        spatlib.train(model, arrays(), **settings)
    if epoch > 1:
        fit(expected, epochs=epoch - 1, ema=ema)
    assert same(model, expected)
    assert stopped.value.result.model is model
    assert stopped.value.result.history == stopped.value.history
    assert len(stopped.value.history) == epoch - 1
    rows = Run(tmp_path, resume=True).history() if epoch > 1 else []
    assert rows == stopped.value.history


def test_nan_after_a_resumption_leaves_what_the_run_had(tmp_path: Path) -> None:
    good, bad = network(Fails(10**6, "loss")), network(Fails(STEPS + 2, "loss"))
    fit(good, run_dir=tmp_path / "run", ema=0.5)
    with pytest.raises(NonFiniteError) as stopped:
        fit(bad, run_dir=tmp_path / "run", ema=0.5, epochs=2)
    assert same(bad, good)
    assert len(stopped.value.history) == 1


@pytest.mark.parametrize("scaled", [False, True])
def test_nan_stops_train_within_fifty_steps(scaled: bool) -> None:
    optimizer = optimizers.LossScaleOptimizer(optimizers.SGD(0.05)) if scaled else None
    model, steps = network(Fails(3, "loss")), 60
    x, y = (np.concatenate([part[:4]] * steps) for part in arrays())
    with pytest.raises(NonFiniteError, match=r"step 50\b") as stopped:
        fit(model, (x, y), batch_size=4, optimizer=optimizer)
    assert stopped.value.history == []
    assert same(model, network(Fails(3, "loss")))


class Watched:
    """Rows behind an interface like that of h5py: sorted rows only, and never all at once."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape, self.chunks, self.reads = values, values.shape, (BATCH,), []

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("all rows were read")

    __array__ = __iter__

    def __getitem__(self, rows: Any) -> np.ndarray:
        chosen = np.arange(COUNT)[rows]
        assert (np.diff(chosen) > 0).all()
        self.reads.append(chosen)
        return self.values[rows]


def test_arrays_are_read_batch_by_batch_in_another_order_in_each_epoch(tmp_path: Path) -> None:
    (x, y), expected, watching, mapped = arrays(), network(), network(), network()
    fit(expected, (tf.constant(x), Labelled(y)), epochs=2)
    watched = Watched(x), Watched(y)
    fit(watching, watched, epochs=2)
    reads = watched[0].reads
    assert max(map(len, reads)) == BATCH
    np.testing.assert_array_equal(np.concatenate(reads[:STEPS]), range(COUNT))  # all are checked
    second, first = reads[-STEPS:], reads[-2 * STEPS : -STEPS]
    for epoch in (first, second):
        assert sorted(np.concatenate(epoch)) == list(range(COUNT))
    assert not any(np.array_equal(*pair) for pair in product(first, second))
    np.save(tmp_path / "x.npy", x)
    fit(mapped, (np.load(tmp_path / "x.npy", mmap_mode="r"), y), epochs=2)
    assert same(watching, expected)
    assert same(mapped, expected)


@pytest.mark.parametrize("one_hot", [False, True])
def test_ordinary_training_is_that_of_keras(one_hot: bool) -> None:
    data, ours, theirs = list(Batches()), network(), network()
    rate = {"lr": 0.125, "momentum": 0.5, "weight_decay": 0.0}
    training = TrainConfig(**QUICK | rate | {"epochs": 2})
    given = [(x, np.eye(CLASSES)[y]) for x, y in data] if one_hot else data
    trades = SPATConfig(eps=0.1, loss="trades")
    rows = engine.fit(ours, given, trades, Monitor(training, ordinary=True))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    theirs.compile(optimizers.SGD(0.125, 0.5), loss, metrics=["accuracy"])
    history = theirs.fit(Batches(), epochs=2, shuffle=False, verbose=0).history
    assert [row["loss"] for row in rows] == pytest.approx(history["loss"], rel=1e-5)
    assert [row["adv_accuracy"] for row in rows] == pytest.approx(history["accuracy"])
    for mine, its in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-4, atol=1e-6)


class Backbone(keras.Model):
    """A network of the user's with a part that happens to be called base."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.head = layers.Flatten(), layers.Dense(CLASSES)

    def call(self, x: Any, training: bool | None = None) -> Any:
        return self.head(self.base(x))


def test_all_weights_of_a_network_come_back() -> None:
    first, second = Backbone(), Backbone()
    for model in (first, second):
        model(arrays()[0])
    assert not same(first, second)
    engine.load_weights(second, engine.weights(SPATModel(first, CONFIG)))
    assert same(first, second)
