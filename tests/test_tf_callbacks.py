"""The callbacks, saving and configuration that come with Keras work on a SPATModel."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import callbacks, layers

from spatlib import DataError, Mask, SPATConfig
from spatlib_tf import SPATModel

from .entry_tf import eagerly
from .test_tf_model import (
    CLASSES,
    SHAPE,
    Subclassed,
    arrays,
    fit,
    functional,
    network,
    same,
    spat,
    subclassed,
)

# The random start, the mask and the smoothing all matter, and none is a default.
CONFIG = SPATConfig(eps=0.1, steps=1, mask=Mask(score="rms"), smoothing=0.2, bounds=(-1, 2))
ADVERSARIAL = {"monitor": "val_adv_accuracy", "mode": "max"}


class Recorder(callbacks.Callback):
    """Keeps the weights at the end of every step and epoch, and at the start of validation."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[list[np.ndarray]] = []
        self.epochs: list[list[np.ndarray]] = []
        self.validated: list[list[np.ndarray]] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps.append(self.model.base.get_weights())

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.epochs.append(self.model.base.get_weights())

    def on_test_begin(self, logs: Any = None) -> None:
        self.validated.append(self.model.base.get_weights())


class Accuracy(callbacks.Callback):
    """Puts a val_adv_accuracy of our choice into the logs, before the callbacks that follow."""

    values = (0.2, 0.6, 0.4, 0.5, 0.9)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        assert 0 <= logs["val_adv_accuracy"] <= 1  # the real one is there
        logs["val_adv_accuracy"] = self.values[epoch]


def momentum() -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(0.1, momentum=0.9)


def train(*used: callbacks.Callback, epochs: int = 2, **arguments: Any) -> SPATModel:
    model = spat(config=CONFIG, optimizer=momentum())
    fit(model, epochs=epochs, callbacks=list(used), validation_data=arrays(1), **arguments)
    return model


def equal(first: list[np.ndarray], second: list[np.ndarray], atol: float = 0.0) -> bool:
    return all(np.allclose(a, b, rtol=0, atol=atol) for a, b in zip(first, second, strict=True))


def test_early_stopping_follows_the_adversarial_accuracy() -> None:
    recorder = Recorder()
    stopping = callbacks.EarlyStopping(**ADVERSARIAL, patience=2, restore_best_weights=True)
    model = train(Accuracy(), recorder, stopping, epochs=5)
    assert stopping.stopped_epoch == 3  # two epochs after the one with 0.6
    assert len(recorder.epochs) == 4
    assert equal(model.base.get_weights(), recorder.epochs[1])
    assert not equal(model.base.get_weights(), recorder.epochs[3])


@pytest.mark.parametrize(
    "make",
    [
        lambda path: callbacks.EarlyStopping("val_adv_accuracy"),
        lambda path: callbacks.ModelCheckpoint(path, "adv_accuracy", save_best_only=True),
        lambda path: callbacks.ReduceLROnPlateau("val_adv_accuracy"),
    ],
)
@eagerly()
def test_more_adversarial_accuracy_is_better(make: Any, tmp_path: Path) -> None:
    callback = make(tmp_path / "best.keras")
    train(callback)
    assert callback.monitor_op(0.6, 0.4)


@pytest.mark.parametrize("base", [network, subclassed])
def test_export_after_fit(base: Any, tmp_path: Path) -> None:
    model = spat(base())
    fit(model, epochs=1)
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(tmp_path / "served")
    found = served.serve(arrays()[0])
    np.testing.assert_allclose(found, model.predict(arrays()[0], verbose=0), rtol=1e-5)


def test_checkpoint_keeps_the_most_robust_model(tmp_path: Path) -> None:
    path, recorder = tmp_path / "best.keras", Recorder()
    checkpoint = callbacks.ModelCheckpoint(path, **ADVERSARIAL, save_best_only=True)
    model = train(Accuracy(), recorder, checkpoint, epochs=3)
    loaded = keras.models.load_model(path)
    assert isinstance(loaded, SPATModel)
    assert equal(loaded.base.get_weights(), recorder.epochs[1])
    assert not same(loaded, model)


def test_csv_logger_writes_the_history(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    history = train(callbacks.CSVLogger(path)).history.history
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) == {"epoch", *history}
    assert {"loss", "adv_accuracy", "stall_rate", "val_adv_accuracy"} <= set(history)
    for name, values in history.items():
        assert [float(row[name]) for row in rows] == pytest.approx(values)


