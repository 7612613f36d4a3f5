"""The TensorFlow engine: ``spatlib.train(backend="tf")`` by way of ``SPATModel.fit``."""

from __future__ import annotations

import math
import time
from typing import Any

import keras
import tensorflow as tf
from tqdm import tqdm

from spatlib.config import SPATConfig, TrainConfig
from spatlib.data import length
from spatlib.errors import ConfigError, NonFiniteError
from spatlib.schedule import lr_factor

from .batches import as_dataset, batches
from .evaluation import check, evaluate
from .inputs import check_device, check_label_values, logits_of, prepare
from .model import SPATModel
from .models import MODELS

__all__ = ["CHANNELS_FIRST", "build_model", "check", "evaluate", "fit"]

CHANNELS_FIRST = False


def build_model(recipe: str, seed: int) -> keras.Model:
    """The recipe's model, with initial weights fixed by the seed."""
    return MODELS[recipe](seed)


def fit(
    model: keras.Model, data: Any, config: SPATConfig | None, training: TrainConfig, label: str
) -> list[dict[str, float]]:
    """Train in place, return the history; see :func:`spatlib.train`."""
    check_device(training.device)
    for x, y in batches(data, training.batch_size):  # before training: it runs in a graph
        x, y = prepare(x, y, config or SPATConfig(), validate=True)
        check_label_values(y, logits_of(model, x[:1]).shape[1])
    if not model.trainable_weights:
        raise ConfigError("model", expected="weights to train", received="none",
                          fix="Set trainable on some of its layers.")  # fmt: skip
    dataset = as_dataset(data, training.batch_size, training.seed, model.variable_dtype)
    steps = length(dataset)
    if steps is None and training.schedule != "constant":
        raise ConfigError("schedule", expected="'constant' for data of unknown length",
                          received=repr(training.schedule),
                          fix="Set schedule='constant', or give the data a __len__.")  # fmt: skip
    optimizer = keras.optimizers.SGD(training.lr, momentum=training.momentum,
                                     weight_decay=training.weight_decay or None)  # fmt: skip
    if config is None:
        trainer = model
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        trainer.compile(optimizer, loss=loss)
    else:
        trainer = SPATModel(model, config, seed=training.seed)
        trainer.compile(optimizer)
    total = training.epochs * (steps or 0)
    with (
        tf.device(training.device),
        tqdm(total=total or None, desc=label, unit="step", leave=False,
             disable=None if training.progress else True) as bar,
    ):  # fmt: skip
        loop = _Loop(training, total, bar)
        trainer.fit(dataset, epochs=training.epochs, shuffle=False, verbose=0, callbacks=[loop])
    return loop.rows


class _Loop(keras.callbacks.Callback):  # type: ignore[misc]  # keras ships no types
    """Sets the learning rate, moves the bar, keeps the rows, stops at a loss that is not finite."""

    def __init__(self, training: TrainConfig, total: int, bar: Any) -> None:
        super().__init__()
        self.training, self.total, self.bar = training, total, bar
        self.step, self.began = 0, 0.0
        self.rows: list[dict[str, float]] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.began = time.perf_counter()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        factor = lr_factor(self.training.schedule, self.step, self.total)
        self.model.optimizer.learning_rate = self.training.lr * factor

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.step += 1
        self.bar.update(1)
        if not math.isfinite(logs["loss"]):
            error = NonFiniteError("loss", expected="a finite loss and gradient",
                                   received=f"NaN or infinity at step {self.step}",
                                   fix="The model holds the weights from before that step. "
                                   "Lower lr, or look at the data of that step.")  # fmt: skip
            error.history = self.rows
            raise error

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        values = {name: float(logs.get(name, math.nan)) for name in ("loss", "adv_accuracy")}
        self.rows.append({
            "epoch": epoch + 1, **values, "stall_rate": float(logs.get("stall_rate", 0.0)),
            "lr": float(self.model.optimizer.learning_rate),
            "seconds": time.perf_counter() - self.began,
        })  # fmt: skip
        self.bar.set_postfix({name: f"{value:.3f}" for name, value in values.items()})
