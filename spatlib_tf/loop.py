"""What ``spatlib.train`` adds to Keras' own loop: a model for its step, a callback around it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import safetensors.numpy
import tensorflow as tf

from spatlib.config import SPATConfig
from spatlib.core.attack import Adversarial
from spatlib.errors import DataError, NonFiniteError
from spatlib.monitor import SHOWN, Monitor
from spatlib.runs import CHECKPOINT, pack, unpack
from spatlib.training import TrainConfig, lr_factor, warmed_up

from .batches import Shuffled, augment, scaled
from .model import SPATModel
from .random import next_seed

Tensor = Any
READ_EVERY = 50  # steps between two looks at the loss, each of which waits for the device


class Trainer(SPATModel):
    """A SPATModel whose step takes batches of the user's data: it scales and augments them.

    ``ordinary`` leaves the attack out.
    """

    def __init__(
        self, base: keras.Model, config: SPATConfig, training: TrainConfig, ordinary: bool
    ) -> None:
        super().__init__(base, config, seed=training.seed)
        self.kind, self.ordinary = training.augment, ordinary

    def train_step(self, data: Any) -> Any:
        x, y = data
        bounds, dtype = self.config.bounds, self.base.variable_dtype
        x = tf.cast(scaled(x, bounds, dtype), dtype)
        if self.kind != "none":
            x = augment(x, self.kind, bounds[0], next_seed(self.seed_generator, x))
        return super().train_step((x, y))

    def _attack(self, x: Tensor, labels: Tensor) -> Adversarial:
        if not self.ordinary:
            return super()._attack(x, labels)
        none = tf.zeros(tf.shape(x)[:1], x.dtype)
        return Adversarial(x, None, None, none, none)


class Loop(keras.callbacks.Callback):  # type: ignore[misc]  # keras ships no types
    """Sets the learning rate, moves the bar, keeps the rows, saves, stops where it has to.

    Checkpoints are made at the end of an epoch: Keras cannot resume in the middle of one. There is
    no ``on_train_batch_end``: Keras would read the logs, and so wait for the device, at every step.
    """

    def __init__(
        self,
        trainer: Trainer,
        data: Any,
        training: TrainConfig,
        total: int,
        bar: Any,
        monitor: Monitor,
    ) -> None:
        super().__init__()
        self.trainer, self.base, self.config = trainer, trainer.base, trainer.config
        self.data, self.training, self.total = data, training, total
        self.bar, self.monitor = bar, monitor
        optimizer: Any = trainer.optimizer
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # of a LossScaleOptimizer
        self.rate = optimizer.get_config()["learning_rate"]
        self.step, self.began = 0, 0.0  # steps begun; with data of unknown length perhaps one more
        self.history: list[dict[str, float]] = []
        self.good = _named(self.base.weights)  # of the last whole epoch, averaged with ema
        content = monitor.checkpoint()
        if content is not None:
            self._restore(content)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.began = time.perf_counter()
        if isinstance(self.data, Shuffled):
            self.data.begin(epoch)
        attack = warmed_up(self.config, self.training.eps_warmup, epoch)
        if attack != self.trainer.config:
            self.trainer.config = attack
            self.trainer.make_train_function(force=True)  # the graph holds eps as a constant

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.bar.update(self.step - self.bar.n)
        if self.monitor.signal is not None:
            self.monitor.save(None)
        if self.step % READ_EVERY == 0:
            self._require_finite(float(self.trainer.get_metrics_result()["loss"]))
        if isinstance(self.rate, float):
            factor = lr_factor(self.training.schedule, self.step, self.total)
            self.trainer.optimizer.learning_rate = self.rate * factor
        self.step += 1

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        means = {name: logs[name] for name in ("loss", "adv_accuracy", "stall_rate")}
        raw = _named(self.base.weights)
        # A gradient may have been infinite although the loss was not.
        self._require_finite(means["loss"], *raw.values())
        self.history.append(
            {
                "epoch": epoch + 1,
                **means,
                "lr": float(self.trainer.optimizer.learning_rate),
                "seconds": time.perf_counter() - self.began,
            }
        )
        self._to_average()
        averaged = (lambda: _packed(self.good)) if self.training.ema else None
        self.monitor.epoch(self.history, self.base, lambda: _packed(raw), averaged)
        _put(self.base.weights, raw)
        self.bar.update(self.step - self.bar.n)
        row = self.history[-1]
        shown = [name for name in ("loss", "adv_accuracy", *SHOWN) if name in row]
        self.bar.set_postfix({name: f"{row[name]:.3f}" for name in shown})
        self.trainer.stop_training = self.monitor.stopped(self.history)
        if self.monitor.run is not None:
            meta = {"history": self.history, "step": self.step}
            self.monitor.save(_packed(_named(self._state()), meta))

    def _require_finite(self, *values: Any) -> None:
        """Raise unless all is finite; the network then has the weights of the last whole epoch."""
        if not all(np.isfinite(value).all() for value in values):
            _put(self.base.weights, self.good)
            raise NonFiniteError(self.step, self.history)

    def _to_average(self) -> None:
        """Give the network its averaged weights, if there is an average, and remember them."""
        self.trainer.optimizer.finalize_variable_values(self.trainer.trainable_variables)
        self.good = _named(self.base.weights)

    def _state(self) -> list[Any]:
        """Every variable that the rest of the training depends on."""
        return [*self.trainer.variables, *self.trainer.optimizer.variables]

    def _restore(self, content: bytes) -> None:
        values, meta = unpack(safetensors.numpy.load, content, CHECKPOINT)
        self.trainer.optimizer.build(self.trainer.trainable_variables)
        _put(self._state(), values, CHECKPOINT)
        self.history, self.step = meta["history"], meta["step"]
        raw = _named(self.base.weights)
        self._to_average()
        _put(self.base.weights, raw)
        self.monitor.resume(self.history)
        self.bar.update(self.step)


def weights(model: keras.Model) -> bytes:
    """All weights, as the content of a safetensors file; of a SPATModel, those of its base."""
    return _packed(_named(model.weights))


def load_weights(model: keras.Model, content: bytes, source: str = "weights") -> None:
    """Put back what :func:`weights` gave, into a model of the same architecture."""
    _put(model.weights, unpack(safetensors.numpy.load, content, source)[0], source)


def _named(variables: Sequence[Any]) -> dict[str, np.ndarray]:
    """The values by position: names may repeat, and change from one process to the next."""
    return {str(i): np.asarray(variable.numpy()) for i, variable in enumerate(variables)}


def _packed(values: Mapping[str, np.ndarray], meta: Any = None) -> bytes:
    return pack(safetensors.numpy.save, values, meta)


def _put(
    variables: Sequence[Any], values: Mapping[str, np.ndarray], source: str = "weights"
) -> None:
    """Assign what :func:`_named` gave; DataError if the shapes are those of another model."""
    mine = {str(i): tuple(variable.shape) for i, variable in enumerate(variables)}
    if mine != {name: value.shape for name, value in values.items()}:
        raise DataError(
            f"{source} must hold the {len(mine)} arrays of this architecture (in a checkpoint, of "
            f"its optimizer too), got {len(values)} others: build the model as it was trained"
        )
    for i, variable in enumerate(variables):
        variable.assign(values[str(i)])
