"""What happens around Keras' own loop: learning rate, rows, checkpoints, stopping."""

from __future__ import annotations

import math
import time
from typing import Any

import keras
import safetensors.numpy

from spatlib import tensors
from spatlib.config import SPATConfig
from spatlib.errors import NonFiniteError
from spatlib.monitor import SHOWN, Monitor
from spatlib.run import CHECKPOINT
from spatlib.schedule import lr_factor, warmed_up
from spatlib.train_config import TrainConfig

from .checkpoint import base_of, named, put, weights
from .model import SPATModel


class Loop(keras.callbacks.Callback):  # type: ignore[misc]  # keras ships no types
    """Sets the learning rate, moves the bar, keeps the rows, saves, stops where it has to.

    Checkpoints are made at the end of an epoch: Keras cannot resume in the middle of one.
    """

    def __init__(
        self,
        trainer: keras.Model,
        config: SPATConfig,
        training: TrainConfig,
        total: int,
        bar: Any,
        monitor: Monitor,
    ) -> None:
        super().__init__()
        self.trainer, self.config, self.training, self.total = trainer, config, training, total
        self.bar, self.monitor = bar, monitor
        self.step, self.began = 0, 0.0
        self.history: list[dict[str, float]] = []
        content = monitor.checkpoint()
        if content is not None:
            self._restore(content)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.began = time.perf_counter()
        if isinstance(self.trainer, SPATModel):
            attack = warmed_up(self.config, self.training.eps_warmup, epoch)
            if attack != self.trainer.config:
                self.trainer.config = attack
                self.trainer.make_train_function(force=True)  # the graph holds eps as a constant

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        factor = lr_factor(self.training.schedule, self.step, self.total)
        self.trainer.optimizer.learning_rate = self.training.lr * factor

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.step += 1
        self.bar.update(1)
        if not math.isfinite(logs["loss"]):
            raise NonFiniteError.at(self.step, self.history)
        if self.monitor.signal is not None:
            self.monitor.save(None)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        values = {name: float(logs.get(name, math.nan)) for name in ("loss", "adv_accuracy")}
        self.history.append(
            {
                "epoch": epoch + 1,
                **values,
                "stall_rate": float(logs.get("stall_rate", 0.0)),
                "lr": float(self.trainer.optimizer.learning_rate),
                "seconds": time.perf_counter() - self.began,
            }
        )
        base, trainable = base_of(self.trainer), self.trainer.trainable_variables
        last = weights(base)
        if self.training.ema:
            raw = [keras.ops.copy(v.value) for v in trainable]
            self.trainer.optimizer.finalize_variable_values(trainable)  # to the average
            average = weights(base)
            self.monitor.epoch(self.history, base, lambda: last, lambda: average)
            for variable, value in zip(trainable, raw, strict=True):
                variable.assign(value)
        else:
            self.monitor.epoch(self.history, base, lambda: last)
        shown = {name: value for name, value in self.history[-1].items() if name in SHOWN}
        self.bar.set_postfix({name: f"{v:.3f}" for name, v in {**values, **shown}.items()})
        self.trainer.stop_training = self.monitor.stopped(self.history)
        if self.monitor.run is not None:
            meta = {"history": self.history, "step": self.step}
            self.monitor.save(tensors.pack(safetensors.numpy.save, named(self._state()), meta))

    def _state(self) -> list[Any]:
        """Every variable that the rest of the training depends on."""
        source = getattr(self.trainer, "seed_generator", None)
        states = [] if source is None else [source.state]
        return [*base_of(self.trainer).variables, *self.trainer.optimizer.variables, *states]

    def _restore(self, content: bytes) -> None:
        values, meta = tensors.unpack(safetensors.numpy.load, content, CHECKPOINT)
        self.trainer.optimizer.build(self.trainer.trainable_variables)
        put(self._state(), values, CHECKPOINT)
        self.history, self.step = meta["history"], meta["step"]
        self.monitor.resume(self.history)
        self.bar.update(self.step)
