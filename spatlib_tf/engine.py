"""The TensorFlow engine: ``spatlib.train(backend="tf")`` by way of ``SPATModel.fit``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from tqdm import tqdm

from spatlib.checks import check_images
from spatlib.config import SPATConfig
from spatlib.data import is_pair
from spatlib.errors import ConfigError, require_choice
from spatlib.monitor import Monitor
from spatlib.schedule import check_length
from spatlib.train_config import TrainConfig

from .batches import as_dataset, batches
from .checkpoint import load_weights, weights
from .evaluation import check, evaluate, keeping_graphs
from .examples import examples, logits
from .inputs import check_device, check_label_values, check_model, logits_of, prepare
from .loop import Loop
from .model import SPATModel
from .models import MODELS

__all__ = [
    "CHANNELS_FIRST",
    "build_model",
    "check",
    "evaluate",
    "examples",
    "fit",
    "load_weights",
    "logits",
    "weights",
]

CHANNELS_FIRST = False


def build_model(
    name: str, seed: int, *, shape: Sequence[int], classes: int, mean: Any, std: Any
) -> keras.Model:
    """See :class:`spatlib.backends.Engine`."""
    require_choice("model", name, MODELS)
    return MODELS[name](shape, classes, mean, std, seed=seed)


def fit(
    model: keras.Model,
    data: Any,
    config: SPATConfig,
    training: TrainConfig,
    label: str,
    monitor: Monitor | None = None,
    *,
    ordinary: bool = False,
) -> list[dict[str, float]]:
    """Train in place, return the history; see :func:`spatlib.train`."""
    check_device(training.device)
    if training.precision != "float32":
        raise ConfigError(
            f"precision must be 'float32' for tf, got {training.precision!r}: build the model "
            "under keras.mixed_precision.set_global_policy('mixed_bfloat16') instead"
        )
    check_model(model)
    dtype = model.variable_dtype
    # Training runs in a graph, where values cannot be checked: do it here.
    for x, y in batches(data, training.batch_size, config.bounds, dtype):
        x, y = prepare(x, y, config, validate=True)
        if training.augment != "none":
            check_images(x.shape)
        check_label_values(y, logits_of(model, x[:1]).shape[1])
    if not model.trainable_weights:
        raise ConfigError("model has no weights to train: set trainable on some of its layers")
    _, steps = as_dataset(data, training, config.bounds, dtype)
    total = training.epochs * (steps or 0)
    check_length(training.schedule, total)
    optimizer = keras.optimizers.SGD(
        training.lr,
        momentum=training.momentum,
        weight_decay=training.weight_decay or None,
        global_clipnorm=training.clip_grad_norm,
        use_ema=training.ema > 0,
        ema_momentum=training.ema,
    )
    xla = training.compile or "auto"  # auto: Keras compiles where there is a GPU
    if ordinary:
        trainer = model
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        accuracy = keras.metrics.SparseCategoricalAccuracy("adv_accuracy")  # no attack: on x
        trainer.compile(optimizer, loss=loss, metrics=[accuracy], jit_compile=xla)
    else:
        trainer = SPATModel(model, config, seed=training.seed)
        trainer.compile(optimizer, jit_compile=xla)
    hidden = None if training.progress else True  # None: shown in a terminal only
    bar = tqdm(total=total or None, desc=label, unit="step", leave=False, disable=hidden)
    with tf.device(training.device), keeping_graphs(), bar:
        loop = Loop(trainer, config, training, total, bar, monitor or Monitor(training))
        if loop.monitor.stopped(loop.history):
            optimizer.finalize_variable_values(trainer.trainable_variables)  # as fit does
        else:
            done = len(loop.history)
            dataset, _ = as_dataset(data, training, config.bounds, dtype, first=done)
            trainer.fit(
                dataset,
                epochs=training.epochs,
                initial_epoch=done,
                shuffle=False,
                steps_per_epoch=steps if is_pair(data) else None,
                verbose=0,
                callbacks=[loop],
            )
    return loop.history