class Interrupt(callbacks.Callback):
    """Breaks off in the middle of the second epoch."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.model.optimizer.iterations == 5:
            raise KeyboardInterrupt


def test_backup_resumes_at_the_epoch_as_if_nothing_had_happened(tmp_path: Path) -> None:
    uninterrupted, recorder = train(epochs=4), Recorder()
    with pytest.raises(KeyboardInterrupt):
        train(callbacks.BackupAndRestore(tmp_path / "backup"), Interrupt(), epochs=4)
    resumed = train(callbacks.BackupAndRestore(tmp_path / "backup"), recorder, epochs=4)
    assert len(recorder.epochs) == 3  # all but the one that had been finished
    assert same(resumed, uninterrupted)
    for name, value in resumed.history.history.items():
        assert value == uninterrupted.history.history[name][1:]
    ours, theirs = (
        [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
        for model in (resumed, uninterrupted)
    )
    assert equal(ours, theirs)  # with the states of the generators


def test_averaged_weights_are_swapped_in_for_validation() -> None:
    recorder, kept = Recorder(), 0.5
    model = spat(
        config=CONFIG, optimizer=keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=kept)
    )
    fit(model, validation_data=arrays(1), callbacks=[callbacks.SwapEMAWeights(), recorder])
    average = recorder.steps[0]  # where Keras' average begins
    for number, weights in enumerate(recorder.steps):
        average = [kept * a + (1 - kept) * w for a, w in zip(average, weights, strict=True)]
        if number == 2:
            assert equal(recorder.validated[0], average, 1e-6)
            assert not equal(recorder.validated[0], weights, 1e-4)
    assert equal(recorder.validated[1], average, 1e-6)
    assert len(recorder.steps) == 6


def normed() -> keras.Model:
    return network(layers.BatchNormalization(), layers.Dropout(0.5, seed=1), layers.Dense(CLASSES))


BASES = {
    "sequential": network,
    "functional": functional,
    "subclassed": subclassed,
    "normed": normed,
    "unbuilt": Subclassed,
}
OTHER = SPATConfig(norm="L2", loss="trades", eps=1, steps=3, mask=Mask(keep=0.3, classes=2))


@pytest.mark.parametrize("base", BASES)
@eagerly()
def test_a_saved_model_comes_back_and_trains_on(base: str, tmp_path: Path) -> None:
    x, y = arrays()
    model = spat(BASES[base](), CONFIG, optimizer=momentum(), metrics=["accuracy"])
    model.train_on_batch(x, y)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    assert loaded.config == CONFIG
    assert (loaded.seed, loaded.evaluation_steps) == (0, 2)
    assert same(loaded, model)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    if base == "normed":  # Keras itself saves no state of dropout
        loaded.base.layers[-2].seed_generator.state.assign(
            model.base.layers[-2].seed_generator.state
        )
    logs = [m.train_on_batch(x, y, return_dict=True) for m in (model, loaded)]
    assert logs[0] == logs[1]
    assert "accuracy" in logs[0]
    assert same(loaded, model)


@eagerly()
def test_weights_alone_come_back_with_the_state_of_the_generator(tmp_path: Path) -> None:
    (x, y), path = arrays(), tmp_path / "model.weights.h5"
    model, other = spat(config=CONFIG), spat(config=CONFIG, seed=5)
    model.train_on_batch(x, y)
    model.save_weights(path)
    other.load_weights(path)
    assert same(other, model)
    for each in (model, other):
        each.train_on_batch(x, y)
    assert same(other, model)


@pytest.mark.parametrize("config", [CONFIG, OTHER, SPATConfig(eps=np.float32(0.1))], ids=str)
def test_configuration_goes_round(config: SPATConfig) -> None:
    model = SPATModel(functional(), config, seed=3, evaluation_steps=7, name="robust")
    again = SPATModel.from_config(model.get_config())
    assert again.config == config
    assert (again.seed, again.evaluation_steps, again.name) == (3, 7, "robust")
    assert again.base.get_config() == model.base.get_config()
    assert again.evaluation_steps == model.evaluation_steps
    assert dataclasses.asdict(again.config) == dataclasses.asdict(config)


@pytest.mark.parametrize("base", ["sequential", "functional"])
def test_a_clone_has_the_settings_and_weights_of_its_own(base: str) -> None:
    model = spat(BASES[base](), OTHER, seed=4)
    clone = keras.models.clone_model(model)
    assert isinstance(clone, SPATModel)
    assert (clone.config, clone.seed, clone.evaluation_steps) == (OTHER, 4, 2)
    assert not {id(v) for v in clone.variables} & {id(v) for v in model.variables}
    clone.set_weights(model.get_weights())
    x = arrays()[0]
    np.testing.assert_array_equal(clone.predict(x, verbose=0), model.predict(x, verbose=0))


def test_summary_counts_the_weights_of_the_base(capsys: pytest.CaptureFixture[str]) -> None:
    model = spat(normed())
    model.base.layers[1].trainable = False
    model.summary()
    text = capsys.readouterr().out
    assert model.base.name in text
    size = math.prod(SHAPE) * 8 + 8
    total = size + (8 * CLASSES + CLASSES) + 4 * CLASSES + (CLASSES * CLASSES + CLASSES)
    assert f"Total params: {total}" in text
    assert f"Non-trainable params: {size + 2 * CLASSES}" in text


def test_keras_fit_stops_soon_after_a_bad_batch() -> None:
    (x, y), model = arrays(count=120), spat(network(), SPATConfig(eps=0.1, steps=1))
    y[7], begun = CLASSES, []
    count = callbacks.LambdaCallback(on_train_batch_end=lambda *_, **__: begun.append(1))
    with pytest.raises(DataError, match=r"^batch 8: y must"):
        model.fit(x, y, 1, 1, 0, [count], shuffle=False)
    assert len(begun) == 50
