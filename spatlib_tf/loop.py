"""What ``spatlib.train`` adds to Keras' own loop: a model for its step, a callback around it."""

import re
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from safetensors.numpy import load, save

from spatlib.config import lr_factor, warmed_up
from spatlib.core.attack import Adversarial
from spatlib.data import length, pairs
from spatlib.engines import pack, unpack
from spatlib.errors import DataError, NonFiniteError, check_images, expect, require
from spatlib.monitor import MEANS, READ_EVERY, Monitor, check_repeated, show
from spatlib.runs import CHECKPOINT

from .attack import Draws, next_seed
from .batches import Cut, augment, scaled
from .model import SPATModel

NUMBER = re.compile(r"_(\d+)(?=/|$)")


class Trainer(SPATModel):
    """A SPATModel that scales and augments batches of the user's data; ordinary: without attack."""

    def __init__(self, monitor: Monitor, *own: Any) -> None:
        super().__init__(*own, seed=monitor.training.seed)
        self.kind, self.ordinary = monitor.training.augment, monitor.ordinary
        self.save = self.base.save  # by callbacks: this class is no one else's

    def train_step(self, data: Any) -> Any:
        (x, y, *weights), *_ = pairs([data])
        bounds, dtype = self.config.bounds, self.base.variable_dtype
        x = tf.cast(scaled(x, bounds, dtype), dtype)
        if self.kind != "none":
            check_images(x.shape)
            x = augment(x, self.kind, bounds[0], Draws(next_seed(self.seed_generator, x)))
        # A graph cannot raise: a loss that is not finite stops the training.
        weights = [tf.where(each >= 0, each, np.nan) for each in weights]
        return super().train_step((x, y, *weights))

    def _attack(self, x: Any, labels: Any) -> Adversarial:
        none = tf.zeros(tf.shape(x)[:1], x.dtype)
        clean = Adversarial(x, None, None, none, none)
        return clean if self.ordinary else super()._attack(x, labels)


class Loop(keras.callbacks.Callback):  # type: ignore[misc]  # keras ships no types
    """Sets the learning rate, moves the bar, keeps the rows, saves, stops where it has to."""

    def __init__(self, trainer: Trainer, data: Any, monitor: Monitor) -> None:
        super().__init__()
        self.trainer, self.base, self.config = trainer, trainer.base, trainer.config
        self.data, self.training, self.monitor = data, monitor.training, monitor
        self.optimizer: Any = trainer.optimizer
        self.optimizer.build(trainer.trainable_variables)
        self.rate = float(self.optimizer.learning_rate.numpy())
        self.state = [*trainer.variables, *self.optimizer.variables]  # all that a step depends on
        # Keras goes on counting from network to network: names without numbers, and their order.
        paths = [v.path for v in trainer.trainable_variables]
        keys = [(NUMBER.sub("", p), [*map(int, NUMBER.findall(p))]) for p in paths]
        self.trained = [[name for name, _ in keys], sorted(range(len(keys)), key=keys.__getitem__)]
        self.bar = monitor.progress(self.training.epochs * (length(data) or 0))
        self.step = 0  # steps begun; with data of unknown length perhaps one more
        self.history: list[dict[str, float]] = []
        self.good = self.base.get_weights()  # of the last whole epoch, averaged with ema

    def run(self) -> list[dict[str, float]]:
        """Go on from the checkpoint, if there is one, to the end."""
        content = self.monitor.checkpoint()
        if content is not None:
            meta = _put(self.state, content, CHECKPOINT)
            what = "train the variables with which the run began, in their order"
            require(meta["trained"] == self.trained, "model", what, self.trained)
            self.history, self.step = meta["history"], meta["step"]
            self.base.set_weights(self._average())
            check_repeated(lambda: pairs(self.data))
        self.monitor.begin(self.history)
        done = len(self.history)
        epochs = done if self.monitor.stopped(self.history) else self.training.epochs
        how = {"epochs": epochs, "initial_epoch": done, "shuffle": False, "verbose": 0}
        own = [*self.monitor.callbacks, self]
        with self.bar:  # SPATModel's own fit would check the first batch once more
            try:
                keras.Model.fit(self.trainer, self.data, callbacks=own, **how)
            except DataError:  # the network then has the weights of the last whole epoch
                self.base.set_weights(self.good)
                raise
        return self.history

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.began = time.perf_counter()
        if isinstance(self.data, Cut):
            self.data.begin(epoch)
        self.trainer.config = warmed_up(self.config, self.training.eps_warmup, epoch)

    # Not on_train_batch_end: for it Keras reads the logs, and so waits for the device, each time.
    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.bar.update(self.step - self.bar.n)
        self.monitor.save(None)  # obeys a signal
        if self.step % READ_EVERY == 0:
            self._require_finite(float(self.trainer.get_metrics_result()["loss"]))
        if self.training.schedule != "constant":
            factor = lr_factor(self.training.schedule, self.step, self.bar.total)
            self.optimizer.learning_rate = self.rate * factor
        self.step += 1

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        # A gradient may have been infinite although the loss was not.
        self._require_finite(logs["loss"], *self.base.get_weights())
        row = {"epoch": epoch + 1, **{name: logs[name] for name in MEANS}}
        rate = float(self.optimizer.learning_rate.numpy())
        self.history.append(row | {"lr": rate, "seconds": time.perf_counter() - self.began})
        raw = self._average()
        averaged = partial(_packed, self.good) if self.training.ema else None
        try:
            self.monitor.epoch(self.history, self.base, partial(_packed, raw), averaged)
        finally:
            self.base.set_weights(raw)
        show(self.bar, self.step, self.history[-1])
        self.trainer.stop_training |= self.monitor.stopped(self.history)
        if self.monitor.run is not None:  # here only: Keras cannot resume inside an epoch
            meta = {"history": self.history, "step": self.step, "trained": self.trained}
            self.monitor.save(_packed(self.state, meta))

    def _require_finite(self, *values: Any) -> None:
        if not all(np.isfinite(value).all() for value in values):
            raise NonFiniteError(self.step, self.history)

    def _average(self) -> list[np.ndarray]:
        """Give the network its averaged weights, if there are any, and return what it had."""
        raw: list[np.ndarray] = self.base.get_weights()
        self.optimizer.finalize_variable_values(self.trainer.trainable_variables)
        self.good = self.base.get_weights()
        return raw


def weights(model: keras.Model) -> bytes:
    """All weights, as the content of a safetensors file; of a SPATModel, those of its base."""
    return b"".join(_packed(model.weights))


def load_weights(model: keras.Model, content: bytes, source: str = "weights") -> None:
    """Put back what :func:`weights` gave, into a model of the same architecture."""
    _put(model.weights, content, source)


def _packed(values: Sequence[Any], meta: Any = None) -> Iterator[bytes]:
    """Arrays or variables by position: names may repeat, and change from process to process."""
    arrays = {str(i): np.asarray(value) for i, value in enumerate(values)}
    return pack(save, np.empty, np.ndarray.tobytes, arrays, meta)


def _put(variables: Sequence[Any], content: bytes, source: str) -> Any:
    """Assign what :func:`_packed` gave, return its meta; DataError if the shapes are others."""
    values, meta = unpack(load, content, source)
    named = {str(i): variable for i, variable in enumerate(variables)}
    fits = {k: tuple(v.shape) for k, v in named.items()} == {k: v.shape for k, v in values.items()}
    what = f"{source} must hold the {len(named)} arrays of this network (and its optimizer)"
    expect(fits, f"{what}, got {len(values)} others: build the model as it was trained")
    for name, variable in named.items():
        variable.assign(values[name])
    return meta
